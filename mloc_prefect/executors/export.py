"""`postprocess.jsonl_export`: answers as lines of named texts, for training or people. [protocol 4.2, later part]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mloc_prefect.artifacts import atomic
from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.executors.fields import Fields

_SOURCES = ("prompt", "output", "metadata", "item", "literal")
_NAME = "export.jsonl"
_PLAIN = {"prompt": "prompt", "output": "output"}


@dataclass(frozen=True, slots=True)
class Export:
    """A file that a task writes beside its result.

    Attributes:
        path: Where.
        relative: The same, seen from the directory of the task.
        url: Where later stages and clients find it; None when it is uploaded with the result, which tells then.
        rules: What each field is made from.
        required: Rows in which one of these is empty are left out.
    """

    path: Path
    relative: str
    url: str | None
    rules: Mapping[str, Any]
    required: tuple[str, ...]

    @classmethod
    def of(cls, spec: Fields, task_dir: Path, endpoint: str | None = None) -> Export | None:
        """Return what `postprocess.jsonl_export` asks for, None without one.

        Args:
            spec: The resolved spec.
            task_dir: Directory of the task; the file lies below it.
            endpoint: URL of our own HTTP endpoint, or None.

        Raises:
            UserError: It cannot be meant as it is written.
        """
        wanted = spec.child("postprocess").child("jsonl_export")
        if not spec.child("postprocess").get("jsonl_export"):
            return None
        path = _path(wanted, task_dir)
        rules = wanted.child("fields").data or _PLAIN
        required = tuple(str(name) for name in wanted.get("required_fields") or ())
        for name in required:
            if name not in rules:
                raise wanted.error("required_fields", name, f"one of {', '.join(rules)}")
        for name, rule in rules.items():
            _check(rule, f"{wanted.path}.fields.{name}")
        relative = str(path.relative_to(task_dir.resolve()))
        return cls(path, relative, _url(spec, path, relative, endpoint, task_dir.name), rules, required)

    def write(self, items: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Write the file and return what the result says of it. Every value is written as text.

        Rows that failed are left out.

        Args:
            items: The items of the result, each with its prompt and metadata.
        """
        count = 0
        with atomic.stream(self.path) as file:
            for item in items:
                record = {name: _as_text(_value(rule, item)) for name, rule in self.rules.items()}
                if item.get("error") is None and all(record[name] for name in self.required):
                    file.write(atomic.encode_json(record, indent=None))
                    count += 1
        facts = {"path": str(self.path), "relative_path": self.relative}
        more = {"url": self.url} if self.url else {"sha256": atomic.digest(self.path)[1]}
        return {**facts, "record_count": count, "fields": list(self.rules), **more}


def _path(wanted: Fields, task_dir: Path) -> Path:
    root = task_dir.resolve()
    path = (root / (wanted.text("path") or _NAME)).resolve()
    if root not in path.parents:
        raise UserError(f"{wanted.path}.path leaves the directory of the task: {wanted.get('path')}")
    if path.relative_to(root).parts[0] == "attempts" or path.name in {"responses.json", "manifest.json"}:
        raise UserError(f"{wanted.path}.path is the place of our own files: {wanted.get('path')}")
    return path


def _url(spec: Fields, path: Path, relative: str, endpoint: str | None, task_id: str) -> str | None:
    destination = spec.child("output").child("destination")
    if (destination.text("type") or "local").lower() == "http":
        return None
    if endpoint and relative == path.name:  # it serves what lies in the directory of the task itself
        return f"{endpoint.rstrip('/')}/api/v1/results/{quote(task_id, safe='')}/files/{quote(relative, safe='')}"
    return path.as_uri()


def _check(rule: Any, place: str) -> None:
    """Raise if `rule` says nothing."""
    text = rule if isinstance(rule, str) else None
    if isinstance(rule, Mapping):
        if "literal" in rule and not (rule.get("from") or rule.get("source")):
            return
        text = str(rule.get("from") or rule.get("source"))
        if rule.get("fallback") is not None:
            _check(rule["fallback"], f"{place}.fallback")
    source, _, key = (text or "").partition(".")
    keyed = source in {"metadata", "item"}
    has_key = bool(key) or (isinstance(rule, Mapping) and rule.get("key") is not None)
    if source not in _SOURCES or (keyed and not has_key) or (key and not keyed):
        raise UserError(
            f"{place} must be prompt, output, metadata.<key>, item.<key>, or a mapping with from and key, "
            f"found {rule!r}"
        )


def _value(rule: Any, item: Mapping[str, Any]) -> Any:
    if isinstance(rule, str):
        source, _, key = rule.partition(".")
        return _from(source, key, item)
    source = str(rule.get("from") or rule.get("source") or "literal")
    if source == "literal":
        return rule.get("literal", rule.get("value"))
    source, _, key = source.partition(".")
    found = _from(source, key or str(rule.get("key", "")), item)
    if found in (None, "") and rule.get("fallback") is not None:
        found = _value(rule["fallback"], item)
    return rule.get("default") if found in (None, "") else found


def _from(source: str, key: str, item: Mapping[str, Any]) -> Any:
    if source == "metadata":
        return (item.get("metadata") or {}).get(key)
    return item.get(key if source == "item" else source)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
