"""What becomes of the rows of an attempt: journal, failures, progress."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import ExecutionRequest, UserError
from mloc_prefect.executors.common.inference_task import InferenceTask
from mloc_prefect.executors.common.prompt_data import Prompt, Prompts
from mloc_prefect.executors.common.rendering import RenderStyle
from mloc_prefect.executors.common.row_recorder import RowRecorder
from mloc_prefect.executors.sources.models_source import ModelLocation

if TYPE_CHECKING:
    from mloc_prefect.execution.protocol import ExecutionEvent


class Attempt:
    """One attempt at a task with four rows, of which the first is number 10 of the whole task."""

    def __init__(self, root: Path, *, allowed: int = 0, chat: bool = False) -> None:
        self.events: list[ExecutionEvent] = []
        prompts = Prompts([Prompt(text) for text in "abcd"])
        prompts.first = 10
        keys = [f"key-{text}" for text in "abcd"]
        self.task = InferenceTask(
            identifier="m",
            location=ModelLocation("m", "/m", "f"),
            adapter=None,
            style=RenderStyle(chat=chat),
            prompts=prompts,
            keys=keys,
            finished=set(),
            allowed_failures=allowed,
            export=None,
            why="it is the only one",
        )
        request = ExecutionRequest("t", "t", "inference", "", {}, str(root), str(root / "attempts" / "1-1"))
        self.context = ExecutionContext(request, self.events.append, threading.Event())
        self.rows = RowRecorder(self.task, self.context)

    def answer(self, index: int) -> None:
        self.rows.add_answer(index, f"answer {index}", "stop", read=2, written=3)


def test_answers_and_failures_are_in_the_result(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, allowed=1)
    for index in (2, 0, 3):
        attempt.answer(index)
    attempt.rows.add_failure(1, "too long")
    attempt.rows.report(tokens_in=6)
    attempt.rows.check_failures()
    assert [(e.kind, e.data) for e in attempt.events] == [
        ("log", {"message": "row 11: too long", "level": "warning"}),
        ("progress", {"done": 4, "total": 4, "tokens_in": 6}),
    ]
    result = attempt.task.result("fast", {"device": "cpu"}, attempt.context)
    items = list(result["items"])
    assert [(item["index"], item["output"], item.get("error")) for item in items] == [
        (10, "answer 0", None),
        (11, "", "too long"),
        (12, "answer 2", None),
        (13, "answer 3", None),
    ]
    assert list(result) == ["ok", "model", "items", "usage", "engine", "_summary"]
    assert result["usage"] == {"prompt_tokens": 6, "completion_tokens": 9, "total_tokens": 15, "num_requests": 4}
    assert result["engine"] == {"name": "fast", "why": "it is the only one"}
    assert result["_summary"] == {
        "engine": "fast",
        "why": "it is the only one",
        "device": "cpu",
        "rows": 4,
        "reused_rows": 0,
        "failed_rows": 1,
    }


@pytest.mark.parametrize(("retry_may_help", "error"), [(False, UserError), (True, RuntimeError)])
def test_too_many_failures_are_one_error(tmp_path: Path, retry_may_help: bool, error: type[Exception]) -> None:
    attempt = Attempt(tmp_path, allowed=3)
    for index in (3, 1, 0, 2):
        attempt.rows.add_failure(index, f"problem {index}")
    attempt.rows.retry_may_help = retry_may_help
    with pytest.raises(error) as caught:
        attempt.rows.check_failures()
    assert str(caught.value) == (
        "4 of 4 rows failed (inference.max_failed_rows is 3): row 10: problem 0; row 11: problem 1; row 12: problem 2; "
        f"and 1 more. The other rows are kept in {tmp_path / 'attempts' / '1-1'}"
    )
