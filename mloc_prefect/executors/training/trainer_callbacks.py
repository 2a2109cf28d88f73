"""Callbacks of a trainer: progress, metrics, marks of complete checkpoints, divergence, and ending on request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.training.guards.finite_weights import broken_weight, diverged_text
from mloc_prefect.executors.training.metrics_file import is_finite, numbers_in, progress_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.training.metrics_file import MetricsFile
    from mloc_prefect.executors.training.task_checkpoints import TaskCheckpoints

_LOG_SECONDS = 1.0


class EndOfTrainingError(Exception):
    """A reason to end before the last step; the model is complete."""


class ProgressReporter(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Reports the progress of a training, from the first process only.

    Args:
        context: Receives the events.
        metrics: Receives each line of metrics.
    """

    def __init__(self, context: ExecutionContext, metrics: MetricsFile) -> None:
        self._context = context
        self._metrics = metrics
        self._began = (0.0, 0)
        self._logged = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; steps of earlier attempts do not count for the rate."""
        del args, control
        self._began = (time.monotonic(), state.global_step)
        self._context.progress(state.global_step, state.max_steps, unit="steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the step and the remaining time."""
        del args, control
        began, first = self._began
        seconds = (time.monotonic() - began) / max(1, state.global_step - first)
        left = round(seconds * max(0, state.max_steps - state.global_step), 1)
        self._context.progress(state.global_step, state.max_steps, unit="steps", eta_seconds=left)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Record and report the metrics."""
        del args, control
        numbers = numbers_in(logs or {})
        if not numbers:
            return
        self._metrics.write({"step": state.global_step, **numbers})
        self._context.metric(**{name: float(value) for name, value in numbers.items()})
        last = state.global_step >= state.max_steps
        if last or time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            self._context.log(progress_line(state.global_step, state.max_steps, numbers))


class DivergenceGuard(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Ends a training whose weights are no longer finite, before they are used or saved.

    Args:
        model: Name of the model that the training starts from.
        rate: `training.learning_rate`, for the message.
        every_step: Whether the weights are checked after each step: answers cannot be sampled from broken ones.
    """

    def __init__(self, model: str, rate: object, *, every_step: bool) -> None:
        self._model = model
        self._rate = rate
        self._every_step = every_step
        self._first: int | None = None
        self._count = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check the weights that the training starts from.

        Raises:
            UserError: They are not finite.
        """
        del args, state, control
        weight = None if model is None else broken_weight(model)
        if weight is not None:
            raise UserError(f"weight '{weight}' of {self._model} is not finite (NaN), so it cannot be trained")

    def on_log(
        self, args: Any, state: Any, control: Any, model: Any = None, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Check the weights if a loss or a norm of gradients is not finite."""
        del args, control
        values = [value for name, value in (logs or {}).items() if name == "grad_norm" or "loss" in name]
        if all(is_finite(value) for value in values):
            return
        self._count += 1
        self._first = state.global_step if self._first is None else self._first
        self.check(model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check the weights that the next answers are sampled from."""
        del args, control
        if self._every_step:
            self.check(model, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check the weights of a checkpoint before it is marked as complete."""
        del args, control
        self.check(model, state.global_step)

    def check(self, model: Any, step: int) -> None:
        """Return if all weights are finite.

        Raises:
            UserError: One is not.
        """
        weight = None if model is None else broken_weight(model)
        if weight is not None:
            raise UserError(diverged_text(weight, step, self._first, self._rate))

    def note(self) -> str | None:
        """Return a note about steps whose gradients were not finite and that left the weights finite."""
        if not self._count:
            return None
        return (
            f"loss or gradients were not finite in {self._count} logged steps, first at step {self._first}; "
            "the weights are finite"
        )


class CheckpointMarker(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Marks checkpoints as complete after every process has written its part.

    Args:
        checkpoints: The checkpoints of the task.
        context: None in all but the first process, which alone marks them.
    """

    def __init__(self, checkpoints: TaskCheckpoints, context: ExecutionContext | None) -> None:
        self._checkpoints = checkpoints
        self._context = context

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint of this step."""
        del control
        if args.world_size > 1:
            import torch.distributed as dist

            dist.barrier()
        if self._context is not None:
            self._checkpoints.complete(state.global_step)


class StopOnRequest(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Ends several processes at the same step when the first one is asked to stop.

    Args:
        unwanted: Returns whether the task was cancelled; called in the first process only.
        by_flag: Whether the trainer stops and saves by a flag; otherwise an exception ends it.
    """

    def __init__(self, unwanted: Callable[[], bool], *, by_flag: bool) -> None:
        self._unwanted = unwanted
        self._by_flag = by_flag
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Agree with the other processes.

        Raises:
            Cancelled: The task was cancelled, and the trainer has no flag.
        """
        del state
        import torch
        import torch.distributed as dist

        flag = torch.tensor([int(args.process_index == 0 and self._unwanted())], device=args.device)
        dist.broadcast(flag, src=0)
        if flag.item():
            self.stopped = True
            if not self._by_flag:
                raise Cancelled
            control.should_training_stop = control.should_save = True
        return control


class ResumeMarker(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Continues the step count of an earlier attempt, for a trainer that always starts at 0.

    Args:
        done: Steps of earlier attempts.
        history: What was logged in them.
    """

    def __init__(self, done: int, history: list[dict[str, Any]]) -> None:
        self._done, self._history = done, history

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the counters, which the trainer has just reset to 0."""
        del control
        state.global_step = self._done
        state.max_steps += self._done
        state.episode = self._done * args.batch_size
        state.log_history = [*self._history, *state.log_history]


class KlLimit(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Ends PPO when one batch has changed the policy too much (`training.target_kl`).

    Args:
        limit: Largest mean of `policy/approxkl_avg`, the divergence between the policy before and after a batch.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._last = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Record the divergence of this step."""
        del args, state, control
        self._last = float((logs or {}).get("policy/approxkl_avg") or 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the training if the divergence was too large; PPO has no flag for it, so an exception is raised."""
        del args, control
        if self._last > self._limit:
            raise EndOfTrainingError(
                f"stopped at step {state.global_step}: the policy moved by {self._last:.3g}, more than target_kl "
                f"{self._limit:g}"
            )
