"""Tools of MCP servers, which only a configuration of agents can name: specs and models cannot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.trust.agent_configurations import McpServer

_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR")
_START_SECONDS = 30.0


def server_tools(servers: Sequence[McpServer], seconds: float) -> list[Any]:
    """Return a toolset for each server; entering it starts its program, leaving it ends that.

    The names of its tools begin with the name of the server, so that none can take the place of another.

    Args:
        servers: From the configuration.
        seconds: Time of one call.
    """
    return [_toolset(server, seconds) for server in servers]


def _toolset(server: McpServer, seconds: float) -> Any:
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai.mcp import MCPToolset

    transport: Any = server.url
    if server.command:
        program, *arguments = server.command
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        transport = StdioTransport(program, arguments, env={**passed, **server.env}, keep_alive=False)
    toolset = MCPToolset(transport, init_timeout=_START_SECONDS, read_timeout=seconds, max_retries=3)
    found = toolset if server.tools is None else toolset.filtered(_named(frozenset(server.tools)))
    return found.prefixed(server.name)


def _named(names: frozenset[str]) -> Any:
    return lambda _context, tool: tool.name in names
