"""Number of rounds of repeated tests: few in `make test`, many in `make soak` (MLOC_SOAK=1)."""

from __future__ import annotations

import os

# Read once, because tests change the environment.
_WANTED = dict(part.split("=", 1) for part in os.environ.get("MLOC_TEST_COUNTS", "").split(",") if "=" in part)
_SOAK = os.environ.get("MLOC_SOAK") == "1"

used: dict[str, int] = {}
"""Rounds of the tests that were collected, for the summary."""


def count(name: str, small: int, full: int) -> int:
    """Return the number of rounds of the test `name`.

    `MLOC_TEST_COUNTS=name=5,other=3` sets single ones; with `MLOC_SOAK=1` all others use `full`.
    """
    rounds = int(_WANTED[name]) if name in _WANTED else full if _SOAK else small
    used[name] = rounds
    return rounds
