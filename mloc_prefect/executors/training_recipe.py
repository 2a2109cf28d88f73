"""What the trainers share and what each adds: a recipe reads rows, fits them to the model, and builds TRL's trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training_columns import check_columns
from mloc_prefect.executors.training_lengths import row_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.training_arguments import Arguments, Options
    from mloc_prefect.executors.training_checkpoints import Checkpoint
    from mloc_prefect.executors.training_data import TrainingRows
    from mloc_prefect.executors.training_lengths import Lengths
    from mloc_prefect.executors.training_model import Weights
    from mloc_prefect.tasks.training_table import Kind


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together.

    Attributes:
        rank: Number of this one, from 0.
        world: How many.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0


@dataclass(slots=True, kw_only=True)
class Job:
    """One training, as far as it is known; what cannot be known before the model is loaded is not here.

    Attributes:
        request: The attempt.
        context: Events out, cancellation in.
        spec: The resolved spec.
        options: Options of the trainer.
        places: Mirrors and local paths.
        group: The processes that train together.
        rows: What is learnt from.
        weights: What it starts from.
        tokenizer: Of the model.
        window: Most tokens that the model reads, or None.
        cuda: Whether there is a GPU.
        resume: Checkpoint of an earlier attempt, or None.
        lengths: What the limit of tokens does to the rows.
        prompts: Token ids of the prompts, of trainings that answer them.
        told: Notes that were logged.
    """

    request: ExecutionRequest
    context: ExecutionContext
    spec: Fields
    options: Options
    places: Places
    group: Group
    rows: TrainingRows
    weights: Weights
    tokenizer: Any
    window: int | None
    cuda: bool
    resume: Checkpoint | None = None
    lengths: Lengths | None = None
    prompts: list[list[int]] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    @property
    def device(self) -> str:
        """Name of the device of this process."""
        import torch

        return f"cuda:{torch.cuda.current_device()}" if self.cuda else "cpu"


class Recipe:
    """One task type; subclasses are the bodies of `executors/<task type>.py`.

    Attributes:
        kind: The task type.
        names_task: Whether the result has the key `task_id` [protocol 5].
    """

    kind: Kind
    names_task = True

    def rows(self, spec: Fields, places: Places) -> TrainingRows:
        """Return what is learnt from, checked as far as it can be without the model."""
        raise NotImplementedError

    def fit(self, job: Job) -> None:
        """Measure or cut the rows by the tokens that fit; the tokenizer is there, the model is not.

        Raises:
            UserError: Nothing would be left of the rows, or they make no data set.
        """
        check_columns(job.rows.rows)
        limit = self.token_limit(job)
        job.lengths = row_lengths(job.tokenizer, job.rows.rows, limit, job.context.check)
        note = job.lengths.note("training.max_seq_length")
        if note:
            job.rows.notes.append(note)

    def token_limit(self, job: Job) -> int:
        """Return the most tokens of a row: what the spec says, or what the model reads when that is less."""
        wanted = job.options.training.integer("max_seq_length", 1024, minimum=1)
        if job.window is None or wanted <= job.window:
            return wanted
        note = f"max_seq_length {wanted} is more than the {job.window} tokens that the model reads"
        if "max_seq_length" in job.options.given and note not in job.rows.notes:
            job.rows.notes.append(note)
        return job.window

    def config(self, job: Job, arguments: Arguments) -> Any:
        """Return TRL's config object; the model is not loaded yet, so that a mistake in it costs nothing."""
        raise NotImplementedError

    def trainer(self, job: Job, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return TRL's trainer."""
        raise NotImplementedError

    def train(self, job: Job, trainer: Any) -> None:
        """Train, from the checkpoint of an earlier attempt if there is one, with the state of its optimiser."""
        trainer.train(resume_from_checkpoint=str(job.resume.path) if job.resume else None)


def configured(config: Callable[..., Any], arguments: Arguments) -> Any:
    """Return TRL's config object.

    Raises:
        UserError: TRL does not take the arguments; it says why.
    """
    try:
        return config(**arguments)
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        raise UserError(f"spec.training is refused by TRL: {' '.join(str(error).split())[:500]}") from error


def built(make: Callable[[], Any]) -> Any:
    """Return TRL's trainer.

    Raises:
        UserError: TRL does not take the model, the data or the arguments; it says why.
    """
    try:
        return make()
    except (ValueError, AssertionError) as error:
        raise UserError(f"TRL refuses this training: {' '.join(str(error).split())[:500]}") from error
