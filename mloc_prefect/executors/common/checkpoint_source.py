"""Weights from `checkpoint.load`, for every executor that loads weights [protocol 4.9]."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mloc_prefect.artifacts.checkpoint import CheckpointRoots, load_checkpoint
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.models_source import find_model, model_in
from mloc_prefect.executors.sources.source_lookup import may_pass, user_error
from mloc_prefect.trust.remote_code import adapter_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.models_source import ModelLocation
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

ADAPTER_CONFIG = "adapter_config.json"


def checkpoint_of(
    spec: SpecReader,
    sources: SourceLookup,
    task_dir: Path,
    on_progress: Callable[[str, float | None], None] = lambda _text, _fraction: None,
) -> Path | None:
    """Return the folder that `checkpoint.load` names, or None.

    Args:
        spec: The resolved spec.
        sources: Base of local paths, and the hosts that may be contacted.
        task_dir: Directory of the task; downloads go there.
        on_progress: Called with the current step and its fraction; may raise to abort.

    Raises:
        UserError: The folder does not exist, or must not be loaded.
        ArtifactError: The download failed and may succeed later.
    """
    load = spec.child("checkpoint").child("load")
    return load_folder(load.data, sources, task_dir, on_progress) if load.data else None


def find_weights(spec: SpecReader, identifier: str, sources: SourceLookup, task_dir: Path) -> ModelLocation:
    """Return the weights for inference: a checkpoint with a whole model takes precedence over the named model.

    Args:
        spec: The resolved spec.
        identifier: The model that it names; results show this name.
        sources: Base of local paths, and the hosts that may be contacted.
        task_dir: Directory of the task.

    Raises:
        UserError: The weights do not exist, or the checkpoint is neither a model nor an adapter.
    """
    loaded = checkpoint_of(spec, sources, task_dir)
    if loaded is not None and (loaded / "config.json").is_file():
        return model_in(identifier, loaded)
    if loaded is not None and not (loaded / ADAPTER_CONFIG).is_file():
        raise UserError(f"Checkpoint path {loaded} holds neither a model (config.json) nor an adapter")
    return find_model(identifier, spec.child("model").child("source").text("revision"), sources)


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return the configuration of the adapter in a folder.

    Raises:
        UserError: It is no plain LoRA adapter, or names modules and files to load.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a mapping, so it is not a LoRA adapter")
    fault = adapter_fault(config)
    if fault:
        raise UserError(f"{file}: {fault}")
    return config


def load_folder(
    load: Mapping[str, Any],
    sources: SourceLookup,
    task_dir: Path,
    on_progress: Callable[[str, float | None], None] = lambda _text, _fraction: None,
) -> Path:
    """Return the folder named by a mapping with the fields of `checkpoint.load`; see `checkpoint_of`."""
    roots = CheckpointRoots(
        task_dir=task_dir,
        results=sources.results or task_dir.parent,
        base=sources.base,
        cache=sources.home / "cache" / "models",
        allowed=sources.allowed,
        endpoint=sources.endpoint,
        inputs=sources.inputs,
    )
    try:
        return load_checkpoint(load, roots, on_progress)
    except ArtifactError as error:
        if may_pass(error):
            raise
        raise user_error(error) from error
