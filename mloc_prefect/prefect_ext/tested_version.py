"""Whether the installed Prefect is newer than the one with which this package is tested."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

_PINS = Path(__file__).parents[1] / "constraints" / "default.txt"


def newer_than_tested() -> str | None:
    """Return one line when Prefect is newer than the pinned one, with which all tests ran; else None."""
    installed, tested = metadata.version("prefect"), _pinned()
    if tested is None or _numbers(installed) <= _numbers(tested):
        return None
    return (
        f"Prefect {installed} is newer than {tested}, with which mloc-prefect is tested; if a run misbehaves: "
        f"pip install 'prefect=={tested}'"
    )


def _pinned() -> str | None:
    found = re.search(r"^prefect==(\S+)$", _PINS.read_text(), re.MULTILINE)
    return found[1] if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
