"""`spec.model.adapters` and `spec.checkpoint.load` for vLLM: folders with weights or LoRA adapters. [protocol 4.2]."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.checkpoint import TRAINED
from mloc_prefect.artifacts.layout import task_dir as task_dir_of
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.checkpoints import checkpoint_of, load_folder
from mloc_prefect.executors.fields import Fields

if TYPE_CHECKING:
    from mloc_prefect.executors.places import Places

_CONFIG = "adapter_config.json"


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
    """Return the adapter that a task asks for, from `model.adapters` or an adapter in `checkpoint.load`.

    Args:
        spec: The resolved spec.
        places: Where local paths start.
        task_dir: Directory of the task; those of other tasks lie beside it.
        attempt_dir: Where a scaled copy of the configuration may be put.

    Raises:
        UserError: There is more than one, it is not there, or it is of a kind that vLLM does not run.
    """
    listed = spec.child("model").get("adapters") or []
    loaded = checkpoint_folder(spec, places, task_dir)
    if len(listed) > 1 or (listed and loaded and (loaded / _CONFIG).is_file()):
        raise UserError("spec.model.adapters: vLLM runs a task with one adapter at most; merge them, or use two tasks")
    if listed:
        return _listed(Fields(listed[0], "spec.model.adapters[0]"), places, task_dir, attempt_dir)
    if loaded and (loaded / _CONFIG).is_file():
        return _adapter(loaded.name, loaded, 1.0, attempt_dir)
    return None


def checkpoint_folder(spec: Fields, places: Places, task_dir: Path) -> Path | None:
    """Return the folder that `checkpoint.load` names, None without one. [protocol 4.9].

    Raises:
        UserError: It does not exist, or must not be loaded.
    """
    return checkpoint_of(spec, places, task_dir)


def _listed(entry: Fields, places: Places, task_dir: Path, attempt_dir: Path) -> Adapter:
    if (entry.text("type") or "lora").lower() != "lora":
        raise entry.error("type", entry.get("type"), "lora")
    path, task, url = entry.text("path"), entry.text("task_id", "taskId"), entry.text("url")
    folder: Path | None = None
    if path:
        folder = places.local(path)
    elif task:
        folder = next((top for name in TRAINED if (top := _root(places, task_dir, task) / name).is_dir()), None)
    elif url:
        kind = {"type": "http"} if url.startswith(("http://", "https://")) else {"type": "local", "path": url}
        folder = load_folder({**entry.data, **kind}, places, attempt_dir)
    else:
        raise UserError(f"{entry.path} needs path, task_id, or url")
    if folder is None or not (folder / _CONFIG).is_file():
        raise UserError(f"{entry.path}: {folder or task} holds no {_CONFIG}, so it is not a LoRA adapter")
    name = entry.text("name", "id", "adapter_id") or folder.name
    return _adapter(name, folder, entry.number("scale", 1.0), attempt_dir)


def _adapter(name: str, folder: Path, scale: float, attempt_dir: Path) -> Adapter:
    config: dict[str, Any] = json.loads((folder / _CONFIG).read_bytes())
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"{folder / _CONFIG} has no rank 'r', so it is not a LoRA adapter")
    fingerprint = hashlib.sha256(json.dumps([config, scale], sort_keys=True).encode())
    for file in sorted(f for f in folder.iterdir() if f.suffix in {".safetensors", ".bin"}):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                fingerprint.update(block)
    if scale != 1.0:
        folder = _scaled(folder, config, scale, attempt_dir / "adapter")
    return Adapter(name, str(folder), fingerprint.hexdigest(), rank)


def _scaled(folder: Path, config: dict[str, Any], scale: float, target: Path) -> Path:
    """Return a folder with the same weights that count `scale` times: they are multiplied by lora_alpha / r."""
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name != _CONFIG and not (target / file.name).exists():
            (target / file.name).symlink_to(file.absolute())
    (target / _CONFIG).write_text(json.dumps({**config, "lora_alpha": config.get("lora_alpha", 8) * scale}))
    return target


def _root(places: Places, own: Path, task_id: str) -> Path:
    return own.parent / task_id if places.results is None else task_dir_of(places.results, task_id)
