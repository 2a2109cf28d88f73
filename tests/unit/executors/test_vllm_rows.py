"""What becomes of the answers of vLLM, which an engine may also end without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.vllm.engine_loop import EngineAnswer
from mloc_prefect.executors.vllm.vllm_rows import VllmRows
from mloc_prefect.executors.vllm.vllm_sampling import VllmSampling
from tests.unit.executors.test_row_recorder import Attempt

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = {"response_schema": {"type": "object", "properties": {}}}


def rows_of(folder: Path, *answers: tuple[str, str | None], **inference: Any) -> tuple[VllmRows, Attempt]:
    attempt = Attempt(folder)
    sampling = VllmSampling.of(SpecReader(inference))
    rows = VllmRows(None, None, attempt.task, sampling, None, attempt.context)  # type: ignore[arg-type]
    outputs = [SimpleNamespace(text=t, token_ids=[1], finish_reason=r, logprobs=None) for t, r in answers]
    rows._record(EngineAnswer(0, SimpleNamespace(prompt_token_ids=[1], outputs=outputs)))
    return rows, attempt


@pytest.mark.parametrize("reason", ["error", "abort"])
@pytest.mark.parametrize("structured", [False, True])
def test_a_row_that_the_engine_gives_up_fails_with_its_reason(tmp_path: Path, reason: str, structured: bool) -> None:
    rows, attempt = rows_of(tmp_path, ("", reason), **(SCHEMA if structured else {}))
    lasting = structured and reason == "error"
    with pytest.raises(UserError if lasting else RuntimeError, match=f"row 10: .* finish_reason '{reason}'"):
        rows.check_failures()
    assert next(iter(attempt.task.result("vllm", {}, attempt.context)["items"]))["error"]


def test_one_of_several_answers_that_failed_fails_the_row(tmp_path: Path) -> None:
    rows, _ = rows_of(tmp_path, ("fine", "stop"), ("", "error"), n=2)
    with pytest.raises(RuntimeError, match="finish_reason 'error'"):
        rows.check_failures()


@pytest.mark.parametrize(
    ("answer", "inference", "kept"),
    [
        (("", "stop"), {}, True),
        (("{}", "stop"), SCHEMA, True),
        (("", "length"), SCHEMA, True),
        ((" ", "stop"), SCHEMA, False),
        (("", "stop"), {"response_schema": {"regex": "a*"}}, True),
    ],
)
def test_an_empty_answer_is_one_unless_a_schema_forbids_it(
    tmp_path: Path, answer: tuple[str, str], inference: dict[str, Any], kept: bool
) -> None:
    rows, _ = rows_of(tmp_path, answer, **inference)
    if kept:
        rows.check_failures()
        return
    with pytest.raises(UserError, match="row 10: the answer of vLLM is empty, which response_schema does not allow"):
        rows.check_failures()
