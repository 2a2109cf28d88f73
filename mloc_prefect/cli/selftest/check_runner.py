"""What a check of `mloc selftest` is, and the order in which all of them run."""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mloc_prefect.cli.selftest import inference_trials, training_trials
from mloc_prefect.cli.selftest.trial import CheckFailedError, NotHereError
from mloc_prefect.errors import MlocError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.cli.selftest.trial import Trial

Outcome = Literal["ok", "failed", "not here"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: What was checked.
        outcome: `ok`, `failed`, or `not here` where this machine lacks what it needs.
        why: What failed or what is lacking; "" when all is well.
        seconds: Time that it took.
        figures: What was measured; the unit ends each name.
    """

    name: str
    outcome: Outcome
    why: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)


QUICK: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "inventory": inference_trials.inventory,
    "vllm cold start": inference_trials.cold_start,
    "vllm warm start": inference_trials.warm_start,
    "lease and visible devices": inference_trials.visible_devices,
    "cancel frees the engine": inference_trials.cancel,
    "transformers": inference_trials.with_transformers,
    "sft steps": training_trials.sft,
}
FULL: dict[str, Callable[[Trial], dict[str, Any]]] = {
    **QUICK,
    "vllm beside raw generate": inference_trials.beside_raw_generate,
    "lora adapter": inference_trials.adapter,
    "two engines on one card": inference_trials.packing,
    "sleep and wake, two models taking turns": inference_trials.turns,
    "killed engine": inference_trials.killed,
    "lora steps": training_trials.lora,
    "checkpoint and resume": training_trials.resume,
    "grpo steps": training_trials.grpo_steps,
    "tensor parallel 2": inference_trials.tensor_parallel,
    "fsdp 2": training_trials.fsdp,
    "memory of the cards is free again": inference_trials.memory_is_free,
}


def run_checks(trial: Trial, *, on_start: Callable[[str], None]) -> Iterator[CheckResult]:
    """Run the checks one after the other and yield their results; one that fails does not stop the others.

    Args:
        trial: The machine under test.
        on_start: Called with the name of each check as it begins.
    """
    trial.baseline = trial.card_memory()
    for name, check in (QUICK if trial.quick else FULL).items():
        on_start(name)
        yield run_check(name, check, trial)


def end_all(trial: Trial) -> CheckResult | None:
    """End the runtime and all warm executors; returns a result only if that fails."""

    def down(_: Trial) -> dict[str, Any]:
        trial.down()
        return {}

    trial.deadline = math.inf  # it is time to end, not too late for it
    ended = run_check("end of all processes", down, trial)
    return None if ended.outcome == "ok" else ended


def run_check(name: str, check: Callable[[Trial], dict[str, Any]], trial: Trial) -> CheckResult:
    """Run one check; whatever it raises is its result."""
    began = time.monotonic()
    outcome: Outcome = "ok"
    why, figures = "", {}
    try:
        if began > trial.deadline:
            raise NotHereError("the time of the self-test is over (--minutes)")
        figures = check(trial)
    except NotHereError as error:
        outcome, why = "not here", str(error)
    except CheckFailedError as error:
        outcome, why = "failed", str(error)
    except (MlocError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        outcome, why = "failed", f"{type(error).__name__}: {reason(error)}"
    return CheckResult(name, outcome, why, round(time.monotonic() - began, 1), figures)
