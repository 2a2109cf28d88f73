"""All task types. A new one is one module in this package and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.positions import path_text
from mloc_prefect.tasks.agent import AGENT
from mloc_prefect.tasks.checks import check
from mloc_prefect.tasks.dpo import DPO
from mloc_prefect.tasks.echo import ECHO
from mloc_prefect.tasks.grpo import GRPO
from mloc_prefect.tasks.inference import INFERENCE, VARIANTS, fallback
from mloc_prefect.tasks.lora_sft import LORA_SFT
from mloc_prefect.tasks.ppo import PPO
from mloc_prefect.tasks.rag import RAG
from mloc_prefect.tasks.sft import SFT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.tasks.base import TaskType

TASK_TYPES: tuple[TaskType, ...] = (INFERENCE, SFT, LORA_SFT, DPO, PPO, GRPO, RAG, AGENT, ECHO, *VARIANTS)

_BY_NAME = {kind.name: kind for kind in TASK_TYPES}


def is_known(name: str) -> bool:
    """Whether `name` is a task type, exactly and case-sensitively as MLOC compares it."""
    return name in _BY_NAME


def task_type(name: str) -> TaskType:
    """Return the task type called `name`; MLOC runs an unknown one as inference with transformers."""
    return _BY_NAME.get(name) or fallback(name)


def validate_resolved(name: str, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with a `spec` whose placeholders were resolved: pairs of path and message.

    Args:
        name: `spec.taskType`.
        spec: The plain `spec` mapping; a text with `${` in it counts as text now, not as a value that comes later.
    """
    faults = check(task_type(name).model, spec, resolved=True).problems
    return [(path_text(("spec", *f.path)), f.message) for f in faults if f.severity == "error"]
