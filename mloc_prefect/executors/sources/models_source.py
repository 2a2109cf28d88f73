"""Finds the weights of `spec.model.source.identifier`, and computes a fingerprint of them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.cache import fetch_folder
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.artifacts.transfer.outgoing import TransferError, check_url
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.hub import hub_failed_for_now, hub_problem, not_found
from mloc_prefect.executors.sources.source_lookup import may_pass, user_error
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

FAILED = "Failed to load model/tokenizer: {}"
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """Location of a model.

    Attributes:
        identifier: As the user wrote it; results show this name.
        path: Local folder, or the hub identifier when `commit` is set.
        fingerprint: Changes when the weights, the tokenizer or their configuration change.
        commit: Commit on the hub, None for folders.
        local_only: Whether the hub cannot be reached now, so that only its cache is used.
    """

    identifier: str
    path: str
    fingerprint: str
    commit: str | None = None
    local_only: bool = False

    def loading_arguments(self, *, trust_remote_code: bool = False) -> dict[str, Any]:
        """Return the keyword arguments that `from_pretrained` of transformers needs in addition to `path`."""
        arguments = {"trust_remote_code": trust_remote_code, "local_files_only": self.local_only}
        return {**arguments, "revision": self.commit} if self.commit else arguments


def identifier_of(spec: SpecReader, variable: str = "HF_MODEL") -> str:
    """Return the model that a task names, else that of the environment variable [protocol 4.2].

    Raises:
        UserError: Neither names a model.
    """
    identifier = spec.child("model").child("source").text("identifier") or os.environ.get(variable)
    if not identifier:
        raise UserError(f"spec.model.source.identifier (or {variable}) is required.")
    return identifier


def find_model(
    identifier: str, revision: str | None, sources: SourceLookup, on_progress: Callable[[float], None] | None = None
) -> ModelLocation:
    """Return the location of `identifier`: mirrors first, then a local path, then the hub.

    Raises:
        UserError: None of the three has it, or the folder that a mirror names does not exist.
        ArtifactError: It cannot be fetched now; another attempt may succeed.
    """
    try:
        mirror = sources.mirrors.find("models", identifier)
        target = mirror.resolve(identifier) if mirror else None
        if target and is_url(target):
            return _folder(identifier, fetch_folder(target, sources.home / "cache" / "models", on_progress))
        if target and Path(target).is_dir():
            return _folder(identifier, Path(target))
        if mirror and mirror.exact:
            problem = f"mirror of '{identifier}' ({mirror.position}) names {target}, which is not a folder"
            raise UserError(FAILED.format(problem))
        if is_url(identifier) and local_path(identifier) is None:
            sources.local(identifier)  # refuses kinds of URLs that submitted specs may not use
            check_url(identifier, sources.allowed)
            cache = sources.home / "cache" / "models"
            return _folder(identifier, fetch_folder(identifier, cache, on_progress, sources.allowed))
    except ArtifactError as error:
        if may_pass(error):
            raise
        raise UserError(FAILED.format(user_error(error))) from None
    if (local := sources.local(identifier, as_name=True)).is_dir():
        return _folder(identifier, sources.admit(local))
    return _on_hub(identifier, revision, sources)


def model_in(identifier: str, folder: Path) -> ModelLocation:
    """Return the location of a model whose folder is known, e.g. that of a checkpoint.

    Raises:
        UserError: The folder holds no model.
    """
    return _folder(identifier, folder)


def _folder(identifier: str, folder: Path) -> ModelLocation:
    if not (folder / "config.json").is_file():
        raise UserError(FAILED.format(f"{folder} holds no config.json, so it is not a model"))
    return ModelLocation(identifier, str(folder), _fingerprint(folder))


def _fingerprint(folder: Path) -> str:
    """Hash names and sizes, the small files completely, and both ends of the weight files.

    Hashing gigabytes would take long and add little: retrained weights differ everywhere. Modification times are left
    out, so that a copy on another machine counts as the same model.
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


def _on_hub(identifier: str, revision: str | None, sources: SourceLookup) -> ModelLocation:
    from huggingface_hub.errors import HFValidationError
    from transformers.utils import cached_file

    if not sources.may_ask_hub(identifier):
        raise UserError(FAILED.format(not_found("model", identifier, sources, "it is not a name on the hub")))
    problem = hub_problem()
    try:
        config = cached_file(identifier, "config.json", revision=revision, local_files_only=problem is not None)
    except (OSError, HFValidationError) as error:
        reason = problem or one_line(error)
        if problem is None and hub_failed_for_now(error):
            text = f"model '{identifier}' cannot be fetched from the hub: {reason}"
            raise TransferError(FAILED.format(text), retryable=True) from error
        raise UserError(FAILED.format(not_found("model", identifier, sources, reason))) from None
    commit = Path(str(config)).parent.name  # .../snapshots/<commit>/config.json
    return ModelLocation(identifier, identifier, commit, commit=commit, local_only=problem is not None)
