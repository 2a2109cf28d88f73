"""What a training delivers: a folder with the weights, its archive, curves, and the result [protocol 5]."""

from __future__ import annotations

import errno
import re
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.archive import pack
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.failures import failure_of, one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.checkpoint_source import ADAPTER_CONFIG
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.training.metrics_file import draw_curve, last_numbers, write_history
from mloc_prefect.executors.training.task_checkpoints import REFERENCE
from mloc_prefect.tasks.training.training_table import DEFAULT_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.training.recipe import Recipe, TrainingJob

FAILED = "failed.json"
"""Written to the folder of an attempt that failed."""

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK_FULL_TEXT = re.compile(
    r"No space left|Disk quota exceeded|File too large|unexpected pos \d+ vs|file write failed"
)
_SAVE_PATIENCE = 60.0  # seconds that saving may continue after a cancellation
_PHASE_SECONDS = 0.5
_SHOWN = ("loss", "train_loss", "reward", "objective/scores", "rewards/accuracies", "objective/kl")


def save_weights(job: TrainingJob, trainer: Any) -> Path | None:
    """Save the trained weights and return the folder, `final_model` or `final_lora`; all processes must call it.

    The folder gets its name when it is complete, replacing that of an earlier attempt.
    """
    staging = job.context.task_dir / f".final.{job.context.attempt_dir.name}.part"
    if job.group.main:
        shutil.rmtree(staging, ignore_errors=True)
        job.context.phase("saving the model", patience=_SAVE_PATIENCE)
    trainer.save_model(str(staging))
    if not job.group.main:
        return None
    job.tokenizer.save_pretrained(str(staging))
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle must not be delivered
    shutil.rmtree(staging / REFERENCE, ignore_errors=True)  # the initial adapter
    name = "final_lora" if (staging / ADAPTER_CONFIG).is_file() else "final_model"
    return _publish(staging, job.context.task_dir / name)


def archive_of(job: TrainingJob, folder: Path) -> dict[str, str]:
    """Pack the weights and return what the result contains about the archive.

    Raises:
        ArtifactError: The archive cannot be written.
    """
    target = folder.with_name(f"{folder.name}.zip")

    report = throttled_phase(job.context)
    packed = pack(folder, target, on_progress=lambda fraction: report("packing the model", fraction))
    found = target.stat()
    # The endpoint reads digests here, so that it need not read the file to recognize an upload that it already has.
    note = folder.parent / ".sha256" / target.name
    atomic.write_json(note, [found.st_size, found.st_mtime_ns, packed.sha256], indent=None)
    return {
        f"{folder.name}_archive": target.name,
        f"{folder.name}_archive_path": str(target),
        f"{folder.name}_archive_sha256": packed.sha256,
    }


def result_of(job: TrainingJob, recipe: Recipe, trainer: Any, seconds: float, ended: str | None) -> dict[str, Any]:
    """Return the result object without the saved files [protocol 5].

    Args:
        job: The training.
        recipe: Its recipe.
        trainer: TRL's trainer after training.
        seconds: Duration of the training in this attempt.
        ended: Why it ended before its last step, or None.
    """
    task_dir, state = job.context.task_dir, trainer.state
    history = list(state.log_history)
    metrics = write_history(task_dir, history)
    curve = draw_curve(task_dir, history, f"{job.request.name}: {job.options.kind} of {job.weights.name}")
    numbers = {name: value for name, value in last_numbers(history).items() if name != "step"}
    device = str(trainer.accelerator.device)
    shown = {name: numbers[name] for name in _SHOWN if name in numbers}
    resumed = job.resume.step if job.resume else None
    return {
        **_base(job.request, recipe, seconds),
        "model_name": job.weights.name,
        "dataset_size": len(job.rows.rows),
        "steps": state.global_step,
        "resumed_from_step": resumed,
        "ended_early": ended,
        "rows_cut": job.lengths.cut if job.lengths else 0,
        "notes": [*job.rows.notes, *job.options.notes],
        "metrics": numbers,
        "metrics_path": str(metrics),
        "curve_path": str(curve) if curve else None,
        "world_size": job.group.world,
        "spawned_torchrun": job.group.world > 1,
        "_summary": {
            "engine": "trl",
            "trainer": job.options.kind,
            "model": job.weights.name,
            "device": device,
            "world_size": job.group.world,
            "rows": len(job.rows.rows),
            "steps": state.global_step,
            **({"resumed_from_step": resumed} if resumed else {}),
            "metrics": shown,
            **({"curve": str(curve)} if curve else {}),
        },
    }


def write_failure(request: ExecutionRequest, recipe: Recipe, seconds: float, error: Exception) -> None:
    """Write the base keys of a failed training to the folder of its attempt [protocol 5].

    Not to `responses.json` of the task, which the endpoint and later stages would read as the result.
    """
    # Another problem with the spec or the disk must not replace the failure itself.
    with suppress(UserError, ArtifactError):
        failed = {"training_successful": False, "error_message": failure_of(error).message}
        atomic.write_json(Path(request.attempt_dir) / FAILED, {**_base(request, recipe, seconds), **failed})


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Report a full disk as such; the libraries report it with texts such as `unexpected pos 148160 vs 148052`.

    Raises:
        ArtifactError: A file could not be written; the next attempt resumes from the last complete checkpoint.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        text = one_line(error, 200)
        if getattr(error, "errno", None) not in _DISK_FULL and not _DISK_FULL_TEXT.search(text):
            raise
        free = shutil.disk_usage(folder).free >> 20
        raise ArtifactError(
            f"cannot save below {folder}, the disk is full ({free} MiB are free): {text}",
            hint="free some space, or set MLOC_RESULTS_DIR; mloc gc shows what can be removed",
        ) from error


def throttled_phase(context: ExecutionContext) -> Callable[[str, float | None], None]:
    """Return a `phase` that reports at most twice a second, and raises after a cancellation."""
    last = 0.0

    def report(text: str, fraction: float | None) -> None:
        nonlocal last
        context.check()
        if time.monotonic() - last >= _PHASE_SECONDS:
            last = time.monotonic()
            context.phase(text, fraction)

    return report


def _base(request: ExecutionRequest, recipe: Recipe, seconds: float) -> dict[str, Any]:
    """Return the keys that failed trainings also have, as far as they are known before the data is read."""
    spec, task_dir = SpecReader(request.spec), Path(request.task_dir)
    return {
        **({"task_id": request.task_id} if recipe.names_task else {}),
        "training_successful": True,
        "training_time_seconds": round(seconds, 3),
        "error_message": None,
        "model_name": spec.child("model").child("source").text("identifier") or DEFAULT_MODELS[recipe.kind],
        "dataset_size": None,
        "output_dir": str(task_dir),
        "checkpoints_dir": str(task_dir / "checkpoints"),
        "resume_from_path": spec.child("training").text("resume_from_path"),
    }


def _publish(staging: Path, target: Path) -> Path:
    """Rename a folder to its final name; an existing one is removed only then."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target
