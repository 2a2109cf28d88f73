"""Validates one `spec` against the model of its task type and returns all problems at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mloc_prefect.tasks.base import SpecProblem
from mloc_prefect.tasks.fields import FAULT, is_deferred, placeholders_resolved
from mloc_prefect.tasks.keys import name_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mloc_prefect.tasks.base import TaskSpec

Path = tuple[str | int, ...]

_WARNINGS = frozenset({"ignored-value"})


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """Result of `check_spec`.

    Attributes:
        spec: The typed spec; invalid fields hold their default.
        problems: All problems, those of fields first.
    """

    spec: TaskSpec
    problems: tuple[SpecProblem, ...]


def check_spec(model: type[TaskSpec], spec: Mapping[str, Any], *, resolved: bool = False) -> CheckOutcome:
    """Return the typed form of `spec` and all its problems.

    Args:
        model: Model of the task type.
        spec: The plain `spec` mapping.
        resolved: Whether placeholders have been resolved, so that `${...}` is an ordinary value.
    """
    with placeholders_resolved(resolved):
        return _check(model, spec, resolved=resolved)


def _check(model: type[TaskSpec], spec: Mapping[str, Any], *, resolved: bool) -> CheckOutcome:
    faults: list[SpecProblem] = []
    context = {"resolved": resolved}
    try:
        typed = model.model_validate(spec, context=context)
    except ValidationError as error:
        faults, later = _field_problems(error, spec, resolved=resolved)
        typed = _without(model, spec, [*(fault.path for fault in faults), *later], context)
    found = tuple(typed.problems())
    if not found:
        return CheckOutcome(typed, tuple(faults))
    invalid = [fault.path for fault in faults]
    kept = [p for p in found if not _overlaps(p.path, invalid) and (resolved or not _is_deferred_at(spec, p.path))]
    return CheckOutcome(typed, (*faults, *kept))


def _field_problems(
    error: ValidationError, spec: Mapping[str, Any], *, resolved: bool
) -> tuple[list[SpecProblem], list[Path]]:
    """Return the problems of fields, and the paths of placeholders that plain types of pydantic cannot hold."""
    problems: list[SpecProblem] = []
    later: list[Path] = []
    rows = error.errors(include_url=False)
    twins = {row["loc"][:-1] for row in rows if row["loc"] and row["loc"][-1] == FAULT}
    for row in rows:
        *parts, last = row["loc"] or ("",)
        if last == FAULT:
            loc = tuple(parts)
        elif row["type"] not in _OWN_CODES:
            if any(row["loc"][:length] in twins for length in range(1, len(row["loc"]))):
                continue  # the fast choice of a union; its FAULT twin carries our own message
            # A plain type of pydantic, as task types of other distributions may have them.
            path = _data_path(row["loc"], spec)
            if is_deferred(row["input"]) and not resolved:
                later.append(path)
            else:
                problems.append(SpecProblem(path, "invalid-type", f"{_name(path)}: {row['msg']}"))
            continue
        else:
            loc = row["loc"]
        path = _data_path(loc, spec)
        message = f"{_name(path)} {row['msg']}" if row["msg"].startswith("must ") else row["msg"]
        severity = "warning" if row["type"] in _WARNINGS else "error"
        wants = row.get("ctx", {}).get("wants")
        problems.append(SpecProblem(path, row["type"], message, None, severity, wants))  # type: ignore[arg-type]
    return problems, later


_OWN_CODES = frozenset({"invalid-type", "out-of-range", "ignored-value", "bad-messages"})


def _data_path(loc: Iterable[str | int], spec: Any) -> Path:
    """Return the path in the data for a location in the model: fields may be spelled in several ways."""
    path: list[str | int] = []
    current = spec
    for part in loc:
        name = name_in(part, current) if isinstance(part, str) and isinstance(current, dict) else part
        path.append(name)
        try:
            current = current[name]
        except (LookupError, TypeError):
            current = None
    return tuple(path)


def _name(path: Path) -> str:
    """Return the last field name of `path` with its indices, e.g. `items[2]`."""
    tail = ""
    for part in reversed(path):
        if isinstance(part, str):
            return f"{part}{tail}"
        tail = f"[{part}]{tail}"
    return tail


def _without(model: type[TaskSpec], spec: Mapping[str, Any], invalid: list[Path], context: dict[str, Any]) -> TaskSpec:
    """Validate `spec` without its invalid values, so that the checks between fields still run."""
    pruned: Any = dict(spec)
    for path in sorted(invalid, key=str, reverse=True):
        pruned = _pruned(pruned, path)
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


def _overlaps(path: Path, invalid: list[Path]) -> bool:
    """Return whether an error is already known at `path`, around it or inside it."""
    return any(path[: len(b)] == b or b[: len(path)] == path for b in invalid)


def _is_deferred_at(spec: Any, path: Path) -> bool:
    """Return whether the value at `path`, or one that contains it, comes from an earlier stage."""
    current = spec
    for part in path:
        try:
            current = current[part]
        except (LookupError, TypeError):
            return False
        if is_deferred(current):
            return True
    return False
