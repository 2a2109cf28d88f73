"""Problems of `training` and `generation` that planning reports: what TRL does not do, and values of a wrong type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.tasks.base import SpecProblem
from mloc_prefect.tasks.fields import FALSE_WORDS, TRUE_WORDS, is_deferred
from mloc_prefect.tasks.training.option_limits import BOUNDS, option_clashes, without_effect
from mloc_prefect.tasks.training.training_table import (
    REPLACED_FIELDS,
    SWITCH_WORDS,
    cells,
    config_fields,
    is_neutral,
    passed_on,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mloc_prefect.tasks.base import SpecModel
    from mloc_prefect.tasks.training.training_spec import TrainingOptions
    from mloc_prefect.tasks.training.training_table import Kind

_BOOLEANS = TRUE_WORDS | FALSE_WORDS
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}
_FITS = ("warn", "error", "ignore")
_TRACKERS = ("tensorboard", "none")
_MOST_WORDS = 15  # listed in a message; there are forty optimizers


def training_problems(
    kind: Kind, training: TrainingOptions, generation: SpecModel | None = None, *, lora: bool = False
) -> Iterator[SpecProblem]:
    """Yield problems of the options of a trainer.

    Args:
        kind: The task type.
        training: `spec.training`.
        generation: `spec.generation` of task types that sample answers.
        lora: Whether adapters are trained.
    """
    yield from _without_effect(kind, "training", training)
    if generation is not None:
        yield from _without_effect(kind, "generation", generation)
    yield from _extra_problems(kind, training.model_extra or {})
    yield from _word_problems(kind, training)
    yield from _precision_problems(training)
    for name, message, fix in option_clashes(kind, training, lora=lora):
        yield SpecProblem(("training", name), "trainer-refuses", message, fix)
    fit = str(getattr(training, "fit_check", "warn")).strip().lower()
    if fit not in _FITS and not is_deferred(fit):
        yield SpecProblem(("training", "fit_check"), "invalid-type", f"fit_check must be one of {', '.join(_FITS)}")
    tracker = getattr(training, "log_with", None)
    if tracker and tracker.strip().lower() not in _TRACKERS and not is_deferred(tracker):
        message = f"log_with '{tracker}' is not available; the curves are in metrics.jsonl"
        yield SpecProblem(("training", "log_with"), "ignored-value", message, "use tensorboard", "warning")


def _without_effect(kind: Kind, block: Any, options: SpecModel) -> Iterator[SpecProblem]:
    table = cells(kind, block)
    for name in sorted(options.model_fields_set & set(table)):
        cell, value = table[name], getattr(options, name)
        if value is None or is_deferred(value):
            continue
        if cell.way == "refused" and not is_neutral(name, value):
            yield SpecProblem((block, name), "trainer-refuses", f"{name} is not possible here: {cell.reason}")
        elif cell.way == "unused" and value not in (False, ""):
            yield SpecProblem((block, name), "ignored-value", f"{name} has no effect: {cell.reason}", None, "warning")


def _extra_problems(kind: Kind, extra: Mapping[str, Any]) -> Iterator[SpecProblem]:
    known = passed_on(kind)
    for name, value in extra.items():
        path = ("training", name)
        if name in REPLACED_FIELDS:
            yield SpecProblem(path, "ignored-value", f"{name} is not read: {REPLACED_FIELDS[name]}", None, "warning")
        elif value is None or is_deferred(value) or (isinstance(value, bool) and name in SWITCH_WORDS):
            continue
        elif name in known and not _fits(value, known[name]):
            yield SpecProblem(path, "invalid-type", f"{name} must be {_WANTED[known[name]]}")
        elif name in known and _is_outside(name, value):
            yield SpecProblem(path, "out-of-range", f"{name} {BOUNDS[name].wanted()}")
        elif name in known and value and (reason := without_effect(kind, name)):
            yield SpecProblem(path, "ignored-value", f"{name} has no effect: {reason}", None, "warning")


def _word_problems(kind: Kind, training: SpecModel) -> Iterator[SpecProblem]:
    """Yield words that TRL does not know; TRL would report them only after the model is loaded."""
    given = training.__dict__ | (training.__pydantic_extra__ or {})  # by `getattr` a missing one costs far more
    for name, known in words(kind).items():
        value: Any = given.get(name)
        several = isinstance(value, list) and config_fields(kind)[name] == "list"
        for index, word in enumerate(value) if several else [(None, value)]:
            # The executor lowercases the strategy, too.
            text = str(word).strip().lower() if name == "save_strategy" else str(word)
            path: tuple[str | int, ...] = ("training", name) if index is None else ("training", name, index)
            if word is None or is_deferred(text) or text.lower() in SWITCH_WORDS.get(name, {}):
                continue
            if text not in known:
                fix = did_you_mean(text, known) or f"use one of: {_listed(known)}"
                yield SpecProblem(path, "trainer-refuses", f"TRL knows no {name} '{text}'", fix)
            elif (name, text) == ("save_strategy", "best"):
                message = "save_strategy 'best' is not possible here: no rows are held out to compare checkpoints"
                yield SpecProblem(path, "trainer-refuses", message, "use steps or epoch")


def _is_outside(name: str, value: Any) -> bool:
    return name in BOUNDS and _is_number(value, whole=False) and not BOUNDS[name].allows(float(value))


def _listed(known: Sequence[str]) -> str:
    shown = ", ".join(known[:_MOST_WORDS])
    return f"{shown}, ..." if len(known) > _MOST_WORDS else shown


def _fits(value: Any, word: str) -> bool:
    if word in {"int", "float"}:
        return not isinstance(value, bool) and _is_number(value, whole=word == "int")
    if word == "bool":
        return isinstance(value, bool) or str(value).strip().lower() in _BOOLEANS
    if word == "str":
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if word == "list":
        return isinstance(value, (list, str))  # TRL reads a single text as a list of one
    return word != "dict" or isinstance(value, dict)


def _is_number(value: Any, *, whole: bool) -> bool:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return math.isfinite(number) and (not whole or number == int(number))


def _precision_problems(training: Any) -> Iterator[SpecProblem]:
    if training.fp16 is True and training.bf16 is True:
        yield SpecProblem(
            ("training", "fp16"), "trainer-refuses", "fp16 and bf16 exclude each other", "keep one of them"
        )
