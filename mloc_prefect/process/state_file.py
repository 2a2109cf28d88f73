"""A small JSON file in which a running program says where it can be found. Standard library only."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mloc_prefect.process.atomic_file import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class StateFile:
    """A JSON object on disk, mode 0600; a reader sees all of it or nothing.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, value: Mapping[str, Any]) -> None:
        """Replace the content.

        Raises:
            OSError: The file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self.path, json.dumps(value).encode())

    def read(self) -> dict[str, Any] | None:
        """Return the content, None when there is none that can be read: another version may have written it."""
        with suppress(OSError, ValueError):
            value = json.loads(self.path.read_bytes())
            if isinstance(value, dict):
                return value
        return None

    def remove(self) -> None:
        """Remove the file; nothing happens when there is none."""
        self.path.unlink(missing_ok=True)
