"""`sft`: supervised fine-tuning of all weights with TRL. [protocol 4.3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.training_arguments import with_files
from mloc_prefect.executors.training_data import text_rows
from mloc_prefect.executors.training_recipe import Recipe, built, configured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.training_arguments import Arguments
    from mloc_prefect.executors.training_data import TrainingRows
    from mloc_prefect.executors.training_recipe import Job
    from mloc_prefect.tasks.training_table import Kind


class SftRecipe(Recipe):
    """Texts, or prompts with their answers."""

    kind: Kind = "sft"
    title = "SFT"

    def rows(self, spec: Fields, places: Places) -> TrainingRows:
        """Return the texts to learn from."""
        return text_rows(spec, places, self.title)

    def config(self, job: Job, arguments: Arguments) -> Any:
        """Return an `SFTConfig`."""
        from trl import SFTConfig

        return configured(SFTConfig, {**with_files(arguments, job.places), "max_length": self.token_limit(job)})

    def trainer(self, job: Job, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return an `SFTTrainer`."""
        from datasets import Dataset
        from trl import SFTTrainer

        return built(
            lambda: SFTTrainer(
                model=model,
                args=config,
                train_dataset=Dataset.from_list(job.rows.rows),
                processing_class=job.tokenizer,
                callbacks=list(callbacks),
            )
        )


RECIPE = SftRecipe()
