"""Converts errors of model loaders about faulty files to one line that names the folder.

For truncated files safetensors and torch raise unrelated errors, some of them plain exceptions.
"""

from __future__ import annotations

import re
import traceback
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.models_source import FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator

_OTHER_SHAPES = re.compile(r"size mismatch|ignore_mismatched_sizes|must match the size of|exceeds dimension size")
_OTHER_FILE = re.compile(r"PytorchStreamReader|failed finding central directory|loading state_dict", re.IGNORECASE)
_SHAPES = "its weights have other shapes than its config.json says"
_USUAL = (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError)  # the last two: words of config.json
_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN = 2  # weights named in a message


@contextmanager
def load_errors(folder: str, text: str = FAILED) -> Iterator[None]:
    """Convert errors about faulty files or settings in the block to mistakes of the user.

    Args:
        folder: Folder of the model, or its name on the hub.
        text: The message, with `{}` for the reason.

    Raises:
        UserError: The files or the settings are at fault. Lack of memory and broken devices pass unchanged.
    """
    try:
        yield
    except Exception as error:
        reason = fault_of(error, folder)
        if reason is None:
            raise
        named = reason if folder in reason else f"{folder}: {reason}"
        raise UserError(text.format(named)) from error


def fault_of(error: Exception, folder: str) -> str | None:
    """Return what is wrong with the files in `folder`, or None when `error` has another cause."""
    from safetensors import SafetensorError

    text = one_line(error)
    if (pointer := _pointer(folder)) is not None:
        return f"{pointer} is a pointer of Git LFS, not the file; fetch it with: git lfs pull"
    if isinstance(error, RuntimeError) and _OTHER_SHAPES.search(text):  # also of a `state_dict`
        return _SHAPES
    if isinstance(error, (SafetensorError, UnpicklingError, EOFError)) or _OTHER_FILE.search(text):
        return damaged(folder) or f"its weights are damaged or cut short: {text[:300] or 'a file ends too early'}"
    if isinstance(error, AssertionError) and _in_weights(error):  # vLLM compares shapes with `assert`
        return _SHAPES
    return text if isinstance(error, _USUAL) else None


def load_whole(loader: Any, folder: str, **arguments: Any) -> Any:
    """Return the model that a class of transformers loads from a folder.

    Raises:
        UserError: Its files lack weights, which the library would fill with random numbers.
    """
    model, info = loader.from_pretrained(folder, output_loading_info=True, **arguments)
    missing = sorted(info["missing_keys"])
    if missing:
        named = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        kind = type(model).__name__
        text = f"{folder}: its files lack {len(missing)} weights of a {kind} ({named}), which would be random"
        raise UserError(FAILED.format(text))
    return model


def damaged(folder: str) -> str | None:
    """Return which weight file in `folder` is damaged, and why; None when all are whole or there are none."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file} is damaged or cut short: {one_line(error)}"
    return None


def _pointer(folder: str) -> Path | None:
    """Return a file that Git left in place of a large one, or None."""
    for file in sorted(Path(folder).glob("*")):
        if file.is_file() and file.stat().st_size < 1024:
            with file.open("rb") as stream:
                if stream.read(len(_POINTER)) == _POINTER:
                    return file
    return None


def _in_weights(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "load_weights" for frame in frames)
