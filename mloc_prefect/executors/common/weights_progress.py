"""Reports the progress of loading weights with transformers."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHOW_SECONDS = 0.5


@contextmanager
def weights_progress(on_phase: Callable[[str, float | None], None]) -> Iterator[None]:
    """Report the progress bars of the library in the block as phases."""
    from transformers.utils import logging

    class Bar:
        """The part of tqdm that the loader uses."""

        def __init__(self, iterable: Any = None, total: float | None = None) -> None:
            self.iterable = iterable
            self.total = total if total is not None else len(iterable) if hasattr(iterable, "__len__") else None
            self.n = 0.0
            self.shown_at = time.monotonic()

        def __iter__(self) -> Iterator[Any]:
            for item in self.iterable:
                yield item
                self.update(1)

        def update(self, n: float = 1) -> None:
            self.n += n
            if self.total and time.monotonic() - self.shown_at >= _SHOW_SECONDS:
                self.shown_at = time.monotonic()
                on_phase("loading weights", min(1.0, self.n / self.total))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *_args, **_kwargs: None  # close, set_description, refresh, ...

    def make(_factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bar:
        return Bar(args[0] if args else kwargs.get("iterable"), kwargs.get("total"))

    before = logging.set_tqdm_hook(make)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
