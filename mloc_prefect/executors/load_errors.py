"""What loaders of models raise when files are at fault, told in one line that names the folder.

Files that a copy cut short make safetensors and torch raise errors of no common kind, some of them plain exceptions.
"""

from __future__ import annotations

import re
import traceback
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.models_source import FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator

_OTHER_SHAPES = re.compile(r"size mismatch|ignore_mismatched_sizes|must match the size of|exceeds dimension size")
_OTHER_FILE = re.compile(r"PytorchStreamReader|failed finding central directory|loading state_dict", re.IGNORECASE)
_SHAPES = "its weights have other shapes than its config.json says"
_USUAL = (OSError, ValueError, ImportError, KeyError)


@contextmanager
def load_errors(folder: str, text: str = FAILED) -> Iterator[None]:
    """Turn what a loader in the block says of bad files or settings into a mistake of the user.

    Args:
        folder: Where the model lies, or its name on the hub.
        text: What is said, with `{}` for the reason.

    Raises:
        UserError: The files or the settings are at fault. Lack of memory and broken devices are not: they pass as is.
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
    """Return what is wrong with the files in `folder`, None when `error` says nothing of the kind."""
    from safetensors import SafetensorError

    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and _OTHER_SHAPES.search(text):  # also of a `state_dict`
        return _SHAPES
    if isinstance(error, (SafetensorError, UnpicklingError, EOFError)) or _OTHER_FILE.search(text):
        return damaged(folder) or f"its weights are damaged or cut short: {text[:300] or 'a file ends too early'}"
    if isinstance(error, AssertionError) and _in_weights(error):  # vLLM's way to compare shapes
        return _SHAPES
    return text if isinstance(error, _USUAL) else None


def damaged(folder: str) -> str | None:
    """Return which of the weight files in `folder` is no whole file, and why; None when all are, or none is there."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file} is damaged or cut short: {' '.join(str(error).split())}"
    return None


def _in_weights(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "load_weights" for frame in frames)
