"""Where the weights of `spec.model.source.identifier` come from, and a fingerprint of exactly those weights."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.artifacts.cache import check_url, fetch_folder
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.hub import hub_problem, not_found
from mloc_prefect.executors.places import user_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.places import Places

FAILED = "Failed to load model/tokenizer: {}"
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """A model that was found.

    Attributes:
        identifier: As the user wrote it; results show this name.
        path: Local folder, or the hub identifier when `commit` is set.
        fingerprint: Changes when the weights, the tokenizer or their configuration change.
        commit: Commit on the hub, None for folders.
        local_only: The hub cannot be asked now; use what is cached.
    """

    identifier: str
    path: str
    fingerprint: str
    commit: str | None = None
    local_only: bool = False


def identifier_of(spec: Fields, variable: str = "HF_MODEL") -> str:
    """Return the model that a task names, else the one in the environment variable. [protocol 4.2].

    Raises:
        UserError: There is neither.
    """
    identifier = spec.child("model").child("source").text("identifier") or os.environ.get(variable)
    if not identifier:
        raise UserError(f"spec.model.source.identifier (or {variable}) is required.")
    return identifier


def find_model(
    identifier: str, revision: str | None, places: Places, on_progress: Callable[[float], None] | None = None
) -> ModelPlace:
    """Return where `identifier` lies: mirrors first, then a local path, then the hub.

    Raises:
        UserError: It is in none of the three places, or the place that a mirror names is empty.
    """
    try:
        mirror = places.mirrors.find("models", identifier)
        target = mirror.resolve(identifier) if mirror else None
        if target and is_url(target):
            return _folder(identifier, fetch_folder(target, places.home / "cache" / "models", on_progress))
        if target and Path(target).is_dir():
            return _folder(identifier, Path(target))
        if mirror and mirror.exact:
            problem = f"mirror of '{identifier}' ({mirror.place}) names {target}, which is not a folder"
            raise UserError(FAILED.format(problem))
        if is_url(identifier):
            check_url(identifier, places.allowed)
            return _folder(identifier, fetch_folder(identifier, places.home / "cache" / "models", on_progress))
    except ArtifactError as error:
        raise UserError(FAILED.format(user_error(error))) from None
    if (local := places.local(identifier)).is_dir():
        return _folder(identifier, local)
    return _on_hub(identifier, revision, places)


def _folder(identifier: str, folder: Path) -> ModelPlace:
    if not (folder / "config.json").is_file():
        raise UserError(FAILED.format(f"{folder} holds no config.json, so it is not a model"))
    return ModelPlace(identifier, str(folder), _fingerprint(folder))


def _fingerprint(folder: Path) -> str:
    """Hash names and sizes, all of the small files, and the two ends of the weights.

    Reading gigabytes for it would cost more than it tells: retrained weights differ everywhere. Times of files are
    left out, so that a copy on another machine counts as the same model.
    """
    total = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")):
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if file.suffix not in _WEIGHTS:
                total.update(stream.read())
                continue
            total.update(stream.read(_SAMPLE))
            stream.seek(max(size - _SAMPLE, 0))
            total.update(stream.read(_SAMPLE))
    return total.hexdigest()


def _on_hub(identifier: str, revision: str | None, places: Places) -> ModelPlace:
    from huggingface_hub.errors import HFValidationError
    from transformers.utils import cached_file

    problem = hub_problem()
    try:
        config = cached_file(identifier, "config.json", revision=revision, local_files_only=problem is not None)
    except (OSError, HFValidationError) as error:
        reason = problem or " ".join(str(error).split())
        raise UserError(FAILED.format(not_found("model", identifier, places, reason))) from None
    commit = Path(str(config)).parent.name  # .../snapshots/<commit>/config.json
    return ModelPlace(identifier, identifier, commit, commit=commit, local_only=problem is not None)
