"""`Recipe`: what one task type adds to a training: it reads rows, fits them to the model, and builds TRL's trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training.column_types import check_columns
from mloc_prefect.executors.training.guards.refusals import refused_as_mistake
from mloc_prefect.executors.training.row_lengths import CutRule, row_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.training.row_lengths import Lengths
    from mloc_prefect.executors.training.task_checkpoints import SavedCheckpoint
    from mloc_prefect.executors.training.trainer_arguments import Arguments, TrainerOptions
    from mloc_prefect.executors.training.training_model import InitialWeights
    from mloc_prefect.executors.training.training_rows import TrainingRows
    from mloc_prefect.tasks.training.training_table import Kind


REFUSED = "TRL refuses this training"


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that train together.

    Attributes:
        rank: Index of this process, from 0.
        world: Number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0


@dataclass(slots=True, kw_only=True)
class TrainingJob:
    """One training before its model is loaded.

    Attributes:
        request: The attempt.
        context: Receives events, and reports cancellation.
        spec: The resolved spec.
        options: Options of the trainer.
        sources: Mirrors and local paths.
        group: The processes that train together.
        rows: The rows to learn from.
        weights: The initial weights.
        tokenizer: Tokenizer of the model.
        window: Largest number of tokens that the model reads, or None.
        cuda: Whether there is a GPU.
        resume: Checkpoint of an earlier attempt, or None.
        lengths: What the token limit does to the rows.
        prompts: Token ids of the prompts, for trainings that answer them.
        logged: Notes that have been logged.
    """

    request: ExecutionRequest
    context: ExecutionContext
    spec: SpecReader
    options: TrainerOptions
    sources: SourceLookup
    group: ProcessGroup
    rows: TrainingRows
    weights: InitialWeights
    tokenizer: Any
    window: int | None
    cuda: bool
    resume: SavedCheckpoint | None = None
    lengths: Lengths | None = None
    prompts: list[list[int]] = field(default_factory=list)
    logged: set[str] = field(default_factory=set)

    @property
    def device(self) -> str:
        """Name of this process's device."""
        import torch

        return f"cuda:{torch.cuda.current_device()}" if self.cuda else "cpu"


class Recipe:
    """One task type; the subclasses are in `executors/training/<task type>.py`.

    Attributes:
        kind: The task type.
        names_task: Whether the result has the key `task_id` [protocol 5].
    """

    kind: Kind
    names_task = True

    def rows(self, spec: SpecReader, sources: SourceLookup) -> TrainingRows:
        """Return the rows to learn from, checked as far as possible without the model."""
        raise NotImplementedError

    def fit(self, job: TrainingJob) -> None:
        """Measure or cut the rows to the tokens that fit; the tokenizer is loaded, the model is not.

        Raises:
            UserError: No row would be left, or the rows do not form a data set.
        """
        check_columns(job.rows.rows)
        rule = self.cut_rule(job)
        job.lengths = row_lengths(job.tokenizer, job.rows.rows, rule, job.context.check, job.rows.numbers)
        note = job.lengths.note(f"training.{rule.field}")
        if note:
            job.rows.notes.append(note)

    def cut_rule(self, job: TrainingJob) -> CutRule:
        """Return how rows are cut, and what the loss counts."""
        training = job.options.training
        return CutRule(
            self.token_limit(job),
            field="max_length" if self.kind == "dpo" and "max_length" in job.options.given else "max_seq_length",
            keep_end=training.text("truncation_mode") == "keep_end",
            whole=not training.flag("completion_only_loss", default=True),
            answers_only=training.flag("assistant_only_loss", default=False),
        )

    def token_limit(self, job: TrainingJob) -> int:
        """Return the largest number of tokens of a row: what the spec sets, or what the model reads if that is less."""
        wanted = job.options.training.integer("max_seq_length", 1024, minimum=1)
        if job.window is None or wanted <= job.window:
            return wanted
        note = f"max_seq_length {wanted} is more than the {job.window} tokens that the model reads"
        if "max_seq_length" in job.options.given and note not in job.rows.notes:
            job.rows.notes.append(note)
        return job.window

    def config(self, job: TrainingJob, arguments: Arguments) -> Any:
        """Return TRL's config object; the model is not loaded yet, so that a mistake is found early."""
        raise NotImplementedError

    def trainer(self, job: TrainingJob, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return TRL's trainer."""
        raise NotImplementedError

    def train(self, job: TrainingJob, trainer: Any) -> None:
        """Train, from the checkpoint of an earlier attempt if there is one, including the state of its optimizer."""
        trainer.train(resume_from_checkpoint=str(job.resume.path) if job.resume else None)


def configured(config: Callable[..., Any], arguments: Arguments) -> Any:
    """Return TRL's config object.

    Raises:
        UserError: TRL refuses the arguments; the message says why.
    """
    try:
        return config(**arguments)
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        raise UserError(f"spec.training is refused by TRL: {one_line(error, 500)}") from error


def built(job: TrainingJob, make: Callable[[], Any]) -> Any:
    """Return TRL's trainer.

    Raises:
        UserError: TRL refuses the model, the data or the arguments; the message says why.
    """
    # Of several processes, one that is lost makes the others fail with a RuntimeError.
    with refused_as_mistake(REFUSED, job.options.given, building=job.group.world == 1):
        return make()
