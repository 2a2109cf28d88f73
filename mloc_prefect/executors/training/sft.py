"""`sft`: supervised fine-tuning of all weights with TRL [protocol 4.3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training.column_types import data_set_of
from mloc_prefect.executors.training.recipe import Recipe, built, configured
from mloc_prefect.executors.training.trainer_arguments import with_files
from mloc_prefect.executors.training.training_rows import text_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.training.recipe import TrainingJob
    from mloc_prefect.executors.training.trainer_arguments import Arguments
    from mloc_prefect.executors.training.training_rows import Row, TrainingRows
    from mloc_prefect.tasks.training.training_table import Kind


class SftRecipe(Recipe):
    """Trains on texts, or on prompts with answers."""

    kind: Kind = "sft"
    title = "SFT"

    def rows(self, spec: SpecReader, sources: SourceLookup) -> TrainingRows:
        """Return the texts to learn from."""
        return text_rows(spec, sources, self.title)

    def fit(self, job: TrainingJob) -> None:
        """Leave out chats without an answer if only answers count, then measure the rows."""
        if job.options.training.flag("assistant_only_loss", default=False):
            _keep_answered(job.rows)
        super().fit(job)

    def config(self, job: TrainingJob, arguments: Arguments) -> Any:
        """Return an `SFTConfig`."""
        from trl import SFTConfig

        return configured(SFTConfig, {**with_files(arguments, job.sources), "max_length": self.token_limit(job)})

    def trainer(self, job: TrainingJob, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return an `SFTTrainer`."""
        from trl import SFTTrainer

        return built(
            job,
            lambda: SFTTrainer(
                model=model,
                args=config,
                train_dataset=data_set_of(job.rows.rows),
                processing_class=job.tokenizer,
                callbacks=list(callbacks),
            ),
        )


def _keep_answered(rows: TrainingRows) -> None:
    """Leave out chats that the assistant does not speak in, which TRL refuses with `assistant_only_loss`.

    Raises:
        UserError: No chat is left.
    """
    total = len(rows.rows)
    spoken = [at for at, row in enumerate(rows.rows) if _has_answer(row)]
    if not spoken:
        raise UserError("spec.training.assistant_only_loss needs chat messages of the role assistant; no row has any")
    if len(spoken) < total:
        left_out = f"{total - len(spoken)} of {total} rows are left out"
        rows.notes.append(f"{left_out}: assistant_only_loss counts answers, and they have none")
        rows.keep(spoken)


def _has_answer(row: Row) -> bool:
    """Return whether a row has a message of the assistant."""
    turns = row.get("messages") or row.get("completion")
    return isinstance(turns, list) and any(message["role"] == "assistant" for message in turns)


RECIPE = SftRecipe()
