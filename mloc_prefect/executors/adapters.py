"""LoRA adapters that inference asks for: `spec.model.adapters` and `spec.checkpoint.load`. [protocol 4.2, 4.9]."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.layout import task_dir as task_dir_of
from mloc_prefect.artifacts.trained import TRAINED
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.adapter_sum import combined
from mloc_prefect.executors.checkpoints import ADAPTER_CONFIG, checkpoint_of, load_folder
from mloc_prefect.executors.fields import Fields

if TYPE_CHECKING:
    from mloc_prefect.executors.places import Places


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
    listed = spec.child("model").get("adapters") or []
    loaded = checkpoint_of(spec, places, task_dir)
    found = [_adapter(loaded.name, loaded)] if loaded and (loaded / ADAPTER_CONFIG).is_file() else []
    for index, entry in enumerate(listed):
        own = attempt_dir / f"adapter-{index}"
        found.append(_listed(Fields(entry, f"spec.model.adapters[{index}]"), places, task_dir, own))
    return combined(found, attempt_dir / "adapters") if len(found) > 1 else next(iter(found), None)


def _listed(entry: Fields, places: Places, task_dir: Path, own: Path) -> Adapter:
    if (entry.text("type") or "lora").lower() != "lora":
        raise entry.error("type", entry.get("type"), "lora")
    path, task, url = entry.text("path"), entry.text("task_id", "taskId"), entry.text("url")
    folder: Path | None = None
    if path:
        folder = places.local(path)
    elif task:
        folder = next((top for name in TRAINED if (top := _root(places, task_dir, task) / name).is_dir()), None)
    if folder is None and url:
        kind = {"type": "http"} if url.startswith(("http://", "https://")) else {"type": "local", "path": url}
        folder = load_folder({**entry.data, "task_id": None, "taskId": None, **kind}, places, own)
    elif folder is None and task and places.endpoint:  # of a task whose results lie elsewhere
        folder = load_folder({**entry.data, "type": "http", "filename": "final_lora.zip"}, places, own)
    if folder is None and not task:
        raise UserError(f"{entry.path} needs path, task_id, or url")
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{entry.path}: {folder or task} holds no {ADAPTER_CONFIG}, so it is not a LoRA adapter")
    name = entry.text("name", "id", "adapter_id") or folder.name
    scale = entry.number("scale", 1.0)
    return _adapter(name, folder if scale == 1.0 else _scaled(folder, scale, own / "scaled"))


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
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name != ADAPTER_CONFIG and not (target / file.name).exists():
            (target / file.name).symlink_to(file.absolute())
    (target / ADAPTER_CONFIG).write_text(json.dumps({**config, "lora_alpha": config.get("lora_alpha", 8) * scale}))
    return target


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except ValueError as error:
        raise UserError(f"{folder / ADAPTER_CONFIG} is not JSON: {error}") from None
    return config


def _root(places: Places, own: Path, task_id: str) -> Path:
    return own.parent / task_id if places.results is None else task_dir_of(places.results, task_id)
