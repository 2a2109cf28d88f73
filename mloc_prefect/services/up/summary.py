"""The text that `mloc up` prints when everything runs: addresses, and a first command to copy."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mloc_prefect.prefect_ext.server.login_page import login_url
from mloc_prefect.services.up.join_env import warnings

if TYPE_CHECKING:
    from mloc_prefect.services.up.stack_config import StackConfig


def summary(stack: StackConfig, *, worker: bool, show_token: bool) -> list[str]:
    """Return the lines.

    Args:
        stack: What runs.
        worker: Whether a worker runs here.
        show_token: Write out the endpoint's token and Prefect's login.
    """
    lines = [
        "everything is up",
        f"  endpoint  {stack.url}   reference: {stack.url}/docs",
        f"  Prefect   {stack.ui_url}   export PREFECT_API_URL={stack.api_url}",
        *(f"  as well   {name} on port {port}" for name, port in stack.more_ports.items()),
        f"  Redis     {stack.redis_text}",
        f"  worker    {_workers(stack) if worker else 'none here; start one with `mloc worker start`'}",
        f"  results   {stack.results}",
        f"  logs      {stack.logs}",
        *_secret_lines(stack, show_token=show_token),
        "try",
        f"  mloc templates echo | curl -X POST {stack.url}/api/v1/tasks{_header(stack)} --data-binary @-",
        "  mloc list",
    ]
    if not stack.beyond_loopback:
        return lines
    lines += [f"on another machine, with a copy of {stack.secrets.join}", "  . join.env && mloc worker start"]
    return [*lines, *(f"  warning: {warning}" for warning in warnings(stack))]


def _workers(stack: StackConfig) -> str:
    return "several, on this machine" if stack.database else "one, on this machine"


def _secret_lines(stack: StackConfig, *, show_token: bool) -> list[str]:
    lines = []
    if show_token and stack.token:
        lines.append(f"  token     {stack.token}")
    elif stack.token_file:
        lines.append(f"  token     in {stack.token_file}")
    elif stack.token:
        lines.append("  token     the one that you set")
    if stack.auth:
        page = login_url(stack.ui_url, stack.auth) if show_token else stack.secrets.prefect_page.as_uri()
        login = shlex.quote(str(stack.secrets.prefect_auth))
        if not stack.database:  # stock servers do not have that page: they ask for the password
            lines.append(f"  log in    to the pages of Prefect: open {page}")
        lines += [
            f'  password  of Prefect: export PREFECT_API_AUTH_STRING="$(cat {login})"',
        ]
    return lines


def _header(stack: StackConfig) -> str:
    if not stack.token:
        return ""
    source = (
        f"$(cat {shlex.quote(str(stack.token_file))})"
        if stack.token_file
        else f"${stack.token_variable or 'MLOC_TOKEN'}"
    )
    return f' -H "Authorization: Bearer {source}"'
