"""What watches a trainer: progress, curves, marks of whole checkpoints, and the end that somebody asked for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from mloc_prefect.execution.protocol import Cancelled
from mloc_prefect.executors.training_metrics import numbers_in, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.training_checkpoints import Checkpoints
    from mloc_prefect.executors.training_metrics import MetricsFile

_LOG_SECONDS = 1.0


class EndOfTrainingError(Exception):
    """A reason to end before the last step; the model is as it should be."""


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Tells the run how the training goes, from the first process only.

    Args:
        context: Where to.
        metrics: File that gets each line of the curves.
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
        """Report the step and how long the rest will take."""
        del args, control
        began, first = self._began
        seconds = (time.monotonic() - began) / max(1, state.global_step - first)
        left = round(seconds * max(0, state.max_steps - state.global_step), 1)
        self._context.progress(state.global_step, state.max_steps, unit="steps", eta_seconds=left)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keep and show the numbers."""
        del args, control
        numbers = numbers_in(logs or {})
        if not numbers:
            return
        self._metrics.write({"step": state.global_step, **numbers})
        self._context.metric(**{name: float(value) for name, value in numbers.items()})
        last = state.global_step >= state.max_steps
        if last or time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            self._context.log(one_line(state.global_step, state.max_steps, numbers))


class Keeper(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Marks checkpoints as whole, once every process has written its part.

    Args:
        checkpoints: Of the task.
        context: Told of each one; None in all but the first process.
    """

    def __init__(self, checkpoints: Checkpoints, context: ExecutionContext | None) -> None:
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


class Stopper(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Ends several processes at the same step when the first one is asked to stop.

    Args:
        unwanted: Whether the task is wanted no more; asked in the first process only.
        by_flag: Whether the trainer reads a flag that stops it, and saves then; else an exception ends it.
    """

    def __init__(self, unwanted: Callable[[], bool], *, by_flag: bool) -> None:
        self._unwanted = unwanted
        self._by_flag = by_flag
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Agree with the other processes.

        Raises:
            Cancelled: The task is wanted no more, and the trainer reads no flag.
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


class GoOn(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Counts on from an earlier attempt, for a trainer that always starts at 0.

    Args:
        done: Steps of earlier attempts.
        history: What was logged in them.
    """

    def __init__(self, done: int, history: list[dict[str, Any]]) -> None:
        self._done, self._history = done, history

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the counters, which the trainer has just set to 0."""
        del control
        state.global_step = self._done
        state.max_steps += self._done
        state.episode = self._done * args.batch_size
        state.log_history = [*self._history, *state.log_history]


class KlLimit(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Ends PPO when one batch has moved the policy too far (`training.target_kl`).

    Args:
        limit: Largest mean of `policy/approxkl_avg`, the divergence between the policy before and after a batch.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._last = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keep the divergence of this step."""
        del args, state, control
        self._last = float((logs or {}).get("policy/approxkl_avg") or 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the training if it was too much; PPO reads no flag for that, so it takes an exception."""
        del args, control
        if self._last > self._limit:
            raise EndOfTrainingError(
                f"stopped at step {state.global_step}: the policy moved by {self._last:.3g}, more than target_kl "
                f"{self._limit:g}"
            )
