"""`dpo`: direct preference optimisation with TRL. [protocol 4.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.training_arguments import max_length, with_files
from mloc_prefect.executors.training_data import pair_rows
from mloc_prefect.executors.training_lengths import shorten_prompts
from mloc_prefect.executors.training_model import load_reference
from mloc_prefect.executors.training_recipe import Recipe, built, configured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.training_arguments import Arguments
    from mloc_prefect.executors.training_data import TrainingRows
    from mloc_prefect.executors.training_recipe import Job
    from mloc_prefect.tasks.training_table import Kind


class DpoRecipe(Recipe):
    """Pairs of a better and a worse answer; the model that it starts from is the reference."""

    kind: Kind = "dpo"
    names_task = False

    def rows(self, spec: Fields, places: Places) -> TrainingRows:
        """Return the pairs to learn from."""
        return pair_rows(spec, places)

    def fit(self, job: Job) -> None:
        """Cut prompts to `max_prompt_length`, which TRL 1.12 does not know any more; then measure."""
        most = job.options.training.integer("max_prompt_length", 0)
        if most:
            cut = shorten_prompts(job.tokenizer, job.rows.rows, most, job.context.check)
            if cut:
                job.rows.notes.append(
                    f"{cut} prompts are longer than max_prompt_length {most} and lose their beginning"
                )
        super().fit(job)

    def token_limit(self, job: Job) -> int:
        """Return the most tokens of a prompt and an answer."""
        wanted = max_length(job.options)
        return min(wanted, job.window) if job.window is not None else wanted

    def config(self, job: Job, arguments: Arguments) -> Any:
        """Return a `DPOConfig`."""
        from trl import DPOConfig

        return configured(DPOConfig, {**with_files(arguments, job.places), "max_length": self.token_limit(job)})

    def trainer(self, job: Job, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return a `DPOTrainer`; with adapters the model without them is the reference, which saves a second copy."""
        from datasets import Dataset
        from trl import DPOTrainer

        return built(
            lambda: DPOTrainer(
                model=model,
                ref_model=None if config.precompute_ref_log_probs else load_reference(job),
                args=config,
                train_dataset=Dataset.from_list(job.rows.rows),
                processing_class=job.tokenizer,
                callbacks=list(callbacks),
            )
        )


RECIPE = DpoRecipe()
