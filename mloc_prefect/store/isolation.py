"""Isolates failures: one malformed message must not block the rest of the batch."""

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
def isolated(what: str) -> Iterator[None]:
    """Log an error of the block in one line and continue after the block; at level DEBUG with its traceback.

    Args:
        what: What the block handles, for the log.

    Raises:
        StoreError: The store cannot be reached: not the fault of the message, so the block must be repeated.
        FencedError: This bridge is no longer the active one.
        httpx.HTTPError: The API does not answer.
    """
    try:
        yield
    except (StoreError, FencedError, httpx.HTTPError):
        raise
    except Exception as error:  # boundary: a malformed message may raise anything
        kind, full = type(error).__name__, _log.isEnabledFor(logging.DEBUG)
        _log.error("%s could not be handled: %s: %s", what, kind, error, exc_info=full)
