"""The way of one training: data, checks, model, trainer, result. Heavy libraries are imported inside functions."""

from __future__ import annotations

import gc
import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.checkpoints import checkpoint_of
from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.gpu_memory import bound_memory
from mloc_prefect.executors.models_source import ModelPlace
from mloc_prefect.executors.places import Places
from mloc_prefect.executors.threads import usable_cores
from mloc_prefect.executors.training_arguments import Options, Place, config_arguments
from mloc_prefect.executors.training_checkpoints import Checkpoint, Checkpoints, identity_of
from mloc_prefect.executors.training_memory import check_fit
from mloc_prefect.executors.training_metrics import METRICS, MetricsFile
from mloc_prefect.executors.training_model import (
    ADAPTER,
    Weights,
    find_weights,
    load_config,
    load_model,
    load_tokenizer,
    window_of,
)
from mloc_prefect.executors.training_recipe import Group, Job
from mloc_prefect.executors.training_saving import archive_of, disk_errors, paced, result_of, save_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.training_recipe import Recipe

_CANCEL_PATIENCE = 60.0  # seconds that the last checkpoint of a cancelled training may take


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is found out once for all processes of a training.

    Attributes:
        weights: What it starts from.
        resume: Checkpoint of an earlier attempt, or None.
        identity: Of the training, see `training_checkpoints`.
    """

    weights: Weights
    resume: Checkpoint | None
    identity: str

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        weights = {"base": asdict(self.weights.base), "adapter": self.weights.adapter, "name": self.weights.name}
        resume = asdict(self.resume) if self.resume else None
        data = {"weights": weights, "resume": resume, "identity": self.identity}
        wire: dict[str, Any] = json.loads(json.dumps(data, default=str))
        return wire

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> Prepared:
        """Return what `to_wire` was made from."""
        weights, resume = data["weights"], data["resume"]
        adapter = Path(weights["adapter"]) if weights["adapter"] else None
        return cls(
            Weights(ModelPlace(**weights["base"]), adapter, weights["name"]),
            Checkpoint(Path(resume["path"]), resume["step"]) if resume else None,
            data["identity"],
        )


def prepare(request: ExecutionRequest, context: ExecutionContext, recipe: Recipe) -> Prepared:
    """Find the weights, fetch what `checkpoint.load` names, and look for a checkpoint of an earlier attempt.

    Raises:
        UserError: The weights are not there, or cannot be fetched.
        ArtifactError: They can be fetched later, perhaps.
    """
    spec = Fields(request.spec)
    options = Options.of(recipe.kind, spec)
    places = Places.of(request.settings)
    context.phase("finding model")
    weights = find_weights(options, spec, _checkpoint(context, spec, places), places)
    identity = identity_of(recipe.kind, request.spec, weights.base.fingerprint)
    checkpoints = Checkpoints(context.task_dir / "checkpoints", identity)
    resume = checkpoints.prepare()
    if resume is not None:
        what = "its policy; value model and optimiser start anew" if recipe.kind == "ppo" else "its optimiser's state"
        context.log(f"continues from the checkpoint of step {resume.step} of an earlier attempt, with {what}")
    return Prepared(weights, resume, identity)


def train(
    request: ExecutionRequest, context: ExecutionContext, recipe: Recipe, prepared: Prepared, group: Group
) -> dict[str, Any]:
    """Train in this process and return the result object; in all but the first process it is empty.

    Raises:
        UserError: The spec, the data or the model is at fault.
        Cancelled: The task is not wanted any more; a checkpoint was left.
    """
    job = _job(request, context, recipe, prepared, group)
    recipe.fit(job)
    _tell(job)
    check_fit(job, load_config(prepared.weights, job.spec))
    config = recipe.config(job, config_arguments(job.options, _place(job)))
    _tell(job)
    checkpoints = Checkpoints(context.task_dir / "checkpoints", prepared.identity)
    metrics = MetricsFile(context.attempt_dir / METRICS)
    _seed(job)
    model = load_model(_policy(job, recipe), job.options, job.spec, context.phase, cuda=job.cuda)
    try:
        context.check()
        _tell(job)
        context.phase("preparing the trainer")
        trainer = recipe.trainer(job, model, config, _callbacks(job, checkpoints, metrics))
        _tell(job)
        with _watched(job, model), disk_errors(job.context.task_dir):
            return _trained(job, recipe, trainer, checkpoints)
    finally:
        metrics.close()
        del model
        _release()


def _checkpoint(context: ExecutionContext, spec: Fields, places: Places) -> Path | None:
    """Return the folder that `checkpoint.load` names, else `training.resume_from_path`. [protocol 4.3, 4.9]."""
    loaded = checkpoint_of(spec, places, context.task_dir, paced(context))
    path = spec.child("training").text("resume_from_path")
    if loaded is not None or path is None:
        return loaded
    folder = places.local(path)
    if not folder.is_dir():
        raise UserError(f"Checkpoint path {path} not found for resume")
    return folder


def _job(request: ExecutionRequest, context: ExecutionContext, recipe: Recipe, prepared: Prepared, group: Group) -> Job:
    spec, places = Fields(request.spec), Places.of(request.settings)
    options = Options.of(recipe.kind, spec)
    context.phase("reading data")
    rows = recipe.rows(spec, places)
    context.check()
    context.phase("importing torch and trl")
    import torch

    torch.set_num_threads(usable_cores())
    if torch.cuda.is_available():
        bound_memory(torch.cuda.current_device())  # of several processes each has its own
    context.phase("loading tokenizer")
    tokenizer = load_tokenizer(prepared.weights, spec)
    return Job(
        request=request,
        context=context,
        spec=spec,
        options=options,
        places=places,
        group=group,
        rows=rows,
        weights=prepared.weights,
        tokenizer=tokenizer,
        window=window_of(load_config(prepared.weights, spec), tokenizer),
        cuda=torch.cuda.is_available(),
        resume=prepared.resume,
    )


def _seed(job: Job) -> None:
    """Make new layers and draws repeatable: some of TRL's trainers seed less than they use."""
    from transformers import set_seed

    set_seed(int(job.options.training.number("seed", 42)))


def _tell(job: Job) -> None:
    """Log what is not as the spec says, each thing once."""
    for note in (*job.rows.notes, *job.options.notes):
        if note not in job.told:
            job.told.add(note)
            job.context.log(note, "warning")


def _place(job: Job) -> Place:
    def token_of(text: str) -> int | None:
        ids = job.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 else None

    return Place(
        output_dir=str(job.context.task_dir / "checkpoints"),
        cuda=job.cuda,
        world=job.group.world,
        window=job.window,
        token_of=token_of,
        end=job.tokenizer.eos_token_id,
    )


def _policy(job: Job, recipe: Recipe) -> Weights:
    """Return what the model is loaded from: PPO's trainer cannot resume, so its policy is that of the checkpoint.

    An adapter belongs to the model that this training started from, which need not be that of the spec's identifier.
    """
    if recipe.kind != "ppo" or job.resume is None:
        return job.weights
    if (job.resume.path / ADAPTER).is_file():
        return replace(job.weights, adapter=job.resume.path)
    return find_weights(job.options, job.spec, job.resume.path, job.places)


def _callbacks(job: Job, checkpoints: Checkpoints, metrics: MetricsFile) -> list[Any]:
    from mloc_prefect.executors.training_callbacks import Keeper, Reporter, Stopper

    main = job.group.main
    found: list[Any] = [Keeper(checkpoints, job.context if main else None)]
    if main:
        found.append(Reporter(job.context, metrics))
    if job.group.world > 1:
        found.append(Stopper(lambda: job.context.cancelled, by_flag=job.options.kind != "ppo"))
    if main and (job.options.training.text("log_with") or "").lower() == "tensorboard":
        found.append(_tensorboard(job))
    return found


def _tensorboard(job: Job) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(job.context.task_dir / "tensorboard")))


@contextmanager
def _watched(job: Job, model: Any) -> Iterator[None]:
    """End a training that is not wanted any more at the next forward pass, be it of an answer or of a batch.

    Several processes have to stop together, which `Stopper` sees to.
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


def _trained(job: Job, recipe: Recipe, trainer: Any, checkpoints: Checkpoints) -> dict[str, Any]:
    from mloc_prefect.executors.training_callbacks import EndOfTrainingError, Stopper

    began, ended = time.monotonic(), None
    job.context.phase("training")
    stopper = next((c for c in trainer.callback_handler.callbacks if isinstance(c, Stopper)), None)
    try:
        recipe.train(job, trainer)
    except EndOfTrainingError as reason:
        ended = str(reason)
        job.context.log(ended)
    except Cancelled:
        _leave_checkpoint(job, trainer, checkpoints)
        raise
    seconds = time.monotonic() - began
    job.context.check()
    if stopper is not None and stopper.stopped:
        raise Cancelled
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


def _leave_checkpoint(job: Job, trainer: Any, checkpoints: Checkpoints) -> None:
    """Save where a cancelled training has come to; the step that was cut short counts as not begun."""
    step = int(trainer.state.global_step)
    if step == 0 or checkpoints.has(step):
        return
    job.context.phase("saving a checkpoint", patience=_CANCEL_PATIENCE)
    trainer._save_checkpoint(trainer.model, trial=None)
    trainer.accelerator.wait_for_everyone()
    if job.group.main:
        checkpoints.complete(step)
    job.context.log(f"left a checkpoint at step {step}")


def _release() -> None:
    """Give back what the training held, on the device too; the process goes on with the next task."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
