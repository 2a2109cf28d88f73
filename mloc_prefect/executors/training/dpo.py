"""`dpo`: direct preference optimization with TRL [protocol 4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.training.column_types import data_set_of
from mloc_prefect.executors.training.recipe import Recipe, built, configured
from mloc_prefect.executors.training.row_lengths import shorten_prompts
from mloc_prefect.executors.training.trainer_arguments import max_length, with_files
from mloc_prefect.executors.training.training_model import load_reference
from mloc_prefect.executors.training.training_rows import pair_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.training.recipe import TrainingJob
    from mloc_prefect.executors.training.trainer_arguments import Arguments
    from mloc_prefect.executors.training.training_rows import TrainingRows
    from mloc_prefect.tasks.training.training_table import Kind


class DpoRecipe(Recipe):
    """Trains on pairs of a better and a worse answer; the initial model is the reference."""

    kind: Kind = "dpo"
    names_task = False

    def rows(self, spec: SpecReader, sources: SourceLookup) -> TrainingRows:
        """Return the preference pairs."""
        return pair_rows(spec, sources)

    def fit(self, job: TrainingJob) -> None:
        """Cut prompts to `max_prompt_length`, which TRL 1.12 no longer supports, then measure the rows."""
        most = job.options.training.integer("max_prompt_length", 0)
        if most:
            cut = shorten_prompts(job.tokenizer, job.rows.rows, most, job.context.check)
            if cut:
                job.rows.notes.append(
                    f"{cut} prompts are longer than max_prompt_length {most} and lose their beginning"
                )
            if isinstance(job.rows.rows[0].get("prompt", []), list):
                job.rows.notes.append("max_prompt_length has no effect: prompts of chat messages are not cut")
        super().fit(job)

    def token_limit(self, job: TrainingJob) -> int:
        """Return the largest number of tokens of prompt and answer."""
        wanted = max_length(job.options)
        return min(wanted, job.window) if job.window is not None else wanted

    def config(self, job: TrainingJob, arguments: Arguments) -> Any:
        """Return a `DPOConfig`."""
        from trl import DPOConfig

        return configured(DPOConfig, {**with_files(arguments, job.sources), "max_length": self.token_limit(job)})

    def trainer(self, job: TrainingJob, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return a `DPOTrainer`; with adapters the model without them is the reference, which saves a second copy."""
        from trl import DPOTrainer

        return built(
            job,
            lambda: DPOTrainer(
                model=model,
                ref_model=None if config.precompute_ref_log_probs else load_reference(job),
                args=config,
                train_dataset=data_set_of(job.rows.rows),
                processing_class=job.tokenizer,
                callbacks=list(callbacks),
            ),
        )


RECIPE = DpoRecipe()
