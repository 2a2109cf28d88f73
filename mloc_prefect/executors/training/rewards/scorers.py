"""Scores answers in ppo and grpo: a text classifier, rules, and user functions that the operator allows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.training.rewards.answer_columns import answer_column, wanted_texts
from mloc_prefect.executors.training.rewards.number_reading import last_number
from mloc_prefect.executors.training.rewards.reward_functions import function_reward
from mloc_prefect.tasks.training.rewards import pattern_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.executors.sources.source_lookup import SourceLookup

_DEMO_TARGET = 100
_PATTERN_SECONDS = 1.0  # that the pattern of a rule may take for one answer

Row = dict[str, Any]


class RewardFunction(Protocol):
    """Scores answers."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return one number per answer; higher is better.

        Args:
            prompts: The prompts, one per answer.
            answers: The answers.
            rows: The other columns of each prompt's row.
        """


@dataclass(slots=True)
class Scorer:
    """The weighted sum of several rewards.

    Attributes:
        parts: Name, weight and reward of each.
    """

    parts: list[tuple[str, float, RewardFunction]]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return the score of each answer.

        Raises:
            UserError: A reward returns too few values, or one that is not a number.
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
    spec: SpecReader, sources: SourceLookup, allowed: Sequence[str], device: str = "cpu", notes: list[str] | None = None
) -> Scorer:
    """Return the scorer of a task: the sum of `reward_model` and all `rewards`.

    Args:
        spec: The resolved spec.
        sources: Where reward models are looked up.
        allowed: Modules whose functions specs may name (setting `MLOC_ALLOWED_REWARDS`).
        device: Device of a reward model.
        notes: Deviations from the spec are added to it.

    Raises:
        UserError: A rule, function or model does not exist, or may not be used.
    """
    listed = spec.get("rewards") or []
    rules = [SpecReader(entry, f"spec.rewards[{index}]") for index, entry in enumerate(listed)]
    parts = [(_name(rule), rule.number("weight", 1.0), _reward(rule, allowed)) for rule in rules]
    if spec.get("reward_model") is not None:
        from mloc_prefect.executors.training.rewards.reward_model import ModelReward

        model = spec.child("reward_model")
        loaded = ModelReward.load(model, sources, device, [] if notes is None else notes)
        parts.append((str(model.text("identifier")), 1.0, loaded))
    if not parts:
        parts = [("length", 1.0, _length(SpecReader({"target": _DEMO_TARGET}, "spec.rewards")))]
    return Scorer(parts)


def _name(rule: SpecReader) -> str:
    return rule.text("path", "name") or rule.path


def _reward(rule: SpecReader, allowed: Sequence[str]) -> RewardFunction:
    path = rule.text("path")
    if path is not None:
        return function_reward(path, rule, allowed)
    maker = RULES.get(rule.text("name") or "")
    if maker is None:
        raise rule.error("name", rule.get("name"), f"one of {', '.join(RULES)}")
    return maker(rule)


def _length(rule: SpecReader) -> RewardFunction:
    """1 at the target length, falling to 0 at length zero and at twice the target."""
    target, words = rule.integer("target", _DEMO_TARGET), (rule.text("unit") or "characters") == "words"

    def rate(answer: str) -> float:
        size = len(answer.split()) if words else len(answer)
        return max(0.0, 1.0 - abs(size - target) / max(1, target))

    return _each(lambda answer, _row: rate(answer))


def _regex(rule: SpecReader) -> RewardFunction:
    """1 when the pattern occurs anywhere in the answer."""
    import regex  # like `re`, with a time limit: a pattern may take longer than the training

    text = str(rule.get("pattern") or "")
    if fault := pattern_fault(text):
        raise UserError(f"{rule.path}.pattern is not a regular expression: {fault}")
    try:
        pattern = regex.compile(text, regex.DOTALL)
    except regex.error as error:
        raise UserError(f"{rule.path}.pattern is not a regular expression: {error}") from None

    def rate(answer: str) -> float:
        try:
            return float(pattern.search(answer, timeout=_PATTERN_SECONDS) is not None)
        except TimeoutError:
            size = f"an answer of {len(answer)} characters"
            message = f"{rule.path}.pattern took more than {_PATTERN_SECONDS:g} s for {size}"
            raise UserError(f"{message}: write it without nested repetitions") from None

    return _each(lambda answer, _row: rate(answer))


def _exact(rule: SpecReader) -> RewardFunction:
    """1 when the answer equals the value of a column, or one of a list, ignoring case and surrounding blanks."""
    column = answer_column(rule)

    def rate(answer: str, row: Row) -> float:
        found = answer.strip().lower()
        return float(any(found == text.strip().lower() for text in wanted_texts(row, column)))

    return _each(rate)


def _numeric(rule: SpecReader) -> RewardFunction:
    """1 when the last number of the answer equals the last number of a column (as in `... #### 42`)."""
    column, tolerance = answer_column(rule), rule.number("tolerance", 1e-6)

    def rate(answer: str, row: Row) -> float:
        found = last_number(answer)
        wanted = [last_number(text) for text in wanted_texts(row, column)]
        return float(found is not None and any(n is not None and found.answers(n, tolerance) for n in wanted))

    return _each(rate)


def _json(rule: SpecReader) -> RewardFunction:
    """1 when the answer is JSON and has all of `keys`; otherwise the fraction of keys that it has."""
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


def _each(rate: Callable[[str, Row], float]) -> RewardFunction:
    def reward(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        del prompts
        return [rate(answer, row) for answer, row in zip(answers, rows, strict=True)]

    return reward


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"reward '{name}' gave {value!r}, which is not a number")
    return number


RULES: dict[str, Callable[[SpecReader], RewardFunction]] = {
    "length": _length,
    "regex": _regex,
    "exact": _exact,
    "numeric": _numeric,
    "json": _json,
}
