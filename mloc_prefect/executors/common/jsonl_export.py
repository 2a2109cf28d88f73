"""`postprocess.jsonl_export`: writes answers as JSON lines, for training or for people [protocol 4.2, later part]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mloc_prefect.artifacts import atomic
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.tasks.postprocess.export_rules import DEFAULT_RULES, WANTED, names_source, rule_fault, unknown_fields
from mloc_prefect.urls import scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.executors.common.spec_reader import SpecReader

_DEFAULT_NAME = "export.jsonl"


@dataclass(frozen=True, slots=True)
class ExportWriter:
    """A file that a task writes in addition to its result.

    Attributes:
        path: Path of the file.
        relative: The path relative to the directory of the task.
        url: URL for later stages and clients; None when it is uploaded with the result, which then has the URL.
        rules: The source of each field.
        required: Fields that every row must have; blank text counts as empty, as in MLOC.
    """

    path: Path
    relative: str
    url: str | None
    rules: Mapping[str, Any]
    required: tuple[str, ...]

    @classmethod
    def of(cls, spec: SpecReader, task_dir: Path, endpoint: str | None = None) -> ExportWriter | None:
        """Return the export that `postprocess.jsonl_export` requests, or None.

        Args:
            spec: The resolved spec.
            task_dir: Directory of the task; the file is below it.
            endpoint: URL of our own HTTP endpoint, or None.

        Raises:
            UserError: The request is invalid.
        """
        wanted = spec.child("postprocess").child("jsonl_export")
        if not spec.child("postprocess").get("jsonl_export"):
            return None
        path = _path(wanted, task_dir)
        rules = wanted.child("fields").data or DEFAULT_RULES
        required = tuple(str(name) for name in wanted.get("required_fields") or ())
        for name in unknown_fields(required, rules):
            raise wanted.error("required_fields", name, f"one of {', '.join(rules)}")
        for name, rule in rules.items():
            if (fault := rule_fault(rule)) is not None:
                raise UserError(f"{'.'.join((wanted.path, 'fields', name, *fault))} {WANTED}, found {rule!r}")
        relative = str(path.relative_to(task_dir.resolve()))
        return cls(path, relative, _url(spec, path, relative, endpoint, task_dir.name), rules, required)

    def write(self, items: Iterable[Mapping[str, Any]], notes: list[str] | None = None) -> dict[str, Any]:
        """Write the file, all values as text, and return its entry in the result. Failed rows are left out.

        Args:
            items: The items of the result, each with its prompt and metadata.
            notes: Receives what was left out.

        Raises:
            UserError: A row has no value for a required field.
        """
        count = failed = 0
        with atomic.stream(self.path) as file:
            for number, item in enumerate(items):
                if item.get("error") is not None:
                    failed += 1
                    continue
                record = {name: _as_text(_value(rule, item)) for name, rule in self.rules.items()}
                self._check_required(record, item.get("index", number))
                file.write(atomic.encode_json(record, indent=None))
                count += 1
        if failed and notes is not None:
            notes.append(f"jsonl_export: {failed} of {count + failed} rows are left out: they failed")
        facts = {"path": str(self.path), "relative_path": self.relative}
        more = {"url": self.url} if self.url else {"sha256": atomic.digest(self.path)[1]}
        return {**facts, "record_count": count, "fields": list(self.rules), **more}

    def _check_required(self, record: Mapping[str, str], number: Any) -> None:
        for name in self.required:
            if not record[name].strip():
                raise UserError(
                    f"spec.postprocess.jsonl_export: row {number} has no value for the required field '{name}'; give "
                    "the field a fallback, or remove it from required_fields"
                )


def _path(wanted: SpecReader, task_dir: Path) -> Path:
    if scheme_of(wanted.text("path") or "") is not None:
        raise UserError(f"{wanted.path}.path lies below the directory of the task, found {wanted.get('path')!r}")
    root = task_dir.resolve()
    path = (root / (wanted.text("path") or _DEFAULT_NAME)).resolve()
    if root not in path.parents:
        raise UserError(f"{wanted.path}.path leaves the directory of the task: {wanted.get('path')}")
    if path.relative_to(root).parts[0] == "attempts" or path.name in {"responses.json", "manifest.json"}:
        raise UserError(f"{wanted.path}.path is reserved for our own files: {wanted.get('path')}")
    return path


def _url(spec: SpecReader, path: Path, relative: str, endpoint: str | None, task_id: str) -> str | None:
    destination = spec.child("output").child("destination")
    if (destination.text("type") or "local").lower() == "http":
        return None
    if endpoint and relative == path.name:  # it serves only files directly in the directory of the task
        return f"{endpoint.rstrip('/')}/api/v1/results/{quote(task_id, safe='')}/files/{quote(relative, safe='')}"
    return path.as_uri()


def _value(rule: Any, item: Mapping[str, Any]) -> Any:
    if isinstance(rule, str):
        source, _, key = rule.partition(".")
        return _item_value(source, key, item)
    source = str(rule.get("from") or rule.get("source") or "literal")
    if source == "literal":
        return rule.get("literal", rule.get("value"))
    source, _, key = source.partition(".")
    found = _item_value(source, key or str(rule.get("key", "")), item)
    if _is_empty(found) and rule.get("fallback") is not None:
        found = _fallback(rule["fallback"], item)
    return rule.get("default") if _is_empty(found) else found


def _fallback(rule: Any, item: Mapping[str, Any]) -> Any:
    """Return the value of a fallback: a source, or a value that stands for itself, as in MLOC."""
    if isinstance(rule, Mapping) or (isinstance(rule, str) and names_source(rule)):
        return _value(rule, item)
    return rule


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _item_value(source: str, key: str, item: Mapping[str, Any]) -> Any:
    if source == "metadata":
        return (item.get("metadata") or {}).get(key)
    return item.get(key if source == "item" else source)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
