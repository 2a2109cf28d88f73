"""LoRA adapters that inference tasks name in `spec.model.adapters` and `spec.checkpoint.load` [protocol 4.2, 4.9]."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.trained_models import trained_folder, without_ending
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.checkpoint_source import ADAPTER_CONFIG, check_adapter, checkpoint_of, load_folder
from mloc_prefect.executors.common.lora_merge import combined
from mloc_prefect.executors.common.spec_reader import SpecReader

if TYPE_CHECKING:
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

_SOURCE_FIELDS = frozenset({"type", "path", "url", "task_id", "taskId"})


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter on disk.

    Attributes:
        name: The name that the user gave it.
        path: Folder with `adapter_config.json` and weights.
        fingerprint: Hash of configuration and weights.
        rank: Its rank `r`.
    """

    name: str
    path: str
    fingerprint: str
    rank: int


def find_adapter(spec: SpecReader, sources: SourceLookup, task_dir: Path, attempt_dir: Path) -> LoraAdapter | None:
    """Return the adapter that a task names: that of `checkpoint.load` and those of `model.adapters`, combined into one.

    `apply: merge` is treated like `apply: runtime`: the answers are the same, and other tasks can still use the engine.

    Args:
        spec: The resolved spec.
        sources: Base of local paths.
        task_dir: Directory of the task; the results of other tasks are its siblings.
        attempt_dir: Directory for modified copies.

    Raises:
        UserError: An adapter does not exist, or is not a LoRA adapter.
    """
    sources = replace(sources, results=sources.results or task_dir.parent)
    listed = spec.child("model").get("adapters") or []
    loaded = checkpoint_of(spec, sources, task_dir)
    found = [_adapter(loaded.name, loaded)] if loaded and (loaded / ADAPTER_CONFIG).is_file() else []
    for index, entry in enumerate(listed):
        found.append(
            _listed_adapter(
                SpecReader(entry, f"spec.model.adapters[{index}]"), sources, attempt_dir / f"adapter-{index}"
            )
        )
    return combined(found, attempt_dir / "adapters") if len(found) > 1 else next(iter(found), None)


def _listed_adapter(entry: SpecReader, sources: SourceLookup, work_dir: Path) -> LoraAdapter:
    if (entry.text("type") or "lora").lower() != "lora":
        raise entry.error("type", entry.get("type"), "lora")
    load = _as_checkpoint(entry, sources)
    try:
        folder = load_folder(load, sources, work_dir)
    except UserError as error:
        raise UserError(f"{entry.path}: {error}") from None
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{entry.path}: {folder} holds no {ADAPTER_CONFIG}, so it is not a LoRA adapter")
    source = load.get("path") or load.get("filename")
    name = entry.text("name", "id", "adapter_id") or (_base_name(source) if source else folder.name)
    scale = entry.number("scale", 1.0)
    return _adapter(name, folder if scale == 1.0 else _scaled(folder, scale, work_dir / "scaled"))


def _as_checkpoint(entry: SpecReader, sources: SourceLookup) -> dict[str, Any]:
    """Return an entry in the form of `checkpoint.load`; path comes before task here, url, and task elsewhere.

    Raises:
        UserError: It names nothing, or an unknown task.
    """
    rest = {name: value for name, value in entry.data.items() if name not in _SOURCE_FIELDS}
    path, task, url = entry.text("path"), entry.text("task_id", "taskId"), entry.text("url")
    is_here = sources.results is not None and task is not None and trained_folder(sources.results, task) is not None
    if path is None and is_here:
        return {**rest, "task_id": task}
    if path or url:
        return {**rest, "path": path or url}
    if task and sources.endpoint:
        return {**rest, "type": "http", "task_id": task, "filename": "final_lora.zip"}
    if task:
        raise UserError(f"{entry.path}: {task} holds no {ADAPTER_CONFIG}, so it is not a LoRA adapter")
    raise UserError(f"{entry.path} needs path, task_id, or url")


def _base_name(source: str) -> str:
    """Return the last part of a path or URL."""
    return without_ending(source.partition("?")[0].rstrip("/").rpartition("/")[2])


def _adapter(name: str, folder: Path) -> LoraAdapter:
    config = check_adapter(folder)
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"{folder / ADAPTER_CONFIG} has no rank 'r', so it is not a LoRA adapter")
    fingerprint = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in sorted(f for f in folder.iterdir() if f.suffix in {".safetensors", ".bin"}):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                fingerprint.update(block)
    return LoraAdapter(name, str(folder), fingerprint.hexdigest(), rank)


def _scaled(folder: Path, scale: float, target: Path) -> Path:
    """Return a folder with the same weights multiplied by `scale`, through `lora_alpha` in its configuration."""
    config = check_adapter(folder)
    alpha = SpecReader(config, str(folder / ADAPTER_CONFIG)).number("lora_alpha", 8)
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name != ADAPTER_CONFIG and not (target / file.name).exists():
            (target / file.name).symlink_to(file.absolute())
    (target / ADAPTER_CONFIG).write_text(json.dumps({**config, "lora_alpha": alpha * scale}))
    return target
