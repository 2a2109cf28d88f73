"""`grpo`: reinforcement learning from several answers to each prompt, with TRL."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.rewards import scorer_of
from mloc_prefect.executors.rollouts import RolloutRecipe
from mloc_prefect.executors.training_arguments import with_files
from mloc_prefect.executors.training_columns import check_columns
from mloc_prefect.executors.training_model import load_reference
from mloc_prefect.executors.training_recipe import built, configured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mloc_prefect.executors.rewards import Scorer
    from mloc_prefect.executors.training_arguments import Arguments
    from mloc_prefect.executors.training_data import Row
    from mloc_prefect.executors.training_recipe import Job
    from mloc_prefect.tasks.training_table import Kind

_TAKEN = frozenset({"prompt", "completion", "completion_ids", "trainer_state", "log_extra", "log_metric"})


class GrpoRecipe(RolloutRecipe):
    """Answers to one prompt are compared with each other."""

    kind: Kind = "grpo"

    def fit(self, job: Job) -> None:
        """Check the columns too, which the trainer hands to the rewards."""
        check_columns(_columns(job.rows.rows))
        super().fit(job)

    def config(self, job: Job, arguments: Arguments) -> Any:
        """Return a `GRPOConfig`."""
        from trl import GRPOConfig

        return configured(GRPOConfig, with_files(arguments, job.places))

    def trainer(self, job: Job, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return a `GRPOTrainer`."""
        from datasets import Dataset
        from trl import GRPOTrainer

        # The prompts of one step in all processes: TRL's generation_batch_size has their number in it.
        rows = self.enough(job, max(1, config.generation_batch_size // config.num_generations))
        scorer = scorer_of(job.spec, job.places, self.allowed_rewards(job), job.device, job.rows.notes)
        job.tokenizer.padding_side = "left"
        with _own_reference(job):
            return built(
                lambda: GRPOTrainer(
                    model=model,
                    reward_funcs=[_reward(scorer, job.context.check)],
                    args=config,
                    train_dataset=Dataset.from_list(_columns(rows)),
                    processing_class=job.tokenizer,
                    callbacks=list(callbacks),
                )
            )


@contextmanager
def _own_reference(job: Job) -> Iterator[None]:
    """Let TRL's trainer take our reference model: unlike the others it has no argument for one."""
    from trl.trainer import grpo_trainer

    original = grpo_trainer.create_model_from_path
    grpo_trainer.create_model_from_path = lambda *_args, **_options: load_reference(job)
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = original


def _reward(scorer: Scorer, check: Callable[[], None]) -> Callable[..., list[float]]:
    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        check()
        names = [name for name in columns if name not in _TAKEN]
        rows = [{name: columns[name][index] for name in names} for index in range(len(prompts))]
        return scorer([_plain(p) for p in prompts], [_plain(c) for c in completions], rows)

    return reward


def _plain(text: Any) -> str:
    """Return the text of a prompt or an answer, which is the last message of a chat."""
    return str(text[-1]["content"]) if isinstance(text, list) else str(text)


def _columns(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the same columns each.

    Raises:
        UserError: A column has a name that TRL needs for itself.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    clash = sorted(set(names) & (_TAKEN - {"prompt"}))
    if clash:
        raise UserError(f"spec.data: rename the columns {clash}; the trainer uses these names itself")
    return [{name: row.get(name) for name in names} for row in rows]


RECIPE = GrpoRecipe()
