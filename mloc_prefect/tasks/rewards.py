"""What rates answers in ppo and grpo: `reward_model` (a text classifier) and `rewards` (rules, functions)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.base import Problem, SpecModel
from mloc_prefect.tasks.fields import Count, Flag, Free, Text, block, is_deferred, item, number, rows, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = ("length", "regex", "exact", "numeric", "json")
_TYPES = ("classification", "sentiment")
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class RewardModel(SpecModel):
    """`reward_model`; the corpus uses types `classification` and `sentiment`, which are the same here."""

    identifier: Text | None = None
    type: Text = "classification"
    revision: Text | None = None
    scale: Annotated[float, number()] = 1.0
    max_length: Count | None = None
    positive_label: Text | None = None
    negative_label: Text | None = None
    trust_remote_code: Flag = False

    def problems(self) -> Iterator[Problem]:
        """Yield types that are not known, and a model without a name."""
        path = ("reward_model", "type")
        if self.type.strip().lower() not in _TYPES and not is_deferred(self.type):
            near = did_you_mean(self.type, _TYPES) or f"use one of: {', '.join(_TYPES)}; rules go into rewards"
            yield Problem(path, "unsupported-reward", f"Unsupported reward_model type '{self.type}'", near)
        if not self.identifier:
            message = "reward_model.identifier is required"
            yield Problem(("reward_model", "identifier"), "missing-value", message, "name a text classifier")


class Reward(SpecModel):
    """One of `rewards`; an answer's score is the sum of weight x reward."""

    name: Text | None = None
    path: Text | None = None
    weight: Annotated[float, number()] = 1.0
    target: Annotated[int | None, whole(ge=0)] = None
    unit: Text = "characters"
    pattern: Text | None = None
    answer_column: Text = "answer"
    tolerance: Annotated[float, number(ge=0)] = 1e-6
    keys: Annotated[list[Any], rows()] = Field(default_factory=list)
    options: Free = Field(default_factory=dict)

    def problems(self, index: int) -> Iterator[Problem]:
        """Yield a rule that is not known, or lacks what it needs."""
        at = ("rewards", index)
        if self.path is None and self.name is None:
            message = "A reward needs name (of a rule) or path (of a function)"
            yield Problem(at, "missing-value", message, f"the rules are {', '.join(RULES)}")
        elif self.path is not None:
            if not _IMPORT_PATH.fullmatch(self.path) and not is_deferred(self.path):
                message = f"path '{self.path}' is not of the form package.module:function"
                yield Problem((*at, "path"), "unsupported-reward", message)
        elif self.name not in RULES and not is_deferred(self.name):
            near = did_you_mean(str(self.name), RULES) or f"use one of: {', '.join(RULES)}"
            yield Problem((*at, "name"), "unsupported-reward", f"Unknown reward '{self.name}'", near)
        yield from self._needs(at)

    def _needs(self, at: tuple[str | int, ...]) -> Iterator[Problem]:
        if self.name == "length" and self.target is None:
            yield Problem((*at, "target"), "missing-value", "The reward length needs target", "the wanted length")
        if self.name == "length" and self.unit not in {"characters", "words"}:
            message = f"Unknown unit '{self.unit}'"
            yield Problem((*at, "unit"), "unsupported-reward", message, "use characters or words")
        if self.name == "regex":
            yield from self._pattern(at)

    def _pattern(self, at: tuple[str | int, ...]) -> Iterator[Problem]:
        if not self.pattern:
            yield Problem((*at, "pattern"), "missing-value", "The reward regex needs pattern")
        elif not is_deferred(self.pattern):
            try:
                re.compile(self.pattern)
            except re.error as error:
                yield Problem((*at, "pattern"), "unsupported-reward", f"pattern is not a regular expression: {error}")


Rewards = Annotated[list[Annotated[Reward, item()]] | None, rows()]
RewardModelBlock = Annotated[RewardModel | None, block()]


def reward_problems(model: RewardModel | None, rewards: list[Reward] | None, later: bool) -> Iterator[Problem]:
    """Yield what is wrong with the rewards of a task.

    Args:
        model: `reward_model`.
        rewards: `rewards`.
        later: Whether one of them comes from an earlier stage.
    """
    if model is None and not rewards and not later:
        message = "No reward is given, so answers are rated by a built-in demo rule: 100 characters are best"
        fix = f"add reward_model.identifier, or rewards with one of {', '.join(RULES)}"
        yield Problem(("reward_model",), "demo-data", message, fix, "warning")
    if model is not None:
        yield from model.problems()
    for index, reward in enumerate(rewards or []):
        yield from reward.problems(index)
