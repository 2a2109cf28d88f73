"""Configurations of agents (`spec.configName`): instructions, tools, limits and model, as YAML files of the operator.

What an agent may do stands here and nowhere else: a spec chooses a configuration by name and can only narrow it, and
nothing that a model reads or writes changes it. The files lie in the folder of `MLOC_AGENT_CONFIGS`, and below
`mloc_prefect/agents`. Standard library only on import.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.errors import PlanError
from mloc_prefect.process.regular_file import open_regular

if TYPE_CHECKING:
    from collections.abc import Sequence

PYTHON_SETTING = "MLOC_AGENT_PYTHON"
FOLDER_SETTING = "MLOC_AGENT_CONFIGS"
TOOLS = ("list_files", "read_file", "fetch", "python", "search")
"""The tools that a configuration can name; those of MCP servers come in addition."""

_OWN = Path(__file__).parent.parent / "agents"
_SUFFIXES = (".yaml", ".yml")
_FIELDS = ("instructions", "tools", "hosts", "model", "limits", "mcp", "collections", "description")
_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """What one item may use.

    Attributes:
        steps: Requests to the model.
        tool_calls: Calls of tools.
        tokens: Tokens of all requests and answers together; 0 = no limit.
        seconds: Time; 0 = 600 for a single task and 300 for each of several, as in MLOC.
        output_bytes: Length of its answer in UTF-8.
        tool_seconds: Time of one call of a tool.
        tool_output_bytes: Bytes that one call of a tool may give to the model.
        memory_mb: Memory of `python`.
        disk_mb: Files of `python`, which are in memory.
        processes: Processes and threads of `python`.
    """

    steps: int = 20
    tool_calls: int = 50
    tokens: int = 200_000
    seconds: int = 0
    output_bytes: int = 1_000_000
    tool_seconds: int = 30
    tool_output_bytes: int = 20_000
    memory_mb: int = 512
    disk_mb: int = 64
    processes: int = 16

    @property
    def zero_allowed(self) -> frozenset[str]:
        """Names of limits that may be 0."""
        return frozenset({"tokens", "seconds", "tool_calls"})


@dataclass(frozen=True, slots=True)
class AgentEndpoint:
    """The language model of a configuration.

    Attributes:
        base_url: URL of an OpenAI-compatible endpoint, up to `/v1`; None: that of the settings.
        name: Model to ask for there.
        api_key_env: Environment variable of the worker that holds its key.
    """

    base_url: str | None = None
    name: str | None = None
    api_key_env: str | None = None


@dataclass(frozen=True, slots=True)
class McpServer:
    """An MCP server whose tools an agent may call.

    Attributes:
        name: Its name, which precedes the names of its tools.
        command: Program and arguments of a server that is started for each item, or empty.
        url: URL of a running server, or None.
        env: Variables of the program; it gets no others, apart from PATH, HOME, LANG and TMPDIR.
        tools: Those of its tools that may be called; None = all.
    """

    name: str
    command: tuple[str, ...] = ()
    url: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AgentConfiguration:
    """One configuration.

    Attributes:
        name: Its name.
        path: Its file.
        instructions: What the model is told before each task.
        tools: Tools that it may call, of `TOOLS`.
        hosts: Hosts that `fetch` may call, out of those that the operator allows to all specs; None = all of them.
        endpoint: Its language model.
        limits: What an item may use.
        servers: MCP servers.
        collections: What `search` searches: blocks of a rag task (`qdrant`, `embedding`, `search`), by name.
    """

    name: str
    path: Path
    instructions: str = ""
    tools: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    endpoint: AgentEndpoint = AgentEndpoint()
    limits: AgentLimits = AgentLimits()
    servers: tuple[McpServer, ...] = ()
    collections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def narrowed(self, tools: Sequence[str] | None) -> AgentConfiguration:
        """Return the configuration with only these of its tools; MCP servers are chosen by their names.

        Raises:
            PlanError: It does not allow one of them.
        """
        if tools is None:
            return self
        known = (*self.tools, *(server.name for server in self.servers))
        for name in tools:
            if name not in known:
                text = f"spec.agent.tools: the configuration {self.name!r} does not allow {name!r}"
                allowed = ", ".join(known) or "no tools"
                raise PlanError(text, hint=f"it allows {allowed}; a spec can only choose among these")
        servers = tuple(server for server in self.servers if server.name in tools)
        return replace(self, tools=tuple(name for name in self.tools if name in tools), servers=servers)


@dataclass(frozen=True, slots=True)
class AgentSite:
    """What the operator's settings say of agents.

    Attributes:
        folder: Folder of configurations, or None.
        base_url: Endpoint of configurations that name none.
        model: Model to ask for there.
        python: Whether `python` may be used.
    """

    folder: Path | None = None
    base_url: str | None = None
    model: str | None = None
    python: bool = False

    @classmethod
    def of(cls, settings: Any) -> AgentSite:
        """Return what `MlocSettings` say."""
        folder = settings.agent_configs
        found = folder.expanduser().absolute() if folder else None
        return cls(found, settings.agent_base_url, settings.agent_model, settings.agent_python)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any] | None) -> AgentSite:
        """Read what `to_wire` has written."""
        data = data or {}
        folder = data.get("folder")
        return cls(Path(folder) if folder else None, data.get("base_url"), data.get("model"), bool(data.get("python")))

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        folder = str(self.folder) if self.folder else None
        return {"folder": folder, "base_url": self.base_url, "model": self.model, "python": self.python}

    def configuration(self, name: str) -> AgentConfiguration:
        """Return a configuration by name: the operator's, else our own.

        Raises:
            PlanError: There is none of this name, or its file is invalid.
        """
        from mloc_prefect.tasks.agent import CONFIGURATION  # with pydantic, which agents have

        if not CONFIGURATION.fullmatch(name):
            raise PlanError(f"spec.configName: {name!r} is not the name of a configuration")
        for folder in [*([self.folder] if self.folder else []), _OWN]:
            for suffix in _SUFFIXES:
                path = folder / f"{name}{suffix}"
                if path.is_file():
                    return _Reader(path).configuration(name)
        known = self.names()
        hint = did_you_mean(name, known) or f"there are: {', '.join(known)}"
        where = f"in {self.folder}" if self.folder else f"({FOLDER_SETTING} is not set)"
        raise PlanError(f"spec.configName: there is no configuration {name!r} {where}", hint=hint)

    def names(self) -> list[str]:
        """Return the names of all configurations."""
        found = set[str]()
        for folder in [*([self.folder] if self.folder else []), _OWN]:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.suffix in _SUFFIXES and path.is_file():
                    found.add(path.relative_to(folder).with_suffix("").as_posix())
        return sorted(found)


def check_agent(spec: Mapping[str, Any], site: AgentSite) -> AgentConfiguration:
    """Return the configuration of a task, narrowed as its spec says, after a check of what needs no other machine.

    Args:
        spec: The `spec` mapping; values with `${...}` must be filled in.
        site: What the operator's settings say.

    Raises:
        PlanError: There is no such configuration, it is invalid, or does not allow what the spec asks for.
    """
    name = str(spec.get("configName") or "default").strip()
    given = spec.get("agent")
    options = given if isinstance(given, Mapping) else {}
    listed = options.get("tools")
    tools = [str(tool) for tool in listed] if isinstance(listed, list) else None
    found = site.configuration(name).narrowed(tools)
    if "python" in found.tools and not site.python:
        text = f"the configuration {found.name!r} has the tool 'python', which is off on this machine"
        fix = f"set {PYTHON_SETTING}=on to let agents run code in a sandbox, or choose other tools in spec.agent.tools"
        raise PlanError(text, hint=fix)
    _check_model(spec, options, found, site)
    return found


def _check_model(
    spec: Mapping[str, Any], options: Mapping[str, Any], found: AgentConfiguration, site: AgentSite
) -> None:
    model = spec.get("model")
    source = model.get("source") if isinstance(model, Mapping) else None
    if isinstance(source, Mapping) and source.get("identifier"):
        return
    own = options.get("base_url") or options.get("baseUrl")
    if not own and not (found.endpoint.base_url or site.base_url):
        fix = "name an OpenAI-compatible endpoint: agent.base_url, model.base_url of the configuration, or "
        raise PlanError(
            "spec.agent.base_url: neither the spec nor the operator names a language model",
            hint=f"{fix}MLOC_AGENT_BASE_URL; or a model to load here: model.source.identifier",
        )
    known = found.endpoint.name or (site.model if not found.endpoint.base_url else None)
    if not options.get("model") and not (known and not own):
        fix = "add agent.model, the name of a model at that endpoint"
        raise PlanError("spec.agent.model: the endpoint needs the name of a model", hint=fix)


class _Reader:
    """Reads one file, and names it and the field in each fault."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def configuration(self, name: str) -> AgentConfiguration:
        """Return what the file says."""
        data = self._mapping(self._parsed(), "")
        self._only(data, "", _FIELDS)
        tools = self._texts(data, "tools", "") or ()
        for tool in tools:
            if tool not in TOOLS:
                hint = did_you_mean(tool, TOOLS) or f"there are {', '.join(TOOLS)}, and the servers of mcp"
                raise self._fault("tools", f"{tool!r} is not a tool", hint)
        hosts = self._texts(data, "hosts", "")
        return AgentConfiguration(
            name,
            self._path,
            self._text(data, "instructions", "") or "",
            tuple(dict.fromkeys(tools)),
            None if hosts is None else tuple(host.strip().lower() for host in hosts),
            self._endpoint(data),
            self._limits(data),
            self._servers(data),
            self._collections(data, tools),
        )

    def _endpoint(self, data: Mapping[str, Any]) -> AgentEndpoint:
        given = self._mapping(data.get("model"), "model")
        self._only(given, "model.", tuple(f.name for f in fields(AgentEndpoint)))
        found = AgentEndpoint(**{f.name: self._text(given, f.name, "model.") for f in fields(AgentEndpoint)})
        if found.base_url and not found.base_url.startswith(("http://", "https://")):
            raise self._fault("model.base_url", "must start with http:// or https://")
        if found.api_key_env and not _VARIABLE.fullmatch(found.api_key_env):
            raise self._fault("model.api_key_env", "is the name of a variable, not the key itself")
        return found

    def _limits(self, data: Mapping[str, Any]) -> AgentLimits:
        given = self._mapping(data.get("limits"), "limits")
        names = tuple(f.name for f in fields(AgentLimits))
        self._only(given, "limits.", names)
        for name, value in given.items():
            least = 0 if name in AgentLimits().zero_allowed else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise self._fault(f"limits.{name}", f"must be a whole number of at least {least}, found {value!r}")
        return AgentLimits(**given)

    def _servers(self, data: Mapping[str, Any]) -> tuple[McpServer, ...]:
        found = []
        for name, entry in self._mapping(data.get("mcp"), "mcp").items():
            where = f"mcp.{name}."
            if not _NAME.fullmatch(name) or name in TOOLS:
                raise self._fault(f"mcp.{name}", "a server needs a name of its own, of letters, digits and '_'")
            given = self._mapping(entry, where.rstrip("."))
            self._only(given, where, ("command", "url", "env", "tools"))
            command, url = self._texts(given, "command", where) or (), self._text(given, "url", where)
            if bool(command) == bool(url):
                raise self._fault(f"mcp.{name}", "needs either command, a list of texts, or url")
            env = {k: str(v) for k, v in self._mapping(given.get("env"), f"{where}env").items()}
            found.append(McpServer(name, tuple(command), url, env, self._texts(given, "tools", where)))
        return tuple(found)

    def _collections(self, data: Mapping[str, Any], tools: tuple[str, ...]) -> Mapping[str, Mapping[str, Any]]:
        found = {
            name: self._mapping(entry, f"collections.{name}")
            for name, entry in self._mapping(data.get("collections"), "collections").items()
        }
        for name, entry in found.items():
            self._only(entry, f"collections.{name}.", ("qdrant", "embedding", "search"))
            if not self._mapping(entry.get("qdrant"), f"collections.{name}.qdrant").get("collection"):
                raise self._fault(f"collections.{name}.qdrant.collection", "is missing")
        if bool(found) != ("search" in tools):
            raise self._fault("collections", "and the tool 'search' need each other")
        return found

    def _parsed(self) -> Any:
        import yaml

        try:
            with open_regular(self._path) as file:
                text = file.read(_BYTES + 1) or b""
            if len(text) > _BYTES:
                raise self._fault("", f"is larger than {_BYTES} bytes")
            return yaml.safe_load(text.decode("utf-8"))
        except UnicodeDecodeError:
            raise self._fault("", "is not UTF-8 text") from None
        except OSError as error:
            raise self._fault("", f"cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f"line {mark.line + 1}: " if mark else ""
            raise self._fault("", f"is not YAML: {line}{getattr(error, 'problem', None) or 'invalid'}") from None

    def _mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self._fault(where, "must be a mapping")
        return value

    def _only(self, given: Mapping[str, Any], where: str, known: tuple[str, ...]) -> None:
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known) or f"there are: {', '.join(known)}"
                raise self._fault(f"{where}{name}", "is not a field of configurations", hint)

    def _text(self, given: Mapping[str, Any], name: str, where: str) -> str | None:
        value = given.get(name)
        if value is not None and not isinstance(value, str):
            raise self._fault(f"{where}{name}", f"must be text, found {value!r}")
        return value.strip() or None if value else None

    def _texts(self, given: Mapping[str, Any], name: str, where: str) -> tuple[str, ...] | None:
        value = given.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self._fault(f"{where}{name}", "must be a list of texts")
        return tuple(value)

    def _fault(self, where: str, problem: str, hint: str | None = None) -> PlanError:
        return PlanError(f"{self._path}: {f'{where} ' if where else ''}{problem}", hint=hint)
