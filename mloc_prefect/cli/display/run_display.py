"""Displays of a run: a live stage table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mloc_prefect.cli.display.console import Escaped, console_on, is_interactive
from mloc_prefect.cli.display.run_progress import RunProgress, StageView
from mloc_prefect.diagnostics.printable import printable
from mloc_prefect.execution.host.progress_meter import duration, rate_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from rich.console import Console, RenderableType

_MARKS = {"PENDING": ("·", "dim"), "RUNNING": ("▶", "bold cyan"), "WAITING": ("↻", "yellow"),
          "DONE": ("✓", "bold green"), "FAILED": ("✗", "bold red"), "CANCELLED": ("■", "yellow")}  # fmt: skip


class LiveDisplay:
    """A stage table that is redrawn in place."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress = RunProgress(clock=clock)
        self._console = console
        self._head = ""

    @contextmanager
    def showing(self) -> Iterator[LiveDisplay]:
        """Draw until the block ends; the last table remains on the screen."""
        with Live(
            get_renderable=self.render, console=self._console, refresh_per_second=8, redirect_stderr=False
        ) as live:
            yield self
            live.refresh()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text)

    def step(self, text: str) -> None:
        """Show a step of the preparation until the table appears."""
        self._head = text

    def render(self) -> RenderableType:
        """Return the current table."""
        progress = self.progress
        if not progress.stages:
            return Escaped(Text(f"… {self._head}", "cyan")) if self._head else Text()
        now = progress.clock()
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        units = {view.meter.unit for view in progress.stages.values() if view.meter.total} or {"rows"}
        counted = units.pop() if len(units) == 1 else ""  # with several units, each row names its own
        numbers = {counted or "done", "tokens/s", "ETA", "time"}
        for name in ("", "stage", "type", "state", counted or "done", "", "tokens/s", "ETA", "time"):
            table.add_column(name, no_wrap=True, justify="right" if name in numbers else "left")
        table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
        for view in progress.stages.values():
            table.add_row(*_cells(view, now, "" if counted else f" {view.meter.unit}"))
        return Escaped(Group(table))  # what is drawn in place does not pass the hook of the console


class PlainDisplay:
    """One timestamped line per event; progress at most every few seconds.

    Args:
        stream: The stream to write to.
        every: Minimum seconds between two progress lines of one stage.
        clock: Returns monotonic seconds.
        now: Returns the local time of day as text.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        self.progress = RunProgress(self._changed, clock=clock)
        self._stream = stream
        self._every = every
        self._now = now
        self._last: dict[str, float] = {}
        self._phase: dict[str, str] = {}

    @contextmanager
    def showing(self) -> Iterator[PlainDisplay]:
        """Do nothing: there is nothing to draw between the lines."""
        yield self

    def say(self, text: str) -> None:
        """Write one line with the time of day."""
        with suppress(BrokenPipeError):  # the reader has exited; the run continues
            self._stream.write(f"{self._now()}  {printable(text)}\n")
            self._stream.flush()

    def step(self, text: str) -> None:
        """Write a step of the preparation."""
        self.say(text)

    def _changed(self, key: str | None, what: str) -> None:
        if key is None or what in {"metric", "placed"}:
            return
        view = self.progress.stages[key]
        if what in {"progress", "phase", "waiting"} and not self._due(view, what):
            return
        self.say(f"{key}: {self._text_of(view, what)}")

    def _due(self, view: StageView, what: str) -> bool:
        """Return whether to write a line now: for a new phase, for the last row, or after the minimum time."""
        now = self.progress.clock()
        stem = view.note.rstrip("0123456789 %")
        first = what in {"phase", "waiting"} and self._phase.get(view.key) != stem
        last = what == "progress" and view.meter.done == view.meter.total
        if not (first or last) and now - self._last.get(view.key, -self._every) < self._every:
            return False
        self._phase[view.key] = stem
        self._last[view.key] = now
        return True

    def _text_of(self, view: StageView, what: str) -> str:
        now = self.progress.clock()
        if what == "started":
            return f"started {view.task_type}" if view.attempt == 1 else f"started, attempt {view.attempt}"
        if what == "progress":
            return view.meter.text(now)
        if what == "log":
            return self.progress.log
        if what == "ended":
            reason = f": {view.note}" if view.note else ""
            return f"{view.state} in {duration(view.elapsed(now))}{reason}"
        return view.note


def choose(stream: TextIO) -> LiveDisplay | PlainDisplay:
    """Return the live display if `stream` is an interactive terminal, otherwise the plain one."""
    if is_interactive(stream):
        return LiveDisplay(console_on(stream))
    return PlainDisplay(stream)


def _cells(view: StageView, now: float, unit: str) -> tuple[RenderableType, ...]:
    mark, style = _MARKS.get(view.state, ("?", ""))
    state = view.state if view.attempt < 2 else f"{view.state} #{view.attempt}"
    meter, running = view.meter, view.state == "RUNNING"
    bar: RenderableType = ProgressBar(total=meter.total, completed=meter.done, width=12) if meter.total else Text()
    eta = meter.eta(now) if running else None
    return (
        Text(mark, style),
        Text(view.key, "bold"),
        Text(view.task_type, "dim"),
        Text(state, style),
        Text(f"{meter.done}/{meter.total}{unit}" if meter.total else ""),
        bar,
        Text(_rates(view, now) if running else ""),
        Text("" if eta is None else duration(eta)),
        Text("" if view.started is None else duration(view.elapsed(now))),
        Text(view.note, "red" if view.state == "FAILED" else "dim"),
    )


def _rates(view: StageView, now: float) -> str:
    read, written = view.meter.rates(now)
    parts = ((read, "in"), (written, "out"))
    return " ".join(f"{rate_text(rate)} {way}" for rate, way in parts if rate is not None)
