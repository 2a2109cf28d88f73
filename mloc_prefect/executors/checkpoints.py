"""`checkpoint.load` inside an executor, for whoever loads weights. [protocol 4.9]."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mloc_prefect.artifacts.checkpoint import Places as CheckpointPlaces
from mloc_prefect.artifacts.checkpoint import load_checkpoint
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.models_source import find_model
from mloc_prefect.executors.places import user_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.models_source import ModelPlace
    from mloc_prefect.executors.places import Places

ADAPTER_CONFIG = "adapter_config.json"


def checkpoint_of(
    spec: Fields,
    places: Places,
    task_dir: Path,
    tell: Callable[[str, float | None], None] = lambda _text, _fraction: None,
) -> Path | None:
    """Return the folder that `checkpoint.load` names, None without one.

    Args:
        spec: The resolved spec.
        places: Where local paths start, and what may be called.
        task_dir: Directory of the task; what is fetched goes there.
        tell: Told what is being done, and how much of it; may raise to give up.

    Raises:
        UserError: It is not there, or must not be loaded.
        ArtifactError: It can be fetched later, perhaps.
    """
    load = spec.child("checkpoint").child("load")
    return load_folder(load.data, places, task_dir, tell) if load.data else None


def find_weights(spec: Fields, identifier: str, places: Places, task_dir: Path) -> ModelPlace:
    """Return where the weights for inference are: a checkpoint with a whole model comes before the named model.

    Args:
        spec: The resolved spec.
        identifier: The model that it names; results show this name.
        places: Where local paths start, and what may be called.
        task_dir: Directory of the task.

    Raises:
        UserError: They are not there, or the checkpoint is neither a model nor an adapter.
    """
    loaded = checkpoint_of(spec, places, task_dir)
    if loaded is not None and (loaded / "config.json").is_file():
        return replace(find_model(str(loaded), None, places), identifier=identifier)
    if loaded is not None and not (loaded / ADAPTER_CONFIG).is_file():
        raise UserError(f"Checkpoint path {loaded} holds neither a model (config.json) nor an adapter")
    return find_model(identifier, spec.child("model").child("source").text("revision"), places)


def load_folder(
    load: Mapping[str, Any],
    places: Places,
    task_dir: Path,
    tell: Callable[[str, float | None], None] = lambda _text, _fraction: None,
) -> Path:
    """Return the folder that a mapping with the fields of `checkpoint.load` names; see `checkpoint_of`."""
    known = CheckpointPlaces(
        task_dir=task_dir,
        results=places.results or task_dir.parent,
        base=places.base,
        cache=places.home / "cache" / "models",
        allowed=places.allowed,
        endpoint=places.endpoint,
    )
    try:
        return load_checkpoint(load, known, tell)
    except ArtifactError as error:
        if getattr(error, "retryable", False):
            raise
        raise user_error(error) from error
