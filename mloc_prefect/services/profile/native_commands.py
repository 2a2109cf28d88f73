"""The profile as commands on this machine, for `mloc up --profile ha`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.services.profile.topology import PROFILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mloc_prefect.services.profile.topology import ProfilePart

_MODULES = {"mloc": ("-m", "mloc_prefect.cli"), "prefect": ("-m", "prefect"), "python": ()}
STORES = ("redis", "postgres")
"""Parts that are no Python programs: the caller starts them, or knows where they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeCommand:
    """One process of the profile.

    Attributes:
        name: Of the process: the part, with a number where it runs more than once.
        part: What it is one of.
        argv: Its command, in this interpreter, whatever the working directory holds.
        environment: The variables that the description gives it.
        ready: URL that answers 200 when it can serve, or None.
    """

    name: str
    part: ProfilePart
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    ready: str | None


def names_of(part: ProfilePart) -> list[str]:
    """Return the names of the processes of a part."""
    return [part.name] if part.count == 1 else [f"{part.name}-{number}" for number in range(1, part.count + 1)]


def native_commands(
    words: Mapping[str, str], ports: Mapping[str, int], hosts: Mapping[str, str], reached: Mapping[str, str]
) -> list[NativeCommand]:
    """Return the commands of all parts but the two stores.

    The processes of a part use the Prefect servers in turn: no proxy stands before these, and a process waits while its
    server is away.

    Args:
        words: Text of the names in the description; those of `prefect`, `host` and `port` are added here.
        ports: Port of each process that listens.
        hosts: Address that each part listens on.
        reached: Host under which this machine reaches each part.
    """
    return list(_commands(words, ports, hosts, reached))


def _commands(
    words: Mapping[str, str], ports: Mapping[str, int], hosts: Mapping[str, str], reached: Mapping[str, str]
) -> Iterator[NativeCommand]:
    servers = [f"http://{reached['prefect']}:{port}" for name, port in ports.items() if name.startswith("prefect-")]
    for part in PROFILE:
        if part.name in STORES:
            continue
        for number, name in enumerate(names_of(part)):
            own = dict(words) | {"prefect": servers[number % len(servers)]}
            if part.port:
                own |= {"host": hosts[part.name], "port": str(ports[name])}
            filled = {key: value.format_map(own) for key, value in part.environment.items()}
            yield NativeCommand(
                name=name,
                part=part,
                argv=(sys.executable, "-P", *_MODULES[part.program], *(a.format_map(own) for a in part.arguments)),
                environment={key: value for key, value in filled.items() if value},  # no token, for instance
                ready=f"http://{reached[part.name]}:{ports[name]}{part.ready}" if part.port else None,
            )
