"""The fields of specs that name files, folders, models and data sets. Standard library only.

A field that an executor opens stands here: what is not listed is not confined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mloc_prefect.tasks.chat_messages import is_template, template_choice

if TYPE_CHECKING:
    from collections.abc import Iterator

InputKind = Literal["models", "datasets", "path", "weights", "part", "template", "store"]
"""What a field names: a model or data set (mirrors first, then a path, then the hub), a path, weights (a path or a
URL), a part of a path that is joined to a folder, a chat template, which may be a path, or the folder of a store, which
may be in memory."""

_EACH = "*"
_IN_MEMORY = ":memory:"
_FIELDS: dict[str, InputKind] = {
    "model.source.identifier": "models",
    "model.adapters.*.path": "weights",
    "model.adapters.*.url": "weights",
    "model.vllm.tokenizer": "models",
    "model.vllm.hf_config_path": "models",
    "model.vllm.generation_config": "models",
    "model.vllm.spec_model": "models",
    "model.vllm.download_dir": "path",
    "checkpoint.load.path": "weights",
    "checkpoint.load.uri": "weights",
    "checkpoint.load.url": "weights",
    "data.url": "datasets",
    "data.name": "part",
    "data.dataset_name": "datasets",
    "data.config_name": "part",
    "data.jsonl.path": "datasets",
    "data.jsonl_path": "datasets",
    "training.resume_from_path": "path",
    "training.deepspeed": "path",
    "training.accelerator_config": "path",
    "training.fsdp_config": "path",
    "training.chat_template_path": "models",
    "reward_model.identifier": "models",
    "embedding.model": "models",
    "search.rerank.model": "models",
    "qdrant.path": "store",
    "documents.paths.*": "path",
    "documents.dataset.url": "datasets",
    "documents.dataset.name": "part",
    "inference.chat_template": "template",
}
VLLM_INPUTS = tuple(name.rpartition(".")[2] for name in _FIELDS if name.startswith("model.vllm."))
"""Arguments of vLLM's engine that name models and folders."""

TRAINING_FILES = ("deepspeed", "accelerator_config", "fsdp_config", "chat_template_path")
"""Arguments of trainers that may name files."""


@dataclass(frozen=True, slots=True)
class SpecInput:
    """A value of a spec that names something to read.

    Attributes:
        path: Its path below `spec`.
        kind: What it names.
        text: The value, as executors read it.
    """

    path: tuple[str | int, ...]
    kind: InputKind
    text: str


def inputs_of(spec: Mapping[str, Any]) -> Iterator[SpecInput]:
    """Yield everything in a spec that names something to read."""
    yield from _inputs(spec, _TREE, ())


def paths_in(value: Any) -> Iterator[SpecInput]:
    """Yield the texts in the configuration of a library that look like paths, at any depth."""
    yield from _paths_in((), value)


def values_at(spec: Mapping[str, Any], name: str) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield path and value of a field with a dotted name; nothing if there is none."""
    value: Any = spec
    path = tuple(name.split("."))
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return
        value = value[part]
    yield path, value


def _tree(fields: Mapping[str, InputKind]) -> dict[str, Any]:
    """Return the fields as a tree, so that a spec is walked once and only where it has something."""
    tree: dict[str, Any] = {}
    for name, kind in fields.items():
        *above, last = name.split(".")
        below = tree
        for part in above:
            below = below.setdefault(part, {})
        below[last] = kind
    return tree


_TREE = _tree(_FIELDS)


def _inputs(value: Any, tree: Mapping[str, Any], path: tuple[str | int, ...]) -> Iterator[SpecInput]:
    if _EACH in tree:
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from _below(item, tree[_EACH], (*path, index))
    elif isinstance(value, Mapping):
        for name in tree:
            if name in value:
                yield from _below(value[name], tree[name], (*path, name))


def _below(value: Any, below: Any, path: tuple[str | int, ...]) -> Iterator[SpecInput]:
    """Yield what a part of the tree finds: further fields, or the kind of this one."""
    yield from _inputs(value, below, path) if isinstance(below, dict) else _input(value, below, path)


def _input(value: Any, kind: InputKind, path: tuple[str | int, ...]) -> Iterator[SpecInput]:
    if isinstance(value, (Mapping, list)):
        yield from _paths_in(path, value)
    elif value is not None and not isinstance(value, bool) and (text := str(value).strip()):
        if kind == "store":
            yield from () if text == _IN_MEMORY else (SpecInput(path, kind, text),)
        elif kind != "template":
            yield SpecInput(path, kind, text)
        elif (named := template_choice(value)[1]) and not is_template(named):
            yield SpecInput(path, "path", text)


def _paths_in(path: tuple[str | int, ...], value: Any) -> Iterator[SpecInput]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths_in((*path, str(key)), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths_in((*path, index), item)
    elif isinstance(value, str) and ("/" in value or value.strip().startswith(("~", "."))):
        yield SpecInput(path, "path", value.strip())
