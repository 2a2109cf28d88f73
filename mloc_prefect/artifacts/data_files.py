"""Finds the files of one split of a data set: in a file, a local folder, or below an fsspec URL."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from mloc_prefect.artifacts.transfer.outgoing import TransferError, is_passing, shown_text
from mloc_prefect.artifacts.transfer.pinned_session import pinned_sessions
from mloc_prefect.errors import ArtifactError, reason
from mloc_prefect.process.regular_file import open_regular
from mloc_prefect.trust.local_inputs import is_plain_part
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsspec import AbstractFileSystem

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts

SUFFIXES = ("jsonl", "json", "csv", "parquet")
KNOWN_ENDINGS = ".jsonl, .json, .csv, .tsv, .parquet, each also with .gz, .bz2, .xz or .zst"
_DATA_FILE = re.compile(rf"\.(?:ndjson|tsv|{'|'.join(SUFFIXES)})(?:\.(?:gz|bz2|xz|zst))?$", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-\d+(?:-[0-9a-f]{8,})?$")  # older versions of `push_to_hub` append a hash
_PART = re.compile(r"part[-.]\d+|\d{4,}$", re.IGNORECASE)  # of Spark and Dask, and of the hub's own conversion
_PARTITION = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)  # a folder of Hive: `year=2024`
_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST_START = max(map(len, _FIRST_BYTES))
_MOST_LAYERS = 2  # a `.gz` file that a server compressed once more


def is_data_file(name: str) -> bool:
    """Return whether `name` has the ending of a readable table (``.jsonl``, ``.csv.gz``, ...)."""
    return _DATA_FILE.search(name) is not None


def data_form(name: str) -> str:
    """Return the ending of a data file in lower case, e.g. ``jsonl`` or ``csv.gz``.

    Raises:
        ValueError: It is none.
    """
    match = _DATA_FILE.search(name)
    if match is None:
        raise ValueError(name)
    return match[0][1:].lower()


def split_files(root: str, config: str | None, split: str) -> tuple[str, ...]:
    """Return the files of `split` below `root`, sorted, with the protocol of `root`.

    A file serves every split. A folder is searched for the following, first in the sub-folder `config`, then in the
    folder itself, in `data/` and in `default/`; the first match wins: ``<split>.<suffix>``, parts
    ``<split>-00000-of-00002.<suffix>``, and a sub-folder ``<split>`` with data files. Parts without the name of a split
    (``part-00000-....parquet``, ``0000.parquet``) and folders of Hive (``year=2024/``) are the split train.

    Raises:
        ArtifactError: `root` does not exist or cannot be read, or has no such split (the message lists the splits).
    """
    try:
        fs, path = open_file_system(root)
        if fs.isfile(path):
            return (root,)
        if not fs.isdir(path):
            raise ArtifactError(shown_text(f"{root} does not exist"))
        return _in_folder(fs, root, path.rstrip("/"), config, split)
    except (OSError, ImportError, ValueError) as error:
        text = shown_text(f"{root} cannot be read: {reason(error)}")
        raise TransferError(text, retryable=local_path(root) is None and is_passing(error)) from None


def _in_folder(fs: AbstractFileSystem, root: str, path: str, config: str | None, split: str) -> tuple[str, ...]:
    if config and not is_plain_part(config):
        raise ArtifactError(shown_text(f"{root} cannot have a config named {config!a}"))
    folders = [posixpath.join(path, config)] if config else []
    seen: set[str] = set()
    for folder in (*folders, path, posixpath.join(path, "data"), posixpath.join(path, "default")):
        splits = _splits(fs, folder)
        if split in splits:
            is_local = isinstance(fs, LocalFileSystem)
            return tuple(name if is_local else fs.unstrip_protocol(name) for name in splits[split])
        seen.update(splits)
    wanted = shown_text(f"{root} has no split '{split}'{f' of {config}' if config else ''}")
    if seen or config:
        hint = f"name the file {split}.jsonl, .json, .csv or .parquet"
    else:
        hint = f"name one of its folders as the config (data.name), or a file {split}.jsonl"
    raise ArtifactError(f"{wanted}. Available: {sorted(seen)}", hint=hint)


def _splits(fs: AbstractFileSystem, folder: str) -> dict[str, list[str]]:
    """Return split name -> files of one folder; a split in one file takes precedence over parts and a sub-folder."""
    if not fs.isdir(folder):
        return {}
    whole: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    unnamed: list[str] = []
    for entry in sorted(fs.ls(folder, detail=True), key=lambda e: str(e["name"])):
        name = str(entry["name"]).rstrip("/")
        base = posixpath.basename(name)
        stem = _DATA_FILE.sub("", base)
        if base.startswith("."):  # hidden, also the `._train.jsonl` of macOS
            continue
        if entry["type"] == "directory":
            partition = _PARTITION.fullmatch(base)
            if partition is None:
                parts.setdefault(base, []).extend(_inside(fs, name))
            elif partition[1] == "split":
                parts.setdefault(partition[2], []).extend(_inside(fs, name))
            else:
                unnamed += _inside(fs, name)
        elif is_data_file(name) and _PART.match(stem):
            unnamed.append(name)
        elif is_data_file(name) and _SHARD.search(stem):
            parts.setdefault(_SHARD.sub("", stem), []).append(name)
        elif is_data_file(name):
            whole.setdefault(stem, [name])
    found = {name: files for name, files in {**parts, **whole}.items() if files}
    return found if not unnamed or "train" in found else {**found, "train": unnamed}


def _inside(fs: AbstractFileSystem, folder: str) -> list[str]:
    """Return the data files of a folder, and those of its folders of Hive."""
    found: list[str] = []
    for entry in sorted(fs.ls(folder, detail=True), key=lambda e: str(e["name"])):
        name = str(entry["name"]).rstrip("/")
        base = posixpath.basename(name)
        if entry["type"] == "directory":
            found += _inside(fs, name) if _PARTITION.fullmatch(base) else []
        elif is_data_file(name) and not base.startswith("."):
            found.append(name)
    return found


def partition_columns(file: str) -> dict[str, str | None]:
    """Return the columns that the folders of Hive above a file stand for: its values are not in the file."""
    found: dict[str, str | None] = {}
    for folder in reversed(file.split("/")[:-1]):
        match = _PARTITION.fullmatch(folder)
        if match is None:
            break
        value = unquote(match[2])
        if match[1] != "split":
            found = {match[1]: None if value == "__HIVE_DEFAULT_PARTITION__" else value, **found}
    return found


def open_file_system(url: str, allowed: AllowedHosts | None = None) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a path or an fsspec URL, and the path in it.

    Paths and file URLs are never given to fsspec as text: it would take `::` in a name for a chain of URLs, and
    does not decode file URLs.

    Args:
        url: The path or the URL.
        allowed: Hosts that an http(s) URL may call, redirects included; None for URLs of the operator.

    Raises:
        OSError: It cannot be opened; also ImportError and ValueError.
    """
    path = local_path(url)
    if path is not None:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - text of fsspec
    options: dict[str, Any] = {}
    if allowed is not None and url.lower().startswith(("http://", "https://")):
        options = {"get_client": pinned_sessions(allowed), "skip_instance_cache": True}
    return cast("tuple[AbstractFileSystem, str]", url_to_fs(url, **options))


@contextmanager
def open_binary(url: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes. What is compressed is unpacked, whatever its name says: servers add and remove it.

    Raises:
        OSError: It cannot be opened; also ImportError and ValueError.
    """
    fs, path = open_file_system(url)
    with ExitStack() as stack:
        stream: Any
        if isinstance(fs, LocalFileSystem):
            stream = stack.enter_context(io.BufferedReader(stack.enter_context(open_regular(Path(path)))))
        else:
            stream = stack.enter_context(fs.open(path, "rb"))
        for _ in range(_MOST_LAYERS):
            start = stream.read(_LONGEST_START)
            stream.seek(0)
            form = next((form for first, form in _FIRST_BYTES.items() if start.startswith(first)), None)
            if form is None:
                break
            stream = stack.enter_context(_unpacked(stream, form))
            if form == "zstd":  # it cannot be read from its beginning again
                break
        yield stream


def _unpacked(stream: Any, form: str) -> Any:
    """Return a stream of what is compressed in another."""
    if form == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=stream, mode="rb"))
    if form == "bz2":
        return bz2.BZ2File(stream)
    if form == "xz":
        return lzma.LZMAFile(stream)
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd"))
