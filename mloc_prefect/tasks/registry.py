"""All task types by name. A new one of ours needs one module in this package and one line here.

Other distributions add theirs by an entry point (`third_party`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.positions import path_text
from mloc_prefect.errors import UsageError
from mloc_prefect.tasks.agent import AGENT
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.dpo import DPO
from mloc_prefect.tasks.echo import ECHO
from mloc_prefect.tasks.grpo import GRPO
from mloc_prefect.tasks.inference import INFERENCE, VARIANTS, fallback
from mloc_prefect.tasks.lora_sft import LORA_SFT
from mloc_prefect.tasks.ppo import PPO
from mloc_prefect.tasks.rag import RAG
from mloc_prefect.tasks.sft import SFT
from mloc_prefect.tasks.third_party import third_party_types

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.tasks.base import TaskType

_OURS: tuple[TaskType, ...] = (INFERENCE, SFT, LORA_SFT, DPO, PPO, GRPO, RAG, AGENT, ECHO, *VARIANTS)

THIRD_PARTY = third_party_types([kind.name for kind in _OURS])

TASK_TYPES: tuple[TaskType, ...] = (*_OURS, *THIRD_PARTY.types)

_BY_NAME = {kind.name: kind for kind in TASK_TYPES}


def is_known(name: str) -> bool:
    """Return whether `name` is a task type; the comparison is exact and case-sensitive, as in MLOC."""
    return name in _BY_NAME


def task_type(name: str) -> TaskType:
    """Return the task type called `name`; MLOC runs an unknown one as inference with transformers.

    One that differs from a known name in capitals only is unknown, too, but counted and divided as the known one is.

    Raises:
        UsageError: Another distribution has the task type, but it cannot be used.
    """
    kind = _BY_NAME.get(name)
    if kind is not None:
        return kind
    if name in THIRD_PARTY.faults:
        raise UsageError(THIRD_PARTY.faults[name], hint="mloc doctor lists the task types and their faults")
    kind, like = fallback(name), _BY_NAME.get(name.strip().lower())
    return kind if like is None else replace(kind, category=like.category, shardable=like.shardable)


def validate_resolved(name: str, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the errors of a `spec` whose placeholders have been resolved, as pairs of path and message.

    Args:
        name: `spec.taskType`.
        spec: The plain `spec` mapping; text with `${` in it is ordinary text here.
    """
    faults = check_spec(task_type(name).model, spec, resolved=True).problems
    return [(path_text(("spec", *f.path)), f.message) for f in faults if f.severity == "error"]
