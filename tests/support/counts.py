"""How often repeated tests repeat: few times in `make test`, many in `make soak` (MLOC_SOAK=1)."""

from __future__ import annotations

import os

# Read once: tests run with an environment of their own.
_WANTED = dict(part.split("=", 1) for part in os.environ.get("MLOC_TEST_COUNTS", "").split(",") if "=" in part)
_SOAK = os.environ.get("MLOC_SOAK") == "1"

used: dict[str, int] = {}
"""Rounds of the tests that were collected, for the summary."""


def count(name: str, small: int, full: int) -> int:
    """Return the number of rounds of the test `name`.

    `MLOC_TEST_COUNTS=name=5,other=3` sets single ones, `MLOC_SOAK=1` takes `full` for all others.
    """
    rounds = int(_WANTED[name]) if name in _WANTED else full if _SOAK else small
    used[name] = rounds
    return rounds
