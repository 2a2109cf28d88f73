"""Which files of this machine a submitted spec may read. Standard library only.

Paths are judged by what they resolve to: links, `..`, `~`, `/proc/self/root` and doubled slashes lead where they lead.
A path that is refused is refused whether or not it exists, so that no one can ask what exists.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mloc_prefect.settings import MlocSettings

_SHOWN = 80  # characters of a refused path in messages
_ATTEMPTS = "attempts"
_HINT = (
    "put it below the results root, the working directory of the service, or a folder that the operator lists in "
    "MLOC_DATA_ROOTS"
)


@dataclass(frozen=True, slots=True)
class InputRoots:
    """The folders below which a submitted spec may read, as real paths.

    Attributes:
        results: Results root. Hidden files and the directories of attempts below it are ours.
        home: `MLOC_HOME`; nothing below it is an input, except results.
        working: Working directory of the service, without its hidden files; None when that is `/`.
        data: Folders of `MLOC_DATA_ROOTS`.
        linked: Whether results may be elsewhere, at the ends of links in the results root.
    """

    results: Path
    home: Path
    working: Path | None = None
    data: tuple[Path, ...] = ()
    linked: bool = False

    @classmethod
    def of(cls, settings: MlocSettings, *, results: Path, working: Path) -> InputRoots:
        """Return the roots of a service.

        Args:
            settings: Its settings.
            results: Its results root.
            working: Its working directory.
        """
        listed = (Path(part.strip()).expanduser() for part in settings.data_roots.split(",") if part.strip())
        here = _real(working)
        return cls(
            results=_real(results),
            home=_real(settings.home.expanduser()),
            working=None if here == Path(here.anchor) else here,
            data=tuple(_real(folder) for folder in listed),
            linked=settings.allow_outside_results,
        )

    def to_wire(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "results": str(self.results),
            "home": str(self.home),
            "working": None if self.working is None else str(self.working),
            "data": [str(folder) for folder in self.data],
            "linked": self.linked,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> InputRoots:
        """Return what `to_wire` was called on."""
        working = wire.get("working")
        return cls(
            results=Path(wire["results"]),
            home=Path(wire["home"]),
            working=None if working is None else Path(working),
            data=tuple(Path(folder) for folder in wire["data"]),
            linked=bool(wire["linked"]),
        )

    def admit(self, path: Path, text: str) -> Path:
        """Return the file or folder that `path` resolves to.

        Args:
            path: An absolute path.
            text: What the spec has, for the message.

        Raises:
            ArtifactError: It is outside the roots, no path at all, or neither a file nor a folder.
        """
        try:
            real = _real(path)
            found = real.stat() if self._allows(real) else None
        except FileNotFoundError:
            return real
        except (OSError, ValueError):  # not a path, a loop of links, a folder that is closed to us
            raise ArtifactError(f"{shown_path(text)} cannot be read as a path of this machine", hint=_HINT) from None
        if found is None:
            message = f"{shown_path(text)} is outside the folders that submitted specs may read"
            raise ArtifactError(message, hint=_HINT)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise ArtifactError(f"{shown_path(text)} is neither a file nor a folder", hint=_HINT)
        return real

    def admit_folder(self, folder: Path, text: str) -> Path:
        """Return what `folder` resolves to; everything in it must be admitted, too.

        Raises:
            ArtifactError: As `admit`, of the folder or of something in it.
        """
        real = self.admit(folder, text)
        for inner in _links_and_specials(real):
            self.admit(inner, f"{text}/{inner.name}")
        return real

    def _allows(self, real: Path) -> bool:
        if real.is_relative_to(self.results):
            inside = real.relative_to(self.results).parts
            ours = _is_hidden(inside) or _ATTEMPTS in inside[1:]
            return not ours and (self.results != self.home or bool(inside))
        if real.is_relative_to(self.home):
            return False
        if any(real.is_relative_to(folder) for folder in self.data):
            return True
        if self.working is not None and real.is_relative_to(self.working):
            return not _is_hidden(real.relative_to(self.working).parts)
        return self.linked and self._is_linked(real)

    def _is_linked(self, real: Path) -> bool:
        """Return whether `real` is in a task directory that the results root links to."""
        for above in (real, *real.parents):
            link = self.results / above.name
            if above.name and link.is_symlink() and _real(link) == above:
                inside = real.relative_to(above).parts
                return not _is_hidden(inside) and _ATTEMPTS not in inside
        return False


def shown_path(text: str) -> str:
    """Return a path for messages, on one line and shortened."""
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") for part in parts)


def _links_and_specials(folder: Path) -> Iterator[Path]:
    """Yield what could lead out of a folder, at any depth: links, and what is neither a file nor a folder."""
    if not folder.is_dir():
        return
    waiting, seen = [folder], {folder}
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = _real(Path(entry.path))
                    yield Path(entry.path)
                    if target.is_dir() and target not in seen:  # admitted by now
                        seen.add(target)
                        waiting.append(target)
                elif entry.is_dir():
                    waiting.append(Path(entry.path))
                elif not entry.is_file():
                    yield Path(entry.path)
