"""Whether the executor of a task type can run here, found out without importing its libraries."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef

_PROBE = "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
_PROBE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Lack:
    """Why an executor cannot run.

    Attributes:
        text: One line for people.
        fix: The command that helps, or None when only a newer version does.
        missing: Importable names that are not there.
    """

    text: str
    fix: str | None
    missing: tuple[str, ...] = ()


def lacks(executor: ExecutorRef, settings: MlocSettings) -> Lack | None:
    """Return what `executor` lacks in the interpreter that would run it, or None when it can run."""
    python = settings.python.get(executor.environment)
    if find_spec(executor.path.partition(":")[0]) is None:
        return Lack("this version validates and plans it, but has no executor for it", None)
    missing = missing_imports(executor.imports, python)
    if not missing:
        return None
    where = f"{python} has" if python else "this Python has"
    extra = f'"mloc-prefect[{executor.extra}]"' if executor.extra else " ".join(missing)
    command = f"{python} -m pip install" if python else "pip install"
    return Lack(f"{where} no {', '.join(missing)}", f"{command} {extra}", missing)


def missing_imports(names: tuple[str, ...], python: Path | None) -> tuple[str, ...]:
    """Return those of `names` that cannot be imported in `python` (None: here)."""
    if python is None:
        return tuple(name for name in names if find_spec(name) is None)
    return _probe(str(python.expanduser()), names)


@lru_cache
def _probe(python: str, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE, *names], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return names  # a broken interpreter has none of them; `doctor` reports it as such
    return tuple(done.stdout.split())
