"""Metrics of a training: `metrics.jsonl` and a plot. Standard library only at import."""

from __future__ import annotations

import json
import math
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

CURVE = "curve.png"
_SHOWN = ("loss", "reward", "objective/scores", "rewards/accuracies", "objective/kl", "learning_rate", "lr")
_PANELS = (
    ("loss", ("loss", "loss/policy_avg", "loss/value_avg")),
    ("reward", ("reward", "objective/scores", "rewards/margins")),
    ("accuracy", ("rewards/accuracies", "mean_token_accuracy")),
    ("distance", ("kl", "objective/kl", "policy/approxkl_avg")),
    ("learning rate", ("learning_rate", "lr")),
)
_END = ("train_runtime", "train_loss")


class MetricsFile:
    """The metrics of one attempt, one JSON object per line, readable while it runs.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line and flush it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_finite(value: Any) -> bool:
    """Return whether a logged value is a finite number; some trainers write numbers as text."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return True  # no number


def numbers_in(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers that a trainer logged; some trainers write them as text."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number) and not isinstance(value, bool):
            found[name] = int(number) if isinstance(value, int) else number
    return found


def progress_line(step: int, total: int, numbers: Mapping[str, float]) -> str:
    """Return a log line such as `step 20 of 100: loss 0.431, learning_rate 4e-05`."""
    shown = ", ".join(f"{name} {numbers[name]:.4g}" for name in _SHOWN if name in numbers)
    return f"step {step} of {total}" + (f": {shown}" if shown else "")


def last_numbers(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last value of each number in a trainer's history."""
    found: dict[str, float] = {}
    for row in history:
        found |= numbers_in(row)
    return found


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> Path:
    """Write everything that the trainer logged, earlier attempts included, and return the file.

    Raises:
        ArtifactError: The file cannot be written.
    """
    path = folder / METRICS
    with atomic.stream(path) as file:
        for row in history:
            file.write(atomic.encode_json(numbers_in(row), indent=None))
    return path


def draw_curve(folder: Path, history: Sequence[Mapping[str, Any]], title: str) -> Path | None:
    """Plot loss, reward, accuracy, distance and learning rate over the steps, where they were logged.

    Returns:
        The image; None when nothing was logged, or matplotlib is not installed.

    Raises:
        ArtifactError: The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    panels = [(name, curves) for name, keys in _PANELS if (curves := _curves(history, keys))]
    if not panels:
        return None
    figure = Figure(figsize=(7, 2.1 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        for key, points in curves.items():
            marker = "o" if len(points) < 3 else None
            axes.plot([x for x, _ in points], [y for _, y in points], label=key, marker=marker, linewidth=1.2)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", frameon=False)
        if number == 1:
            axes.set_title(title, fontsize="medium")
        if number == len(panels):
            axes.set_xlabel("step")
    with atomic.stream(folder / CURVE) as file:
        figure.savefig(file, format="png", dpi=90)
    return folder / CURVE


def _curves(history: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        if any(name in row for name in _END):
            continue  # the summary at the end is not a point of a curve
        numbers = numbers_in(row)
        for key in keys:
            if key in numbers and "step" in numbers:
                found.setdefault(key, []).append((numbers["step"], numbers[key]))
    return found
