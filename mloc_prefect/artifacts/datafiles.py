"""Where the files of one split of a data set lie: in a file, a local folder, or below an fsspec URL."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

import fsspec
from fsspec.core import url_to_fs

from mloc_prefect.artifacts.delivery import shown_text
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SUFFIXES = ("jsonl", "json", "csv", "parquet")
_DATA_FILE = re.compile(rf"\.(?:ndjson|{'|'.join(SUFFIXES)})(?:\.gz)?$", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-\d+$")


def is_data_file(name: str) -> bool:
    """Return whether `name` ends like a table that we read (``.jsonl``, ``.csv.gz``, ...)."""
    return _DATA_FILE.search(name) is not None


def split_files(root: str, config: str | None, split: str) -> tuple[str, ...]:
    """Return the files of `split` below `root`, sorted, with the protocol of `root`.

    A file serves every split. In a folder these are looked for, first hit wins, in the sub-folder `config`, then
    in the folder itself, then in `data/`: ``<split>.<suffix>``, parts ``<split>-00000-of-00002.<suffix>``, and a
    sub-folder ``<split>`` with data files.

    Raises:
        ArtifactError: `root` does not exist or cannot be read, or has no such split (the message lists what is there).
    """
    try:
        fs, path = url_to_fs(root)
        if fs.isfile(path):
            return (root,)
        if not fs.isdir(path):
            raise ArtifactError(shown_text(f"{root} does not exist"))
        return _in_folder(fs, root, path.rstrip("/"), config, split)
    except (OSError, ImportError, ValueError) as error:
        raise ArtifactError(shown_text(f"{root} cannot be read: {_one_line(error)}")) from None


def _in_folder(fs: AbstractFileSystem, root: str, path: str, config: str | None, split: str) -> tuple[str, ...]:
    folders = [posixpath.join(path, config)] if config else []
    seen: set[str] = set()
    for folder in (*folders, path, posixpath.join(path, "data")):
        splits = _splits(fs, folder)
        if split in splits:
            return tuple(fs.unstrip_protocol(name) if "://" in root else name for name in splits[split])
        seen.update(splits)
    wanted = shown_text(f"{root} has no split '{split}'{f' of {config}' if config else ''}")
    if seen or config:
        hint = f"name the file {split}.jsonl, .json, .csv or .parquet"
    else:
        hint = f"name one of its folders as the config (data.name), or a file {split}.jsonl"
    raise ArtifactError(f"{wanted}. Available: {sorted(seen)}", hint=hint)


def _splits(fs: AbstractFileSystem, folder: str) -> dict[str, list[str]]:
    """Return split name -> files of one folder; a split in one file hides its parts and its sub-folder."""
    if not fs.isdir(folder):
        return {}
    whole: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    for entry in sorted(fs.ls(folder, detail=True), key=lambda e: str(e["name"])):
        name = str(entry["name"]).rstrip("/")
        stem = _DATA_FILE.sub("", posixpath.basename(name))
        if entry["type"] == "directory":
            inside = sorted(str(n) for n in fs.ls(name, detail=False) if is_data_file(str(n)))
            if inside:
                parts.setdefault(posixpath.basename(name), inside)
        elif is_data_file(name) and _SHARD.search(stem):
            parts.setdefault(_SHARD.sub("", stem), []).append(name)
        elif is_data_file(name):
            whole.setdefault(stem, [name])
    return {**parts, **whole}


def open_binary(url: str) -> fsspec.core.OpenFile:
    """Return an opener of a file for reading bytes; use it in a ``with``; ``.gz`` is unpacked on the way."""
    return fsspec.open(url, mode="rb", compression="gzip" if url.lower().endswith(".gz") else None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
