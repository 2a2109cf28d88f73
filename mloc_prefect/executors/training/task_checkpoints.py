"""Checkpoints of one task, and which one a later attempt resumes from. Standard library only.

They are in `<task dir>/checkpoints`, where every attempt finds them. A checkpoint counts only with its mark, which is
written after all of its files: a process that ends while saving leaves no mark. Checkpoints belong to one training;
they are removed when the model, the data or the options have changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

REFERENCE = "ref"
"""Name of the frozen adapter that TRL's trainers keep in addition to the trained one; saved as a folder below it."""

_MARK = "complete.json"
_TRAINING = "training.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_IRRELEVANT = ("output", "resources", "timeoutSec", "timeout_sec", "priority", "dependsOn", "sloSeconds", "parallel")
"""Parts of a spec that do not affect what is trained."""


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint.

    Attributes:
        path: Its folder.
        step: Number of optimizer steps done.
    """

    path: Path
    step: int

    def history(self) -> list[dict[str, Any]]:
        """Return what the trainer had logged up to it."""
        state = json.loads((self.path / "trainer_state.json").read_bytes())
        history: list[dict[str, Any]] = state.get("log_history") or []
        return history


class TaskCheckpoints:
    """The checkpoints of one task.

    Args:
        folder: Their folder.
        identity: From `identity_of`.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self._identity = identity

    def prepare(self) -> SavedCheckpoint | None:
        """Return the checkpoint to resume from, or None; incomplete ones and those of another training are removed.

        Raises:
            OSError: The folder cannot be created or cleaned.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / _TRAINING
        if not note.is_file() or note.read_text(errors="replace").strip() != self._identity:
            for path in self._all():
                shutil.rmtree(path)
            note.write_text(self._identity + "\n")
        found: list[SavedCheckpoint] = []
        for path in self._all():
            if _is_complete(path):
                found.append(SavedCheckpoint(path, _step(path)))
            else:
                shutil.rmtree(path)
        return max(found, key=lambda c: c.step, default=None)

    def complete(self, step: int) -> Path:
        """Mark the checkpoint of `step` as complete and return its folder; all its files must be written.

        The reference adapter is removed: the next attempt creates its own, and transformers does not load the trained
        adapter next to it.

        Raises:
            OSError: There is no such checkpoint, or the mark cannot be written.
        """
        path = self.folder / f"checkpoint-{step}"
        shutil.rmtree(path / REFERENCE, ignore_errors=True)
        part = path / f".{_MARK}.part"
        part.write_text(json.dumps(_sizes(path)))
        part.replace(path / _MARK)
        return path

    def has(self, step: int) -> bool:
        """Return whether there is a complete checkpoint of `step`."""
        return _is_complete(self.folder / f"checkpoint-{step}")

    def _all(self) -> list[Path]:
        return [p for p in self.folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]


def identity_of(kind: str, spec: Mapping[str, Any], fingerprint: str) -> str:
    """Return what distinguishes one training from another: a hash of task type, initial weights and spec."""
    relevant = {name: value for name, value in spec.items() if name not in _IRRELEVANT and not name.startswith("_")}
    text = json.dumps([kind, fingerprint, relevant], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _is_complete(path: Path) -> bool:
    try:
        sizes = json.loads((path / _MARK).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(sizes) and all(_size(path / name) == size for name, size in sizes.items())


def _sizes(path: Path) -> dict[str, int]:
    files = (f for f in sorted(path.rglob("*")) if f.is_file() and not f.name.startswith("."))
    return {f.relative_to(path).as_posix(): f.stat().st_size for f in files if f.name != _MARK}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
