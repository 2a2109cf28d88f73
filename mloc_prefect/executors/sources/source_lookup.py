"""`SourceLookup`: how a request looks up models and data sets: mirrors first, then local paths."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mloc_prefect.artifacts.checkpoint import file_of_endpoint
from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.artifacts.mirrors import Mirrors
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.artifacts.transfer.own_services import OwnServices
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.process.port_ranges import UNPRIVILEGED
from mloc_prefect.trust.input_roots import InputRoots
from mloc_prefect.trust.local_inputs import admit_local, find_local, is_hub_name, path_of
from mloc_prefect.trust.remote_code import SETTING, odd_sections
from mloc_prefect.trust.spec_inputs import paths_in
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class SourceLookup:
    """The lookup rules of one request.

    Attributes:
        mirrors: All mirrors in force: those of the setting, then those of `$MLOC_HOME/mirrors.yaml`.
        home: State directory; copies of remote models go to `cache/` below it.
        base: Folder that relative paths of the spec start from.
        allowed: Hosts that data may be read from.
        results: Root of all tasks' results; None = the parent of the task's own directory.
        endpoint: URL of our own HTTP endpoint, or None.
        inputs: Where files of this machine must be; None for specs of the user himself.
    """

    mirrors: Mirrors
    home: Path
    base: Path
    allowed: AllowedHosts
    results: Path | None = None
    endpoint: str | None = None
    inputs: InputRoots | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SourceLookup:
        """Read `ExecutionRequest.settings`.

        Absent names fall back to the environment (`MLOC_HOME`, `MLOC_MIRRORS`, `MLOC_ALLOWED_HOSTS`) and to the
        working directory.

        Raises:
            UserError: A mirrors file is invalid.
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
        ports = str(settings.get("loopback_ports", UNPRIVILEGED))
        own = OwnServices.from_wire(settings.get("own_services"))
        return cls(
            mirrors,
            home,
            base,
            AllowedHosts(names, bool(settings.get("loopback")), ports, own),
            results=Path(root) if root else None,
            endpoint=settings.get("base_url"),
            inputs=InputRoots.from_wire(confined) if (confined := settings.get("inputs")) else None,
        )

    @property
    def mirrors_target(self) -> Path:
        """The file to add a new mirror to."""
        return self.mirrors.files[0] if self.mirrors.files else self.home / "mirrors.yaml"

    def local(self, identifier: str, *, as_name: bool = False) -> Path:
        """Return `identifier`, a path or file URL, as a path.

        Data files of our templates are found in the package from any directory. The URL of another place becomes a path
        that does not exist.

        Args:
            identifier: What the spec has.
            as_name: Whether it may also be a name on the hub.

        Raises:
            UserError: This request may not read it.
        """
        try:
            if self.inputs is None:
                return find_local(local_path(identifier) or identifier, self.base)
            path = path_of(identifier)
            if path is None:  # the URL of another place: no path, so that `..` in it leads nowhere
                return self.base / quote(identifier, safe="")[:_LONGEST_NAME]
            return admit_local(path, self.base, self.inputs, as_name=as_name)
        except ArtifactError as error:
            raise user_error(error) from None

    def admit(self, path: Path) -> Path:
        """Return a file, or a folder with all that is in it, if this request may read it.

        Raises:
            UserError: It leads to what the request may not read.
        """
        if self.inputs is None:
            return path
        try:
            return self.inputs.admit_folder(path, str(path))
        except ArtifactError as error:
            raise user_error(error) from None

    def may_ask_hub(self, identifier: str) -> bool:
        """Return whether a name may be looked up on the hub; libraries would take a path for a folder."""
        return self.inputs is None or (is_hub_name(identifier) and not Path(identifier).exists())

    def named(self, text: str) -> str:
        """Return a model that an argument of a library names: a folder of this machine as its path, else unchanged.

        Raises:
            UserError: It may not be read.
        """
        if self.inputs is None:
            return text
        found = self.local(text, as_name=True)
        return str(self.admit(found)) if found.exists() else text

    def admit_files(self, arguments: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """Return the arguments of a library after a check of the files that they name, and that these name.

        Args:
            arguments: The arguments.
            names: Those that may be a file, a model, or a configuration with paths.

        Raises:
            UserError: A file may not be read, or is not the JSON that its name says.
        """
        if self.inputs is None:
            return arguments
        found = dict(arguments)
        for name in names:
            value = arguments.get(name)
            if isinstance(value, str):
                found[name] = self.named(value)
                file = Path(found[name])
                value = _configuration(name, file) if file.suffix == ".json" and file.is_file() else None
            for inner in paths_in(value):
                self.local(inner.text)
        return found

    def own_file(self, url: str) -> Path | None:
        """Return the file below our results root that `url` names at our own endpoint, or None for other URLs."""
        found = file_of_endpoint(url, self.endpoint, self.allowed)
        if found is None or self.results is None:
            return None
        file = task_dir(self.results, found[0]) / Path(found[1]).name
        return self.admit(file) if file.is_file() else None


def _configuration(name: str, file: Path) -> Any:
    """Return the content of a library's configuration file.

    Raises:
        UserError: It is no JSON, or has sections that need consent, which is given to what a spec itself has.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"spec.training.{name}: {file.name} is not a JSON file: {error}") from None
    odd = odd_sections(found) if name == "deepspeed" and isinstance(found, dict) else []
    if odd:
        text = f"spec.training.deepspeed: {file.name} has {', '.join(map(ascii, odd[:3]))}, not about the training"
        raise UserError(f"{text} (write it in the spec as a mapping, and the operator can allow it with {SETTING}=on)")
    return found


def may_pass(error: ArtifactError) -> bool:
    """Return whether another attempt may succeed: a server that refused, broke off or was too slow."""
    return bool(getattr(error, "retryable", False))


def user_error(error: ArtifactError) -> UserError:
    """Return `error` as one line, the form in which errors cross the process boundary."""
    return UserError(f"{error.message} ({error.hint})" if error.hint else error.message)
