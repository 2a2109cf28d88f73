"""`data.type: dataset`: rows from mirrors, local files and folders, fsspec URLs, or the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.cache import check_url, fetch_http
from mloc_prefect.artifacts.datafiles import split_files
from mloc_prefect.artifacts.mirrors import is_url
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.hub import hub_problem, not_found, offline
from mloc_prefect.executors.places import user_error
from mloc_prefect.executors.splits import parse_split
from mloc_prefect.executors.tables import read_split

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.splits import Split
    from mloc_prefect.executors.tables import Row

_SAVED = ("state.json", "dataset_dict.json")  # written by `Dataset.save_to_disk`


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and the names of all columns that occur in them."""

    columns: tuple[str, ...]
    rows: list[Row]


def load_table(data: Fields, places: Places) -> Table:
    """Return the wanted rows of `spec.data` with `type: dataset`, sliced, then shuffled.

    Fields: `url` (identifier, path or URL), `name` (config), `split` (default `train`), `shuffle`, `seed` (42),
    `max_samples` (the first so many, after the shuffle), `revision`. The order after a shuffle is that of
    `datasets.Dataset.shuffle(seed)`. `buffer_size` is accepted without effect: it belongs to streaming, and rows are
    read whole here. [protocol 4.2]

    Raises:
        UserError: The data set, its split or its config does not exist, or cannot be read; one line.
    """
    url = data.text("url")
    if url is None:
        raise UserError("spec.data.url is required for type == 'dataset'.")
    rows: list[Row] = []
    try:
        for split in parse_split(data.text("split") or "train"):
            rows.extend(_rows(url, data, split, places))
    except ArtifactError as error:
        raise user_error(error) from None
    if data.flag("shuffle", default=False):
        rows = _shuffled(rows, data.integer("seed", 42))
    if data.get("max_samples") is not None:
        rows = rows[: data.integer("max_samples", 0, minimum=1)]
    return Table(tuple(dict.fromkeys(name for row in rows for name in row)), rows)


def _rows(url: str, data: Fields, split: Split, places: Places) -> list[Row]:
    config = data.text("name")
    mirrored = places.mirrors.dataset(url, config, split.name)
    if mirrored is not None:
        return read_split(mirrored, split)
    if (own := places.own_file(url)) is not None:  # needs no token, nor a way through the network
        return read_split([str(own)], split)
    if url.startswith(("http://", "https://")):
        return read_split([str(fetch_http(url, places.home / "cache" / "data", places.allowed))], split)
    if is_url(url):
        check_url(url, places.allowed)
        return read_split(split_files(url, config, split.name), split)
    local = places.local(url)
    if local.exists():
        return _from_disk(local, split) if _is_saved(local) else read_split(_files(local, config, split), split)
    return _from_hub(url, config, data.text("revision"), split, places)


def _files(local: Path, config: str | None, split: Split) -> tuple[str, ...]:
    return split_files(str(local), config, split.name)


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    import numpy as np

    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _from_disk(folder: Path, split: Split) -> list[Row]:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(folder))
    if isinstance(loaded, DatasetDict):
        if split.name not in loaded:
            raise UserError(f"{folder} has no split '{split.name}'. Available: {sorted(loaded)}")
        loaded = loaded[split.name]
    return _taken(loaded, split)


def _from_hub(identifier: str, config: str | None, revision: str | None, split: Split, places: Places) -> list[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    problem = hub_problem()
    try:
        with offline(problem is not None):
            loaded = load_dataset(identifier, config, split=split.name, revision=revision)
    except (DatasetNotFoundError, OSError) as error:
        raise not_found("dataset", identifier, places, problem or _one_line(error)) from None
    except (ValueError, RuntimeError) as error:  # an unknown config or split, in the library's words
        if problem is not None:
            raise not_found("dataset", identifier, places, problem) from None
        raise UserError(f"dataset '{identifier}': {_one_line(error)}") from None
    return _taken(loaded, split)


def _taken(loaded: Any, split: Split) -> list[Row]:
    return [dict(row) for row in loaded.select(split.rows(len(loaded)))]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
