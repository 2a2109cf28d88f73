"""`ppo`: reinforcement learning with a value model, with TRL's experimental trainer (its last version is 1.12)."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.ppo_rating import Turns, ask_stand_in, stand_in
from mloc_prefect.executors.rewards import scorer_of
from mloc_prefect.executors.rollouts import RolloutRecipe
from mloc_prefect.executors.training_arguments import rollout_sizes
from mloc_prefect.executors.training_checkpoints import REFERENCE
from mloc_prefect.executors.training_model import load_reference, wants_lora
from mloc_prefect.executors.training_recipe import built, configured

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mloc_prefect.executors.training_arguments import Arguments
    from mloc_prefect.executors.training_recipe import Job
    from mloc_prefect.tasks.training_table import Kind

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
"""Means that TRL takes over empty places too when gradients are accumulated."""


class PpoRecipe(RolloutRecipe):
    """The policy learns from rated answers; a value model of the same kind learns beside it and is thrown away."""

    kind: Kind = "ppo"

    def config(self, job: Job, arguments: Arguments) -> Any:
        """Return a `PPOConfig`."""
        from trl.experimental.ppo import PPOConfig

        del job
        return configured(PPOConfig, arguments)

    def trainer(self, job: Job, model: Any, config: Any, callbacks: Sequence[Any]) -> Any:
        """Return a `PPOTrainer`."""
        from datasets import Dataset
        from trl.experimental.ppo import PPOTrainer

        _patch(PPOTrainer)
        batch, _, steps = rollout_sizes(job.options)
        rows = self.enough(job, batch * job.group.world)
        job.tokenizer.padding_side = "left"
        _own_pad(job.tokenizer)
        _ready(job, model, config)
        scorer = scorer_of(job.spec, job.places, self.allowed_rewards(job), job.device, job.rows.notes)
        turns = Turns(job.tokenizer, job.prompts, rows)
        with _precision(config.mixed_precision):
            trainer = built(
                lambda: PPOTrainer(
                    args=config,
                    processing_class=job.tokenizer,
                    model=model,
                    ref_model=_reference(job),
                    reward_model=stand_in(job.tokenizer, scorer, turns, job.context.check),
                    value_model=_value_model(job, model),
                    train_dataset=Dataset.from_list(turns.features()),
                    data_collator=turns,
                    callbacks=[*_own_callbacks(job), *callbacks],
                )
            )
        # Otherwise the last batch of each pass over the prompts steps after every mini-batch.
        trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
        _undilute(trainer, steps)
        if job.group.world > 1:
            _show_policy(trainer.model)
        return trainer

    def train(self, job: Job, trainer: Any) -> None:
        """Train; after an earlier attempt the steps that it saved are not done again."""
        done = job.resume.step if job.resume else 0
        for _ in range(done):
            trainer.lr_scheduler.step()
        trainer.args.num_total_batches = max(0, trainer.args.num_total_batches - done)
        gc.freeze()  # TRL collects garbage several times a step, and the libraries alone are a million objects
        try:
            trainer.train()
        finally:
            gc.unfreeze()


def _ready(job: Job, model: Any, config: Any) -> None:
    """Give the policy what TRL's other trainers would give it by themselves."""
    if job.options.training.flag("gradient_checkpointing", default=False):
        model.gradient_checkpointing_enable()
    if job.weights.adapter is not None and wants_lora(job.options, job.spec):  # else: the model without adapters
        model.load_adapter(str(job.weights.adapter), adapter_name=REFERENCE)
        config.ref_adapter_name = REFERENCE


def _own_callbacks(job: Job) -> list[Any]:
    from mloc_prefect.executors.training_callbacks import GoOn, KlLimit

    found: list[Any] = [GoOn(job.resume.step, job.resume.history())] if job.resume else []
    training = job.options.training
    limit = training.number("target_kl", 0.0)
    if limit and training.flag("early_stopping", default=True):
        found.append(KlLimit(limit))
    return found


def _show_policy(wrapped: Any) -> None:
    """Let TRL find the policy in a model that is wrapped for several processes, where it looks for it to save it.

    Plain attributes: as modules they would be parts of the wrapper a second time.
    """
    inner = wrapped.module
    object.__setattr__(wrapped, "policy", inner.policy)
    object.__setattr__(wrapped, "config", inner.config)


def _undilute(trainer: Any, steps: int) -> None:
    """Correct means that TRL takes over `steps` places of which it fills one."""
    if steps == 1:
        return
    log = trainer.log

    def corrected(logs: dict[str, float], *rest: Any) -> None:
        log({name: value * steps if name in _DILUTED else value for name, value in logs.items()}, *rest)

    trainer.log = corrected


def _reference(job: Job) -> Any:
    """Return the model that the policy is held near to; None = a copy of it, or the model without its adapters.

    After an earlier attempt the policy is no longer what it started from.
    """
    return load_reference(job) if job.resume is not None else None


def _value_model(job: Job, model: Any) -> Any:
    """Return a model of the same kind that gives one number for each token; its last layer is new."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(int(job.options.training.number("seed", 42)))
    place = job.weights.base
    common: dict[str, Any] = {"revision": place.commit} if place.commit else {}
    try:
        value = AutoModelForSequenceClassification.from_pretrained(
            place.path, num_labels=1, dtype=torch.float32, local_files_only=place.local_only, **common
        )
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"PPO needs a value model, and {job.weights.name} has no such form: {text}") from error
    if not hasattr(value, "score"):
        raise UserError(f"PPO needs a value model with a layer `score`, and {job.weights.name} has none; use grpo")
    value.config.pad_token_id = job.tokenizer.pad_token_id
    return value.to(model.device)


def _patch(trainer: Any) -> None:
    """Let TRL's trainer save with transformers 5, and ask our stand-in for rewards."""
    if not hasattr(trainer, "is_distributed_loading_by_transformers"):
        trainer.is_distributed_loading_by_transformers = False  # Trainer.__init__, which would set it, is skipped
    ask_stand_in()


def _own_pad(tokenizer: Any) -> None:
    """Pad with another token than the end token where there is one: TRL takes every pad for no part of the answer."""
    spare = tokenizer.unk_token
    if tokenizer.pad_token_id == tokenizer.eos_token_id and spare not in {None, tokenizer.eos_token}:
        tokenizer.pad_token = spare


@contextmanager
def _precision(word: str) -> Iterator[None]:
    """Tell the precision by the environment: TRL's PPO makes its Accelerator without an argument for it."""
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
