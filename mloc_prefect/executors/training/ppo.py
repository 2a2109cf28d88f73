"""`ppo`: reinforcement learning with a value model, with TRL's experimental trainer (last released with 1.12)."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training.ppo_rating import RatingOrder, patch_get_reward, reward_stand_in
from mloc_prefect.executors.training.recipe import built, configured
from mloc_prefect.executors.training.rewards.scorers import scorer_of
from mloc_prefect.executors.training.rollouts import RolloutRecipe
from mloc_prefect.executors.training.task_checkpoints import REFERENCE
from mloc_prefect.executors.training.trainer_arguments import rollout_sizes
from mloc_prefect.executors.training.training_model import load_reference, wants_lora

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mloc_prefect.executors.training.recipe import TrainingJob
    from mloc_prefect.executors.training.trainer_arguments import Arguments
    from mloc_prefect.tasks.training.training_table import Kind

_DILUTED = frozenset(
    {
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
    }
)
"""Means that TRL also takes over empty entries when gradients are accumulated."""


class PpoRecipe(RolloutRecipe):
    """Trains a policy on scored answers; a value model of the same architecture is trained with it and discarded."""

    kind: Kind = "ppo"

    def config(self, job: TrainingJob, arguments: Arguments) -> Any:
        """Return a `PPOConfig`."""
        from trl.experimental.ppo import PPOConfig

        del job
        return configured(PPOConfig, arguments)

    def trainer(self, job: TrainingJob, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return a `PPOTrainer`."""
        from datasets import Dataset
        from trl.experimental.ppo import PPOTrainer

        _patch(PPOTrainer)
        batch, _, steps = rollout_sizes(job.options)
        rows = self.fill_batch(job, batch * job.group.world)
        job.tokenizer.padding_side = "left"
        _set_separate_pad(job.tokenizer)
        _prepare_policy(job, model, config)
        scorer = scorer_of(job.spec, job.sources, self.allowed_rewards(job), job.device, job.rows.notes)
        order = RatingOrder(job.tokenizer, job.prompts, rows)
        with _precision_variable(config.mixed_precision):
            trainer = built(
                job,
                lambda: PPOTrainer(
                    args=config,
                    processing_class=job.tokenizer,
                    model=model,
                    ref_model=_reference(job),
                    reward_model=reward_stand_in(job.tokenizer, scorer, order, job.context.check),
                    value_model=_value_model(job, model),
                    train_dataset=Dataset.from_list(order.features()),
                    data_collator=order,
                    callbacks=[*_own_callbacks(job), *callbacks],
                ),
            )
        # Otherwise the last batch of each pass over the prompts would update after every mini-batch.
        trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
        _correct_means(trainer, steps)
        if job.group.world > 1:
            _expose_policy(trainer.model)
        return trainer

    def train(self, job: TrainingJob, trainer: Any) -> None:
        """Train; steps that an earlier attempt saved are skipped."""
        done = job.resume.step if job.resume else 0
        for _ in range(done):
            trainer.lr_scheduler.step()
        trainer.args.num_total_batches = max(0, trainer.args.num_total_batches - done)
        gc.freeze()  # TRL collects garbage several times per step, and the libraries alone hold a million objects
        try:
            trainer.train()
        finally:
            gc.unfreeze()


def _prepare_policy(job: TrainingJob, model: Any, config: Any) -> None:
    """Set up the policy as TRL's other trainers do by themselves."""
    if job.options.training.flag("gradient_checkpointing", default=False):
        model.gradient_checkpointing_enable()
    if job.weights.adapter is not None and wants_lora(job.options, job.spec):  # else: the model without adapters
        model.load_adapter(str(job.weights.adapter), adapter_name=REFERENCE)
        config.ref_adapter_name = REFERENCE


def _own_callbacks(job: TrainingJob) -> list[Any]:
    from mloc_prefect.executors.training.trainer_callbacks import KlLimit, ResumeMarker

    found: list[Any] = [ResumeMarker(job.resume.step, job.resume.history())] if job.resume else []
    training = job.options.training
    limit = training.number("target_kl", 0.0)
    if limit and training.flag("early_stopping", default=True):
        found.append(KlLimit(limit))
    return found


def _expose_policy(wrapped: Any) -> None:
    """Let TRL find the policy in a model that is wrapped for several processes when it saves it.

    Set as plain attributes: as modules they would be registered in the wrapper a second time.
    """
    inner = wrapped.module
    object.__setattr__(wrapped, "policy", inner.policy)
    object.__setattr__(wrapped, "config", inner.config)


def _correct_means(trainer: Any, steps: int) -> None:
    """Correct means that TRL takes over `steps` entries of which only one is filled."""
    if steps == 1:
        return
    log = trainer.log

    def corrected(logs: dict[str, float], *rest: Any) -> None:
        log({name: value * steps if name in _DILUTED else value for name, value in logs.items()}, *rest)

    trainer.log = corrected


def _reference(job: TrainingJob) -> Any:
    """Return the reference model; None = a copy of the policy, or the policy without its adapters.

    After an earlier attempt the policy differs from the initial model.
    """
    return load_reference(job) if job.resume is not None else None


def _value_model(job: TrainingJob, model: Any) -> Any:
    """Return a model of the same architecture that outputs one number per token; its last layer is new."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(int(job.options.training.number("seed", 42)))
    location = job.weights.base
    try:
        value = AutoModelForSequenceClassification.from_pretrained(
            location.path, num_labels=1, dtype=torch.float32, **location.loading_arguments()
        )
    except (OSError, ValueError) as error:
        text = one_line(error, 300)
        raise UserError(f"PPO needs a value model, and {job.weights.name} cannot be loaded as one: {text}") from error
    if not hasattr(value, "score"):
        raise UserError(f"PPO needs a value model with a layer `score`, and {job.weights.name} has none; use grpo")
    value.config.pad_token_id = job.tokenizer.pad_token_id
    return value.to(model.device)


def _patch(trainer: Any) -> None:
    """Patch TRL's trainer: saving with transformers 5, and rewards from our stand-in."""
    if not hasattr(trainer, "is_distributed_loading_by_transformers"):
        trainer.is_distributed_loading_by_transformers = False  # Trainer.__init__, which would set it, is skipped
        patch_get_reward()


def _set_separate_pad(tokenizer: Any) -> None:
    """Pad with a token other than the end token if there is one: TRL excludes all padding from the answer."""
    spare = tokenizer.unk_token
    if tokenizer.pad_token_id == tokenizer.eos_token_id and spare not in {None, tokenizer.eos_token}:
        tokenizer.pad_token = spare


@contextmanager
def _precision_variable(word: str) -> Iterator[None]:
    """Set the precision through the environment: TRL's PPO creates its Accelerator without an argument for it."""
    name = "ACCELERATE_MIXED_PRECISION"
    before = os.environ.get(name)
    os.environ[name] = word
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


RECIPE = PpoRecipe()
