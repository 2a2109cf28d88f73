"""LoRA adapters that inference asks for: `spec.model.adapters` and `spec.checkpoint.load`. [protocol 4.2, 4.9]."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.trained import trained_folder, without_ending
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.adapter_sum import combined
from mloc_prefect.executors.checkpoints import ADAPTER_CONFIG, checkpoint_of, load_folder
from mloc_prefect.executors.fields import Fields

if TYPE_CHECKING:
    from mloc_prefect.executors.places import Places

_PLACES = frozenset({"type", "path", "url", "task_id", "taskId"})


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on disk.

    Attributes:
        name: As the user calls it.
        path: Folder with `adapter_config.json` and weights.
        fingerprint: Changes when either does.
        rank: Its rank `r`.
    """

    name: str
    path: str
    fingerprint: str
    rank: int


def find_adapter(spec: Fields, places: Places, task_dir: Path, attempt_dir: Path) -> Adapter | None:
    """Return the adapter that a task asks for: that in `checkpoint.load` and those of `model.adapters`, as one.

    `apply: merge` is not told from `apply: runtime`: the answers are the same, and the engine stays of use to others.

    Args:
        spec: The resolved spec.
        places: Where local paths start.
        task_dir: Directory of the task; those of other tasks lie beside it.
        attempt_dir: Where changed copies may be put.

    Raises:
        UserError: One is not there, or is no LoRA adapter.
    """
    places = replace(places, results=places.results or task_dir.parent)
    listed = spec.child("model").get("adapters") or []
    loaded = checkpoint_of(spec, places, task_dir)
    found = [_adapter(loaded.name, loaded)] if loaded and (loaded / ADAPTER_CONFIG).is_file() else []
    for index, entry in enumerate(listed):
        found.append(_listed(Fields(entry, f"spec.model.adapters[{index}]"), places, attempt_dir / f"adapter-{index}"))
    return combined(found, attempt_dir / "adapters") if len(found) > 1 else next(iter(found), None)


def _listed(entry: Fields, places: Places, own: Path) -> Adapter:
    if (entry.text("type") or "lora").lower() != "lora":
        raise entry.error("type", entry.get("type"), "lora")
    load = _load_of(entry, places)
    try:
        folder = load_folder(load, places, own)
    except UserError as error:
        raise UserError(f"{entry.path}: {error}") from None
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{entry.path}: {folder} holds no {ADAPTER_CONFIG}, so it is not a LoRA adapter")
    place = load.get("path") or load.get("filename")
    name = entry.text("name", "id", "adapter_id") or (_name_in(place) if place else folder.name)
    scale = entry.number("scale", 1.0)
    return _adapter(name, folder if scale == 1.0 else _scaled(folder, scale, own / "scaled"))


def _load_of(entry: Fields, places: Places) -> dict[str, Any]:
    """Return an entry as `checkpoint.load` would have it: path, then the task here, then url, then the task elsewhere.

    Raises:
        UserError: It names nothing, or a task of which nothing is known.
    """
    rest = {name: value for name, value in entry.data.items() if name not in _PLACES}
    path, task, url = entry.text("path"), entry.text("task_id", "taskId"), entry.text("url")
    here = places.results is not None and task is not None and trained_folder(places.results, task) is not None
    if path is None and here:
        return {**rest, "task_id": task}
    if path or url:
        return {**rest, "path": path or url}
    if task and places.endpoint:
        return {**rest, "type": "http", "task_id": task, "filename": "final_lora.zip"}
    if task:
        raise UserError(f"{entry.path}: {task} holds no {ADAPTER_CONFIG}, so it is not a LoRA adapter")
    raise UserError(f"{entry.path} needs path, task_id, or url")


def _name_in(place: str) -> str:
    """Return the last part of a path or URL."""
    return without_ending(place.partition("?")[0].rstrip("/").rpartition("/")[2])


def _adapter(name: str, folder: Path) -> Adapter:
    config = _config_of(folder)
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"{folder / ADAPTER_CONFIG} has no rank 'r', so it is not a LoRA adapter")
    fingerprint = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in sorted(f for f in folder.iterdir() if f.suffix in {".safetensors", ".bin"}):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                fingerprint.update(block)
    return Adapter(name, str(folder), fingerprint.hexdigest(), rank)


def _scaled(folder: Path, scale: float, target: Path) -> Path:
    """Return a folder with the same weights that count `scale` times: they are multiplied by lora_alpha / r."""
    config = _config_of(folder)
    alpha = Fields(config, str(folder / ADAPTER_CONFIG)).number("lora_alpha", 8)
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name != ADAPTER_CONFIG and not (target / file.name).exists():
            (target / file.name).symlink_to(file.absolute())
    (target / ADAPTER_CONFIG).write_text(json.dumps({**config, "lora_alpha": alpha * scale}))
    return target


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except ValueError as error:
        raise UserError(f"{folder / ADAPTER_CONFIG} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / ADAPTER_CONFIG} is not a mapping, so it is not a LoRA adapter")
    return config
