"""`checkpoint.load` inside an executor, for whoever loads weights. [protocol 4.9]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.artifacts.checkpoint import Places as CheckpointPlaces
from mloc_prefect.artifacts.checkpoint import load_checkpoint
from mloc_prefect.errors import ArtifactError
from mloc_prefect.executors.places import user_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.places import Places


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
