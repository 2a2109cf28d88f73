"""Rows of `data.type: dataset`, from mirrors, local files and folders, fsspec URLs, or the Hugging Face hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.cache import fetch_http
from mloc_prefect.artifacts.data_files import split_files
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.artifacts.transfer.outgoing import TransferError, check_url, shown_text
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.data_tables import read_split
from mloc_prefect.executors.sources.hub import hub_failed_for_now, hub_problem, not_found, offline
from mloc_prefect.executors.sources.source_lookup import may_pass, user_error
from mloc_prefect.executors.sources.splits import parse_split
from mloc_prefect.tasks.chat_messages import without_padding
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.data_tables import Row
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.sources.splits import Split

_SAVED = ("state.json", "dataset_dict.json")  # written by `Dataset.save_to_disk`


@dataclass(frozen=True, slots=True)
class DataTable:
    """Rows and the names of all columns that occur in them."""

    columns: tuple[str, ...]
    rows: list[Row]


def load_table(data: SpecReader, sources: SourceLookup) -> DataTable:
    """Return the rows of `spec.data` with `type: dataset`, sliced, then shuffled.

    Fields: `url` (identifier, path or URL), `name` (config), `split` (default `train`), `shuffle`, `seed` (42),
    `max_samples` (the first rows after the shuffle), `revision`. The order after a shuffle is that of
    `datasets.Dataset.shuffle(seed)`. `buffer_size` is accepted without effect: it belongs to streaming, and rows are
    read at once here. [protocol 4.2]

    Raises:
        UserError: The data set, its split or its config does not exist, or cannot be read; one line.
        ArtifactError: It cannot be fetched now; another attempt may succeed.
    """
    url = data.text("url")
    if url is None:
        raise UserError("spec.data.url is required for type == 'dataset'.")
    try:
        rows = _rows(url, data, parse_split(data.text("split") or "train"), sources)
    except ArtifactError as error:
        if may_pass(error):
            raise
        raise user_error(error) from None
    if data.flag("shuffle", default=False):
        rows = _shuffled(rows, data.integer("seed", 42))
    if data.get("max_samples") is not None:
        rows = rows[: data.integer("max_samples", 0, minimum=1)]
    return DataTable(tuple(dict.fromkeys(name for row in rows for name in row)), rows)


def _rows(url: str, data: SpecReader, splits: Sequence[Split], sources: SourceLookup) -> list[Row]:
    """Return the rows of all parts of the split expression, in order."""
    config, files = data.text("name"), dict[str, tuple[str, ...]]()
    rows: list[Row] = []
    for split in splits:
        if split.name not in files and (found := _files(url, config, split.name, sources)) is not None:
            twice = next((name for name, known in files.items() if known == found), None)
            if twice is not None:
                raise UserError(
                    f"{shown_text(url)} is one file, which has no splits: {twice!r} and {split.name!r} are the same "
                    f"rows; name one of the two in spec.data.split"
                )
            files[split.name] = found
        if split.name in files:
            rows += read_split(files[split.name], split)
        elif (local := sources.local(url, as_name=True)).exists():
            _check_saved(sources.admit(local))
            rows += _from_disk(local, split)
        else:
            rows += _from_hub(url, config, data.text("revision"), split, sources)
    return rows


def _files(url: str, config: str | None, split: str, sources: SourceLookup) -> tuple[str, ...] | None:
    """Return the files of one split, or None for a folder of `save_to_disk` and a name on the hub."""
    mirrored = sources.mirrors.dataset(url, config, split)
    if mirrored is not None:
        return mirrored
    if (local_file := sources.own_file(url)) is not None:  # needs neither token nor network
        return (str(local_file),)
    if url.lower().startswith(("http://", "https://")):
        return (str(fetch_http(url, sources.home / "cache" / "data", sources.allowed)),)
    if local_path(url) is None and is_url(url):
        sources.local(url)  # refuses kinds of URLs that submitted specs may not use
        check_url(url, sources.allowed)
        return split_files(url, config, split)
    local = sources.local(url, as_name=True)
    if not local.exists() or _is_saved(local):
        return None
    return tuple(str(sources.admit(Path(file))) for file in split_files(str(local), config, split))


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    import numpy as np

    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _check_saved(folder: Path) -> None:
    """Refuse a saved data set whose description names files of another folder.

    Raises:
        UserError: It does, or its description cannot be read.
    """
    for file in (folder / "dataset_dict.json", *folder.glob("state.json"), *folder.glob("*/state.json")):
        if not file.is_file():
            continue
        try:
            told = json.loads(file.read_bytes())
            names = [*told.get("splits", ()), *(entry["filename"] for entry in told.get("_data_files", ()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} does not describe a saved data set") from None
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise UserError(f"{file} names files of another folder")


def _from_disk(folder: Path, split: Split) -> list[Row]:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(folder))
    if isinstance(loaded, DatasetDict):
        if split.name not in loaded:
            raise UserError(f"{folder} has no split '{split.name}'. Available: {sorted(loaded)}")
        loaded = loaded[split.name]
    return _taken(loaded, split)


def _from_hub(
    identifier: str, config: str | None, revision: str | None, split: Split, sources: SourceLookup
) -> list[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if not sources.may_ask_hub(identifier):
        raise not_found("dataset", identifier, sources, "it is not a name on the hub")
    problem = hub_problem()
    try:
        with offline(problem is not None):
            loaded = load_dataset(identifier, config, split=split.name, revision=revision)
    except (DatasetNotFoundError, OSError) as error:
        if problem is None and hub_failed_for_now(error):
            text = f"dataset '{identifier}' cannot be fetched from the hub: {one_line(error)}"
            raise TransferError(text, retryable=True) from error
        raise not_found("dataset", identifier, sources, problem or one_line(error)) from None
    except (ValueError, RuntimeError) as error:  # an unknown config or split, as the library reports it
        if problem is not None:
            raise not_found("dataset", identifier, sources, problem) from None
        raise UserError(f"dataset '{identifier}': {one_line(error)}") from None
    return _taken(loaded, split)


def _taken(loaded: Any, split: Split) -> list[Row]:
    return [
        {name: without_padding(value) for name, value in row.items()} for row in loaded.select(split.rows(len(loaded)))
    ]
