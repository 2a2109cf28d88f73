"""The run observer and its two displays, with a clock that the test moves."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from mloc_prefect.cli.display.console import console_on, say
from mloc_prefect.cli.display.run_display import LiveDisplay, PlainDisplay, choose
from mloc_prefect.cli.display.run_progress import RunProgress
from mloc_prefect.cli.error_boundary import show_error
from mloc_prefect.diagnostics.diagnostic import Diagnostic
from mloc_prefect.diagnostics.printable_logging import PrintableFormatter, log_printable
from mloc_prefect.errors import MlocError, SpecError
from mloc_prefect.execution.host.progress_meter import ProgressMeter, duration
from mloc_prefect.execution.protocol import ExecutionEvent


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


PLAN = SimpleNamespace(
    name="pair",
    stages=(
        SimpleNamespace(key="a", node="a", task_type="echo"),
        SimpleNamespace(key="b", node="b", task_type="inference"),
    ),
)


def event(kind, **data):
    return ExecutionEvent(kind, data, 0.0)


def outcome(key, status="DONE", error=None, *, reused=False):
    return SimpleNamespace(
        key=key, status=status, error=error, reused=reused, result_path=None, summary={}, task_id="t", node=key
    )


def started(clock):
    progress = RunProgress(clock=clock)
    progress.run_started("run-1", PLAN, {"a": "id-a", "b": "id-b"})
    return progress


def test_rates_and_eta_count_from_the_first_progress_of_the_attempt():
    clock = Clock()
    progress = started(clock)
    progress.stage_started("b", 1)
    clock.now += 50  # loading does not count
    progress.stage_event("b", event("progress", done=20, total=200, tokens_out=0))
    view = progress.stages["b"]
    assert view.meter.eta(clock()) is None
    clock.now += 10
    progress.stage_event("b", event("progress", done=40, total=200, tokens_in=150, tokens_out=300))
    assert view.meter.rates(clock()) == (pytest.approx(15), pytest.approx(30))
    assert view.meter.eta(clock()) == pytest.approx(80)  # 20 rows in 10 s, 160 are left
    assert view.meter.text(clock()) == "40/200 rows, 15 tokens/s in, 30 out, about 1:20 left"
    assert view.elapsed(clock()) == 60


def test_trainings_count_steps():
    clock = Clock()
    display = LiveDisplay(Console(file=io.StringIO()), clock=clock)
    progress = display.progress
    progress.run_started("run-1", PLAN, {})
    progress.stage_started("a", 1)
    progress.stage_event("a", event("progress", done=12, total=48, unit="steps"))
    assert progress.stages["a"].meter.text(clock()) == "12/48 steps"
    assert drawn(display).split()[3] == "steps"
    progress.stage_started("b", 1)
    progress.stage_event("b", event("progress", done=1, total=4))
    head, first, second = drawn(display).splitlines()
    assert head.split()[3] == "done"
    assert (" 12/48 steps " in first, " 1/4 rows " in second) == (True, True)


def test_no_eta_before_five_percent():
    clock = Clock()
    progress = started(clock)
    progress.stage_started("b", 1)
    progress.stage_event("b", event("progress", done=0, total=100))
    clock.now += 10
    progress.stage_event("b", event("progress", done=4, total=100))
    meter = progress.stages["b"].meter
    assert meter.eta(clock()) is None
    progress.stage_event("b", event("progress", done=5, total=100))
    assert meter.eta(clock()) == pytest.approx(190)


def test_an_engine_that_starts_again_within_an_attempt_is_measured_from_there():
    clock = Clock()
    progress = started(clock)
    progress.stage_started("b", 1)
    progress.stage_event("b", event("progress", done=0, total=100, tokens_out=0))
    clock.now += 10
    progress.stage_event("b", event("progress", done=50, total=100, tokens_out=500))
    clock.now += 100  # the engine died and was loaded again; its rows are kept
    progress.stage_event("b", event("progress", done=50, total=100, tokens_out=0))
    meter = progress.stages["b"].meter
    assert (meter.rates(clock()), meter.eta(clock())) == ((None, None), None)
    clock.now += 10
    progress.stage_event("b", event("progress", done=75, total=100, tokens_out=300))
    assert (meter.rates(clock())[1], meter.eta(clock())) == (pytest.approx(30), pytest.approx(10))


def test_a_retry_waits_then_starts_with_fresh_counts_and_keeps_the_time():
    clock = Clock()
    progress = started(clock)
    progress.stage_started("a", 1)
    progress.stage_event("a", event("progress", done=3, total=4, tokens_out=9))
    progress.stage_retry("a", 1, "killed by SIGKILL\nlog line", 10)
    view = progress.stages["a"]
    assert (view.state, view.note) == ("WAITING", "attempt 1 failed, next in 10 s: killed by SIGKILL")
    clock.now += 10
    progress.stage_started("a", 2)
    assert (view.state, view.attempt, view.meter) == ("RUNNING", 2, ProgressMeter())
    assert view.elapsed(clock()) == 10


def test_the_outcome_sets_state_and_note():
    progress = started(Clock())
    progress.stage_ended("a", outcome("a", "FAILED", "no such model\nmore"))
    progress.stage_ended("b", outcome("b", reused=True))
    assert (progress.stages["a"].state, progress.stages["a"].note) == ("FAILED", "no such model")
    assert (progress.stages["b"].state, progress.stages["b"].note) == ("DONE", "reused")


def plain_display(clock):
    stream = io.StringIO()
    display = PlainDisplay(stream, every=5, clock=clock, now=lambda: "12:00:00")
    display.progress.run_started("run-1", PLAN, {})
    return display, stream


def test_plain_lines_are_timestamped_and_throttled():
    clock = Clock()
    display, stream = plain_display(clock)
    progress = display.progress
    progress.stage_started("b", 1)
    for percent in range(0, 100, 10):
        clock.now += 0.1
        progress.stage_event("b", event("phase", text="loading weights", fraction=percent / 100))
    for done in range(101):
        clock.now += 0.1
        progress.stage_event("b", event("progress", done=done, total=100, tokens_out=done * 2))
    progress.stage_ended("b", outcome("b"))
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("12:00:00  b: ") for line in lines)
    texts = [line.removeprefix("12:00:00  b: ") for line in lines]
    assert texts[0] == "started inference"
    assert texts[1] == "loading weights 0 %"
    assert texts[-1] == "DONE in 11 s"
    assert texts[-2].startswith("100/100 rows, 20 tokens/s")
    assert "left" not in texts[-2]
    assert sum("rows" in t for t in texts) == 3  # 10 s of progress, one line in 5 s, and the last row
    assert sum("loading" in t for t in texts) == 1


def test_plain_lines_tell_retries_logs_and_failures():
    display, stream = plain_display(Clock())
    progress = display.progress
    progress.stage_started("a", 1)
    progress.stage_event("a", event("log", message="odd row"))
    progress.stage_event("a", event("metric", loss=1.0))
    progress.stage_retry("a", 1, "killed", 5)
    progress.stage_started("a", 2)
    progress.stage_ended("a", outcome("a", "FAILED", "killed"))
    texts = [line.removeprefix("12:00:00  ") for line in stream.getvalue().splitlines()]
    assert texts == [
        "a: started echo",
        "a: odd row",
        "a: attempt 1 failed, next in 5 s: killed",
        "a: started, attempt 2",
        "a: FAILED in 0.0 s: killed",
    ]


def drawn(display):
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(display.render())
    return console.file.getvalue()


def test_the_live_table_has_one_line_a_stage_with_all_it_knows():
    clock = Clock()
    display = LiveDisplay(Console(file=io.StringIO()), clock=clock)
    display.step("starting the local runtime")
    assert "starting the local runtime" in drawn(display)
    progress = display.progress
    progress.run_started("run-1", PLAN, {})
    progress.stage_ended("a", outcome("a"))
    progress.stage_started("b", 2)
    progress.stage_event("b", event("progress", done=0, total=40, tokens_in=0, tokens_out=0))
    clock.now += 20
    progress.stage_event("b", event("progress", done=10, total=40, tokens_in=400, tokens_out=100))
    head, first, second = drawn(display).splitlines()
    assert head.split() == ["stage", "type", "state", "rows", "tokens/s", "ETA", "time"]
    assert first.split()[:4] == ["✓", "a", "echo", "DONE"]
    assert second.split()[:6] == ["▶", "b", "inference", "RUNNING", "#2", "10/40"]
    assert second.split()[-7:] == ["20", "in", "5.0", "out", "1:00", "20", "s"]


def test_a_phase_is_shown_in_the_table():
    display = LiveDisplay(Console(file=io.StringIO()), clock=Clock())
    display.progress.run_started("run-1", PLAN, {})
    display.progress.stage_started("b", 1)
    display.progress.stage_event("b", event("phase", text="loading weights", fraction=0.4))
    assert "loading weights 40 %" in drawn(display)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_display_follows_the_stream(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose(Terminal()), LiveDisplay)
    assert isinstance(choose(io.StringIO()), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose(Terminal()), PlainDisplay)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (12.9, "12 s"), (185, "3:05"), (3723, "1:02:03"), (59.99, "59 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_reader_that_has_gone_does_not_end_the_run():
    class Closed(io.StringIO):
        def write(self, _text):
            raise BrokenPipeError

    display = PlainDisplay(Closed())
    display.say("nobody hears it")
    assert display.progress.stages == {}


HOSTILE = "a\x1b[2J\u202e\x9bz"


def test_names_and_logs_of_others_are_shown_not_obeyed():
    """In the live table, in lines above it, and in plain lines; colours of our own stay."""
    clock, out = Clock(), io.StringIO()
    console = console_on(out)
    console._force_terminal = True
    live = LiveDisplay(console, clock=clock)
    plan = SimpleNamespace(name="pair", stages=(SimpleNamespace(key=HOSTILE, node="a", task_type=HOSTILE),))
    live.progress.run_started("run-1", plan, {HOSTILE: "id-a"})
    with live.showing():
        live.say(HOSTILE)
    plain = io.StringIO()
    PlainDisplay(plain).say(HOSTILE)
    for text in (out.getvalue(), plain.getvalue()):
        assert "a\\x1b[2J\\u202e\\x9bz" in text
        assert not {"\x1b[2J", "\u202e", "\x9b"} & {text[at : at + n] for n in (1, 4) for at in range(len(text))}


def test_diagnostics_and_errors_are_shown_not_obeyed(capsys):
    show_error(MlocError(HOSTILE, hint=HOSTILE))
    show_error(SpecError([Diagnostic("f", 1, 1, "error", "code", HOSTILE, HOSTILE, HOSTILE, HOSTILE)]))
    say(HOSTILE)
    shown = capsys.readouterr()
    assert shown.err.count("\\x1b[2J") == 6
    assert shown.out == "a\\x1b[2J\\u202e\\x9bz\n"
    assert "\x1b" not in shown.err + shown.out


def test_log_records_of_any_logger_are_printable(caplog):
    before = logging.getLogRecordFactory()
    try:
        log_printable()
        logging.getLogger("some.library").warning("run %s", HOSTILE)
    finally:
        logging.setLogRecordFactory(before)
    assert "run a\\x1b[2J" in caplog.text
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "m", (), sys.exc_info())
    assert "\x1b" not in PrintableFormatter().format(record)
