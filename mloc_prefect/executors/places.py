"""Where an executor looks for models and data sets: mirrors, then local paths; what it was told by the request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mloc_prefect
from mloc_prefect.artifacts.checkpoint import file_of_endpoint
from mloc_prefect.artifacts.delivery import AllowedHosts
from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.artifacts.mirrors import Mirrors
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGE = Path(mloc_prefect.__file__).parent
_TEMPLATE_DATA = Path("templates/data")


@dataclass(frozen=True, slots=True)
class Places:
    """The look-up rules of one request.

    Attributes:
        mirrors: All mirror lines in force: the file of the setting, then `$MLOC_HOME/mirrors.yaml`.
        home: State directory; copies of remote models go to `cache/` below it.
        base: Folder that relative paths of the spec start from.
        allowed: Hosts that data may be read from.
        results: Root of all tasks' results; None: where the task's own directory lies.
        endpoint: URL of our own HTTP endpoint, or None.
    """

    mirrors: Mirrors
    home: Path
    base: Path
    allowed: AllowedHosts
    results: Path | None = None
    endpoint: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Places:
        """Read `ExecutionRequest.settings`.

        Absent names fall back to the environment (`MLOC_HOME`, `MLOC_MIRRORS`, `MLOC_ALLOWED_HOSTS`) and to the
        working directory.

        Raises:
            UserError: A mirrors file is wrong.
        """
        home = Path(settings.get("home") or os.environ.get("MLOC_HOME") or "~/.mloc").expanduser()
        named = settings.get("mirrors") or os.environ.get("MLOC_MIRRORS")
        chosen = Path(named).expanduser() if named else None
        prepared = home / "mirrors.yaml"
        hosts = settings.get("allowed_hosts") or os.environ.get("MLOC_ALLOWED_HOSTS") or ()
        listed = hosts.split(",") if isinstance(hosts, str) else hosts
        try:
            mirrors = Mirrors.load(chosen, prepared if prepared.is_file() else None)
        except ArtifactError as error:
            raise user_error(error) from None
        base = Path(settings.get("base_dir") or Path.cwd())
        names = frozenset(str(host).strip().lower() for host in listed if str(host).strip())
        root = settings.get("results_root")
        return cls(
            mirrors,
            home,
            base,
            AllowedHosts(names, loopback=bool(settings.get("loopback"))),
            results=Path(root) if root else None,
            endpoint=settings.get("base_url"),
        )

    @property
    def mirrors_target(self) -> Path:
        """The file in which a new mirror belongs."""
        return self.mirrors.files[0] if self.mirrors.files else self.home / "mirrors.yaml"

    def local(self, identifier: str) -> Path:
        """Return `identifier` read as a path; rows of our templates come with the package, wherever a copy is run."""
        found = self.base / Path(identifier).expanduser()
        if Path(identifier).parent == _TEMPLATE_DATA and not found.exists():
            packaged = _PACKAGE / identifier
            return packaged if packaged.is_file() else found
        return found

    def own_file(self, url: str) -> Path | None:
        """Return the file below our results root that `url` names at our own endpoint, None for other URLs."""
        found = file_of_endpoint(url, self.endpoint, self.allowed)
        if found is None or self.results is None:
            return None
        file = task_dir(self.results, found[0]) / Path(found[1]).name
        return file if file.is_file() else None


def user_error(error: ArtifactError) -> UserError:
    """Return `error` in the one-line form that crosses the process boundary."""
    return UserError(f"{error.message} ({error.hint})" if error.hint else error.message)
