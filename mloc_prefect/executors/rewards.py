"""What rates answers in ppo and grpo: a text classifier, rules, and functions of others that the operator allows."""

from __future__ import annotations

import importlib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mloc_prefect.executors.places import Places

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_DEMO_TARGET = 100

Row = dict[str, Any]


class Reward(Protocol):
    """Rates answers."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return one number for each answer; higher is better.

        Args:
            prompts: What the model was asked, one for each answer.
            answers: What it answered.
            rows: The other columns of each prompt's row.
        """


@dataclass(slots=True)
class Scorer:
    """The weighted sum of several rewards.

    Attributes:
        parts: Name, weight and reward of each.
    """

    parts: list[tuple[str, float, Reward]]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return the score of each answer.

        Raises:
            UserError: A reward gives too few numbers, or what is no number.
        """
        totals = [0.0] * len(answers)
        for name, weight, reward in self.parts:
            values = reward(prompts, answers, rows)
            if len(values) != len(answers):
                raise UserError(f"reward '{name}' gave {len(values)} numbers for {len(answers)} answers")
            for index, value in enumerate(values):
                totals[index] += weight * _finite(name, value)
        return totals


def scorer_of(
    spec: Fields, places: Places, allowed: Sequence[str], device: str = "cpu", notes: list[str] | None = None
) -> Scorer:
    """Return what rates the answers of a task: the sum of `reward_model` and all `rewards`.

    Args:
        spec: The resolved spec.
        places: Where reward models are looked up.
        allowed: Modules whose functions specs may name (setting `MLOC_ALLOWED_REWARDS`).
        device: Where a reward model is put.
        notes: What is not as the spec says is added to it.

    Raises:
        UserError: A rule, function or model is not there, or may not be used.
    """
    listed = spec.get("rewards") or []
    rules = [Fields(entry, f"spec.rewards[{index}]") for index, entry in enumerate(listed)]
    parts = [(_name(rule), rule.number("weight", 1.0), _reward(rule, allowed)) for rule in rules]
    if spec.get("reward_model") is not None:
        from mloc_prefect.executors.reward_model import ModelReward

        model = spec.child("reward_model")
        loaded = ModelReward.load(model, places, device, [] if notes is None else notes)
        parts.append((str(model.text("identifier")), 1.0, loaded))
    if not parts:
        parts = [("length", 1.0, _length(Fields({"target": _DEMO_TARGET}, "spec.rewards")))]
    return Scorer(parts)


def _name(rule: Fields) -> str:
    return rule.text("path", "name") or rule.path


def _reward(rule: Fields, allowed: Sequence[str]) -> Reward:
    path = rule.text("path")
    if path is not None:
        return _function(path, rule, allowed)
    maker = RULES.get(rule.text("name") or "")
    if maker is None:
        raise rule.error("name", rule.get("name"), f"one of {', '.join(RULES)}")
    return maker(rule)


def _function(path: str, rule: Fields, allowed: Sequence[str]) -> Reward:
    module, _, name = path.partition(":")
    if not any(module == a or module.startswith(f"{a}.") for a in allowed):
        raise UserError(
            f"{rule.path}.path names module '{module}', which specs may not run; the operator allows it with "
            f"MLOC_ALLOWED_REWARDS={module}"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{rule.path}.path {path} cannot be imported: {error}") from error
    options = rule.child("options").data

    def reward(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        return list(function(prompts=list(prompts), completions=list(answers), rows=list(rows), **options))

    return reward


def _length(rule: Fields) -> Reward:
    """1 at the wanted length, falling to 0 at none of it and at twice of it."""
    target, words = rule.integer("target", _DEMO_TARGET), (rule.text("unit") or "characters") == "words"

    def rate(answer: str) -> float:
        size = len(answer.split()) if words else len(answer)
        return max(0.0, 1.0 - abs(size - target) / max(1, target))

    return _each(lambda answer, _row: rate(answer))


def _regex(rule: Fields) -> Reward:
    """1 when the pattern is found anywhere in the answer."""
    try:
        pattern = re.compile(str(rule.get("pattern") or ""), re.DOTALL)
    except re.error as error:
        raise UserError(f"{rule.path}.pattern is not a regular expression: {error}") from None
    return _each(lambda answer, _row: float(pattern.search(answer) is not None))


def _exact(rule: Fields) -> Reward:
    """1 when the answer is the value of a column, blanks and case at the ends aside."""
    column = rule.text("answer_column") or "answer"
    return _each(lambda answer, row: float(answer.strip().lower() == _wanted(row, column, rule).strip().lower()))


def _numeric(rule: Fields) -> Reward:
    """1 when the last number of the answer equals the last number of a column (as in `... #### 42`)."""
    column, tolerance = rule.text("answer_column") or "answer", rule.number("tolerance", 1e-6)

    def rate(answer: str, row: Row) -> float:
        wanted, found = _last_number(_wanted(row, column, rule)), _last_number(answer)
        return float(wanted is not None and found is not None and math.isclose(wanted, found, abs_tol=tolerance))

    return _each(rate)


def _json(rule: Fields) -> Reward:
    """1 when the answer is JSON and has all of `keys`; the share of them otherwise."""
    keys = [str(key) for key in rule.get("keys") or []]

    def rate(answer: str) -> float:
        try:
            value = json.loads(answer)
        except ValueError:
            return 0.0
        if not keys:
            return 1.0
        return sum(isinstance(value, dict) and key in value for key in keys) / len(keys)

    return _each(lambda answer, _row: rate(answer))


def _each(rate: Callable[[str, Row], float]) -> Reward:
    def reward(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        del prompts
        return [rate(answer, row) for answer, row in zip(answers, rows, strict=True)]

    return reward


def _wanted(row: Mapping[str, Any], column: str, rule: Fields) -> str:
    if row.get(column) is None:
        raise UserError(f"{rule.path} needs the column '{column}' in the data; columns: {sorted(row)}")
    return str(row[column])


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"reward '{name}' gave {value!r}, which is no number")
    return number


RULES: dict[str, Callable[[Fields], Reward]] = {
    "length": _length,
    "regex": _regex,
    "exact": _exact,
    "numeric": _numeric,
    "json": _json,
}
