"""Result files, lines on the wire, and the events of a context."""

from __future__ import annotations

import json
import threading
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import Cancelled, ExecutionEvent, ExecutionRequest
from mloc_prefect.execution.result_file import summary_of, write_result
from mloc_prefect.execution.wire import decode, dumps, encode, json_ready


class Scalar:
    """As numpy and torch have them."""

    ndim = 0

    def item(self) -> float:
        return 1.5


class TestResult:
    def test_iterators_become_arrays(self, tmp_path: Path) -> None:
        result = {
            "ok": True,
            "items": ({"index": n} for n in range(3)),
            "none": iter(()),
            "children": {"a": {"items": iter([1, 2])}},
            "_summary": {"rows": 3},
        }
        path = write_result(tmp_path, result)
        assert json.loads(path.read_text()) == {
            "ok": True,
            "items": [{"index": 0}, {"index": 1}, {"index": 2}],
            "none": [],
            "children": {"a": {"items": [1, 2]}},
        }
        assert [p.name for p in tmp_path.iterdir()] == ["result.json"]

    def test_is_read_while_rows_are_made(self, tmp_path: Path) -> None:
        def rows() -> Any:
            yield {"index": 0}
            raise RuntimeError("the second row fails")

        with pytest.raises(RuntimeError):
            write_result(tmp_path, {"items": rows()})
        assert not (tmp_path / "result.json").exists()

    def test_values_without_a_json_form_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"^result\.usage\.a: set has no JSON form$"):
            write_result(tmp_path, {"usage": {"a": {1, 2}}})
        with pytest.raises(TypeError, match=r"^result\.items\[1\]: object has no JSON form$"):
            write_result(tmp_path, {"items": iter([1, object()])})

    def test_summary(self) -> None:
        result = {"ok": True, "model": "m", "usage": {"n": 1}, "items": iter(()), "_summary": {"engine": "e"}}
        assert summary_of(result) == {"model": "m", "usage": {"n": 1}, "engine": "e"}
        assert summary_of({}) == {}
        assert "left out" in summary_of({"model": "m" * 300_000})["note"]


class TestWire:
    def test_numbers_that_json_does_not_know_become_null(self) -> None:
        assert json.loads(dumps({"loss": [float("nan"), (float("inf"), 1.0)]})) == {"loss": [None, [None, 1.0]]}

    def test_paths_and_scalars(self) -> None:
        assert json.loads(dumps({"path": Path("/a"), "loss": Scalar()})) == {"path": "/a", "loss": 1.5}

    def test_values_of_data_files(self) -> None:
        zone = timezone(timedelta(hours=2))
        values = {
            "at": datetime(2024, 5, 6, 7, 8, 9, 10, zone),
            "day": date(2024, 5, 6),
            "time": time(7, 8),
            "took": timedelta(minutes=1, milliseconds=500),
            "price": Decimal("1.10"),
            "none": [Decimal("NaN"), float("nan")],
            "id": UUID(int=1),
            "raw": b"\xff\x00",
        }
        wanted = {
            "at": "2024-05-06T07:08:09.000010+02:00",
            "day": "2024-05-06",
            "time": "07:08:00",
            "took": 60.5,
            "price": "1.10",
            "none": [None, None],
            "id": "00000000-0000-0000-0000-000000000001",
            "raw": "/wA=",
        }
        assert json.loads(dumps(values)) == json_ready(values) == wanted
        assert json_ready({date(2024, 5, 6): {1: (True, None)}}) == {"2024-05-06": {"1": [True, None]}}
        with pytest.raises(TypeError, match="object has no JSON form"):
            json_ready([object()])

    def test_values_of_arrow_numpy_and_pandas(self) -> None:
        np, pa, pd = (pytest.importorskip(name) for name in ("numpy", "pyarrow", "pandas"))
        values = [np.int64(1), np.float32("nan"), np.array([[1, 2]]), np.datetime64("2024-05-06T07:08:09", "ns")]
        values += [np.datetime64("NaT"), pa.scalar(Decimal("1.5")), pd.Timestamp("2024-05-06"), pd.NaT]
        wanted = [1, None, [[1, 2]], "2024-05-06T07:08:09.000000000", None, "1.5", "2024-05-06T00:00:00", None]
        assert json.loads(dumps(values)) == json_ready(values) == wanted

    def test_any_text_survives(self) -> None:
        text = "ä ✓ \u2028 \n \ud800 \x00"
        line = encode({"text": text})
        assert line.count(b"\n") == 1
        assert decode(line) == {"text": text}

    @pytest.mark.parametrize("line", [b"", b"[]", b"1", b"{"])
    def test_lines_that_are_no_messages(self, line: bytes) -> None:
        with pytest.raises(ValueError, match=r".+"):
            decode(line)


class TestContext:
    def test_progress_is_bounded_and_the_last_always_comes(self, tmp_path: Path, monkeypatch) -> None:
        clock = [100.0]
        monkeypatch.setattr("time.monotonic", lambda: clock[0])
        context, events, _ = make_context(tmp_path)
        for done in range(1, 1001):
            clock[0] += 0.001
            context.progress(done, 1000, tokens_out=done * 2)
        assert 10 <= len(events) <= 12
        assert events[-1].data == {"done": 1000, "total": 1000, "tokens_out": 2000}

    def test_progress_held_back_is_sent_at_the_end(self, tmp_path: Path) -> None:
        context, events, _ = make_context(tmp_path)
        for done in (1, 2, 3):
            context.progress(done, None)
        context.flush()
        context.flush()
        assert [event.data["done"] for event in events] == [1, 3]

    def test_events(self, tmp_path: Path) -> None:
        context, events, _ = make_context(tmp_path)
        context.log("hello", level="warning")
        context.log("x" * 20_000)
        context.metric(loss=0.5)
        context.phase("loading weights", 0.25)
        context.phase("warming up")
        assert [(event.kind, event.data) for event in events[:1] + events[2:]] == [
            ("log", {"message": "hello", "level": "warning"}),
            ("metric", {"loss": 0.5}),
            ("phase", {"text": "loading weights", "fraction": 0.25}),
            ("phase", {"text": "warming up"}),
        ]
        assert events[1].data["message"].endswith("(20000 characters)")

    def test_cancellation(self, tmp_path: Path) -> None:
        context, _, cancelled = make_context(tmp_path)
        context.check()
        assert not context.cancelled
        cancelled.set()
        assert context.cancelled
        with pytest.raises(Cancelled):
            context.check()
        with pytest.raises(Cancelled):
            context.sleep(300)


def make_context(root: Path) -> tuple[ExecutionContext, list[ExecutionEvent], threading.Event]:
    request = ExecutionRequest(
        task_id="t",
        name="t",
        task_type="echo",
        executor="x:Y",
        spec={},
        task_dir=str(root),
        attempt_dir=str(root / "attempts" / "1-1"),
    )
    events: list[ExecutionEvent] = []
    cancelled = threading.Event()
    return ExecutionContext(request, events.append, cancelled), events, cancelled
