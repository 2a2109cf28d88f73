"""Curves of a training: what is kept, shown and drawn."""

from __future__ import annotations

import json
from pathlib import Path

from mloc_prefect.executors.training.metrics_file import (
    MetricsFile,
    draw_curve,
    last_numbers,
    numbers_in,
    progress_line,
    write_history,
)

HISTORY = [
    {"step": 1, "loss": 2.0, "learning_rate": 0.1},
    {"step": 2, "loss": 1.0, "learning_rate": 0.05},
    {"step": 2, "train_loss": 1.5, "train_runtime": 3.0},
]


def test_only_finite_numbers_are_kept() -> None:
    logs = {"loss": "0.5", "lr": 1e-4, "nan": float("nan"), "text": "x", "flag": True, "none": None, "step": 3}
    assert numbers_in(logs) == {"loss": 0.5, "lr": 1e-4, "step": 3}


def test_the_line_for_the_log() -> None:
    assert progress_line(2, 9, {"loss": 0.12345, "epoch": 1.0, "learning_rate": 5e-5}) == (
        "step 2 of 9: loss 0.1235, learning_rate 5e-05"
    )
    assert progress_line(2, 9, {"epoch": 1.0}) == "step 2 of 9"


def test_last_numbers_and_history(tmp_path: Path) -> None:
    assert last_numbers(HISTORY)["loss"] == 1.0
    file = write_history(tmp_path, HISTORY)
    assert [json.loads(line) for line in file.read_text().splitlines()] == HISTORY


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "deep" / "metrics.jsonl")
    metrics.write({"step": 1, "loss": 2.0})
    assert (tmp_path / "deep" / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    metrics.close()


def test_the_picture(tmp_path: Path) -> None:
    path = draw_curve(tmp_path, HISTORY, "a title")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert draw_curve(tmp_path / "none", [{"step": 1, "epoch": 1.0}], "nothing to draw") is None
