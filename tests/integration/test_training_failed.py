"""What a training that failed leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.training import training_executor
from tests.support.hosts import read_json
from tests.support.tiny_model import save_tiny_model
from tests.support.training import SUMS, TrainingBench

DATA = {"rows": SUMS[:8], "prompt_column": "question", "response_column": "answer"}
STEP = {"steps": 1, "batch_size": 8, "save_strategy": "no", "save_model": False}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingBench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # barriers between threads cost more than this model's arithmetic
    return TrainingBench(tmp_path, save_tiny_model(tmp_path / "tiny"))


def test_the_keys_of_a_result_without_being_one(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt runs, and nothing lies where the results of tasks are looked for."""
    with monkeypatch.context() as patch:
        patch.setattr(training_executor, "train", _breaks)
        with pytest.raises(LookupError, match="the card has left"):
            bench("sft", DATA, training=STEP)
    task = bench.root / "task"
    failed = read_json(task / "attempts" / "1-1" / "failed.json")
    seconds = failed.pop("training_time_seconds")
    assert 0 <= seconds < 600
    assert failed == {
        "task_id": "task",
        "training_successful": False,
        "error_message": "LookupError: the card has left",
        "model_name": str(bench.model),
        "dataset_size": None,
        "output_dir": str(task),
        "checkpoints_dir": str(task / "checkpoints"),
        "resume_from_path": None,
    }
    assert [p.name for p in task.iterdir() if p.suffix == ".json"] == []
    result = bench("sft", DATA, training=STEP)
    assert (result["training_successful"], result["error_message"]) == (True, None)
    assert set(failed) < set(result)
    assert not (task / "attempts" / "1-2" / "failed.json").exists()


def test_mistakes_are_noted_and_cancellations_are_none(bench: TrainingBench) -> None:
    with pytest.raises(UserError) as told:
        bench("dpo", {"preferences": [{"prompt": "a", "chosen": "b", "rejected": "b"}]}, task="wrong", training=STEP)
    failed = read_json(bench.root / "wrong" / "attempts" / "1-1" / "failed.json")
    assert failed["error_message"] == str(told.value)
    assert "task_id" not in failed, "as in its result"
    bench.cancelled.set()
    with pytest.raises(Cancelled):
        bench("sft", DATA, task="unwanted", training=STEP)
    assert list((bench.root / "unwanted" / "attempts" / "1-1").iterdir()) == []


def test_a_place_that_takes_no_file_does_not_hide_the_failure(
    bench: TrainingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_place(*_: Any) -> None:
        (bench.root / "task" / "attempts" / "1-1").rename(bench.root / "gone")
        (bench.root / "task" / "attempts" / "1-1").touch()
        _breaks()

    monkeypatch.setattr(training_executor, "train", without_place)
    with pytest.raises(LookupError, match="the card has left"):
        bench("sft", DATA, training=STEP)


def _breaks(*_: Any) -> None:
    raise LookupError("the card has left")
