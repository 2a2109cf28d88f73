"""`AgentJob`: the input of an agent task, read before anything is asked [protocol 4.6]."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mloc_prefect.errors import ArtifactError, PlanError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.row_journal import row_key
from mloc_prefect.executors.common.prompt_data import Prompt, Prompts, load_prompts
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup, user_error
from mloc_prefect.trust.agent_configurations import AgentSite, check_agent
from mloc_prefect.urls import DEFAULT_PORTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.trust.agent_configurations import AgentConfiguration, AgentLimits

KEY_VARIABLES = ("MLOC_AGENT_API_KEY", "UTU_LLM_API_KEY")
"""Where the key of the operator's endpoint is, if its configuration names no other variable."""

_SINGLE_SECONDS, _ITEM_SECONDS = 600, 300  # [protocol 4.6]
_CONCURRENCY, _MOST_AT_ONCE = 4, 32
"""Items at once: the default, and the most. Each may have a sandbox, programs of MCP servers and a connection."""


@dataclass(frozen=True, slots=True)
class ModelAccess:
    """The language model of a task.

    Attributes:
        name: Its name.
        base_url: Its endpoint; None for a model that this process loads.
        api_key: The key for that endpoint, or None.
        allowed: Hosts that the client may call.
        temperature: Of sampling; None = the default of the endpoint.
        seed: The same.
        max_response_tokens: Most tokens of one answer; None = the default.
        revision: Of a model that this process loads, as the spec names it.
    """

    name: str
    base_url: str | None
    api_key: str | None
    allowed: AllowedHosts
    temperature: float | None = None
    seed: int | None = None
    max_response_tokens: int | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class AgentJob:
    """One agent task.

    Attributes:
        configuration: What the agent may do, narrowed by the spec.
        model: Its language model.
        limits: What an item may use, narrowed by the spec.
        prompts: What to work on.
        keys: Their row keys.
        concurrency: Items at once.
        allowed_failures: Items that may fail; None = all but one.
        sources: Mirrors, and hosts that tools may call.
        notes: What of the spec has no effect.
    """

    configuration: AgentConfiguration
    model: ModelAccess
    limits: AgentLimits
    prompts: Prompts
    keys: Sequence[str]
    concurrency: int
    allowed_failures: int | None
    sources: SourceLookup
    notes: tuple[str, ...]

    @classmethod
    def read(cls, request: ExecutionRequest) -> AgentJob:
        """Read a task.

        Raises:
            UserError: The spec, its data or its configuration is at fault.
        """
        site = AgentSite.from_wire(request.settings.get("agents"))
        sources = SourceLookup.of(request.settings)
        spec = SpecReader(request.spec)
        try:
            configuration = check_agent(request.spec, site)
        except PlanError as error:
            raise UserError(f"{error.message} ({error.hint})" if error.hint else error.message) from None
        prompts = _prompts(request, spec, sources)
        options = spec.child("agent")
        notes: list[str] = []
        limits = _limits(configuration.limits, options, len(prompts), notes)
        model = _model(spec, configuration, site, sources.allowed)
        asked = row_settings(configuration, model)
        keys = [row_key(prompt=p.text, model=model.name, revision=model.revision, sampling=asked) for p in prompts]
        at_once = _at_once(options, model, notes)
        return cls(
            configuration,
            model,
            limits,
            prompts,
            keys,
            at_once,
            None if options.get("max_failed_items") is None else options.integer("max_failed_items", 0),
            sources,
            tuple(notes),
        )


def row_settings(configuration: AgentConfiguration, model: ModelAccess) -> dict[str, Any]:
    """Return what determines the steps of an item, besides its task and the name and revision of its model.

    Limits are not part of it: with more time, what is done already still holds.
    """
    return {
        "instructions": configuration.instructions,
        "tools": configuration.tools,
        "hosts": configuration.hosts,
        "servers": [asdict(server) for server in configuration.servers],
        "collections": configuration.collections,
        "endpoint": model.base_url,
        "temperature": model.temperature,
        "seed": model.seed,
        "max_response_tokens": model.max_response_tokens,
    }


def _at_once(options: SpecReader, model: ModelAccess, notes: list[str]) -> int:
    """Return how many items are worked on at once."""
    wanted = options.integer("concurrency", _CONCURRENCY, minimum=1)
    if model.base_url is None:
        return 1
    if wanted > _MOST_AT_ONCE:
        notes.append(f"spec.agent.concurrency: {wanted} is more than a task can have; it stays at {_MOST_AT_ONCE}")
    return min(wanted, _MOST_AT_ONCE)


def _prompts(request: ExecutionRequest, spec: SpecReader, sources: SourceLookup) -> Prompts:
    data = spec.child("data")
    if not data.data or data.get("type") == "static":
        text = data.text("task") if data.data else spec.text("task")
        if not text:
            where = "spec.data.task is required for type == 'static'" if data.data else ""
            raise UserError(where or "Either spec.data or spec.task is required")
        return Prompts([Prompt(text)])
    found = load_prompts(request.spec, request.upstream, sources)
    read = Prompts(_as_text(prompt) for prompt in found)
    read.first = found.first
    return read


def _as_text(prompt: Prompt) -> Prompt:
    """Return a task as text: messages of a chat follow one another, each with its role unless there is only one."""
    if prompt.messages is None:
        return prompt
    texts = [(message["role"], _content(message.get("content"))) for message in prompt.messages]
    text = texts[0][1] if len(texts) == 1 else "\n\n".join(f"{role}: {content}" for role, content in texts)
    return replace(prompt, text=text, messages=None, tools=None)


def _content(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(str(part.get("text", "")) for part in value if isinstance(part, dict))
    return str(value or "")


def _limits(own: AgentLimits, options: SpecReader, items: int, notes: list[str]) -> AgentLimits:
    """Return the limits of a configuration as far as the spec narrows them."""
    default = own.seconds or (_SINGLE_SECONDS if items == 1 else _ITEM_SECONDS)
    wanted = {
        "steps": options.integer("max_steps", own.steps, minimum=1),
        "tool_calls": options.integer("max_tool_calls", own.tool_calls),
        "tokens": options.integer("max_tokens", own.tokens),
    }
    found: dict[str, int] = {}
    for name, value in wanted.items():
        most = getattr(own, name)
        capped = min(value, most) if most or name == "tool_calls" else value
        if capped < value:
            notes.append(f"spec.agent.max_{name}: {value} is more than the configuration allows; it stays at {most}")
        found[name] = capped
    seconds = options.number("timeout", default)
    if own.seconds and seconds > own.seconds:
        notes.append(
            f"spec.agent.timeout: {seconds:g} is more than the configuration allows; it stays at {own.seconds}"
        )
        seconds = own.seconds
    return replace(own, **found, seconds=max(1, round(seconds)))


def _model(spec: SpecReader, configuration: AgentConfiguration, site: AgentSite, allowed: AllowedHosts) -> ModelAccess:
    options, endpoint = spec.child("agent"), configuration.endpoint
    settings: dict[str, Any] = {
        "temperature": None if options.get("temperature") is None else options.number("temperature", 0.0),
        "seed": None if options.get("seed") is None else options.integer("seed", 0),
        "max_response_tokens": (
            None if options.get("max_response_tokens") is None else options.integer("max_response_tokens", 1)
        ),
    }
    source = spec.child("model").child("source")
    loaded = source.text("identifier")
    if loaded:
        return ModelAccess(loaded, None, None, allowed, **settings, revision=source.text("revision"))
    own = options.text("base_url", "baseUrl")
    if own:
        # A key of the operator goes to the operator's endpoint only.
        name, key, url = options.text("model") or "", options.text("api_key"), own
    else:
        named = endpoint.base_url
        name = options.text("model") or endpoint.name or (None if named else site.model) or ""
        key, url = _operators_key(endpoint.api_key_env), named or site.base_url or ""
        allowed = with_host(allowed, url)
    try:
        allowed.check(url)
    except ArtifactError as error:
        fault = user_error(error)
        raise UserError(f"{'spec.agent.base_url' if own else 'the endpoint of the configuration'}: {fault}") from None
    return ModelAccess(name, url, key, allowed, **settings)


def _operators_key(variable: str | None) -> str | None:
    if variable is not None:
        key = os.environ.get(variable)
        if not key:
            raise UserError(f"the variable {variable} with the key of the model is not set for this worker")
        return key
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


def with_host(allowed: AllowedHosts, url: str) -> AllowedHosts:
    """Return the rules with a host that the operator named, and its port only."""
    parts = urlsplit(url)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme, 80)
    return replace(allowed, hosts=allowed.hosts | {f"{(parts.hostname or '').lower()}:{port}"})
