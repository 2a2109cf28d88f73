"""The steps of one training: data, checks, model, trainer, result. Imports heavy libraries inside functions."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.layout import METRICS
from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.chat.chat_template import with_known_content
from mloc_prefect.executors.common.checkpoint_source import ADAPTER_CONFIG, checkpoint_of
from mloc_prefect.executors.common.gpu_memory import free_memory, limit_memory
from mloc_prefect.executors.common.model_options import ModelOptions, choose_device, context_window
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.common.threads import usable_cores
from mloc_prefect.executors.sources.models_source import ModelLocation
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.estimate.memory_estimate import check_fit
from mloc_prefect.executors.training.guards.refusals import refused_as_mistake
from mloc_prefect.executors.training.metrics_file import MetricsFile
from mloc_prefect.executors.training.recipe import REFUSED, ProcessGroup, TrainingJob
from mloc_prefect.executors.training.saving import archive_of, disk_errors, result_of, save_weights, throttled_phase
from mloc_prefect.executors.training.task_checkpoints import SavedCheckpoint, TaskCheckpoints, identity_of
from mloc_prefect.executors.training.trainer_arguments import ArgumentContext, TrainerOptions, config_arguments
from mloc_prefect.executors.training.training_model import (
    InitialWeights,
    find_weights,
    load_config,
    load_model,
    load_tokenizer,
)
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.training.recipe import Recipe

_CANCEL_PATIENCE = 60.0  # seconds that the last checkpoint of a cancelled training may take


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """What is determined once for all processes of a training.

    Attributes:
        weights: The initial weights.
        resume: Checkpoint of an earlier attempt, or None.
        identity: Identity of the training, from `task_checkpoints.identity_of`.
    """

    weights: InitialWeights
    resume: SavedCheckpoint | None
    identity: str

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        weights = {"base": asdict(self.weights.base), "adapter": self.weights.adapter, "name": self.weights.name}
        resume = asdict(self.resume) if self.resume else None
        data = {"weights": weights, "resume": resume, "identity": self.identity}
        wire: dict[str, Any] = json.loads(json.dumps(data, default=str))
        return wire

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> PreparedTraining:
        """Return the value that `to_wire` was called on."""
        weights, resume = data["weights"], data["resume"]
        adapter = Path(weights["adapter"]) if weights["adapter"] else None
        return cls(
            InitialWeights(ModelLocation(**weights["base"]), adapter, weights["name"]),
            SavedCheckpoint(Path(resume["path"]), resume["step"]) if resume else None,
            data["identity"],
        )


def prepare(request: ExecutionRequest, context: ExecutionContext, recipe: Recipe) -> PreparedTraining:
    """Find the weights, download what `checkpoint.load` names, and find a checkpoint of an earlier attempt.

    Raises:
        UserError: The weights do not exist, or cannot be downloaded.
        ArtifactError: The download failed and may succeed later.
    """
    spec = SpecReader(request.spec)
    options = TrainerOptions.of(recipe.kind, spec)
    sources = SourceLookup.of(request.settings)
    context.phase("finding model")
    weights = find_weights(options, spec, _checkpoint(context, spec, sources), sources)
    identity = identity_of(recipe.kind, request.spec, weights.base.fingerprint)
    checkpoints = TaskCheckpoints(context.task_dir / "checkpoints", identity)
    resume = checkpoints.prepare()
    if resume is not None:
        scope = "its policy only" if recipe.kind == "ppo" else "the state of its optimizer"
        context.log(f"resuming from the checkpoint of step {resume.step} of an earlier attempt, with {scope}")
    return PreparedTraining(weights, resume, identity)


def train(
    request: ExecutionRequest,
    context: ExecutionContext,
    recipe: Recipe,
    prepared: PreparedTraining,
    group: ProcessGroup,
) -> dict[str, Any]:
    """Train in this process and return the result object, which is empty in all but the first process.

    Raises:
        UserError: The spec, the data or the model is at fault.
        Cancelled: The task was cancelled; a checkpoint was saved.
    """
    job = _job(request, context, recipe, prepared, group)
    recipe.fit(job)
    _log_notes(job)
    check_fit(job, load_config(prepared.weights, job.spec))
    config = recipe.config(job, config_arguments(job.options, _argument_context(job)))
    _log_notes(job)
    checkpoints = TaskCheckpoints(context.task_dir / "checkpoints", prepared.identity)
    metrics = MetricsFile(context.attempt_dir / METRICS)
    _seed(job)
    model = load_model(_policy_weights(job, recipe), job.options, job.spec, context.phase, cuda=job.cuda)
    try:
        context.check()
        _log_notes(job)
        context.phase("preparing the trainer")
        trainer = recipe.trainer(job, model, config, _callbacks(job, checkpoints, metrics))
        _log_notes(job)
        with _cancel_in_forward(job, model), disk_errors(job.context.task_dir):
            return _train_and_save(job, recipe, trainer, checkpoints)
    finally:
        metrics.close()
        del model
        free_memory()


def _checkpoint(context: ExecutionContext, spec: SpecReader, sources: SourceLookup) -> Path | None:
    """Return the folder that `checkpoint.load` names, else `training.resume_from_path` [protocol 4.3, 4.9]."""
    loaded = checkpoint_of(spec, sources, context.task_dir, throttled_phase(context))
    path = spec.child("training").text("resume_from_path")
    if loaded is not None or path is None:
        return loaded
    folder = sources.local(path)
    if local_path(path) is None:
        raise UserError(f"spec.training.resume_from_path {path!r} must be a local folder; checkpoint.load takes URLs")
    if not folder.is_dir():
        raise UserError(f"Checkpoint path {path} not found for resume")
    return folder


def _job(
    request: ExecutionRequest,
    context: ExecutionContext,
    recipe: Recipe,
    prepared: PreparedTraining,
    group: ProcessGroup,
) -> TrainingJob:
    spec, sources = SpecReader(request.spec), SourceLookup.of(request.settings)
    options = TrainerOptions.of(recipe.kind, spec)
    context.phase("reading data")
    rows = recipe.rows(spec, sources)
    context.check()
    context.phase("importing torch and trl")
    import torch

    torch.set_num_threads(usable_cores())
    choose_device(ModelOptions.of(spec).device, gpus=torch.cuda.device_count())  # a GPU that is not there is a mistake
    if torch.cuda.is_available():
        limit_memory(torch.cuda.current_device())  # each process has its own GPU
    context.phase("loading tokenizer")
    tokenizer = load_tokenizer(prepared.weights, spec)
    with_known_content(rows.rows, tokenizer)
    return TrainingJob(
        request=request,
        context=context,
        spec=spec,
        options=options,
        sources=sources,
        group=group,
        rows=rows,
        weights=prepared.weights,
        tokenizer=tokenizer,
        window=context_window(load_config(prepared.weights, spec), tokenizer),
        cuda=torch.cuda.is_available(),
        resume=prepared.resume,
    )


def _seed(job: TrainingJob) -> None:
    """Make new layers and sampling repeatable: some of TRL's trainers seed less than they use."""
    from transformers import set_seed

    set_seed(int(job.options.training.number("seed", 42)))


def _log_notes(job: TrainingJob) -> None:
    """Log each deviation from the spec once."""
    for note in (*job.rows.notes, *job.options.notes):
        if note not in job.logged:
            job.logged.add(note)
            job.context.log(note, "warning")


def _argument_context(job: TrainingJob) -> ArgumentContext:
    def token_of(text: str) -> int | None:
        ids = job.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 else None

    return ArgumentContext(
        output_dir=str(job.context.task_dir / "checkpoints"),
        cuda=job.cuda,
        world=job.group.world,
        window=job.window,
        token_of=token_of,
        end=job.tokenizer.eos_token_id,
    )


def _policy_weights(job: TrainingJob, recipe: Recipe) -> InitialWeights:
    """Return the weights to load: PPO's trainer cannot resume, so its policy is loaded from the checkpoint.

    An adapter belongs to the model that this training started from, which may differ from the spec's identifier.
    """
    if recipe.kind != "ppo" or job.resume is None:
        return job.weights
    if (job.resume.path / ADAPTER_CONFIG).is_file():
        return replace(job.weights, adapter=job.resume.path)
    return find_weights(job.options, job.spec, job.resume.path, job.sources)


def _callbacks(job: TrainingJob, checkpoints: TaskCheckpoints, metrics: MetricsFile) -> list[Any]:
    from mloc_prefect.executors.training.trainer_callbacks import (
        CheckpointMarker,
        DivergenceGuard,
        ProgressReporter,
        StopOnRequest,
    )

    main = job.group.main
    rate, samples = job.options.training.get("learning_rate"), job.options.kind in ("ppo", "grpo")
    guard = DivergenceGuard(job.weights.name, rate, every_step=samples)
    found: list[Any] = [guard, CheckpointMarker(checkpoints, job.context if main else None)]
    if main:
        found.append(ProgressReporter(job.context, metrics))
    if job.group.world > 1:
        found.append(StopOnRequest(lambda: job.context.cancelled, by_flag=job.options.kind != "ppo"))
    if main and (job.options.training.text("log_with") or "").lower() == "tensorboard":
        found.append(_tensorboard(job))
    return found


def _tensorboard(job: TrainingJob) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(job.context.task_dir / "tensorboard")))


@contextmanager
def _cancel_in_forward(job: TrainingJob, model: Any) -> Iterator[None]:
    """End a cancelled training at the next forward pass, of an answer or of a batch.

    Several processes have to stop together, which `StopOnRequest` does.
    """
    if job.group.world > 1:
        yield
        return
    parts = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    hooks = [part.register_forward_pre_hook(lambda *_: job.context.check()) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _train_and_save(job: TrainingJob, recipe: Recipe, trainer: Any, checkpoints: TaskCheckpoints) -> dict[str, Any]:
    from mloc_prefect.executors.training.trainer_callbacks import DivergenceGuard, EndOfTrainingError, StopOnRequest

    began, ended = time.monotonic(), None
    job.context.phase("training")
    stopper = next((c for c in trainer.callback_handler.callbacks if isinstance(c, StopOnRequest)), None)
    guard = next(c for c in trainer.callback_handler.callbacks if isinstance(c, DivergenceGuard))
    try:
        with refused_as_mistake(REFUSED, job.options.given):
            recipe.train(job, trainer)
    except EndOfTrainingError as reason:
        ended = str(reason)
        job.context.log(ended)
    except Cancelled:
        _save_last_checkpoint(job, trainer, checkpoints)
        raise
    seconds = time.monotonic() - began
    job.context.check()
    if stopper is not None and stopper.stopped:
        raise Cancelled
    guard.check(trainer.model, trainer.state.global_step)
    if note := guard.note():
        job.options.notes.append(note)
        _log_notes(job)
    saves = job.options.training.flag("save_model", default=True)
    folder = save_weights(job, trainer) if saves else None
    if not job.group.main:
        return {}
    result = result_of(job, recipe, trainer, seconds, ended)
    if folder is not None:
        result |= {f"{folder.name}_path": str(folder)}
        if job.options.training.flag("save_archive", default=True):
            result |= archive_of(job, folder)
    return result


def _save_last_checkpoint(job: TrainingJob, trainer: Any, checkpoints: TaskCheckpoints) -> None:
    """Save a cancelled training; the step that was interrupted does not count."""
    step = int(trainer.state.global_step)
    if step == 0 or checkpoints.has(step):
        return
    job.context.phase("saving a checkpoint", patience=_CANCEL_PATIENCE)
    trainer._save_checkpoint(trainer.model, trial=None)
    trainer.accelerator.wait_for_everyone()
    if job.group.main:
        checkpoints.complete(step)
    job.context.log(f"saved a checkpoint at step {step}")
