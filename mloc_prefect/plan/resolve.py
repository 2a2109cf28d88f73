"""Replaces `${...}` by values just before a stage runs. [protocol 2.6]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.positions import path_text
from mloc_prefect.errors import ExecutionError
from mloc_prefect.plan.expressions import (
    PLACEHOLDER,
    MissingValueError,
    complete,
    failure_at,
    lookup,
    parse,
    root_of,
)

if TYPE_CHECKING:
    from re import Match

    from mloc_prefect.diagnostics.positions import PathPart
    from mloc_prefect.plan.workflow_plan import Reference, StagePlan


@dataclass(frozen=True, slots=True)
class Resolved:
    """The `spec` of a stage as its executor gets it.

    Attributes:
        spec: A copy of `effective["spec"]` with values in it.
        warnings: References that had no value and became empty text, or whose value is a list in other text; one
            sentence each.
    """

    spec: dict[str, Any]
    warnings: tuple[str, ...] = ()


def resolve_stage(
    stage: StagePlan,
    results: Mapping[str, Any],
    task_ids: Mapping[str, str],
    *,
    env: Mapping[str, str],
    params: Mapping[str, Any],
) -> Resolved:
    """Return the spec of `stage` with every reference of its plan replaced, in one pass.

    A placeholder that is the whole string keeps the JSON type of its value, one inside other text becomes text as
    Python's `str` writes it. Text that comes from a result is not searched again. Placeholders that the plan does
    not list (`${UPPER_CASE}`) stay as they are; columns of a `graph_template` are filled by its renderer.

    Args:
        stage: The planned stage.
        results: Content of the result file of each earlier task by node name.
        task_ids: Task id of each node of the submission.
        env: Allowed environment variables.
        params: Parameters of the run.

    Raises:
        ExecutionError: Not retryable: a place that needs a value has none; the message names the missing key.
    """
    spec = stage.effective.get("spec")
    if not isinstance(spec, Mapping):
        return Resolved({})
    pass_ = _Pass(stage, results, task_ids, {"env": env, "param": params})
    return Resolved(pass_.copy(spec, ()), tuple(dict.fromkeys(pass_.warnings)))


def with_result_level(content: Any) -> Mapping[str, Any]:
    """Return the content of a result file as references see it: a mapping with a `result` key.

    That of a divided task [protocol 2.7] shows what was merged also where an undivided one has it, as it depends on the
    workers of the day whether a task is divided.
    """
    found = content if isinstance(content, Mapping) and "result" in content else {"result": content}
    result = found["result"]
    merged = result.get("merged") if isinstance(result, Mapping) and "shards" in result else None
    return {**found, "result": {**merged, **result}} if isinstance(merged, Mapping) else found


_EMBEDDED = re.compile(r"\$?" + PLACEHOLDER.pattern)


@dataclass(slots=True)
class _Pass:
    stage: StagePlan
    results: Mapping[str, Any]
    task_ids: Mapping[str, str]
    roots: Mapping[str, Mapping[str, Any]]
    known: dict[tuple[str, str], Reference] = field(init=False)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = {(r.where, r.expression): r for r in self.stage.references}

    def copy(self, value: Any, path: tuple[PathPart, ...]) -> Any:
        if isinstance(value, str):
            return self._text(value, path) if "${" in value else value
        if isinstance(value, Mapping):
            return {key: self.copy(below, (*path, key)) for key, below in value.items()}
        if isinstance(value, list):
            return [self.copy(below, (*path, index)) for index, below in enumerate(value)]
        return value

    def _text(self, text: str, path: tuple[PathPart, ...]) -> Any:
        where = path_text(path)
        whole = PLACEHOLDER.fullmatch(text)
        reference = self._reference(where, whole) if whole else None
        if reference is not None:
            return self._value(reference)
        end = complete(text)
        return _EMBEDDED.sub(lambda match: self._embedded(where, match), text[:end]) + text[end:]

    def _embedded(self, where: str, match: Match[str]) -> str:
        reference = self._reference(where, match)
        dollar = "$" if match[0].startswith("$$") else ""
        if reference is None:
            return match[0][1:] if dollar and "." in match[1] else match[0]
        value = self._value(reference)
        if isinstance(value, (list, Mapping)):
            kind = "a list" if isinstance(value, list) else "a mapping"
            text = f"spec.{where}: ${{{reference.expression}}} is {kind} inside other text, written as Python writes it"
            self.warnings.append(text)
        return f"{dollar}{value}"

    def _reference(self, where: str, match: Match[str]) -> Reference | None:
        return self.known.get((where, match[1].strip()))

    def _value(self, reference: Reference) -> Any:
        try:
            value = self._find(reference)
        except MissingValueError as error:
            return self._nothing(reference, str(error))
        if value == "" and (failure := self._failure(reference)):
            return self._nothing(reference, failure)
        if value is None or (value == "" and reference.required):
            return self._nothing(reference, "the value is null" if value is None else "the value is empty")
        return value

    def _find(self, reference: Reference) -> Any:
        expression = parse(reference.expression)
        root = root_of(reference.expression)
        names = self.roots.get(root) if reference.stage is None else None
        if names is not None:
            name = str(expression.path[0])
            if name not in names:
                raise MissingValueError(f"{'variable' if root == 'env' else 'parameter'} {name} is not set")
            return names[name]
        if expression.is_task_id and root in self.task_ids:
            return self.task_ids[root]
        if root not in self.results:
            raise MissingValueError(f"there is no result of '{root}'")
        try:
            return lookup(with_result_level(self.results[root]), expression.path)
        except MissingValueError as error:
            raise MissingValueError(f"in the result of '{root}', {error}") from None

    def _failure(self, reference: Reference) -> str | None:
        """Return why the row whose output is read has none: it failed, and its stage went on without it."""
        if reference.stage is None and root_of(reference.expression) not in self.results:
            return None
        path = parse(reference.expression).path
        content = self.results.get(root_of(reference.expression))
        return failure_at(with_result_level(content), path) if content is not None else None

    def _nothing(self, reference: Reference, why: str) -> str:
        place = f"spec.{reference.where}"
        if reference.required:
            message = f"{place} needs a value for ${{{reference.expression}}}, but {why}"
            raise ExecutionError(message, retryable=False, hint=f"look at the result of '{reference.stage}'")
        self.warnings.append(f"{place}: ${{{reference.expression}}} is empty text, because {why}")
        return ""
