"""Validates one `spec` against the model of its task type, and lists all that is wrong at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mloc_prefect.tasks.base import Problem
from mloc_prefect.tasks.fields import FAULT, is_deferred
from mloc_prefect.tasks.keys import name_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mloc_prefect.tasks.base import TaskSpec

Path = tuple[str | int, ...]

_WARNINGS = frozenset({"ignored-value"})


@dataclass(frozen=True, slots=True)
class Checked:
    """Outcome of `check`.

    Attributes:
        spec: The typed reading; fields with a fault hold their default.
        problems: What is wrong, fields first.
    """

    spec: TaskSpec
    problems: tuple[Problem, ...]


def check(model: type[TaskSpec], spec: Mapping[str, Any], *, resolved: bool = False) -> Checked:
    """Return the typed reading of `spec` and everything that is wrong with it.

    Args:
        model: Model of the task type.
        spec: The plain `spec` mapping.
        resolved: Placeholders were resolved, so `${...}` is no longer an excuse.
    """
    faults: list[Problem] = []
    context = {"resolved": resolved}
    try:
        typed = model.model_validate(spec, context=context)
    except ValidationError as error:
        faults = _field_problems(error, spec)
        typed = _without(model, spec, faults, context)
    found = tuple(typed.problems())
    if not found:
        return Checked(typed, tuple(faults))
    bad = [fault.path for fault in faults]
    kept = [p for p in found if not _below(p.path, bad) and (resolved or not _comes_later(spec, p.path))]
    return Checked(typed, (*faults, *kept))


def _field_problems(error: ValidationError, spec: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for row in error.errors(include_url=False):
        *parts, last = row["loc"] or ("",)
        if last == FAULT:
            loc = tuple(parts)
        elif isinstance(last, str) and row["type"] not in _OWN_CODES:
            continue  # the fast choice of a union; its FAULT twin says it in our words
        else:
            loc = row["loc"]
        path = _data_path(loc, spec)
        message = f"{_name(path)} {row['msg']}" if row["msg"].startswith("must ") else row["msg"]
        severity = "warning" if row["type"] in _WARNINGS else "error"
        problems.append(Problem(path, row["type"], message, None, severity))  # type: ignore[arg-type]
    return problems


_OWN_CODES = frozenset({"invalid-type", "out-of-range", "ignored-value"})


def _data_path(loc: Iterable[str | int], spec: Any) -> Path:
    """Return the path in the data of a location in the model: a field has several spellings."""
    path: list[str | int] = []
    here = spec
    for part in loc:
        name = name_in(part, here) if isinstance(part, str) and isinstance(here, dict) else part
        path.append(name)
        try:
            here = here[name]
        except (LookupError, TypeError):
            here = None
    return tuple(path)


def _name(path: Path) -> str:
    """Return the last field name of `path` with its indices, e.g. `items[2]`."""
    tail = ""
    for part in reversed(path):
        if isinstance(part, str):
            return f"{part}{tail}"
        tail = f"[{part}]{tail}"
    return tail


def _without(
    model: type[TaskSpec], spec: Mapping[str, Any], faults: list[Problem], context: dict[str, Any]
) -> TaskSpec:
    """Read `spec` without its faulty values, so that the checks between fields still run."""
    pruned: Any = dict(spec)
    for fault in sorted(faults, key=lambda f: str(f.path), reverse=True):
        pruned = _pruned(pruned, fault.path)
    try:
        return model.model_validate(pruned, context=context)
    except ValidationError:
        return model()


def _pruned(value: Any, path: Path) -> Any:
    if not path:
        return value
    head, *rest = path
    if isinstance(value, dict) and head in value:
        copy = dict(value)
        if rest:
            copy[head] = _pruned(value[head], tuple(rest))
        else:
            del copy[head]
        return copy
    if isinstance(value, list) and isinstance(head, int) and head < len(value):
        inner = [_pruned(value[head], tuple(rest))] if rest else []
        return [*value[:head], *inner, *value[head + 1 :]]
    return value


def _below(path: Path, bad: list[Path]) -> bool:
    """Whether a fault is already known at `path`, around it or inside it."""
    return any(path[: len(b)] == b or b[: len(path)] == path for b in bad)


def _comes_later(spec: Any, path: Path) -> bool:
    """Whether the value at `path`, or one that holds it, comes from an earlier stage."""
    here = spec
    for part in path:
        try:
            here = here[part]
        except (LookupError, TypeError):
            return False
        if is_deferred(here):
            return True
    return False
