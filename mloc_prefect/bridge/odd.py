"""One odd thing, an event that nobody expected say, must not keep its neighbours from being handled."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.errors import FencedError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Tell in one line what goes wrong in the block, and go on behind it; at level DEBUG with its traceback.

    Args:
        what: What the block handles, for the log.

    Raises:
        StoreError: The store cannot be reached: that is nobody's own fault, and the block is to be done again.
        FencedError: This bridge is not the active one any more.
        httpx.HTTPError: The API does not answer.
    """
    try:
        yield
    except (StoreError, FencedError, httpx.HTTPError):
        raise
    except Exception as error:  # boundary: what an odd one does to us is its own affair
        kind, full = type(error).__name__, _log.isEnabledFor(logging.DEBUG)
        _log.error("%s could not be handled: %s: %s", what, kind, error, exc_info=full)
