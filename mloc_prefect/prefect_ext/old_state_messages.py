"""State messages by which the version before this one decided: read for one release, so that its stored runs continue.

The only module that compares a state message. Codes are in `state_reasons`; this module goes with the next release.
"""

from __future__ import annotations

import re

_FORMS = (
    ("committed", re.compile(r"result committed.*", re.DOTALL)),
    ("not-run", re.compile(r"not run:.*", re.DOTALL)),
    ("worker-stopped", re.compile(r"its worker was stopped")),
    ("worker-lost", re.compile(r"worker (.+) was lost")),
    ("claimed", re.compile(r"taken by (.+) \((.+)\)")),
)


def code_of_message(message: str | None) -> tuple[str, ...] | None:
    """Return the code, and the worker and its incarnation where it names them, of an old message; None for others."""
    for code, form in _FORMS:
        if found := form.fullmatch(message or ""):
            return code, *found.groups()
    return None
