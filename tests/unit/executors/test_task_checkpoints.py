"""Which checkpoint a later attempt goes on from."""

from __future__ import annotations

import json
from pathlib import Path

from mloc_prefect.executors.training.task_checkpoints import TaskCheckpoints, identity_of


def save(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * step)
    (path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "loss": 1.0}]}))
    return path


def checkpoints(folder: Path, identity: str = "a") -> TaskCheckpoints:
    found = TaskCheckpoints(folder, identity)
    found.prepare()
    return found


def test_the_last_whole_one_counts(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    for step in (5, 10):
        save(tmp_path, step)
        kept.complete(step)
    torn = save(tmp_path, 15)  # the process ended before its mark
    short = save(tmp_path, 20)
    kept.complete(20)
    (short / "model.safetensors").write_bytes(b"x")  # and this one lost a part
    resume = kept.prepare()
    assert resume is not None
    assert (resume.step, resume.path) == (10, tmp_path / "checkpoint-10")
    assert resume.history() == [{"step": 10, "loss": 1.0}]
    assert (torn.exists(), short.exists()) == (False, False), "what nobody can use goes away"
    assert (kept.has(10), kept.has(15)) == (True, False)


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert TaskCheckpoints(tmp_path / "new", "a").prepare() is None


def test_those_of_another_training_are_removed(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, "a")
    save(tmp_path, 5)
    kept.complete(5)
    assert TaskCheckpoints(tmp_path, "b").prepare() is None
    assert not (tmp_path / "checkpoint-5").exists()
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (tmp_path / "checkpoint-7").symlink_to(outside)
    TaskCheckpoints(tmp_path, "c").prepare()
    assert outside.is_dir(), "links are left alone"


def test_what_makes_a_training_the_same() -> None:
    spec = {"training": {"steps": 5}, "data": {"prompts": ["x"]}, "resources": {"replicas": 1}}
    one = identity_of("sft", spec, "weights")
    moved = {**spec, "resources": {"replicas": 2}, "output": {"destination": {"type": "http"}}, "timeoutSec": 5}
    assert identity_of("sft", moved, "weights") == one
    for other in (
        identity_of("dpo", spec, "weights"),
        identity_of("sft", spec, "others"),
        identity_of("sft", {**spec, "training": {"steps": 6}}, "weights"),
    ):
        assert other != one
