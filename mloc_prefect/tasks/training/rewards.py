"""How answers are scored in ppo and grpo: `reward_model` (a text classifier) and `rewards` (rules, functions)."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.tasks.base import SpecModel, SpecProblem
from mloc_prefect.tasks.fields import Count, Flag, Free, Text, block, is_deferred, item, number, rows, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = ("length", "regex", "exact", "numeric", "json")
_LONGEST_PATTERN = 10_000  # characters
_TYPES = ("classification", "sentiment")
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class RewardModel(SpecModel):
    """`reward_model`; specs use the types `classification` and `sentiment`, which mean the same here."""

    identifier: Text | None = None
    type: Text = "classification"
    revision: Text | None = None
    scale: Annotated[float, number()] = 1.0
    max_length: Count | None = None
    positive_label: Text | None = None
    negative_label: Text | None = None
    trust_remote_code: Flag = False

    def problems(self) -> Iterator[SpecProblem]:
        """Yield an unknown type, and a model without a name."""
        path = ("reward_model", "type")
        if self.type.strip().lower() not in _TYPES and not is_deferred(self.type):
            near = did_you_mean(self.type, _TYPES) or f"use one of: {', '.join(_TYPES)}; rules go into rewards"
            yield SpecProblem(path, "unsupported-reward", f"Unsupported reward_model type '{self.type}'", near)
        if not self.identifier:
            message = "reward_model.identifier is required"
            yield SpecProblem(("reward_model", "identifier"), "missing-value", message, "name a text classifier")


class RewardOptions(SpecModel):
    """One of `rewards`; the score of an answer is the sum of weight x reward."""

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

    def problems(self, index: int) -> Iterator[SpecProblem]:
        """Yield problems of one reward: an unknown rule, or a missing value."""
        at = ("rewards", index)
        if self.path is None and self.name is None:
            message = "A reward needs name (of a rule) or path (of a function)"
            yield SpecProblem(at, "missing-value", message, f"the rules are {', '.join(RULES)}")
        elif self.path is not None:
            if not _IMPORT_PATH.fullmatch(self.path) and not is_deferred(self.path):
                message = f"path '{self.path}' is not of the form package.module:function"
                yield SpecProblem((*at, "path"), "unsupported-reward", message)
            elif (module := self.path.partition(":")[0]).endswith(".py"):
                message = f"path '{self.path}' names a file, and Python imports modules"
                fix = f"write {module.removesuffix('.py')}:{self.path.partition(':')[2]}"
                yield SpecProblem((*at, "path"), "unsupported-reward", message, fix)
        elif self.name not in RULES and not is_deferred(self.name):
            near = did_you_mean(str(self.name), RULES) or f"use one of: {', '.join(RULES)}"
            yield SpecProblem((*at, "name"), "unsupported-reward", f"Unknown reward '{self.name}'", near)
        yield from self._missing_values(at)

    def _missing_values(self, at: tuple[str | int, ...]) -> Iterator[SpecProblem]:
        if self.name == "length" and self.target is None:
            yield SpecProblem((*at, "target"), "missing-value", "The reward length needs target", "the wanted length")
        if self.name == "length" and self.unit not in {"characters", "words"}:
            message = f"Unknown unit '{self.unit}'"
            yield SpecProblem((*at, "unit"), "unsupported-reward", message, "use characters or words")
        if self.name == "regex":
            yield from self._pattern_problems(at)

    def _pattern_problems(self, at: tuple[str | int, ...]) -> Iterator[SpecProblem]:
        if not self.pattern:
            yield SpecProblem((*at, "pattern"), "missing-value", "The reward regex needs pattern")
        elif not is_deferred(self.pattern):
            fault = pattern_fault(self.pattern)
            if fault:
                message = f"pattern is not a regular expression: {fault}"
                yield SpecProblem((*at, "pattern"), "unsupported-reward", message)


def pattern_fault(pattern: str) -> str | None:
    """Return why `pattern` cannot be used as a regular expression, None when it can."""
    if len(pattern) > _LONGEST_PATTERN:
        return f"it has {len(pattern)} characters, {_LONGEST_PATTERN} are allowed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a nested set: allowed, only unusual
            re.compile(pattern)
    except re.error as error:
        return str(error)
    except RecursionError:
        return "it is nested too deep"
    except OverflowError:
        return "a number of repetitions is too large"
    return None


Rewards = Annotated[list[Annotated[RewardOptions, item()]] | None, rows()]
RewardModelBlock = Annotated[RewardModel | None, block()]


def reward_problems(
    model: RewardModel | None, rewards: list[RewardOptions] | None, later: bool
) -> Iterator[SpecProblem]:
    """Yield problems of the rewards of a task.

    Args:
        model: `reward_model`.
        rewards: `rewards`.
        later: Whether one of them comes from an earlier stage.
    """
    if model is None and not rewards and not later:
        message = "No reward is given, so answers are scored by a built-in demo rule: 100 characters are best"
        fix = f"add reward_model.identifier, or rewards with one of {', '.join(RULES)}"
        yield SpecProblem(("reward_model",), "demo-data", message, fix, "warning")
    if model is not None:
        yield from model.problems()
    for index, reward in enumerate(rewards or []):
        yield from reward.problems(index)
