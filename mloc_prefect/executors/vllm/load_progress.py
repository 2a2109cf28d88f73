"""Reports what vLLM does while it loads, read from its log, because it has no other interface."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOG_PHASES = (
    ("Starting to load model", "loading weights", 0.0),
    ("Loading weights took", "loading weights", 1.0),
    ("torch.compile", "compiling", None),
    ("KV cache size", "reserving the key-value cache", None),
    ("Capturing", "capturing CUDA graphs", None),
    ("init engine", "engine is ready", None),
)


@contextmanager
def loading_phases(on_phase: Callable[[str, float | None], None]) -> Iterator[None]:
    """Report the steps of the engine start in the block."""
    from vllm.model_executor.model_loader import weight_utils

    on_phase("starting vLLM", None)
    logger = logging.getLogger("vllm")
    handler = _PhaseHandler(on_phase)
    bar, level = weight_utils.tqdm, logger.level
    weight_utils.tqdm = _shard_bar(bar, on_phase)
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        weight_utils.tqdm = bar


class _PhaseHandler(logging.Handler):
    def __init__(self, on_phase: Callable[[str, float | None], None]) -> None:
        super().__init__(logging.INFO)
        self._on_phase = on_phase

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for sign, phase, fraction in _LOG_PHASES:
            if sign in text:
                self._on_phase(phase, fraction)
                return


def _shard_bar(original: Any, on_phase: Callable[[str, float | None], None]) -> Any:
    """Return vLLM's progress bar over weight files, extended to report how many have been read."""

    class Bar(original):  # type: ignore[misc]  # a class known at run time only
        def __iter__(self) -> Iterator[Any]:
            for count, shard in enumerate(super().__iter__()):
                if self.total:
                    on_phase("loading weights", count / self.total)
                yield shard

    return Bar
