"""What planning says about `training` and `generation`: what TRL does not do, and values of a wrong type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.base import Problem
from mloc_prefect.tasks.fields import is_deferred
from mloc_prefect.tasks.training_table import OURS, cells, config_fields, is_neutral, passed_on, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mloc_prefect.tasks.base import SpecModel
    from mloc_prefect.tasks.training_table import Kind

_TRUTH = frozenset({"true", "yes", "on", "1", "false", "no", "off", "0"})
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
_MOST_WORDS = 15  # that a message lists; there are forty optimisers


def training_problems(kind: Kind, training: SpecModel, generation: SpecModel | None = None) -> Iterator[Problem]:
    """Yield what is wrong with the options of a trainer.

    Args:
        kind: The task type.
        training: `spec.training`.
        generation: `spec.generation` of task types that sample answers.
    """
    yield from _without_effect(kind, "training", training)
    if generation is not None:
        yield from _without_effect(kind, "generation", generation)
    yield from _extra_problems(kind, training.model_extra or {})
    yield from _word_problems(kind, training)
    yield from _precision_problems(training)
    fit = str(getattr(training, "fit_check", "warn")).strip().lower()
    if fit not in _FITS and not is_deferred(fit):
        yield Problem(("training", "fit_check"), "invalid-type", f"fit_check must be one of {', '.join(_FITS)}")
    tracker = getattr(training, "log_with", None)
    if tracker and tracker.strip().lower() not in _TRACKERS and not is_deferred(tracker):
        message = f"log_with '{tracker}' is not there; the curves are in metrics.jsonl"
        yield Problem(("training", "log_with"), "ignored-value", message, "use tensorboard", "warning")


def _without_effect(kind: Kind, block: Any, options: SpecModel) -> Iterator[Problem]:
    table = cells(kind, block)
    for name in sorted(options.model_fields_set & set(table)):
        cell, value = table[name], getattr(options, name)
        if value is None or is_deferred(value):
            continue
        if cell.way == "refused" and not is_neutral(name, value):
            yield Problem((block, name), "trainer-refuses", f"{name} is not possible here: {cell.reason}")
        elif cell.way == "unused" and value not in (False, ""):
            yield Problem((block, name), "ignored-value", f"{name} has no effect: {cell.reason}", None, "warning")


def _extra_problems(kind: Kind, extra: Mapping[str, Any]) -> Iterator[Problem]:
    known = passed_on(kind)
    for name, value in extra.items():
        path = ("training", name)
        if name in OURS:
            yield Problem(path, "ignored-value", f"{name} is not read: {OURS[name]}", None, "warning")
        elif name in known and not is_deferred(value) and value is not None and not _fits(value, known[name]):
            yield Problem(path, "invalid-type", f"{name} must be {_WANTED[known[name]]}")


def _word_problems(kind: Kind, training: SpecModel) -> Iterator[Problem]:
    """Yield words that TRL does not know: it would say so only after the model was loaded."""
    for name, known in words(kind).items():
        value: Any = getattr(training, name, None)
        several = isinstance(value, list) and config_fields(kind)[name] == "list"
        for place, word in enumerate(value) if several else [(None, value)]:
            # As the executor reads them: it takes the strategy in capitals, too.
            text = str(word).strip().lower() if name == "save_strategy" else str(word)
            path: tuple[str | int, ...] = ("training", name) if place is None else ("training", name, place)
            if word is None or is_deferred(text):
                continue
            if text not in known:
                fix = did_you_mean(text, known) or f"use one of: {_listed(known)}"
                yield Problem(path, "trainer-refuses", f"TRL knows no {name} '{text}'", fix)
            elif (name, text) == ("save_strategy", "best"):
                message = "save_strategy 'best' is not possible here: no rows are held out to tell which is best"
                yield Problem(path, "trainer-refuses", message, "use steps or epoch")


def _listed(known: Sequence[str]) -> str:
    shown = ", ".join(known[:_MOST_WORDS])
    return f"{shown}, ..." if len(known) > _MOST_WORDS else shown


def _fits(value: Any, word: str) -> bool:
    if word in {"int", "float"}:
        return not isinstance(value, bool) and _is_number(value, whole=word == "int")
    if word == "bool":
        return isinstance(value, bool) or str(value).strip().lower() in _TRUTH
    if word == "str":
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if word == "list":
        return isinstance(value, (list, str))  # TRL takes one text for a list of one
    return word != "dict" or isinstance(value, dict)


def _is_number(value: Any, *, whole: bool) -> bool:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return math.isfinite(number) and (not whole or number == int(number))


def _precision_problems(training: Any) -> Iterator[Problem]:
    if training.fp16 is True and training.bf16 is True:
        yield Problem(("training", "fp16"), "trainer-refuses", "fp16 and bf16 exclude each other", "keep one of them")
