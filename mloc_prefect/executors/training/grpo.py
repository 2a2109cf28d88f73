"""`grpo`: reinforcement learning from several answers to each prompt, with TRL."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.training.column_types import check_columns, data_set_of
from mloc_prefect.executors.training.recipe import built, configured
from mloc_prefect.executors.training.rewards.scorers import scorer_of
from mloc_prefect.executors.training.rollouts import RolloutRecipe, plain_text
from mloc_prefect.executors.training.trainer_arguments import with_files
from mloc_prefect.executors.training.training_model import load_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mloc_prefect.executors.training.recipe import TrainingJob
    from mloc_prefect.executors.training.rewards.scorers import Scorer
    from mloc_prefect.executors.training.trainer_arguments import Arguments
    from mloc_prefect.executors.training.training_rows import Row
    from mloc_prefect.tasks.training.training_table import Kind

_POSITION = "mloc_row"
"""The only column beside the prompt that TRL gets; it would read, check or refuse others, such as `image`."""


class GrpoRecipe(RolloutRecipe):
    """Compares several answers to one prompt with each other."""

    kind: Kind = "grpo"
    cuts_chats = False

    def fit(self, job: TrainingJob) -> None:
        """Also check that the prompts form a data set."""
        check_columns([{"prompt": row["prompt"]} for row in job.rows.rows])
        super().fit(job)

    def config(self, job: TrainingJob, arguments: Arguments) -> Any:
        """Return a `GRPOConfig`."""
        from trl import GRPOConfig

        return configured(GRPOConfig, with_files(arguments, job.sources))

    def trainer(self, job: TrainingJob, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return a `GRPOTrainer`."""
        from trl import GRPOTrainer

        # The prompts of one step in all processes; TRL's generation_batch_size includes their number.
        rows = self.fill_batch(job, max(1, config.generation_batch_size // config.num_generations))
        scorer = scorer_of(job.spec, job.sources, self.allowed_rewards(job), job.device, job.rows.notes)
        job.tokenizer.padding_side = "left"
        prompts = [{"prompt": row["prompt"], _POSITION: at} for at, row in enumerate(rows)]
        with _own_reference(job):
            return built(
                job,
                lambda: GRPOTrainer(
                    model=model,
                    reward_funcs=[_reward(scorer, rows, job.context.check)],
                    args=config,
                    train_dataset=data_set_of(prompts),
                    processing_class=job.tokenizer,
                    callbacks=list(callbacks),
                ),
            )


@contextmanager
def _own_reference(job: TrainingJob) -> Iterator[None]:
    """Make TRL's trainer use our reference model: unlike other trainers it has no argument for one."""
    from trl.trainer import grpo_trainer

    original = grpo_trainer.create_model_from_path
    grpo_trainer.create_model_from_path = lambda *_args, **_options: load_reference(job)
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = original


def _reward(scorer: Scorer, rows: Sequence[Row], check: Callable[[], None]) -> Callable[..., list[float]]:
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        check()
        found = [{name: rows[at].get(name) for name in names} for at in columns[_POSITION]]
        return scorer([plain_text(p) for p in prompts], [plain_text(c) for c in completions], found)

    return reward


RECIPE = GrpoRecipe()
