"""The parts of `mloc up --profile ha`: each process of the profile, started, checked and stopped as described there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.exposure import local_name
from mloc_prefect.process.log_tail import last_words
from mloc_prefect.services.profile.native_commands import native_commands
from mloc_prefect.services.up.parts import CommandPart
from mloc_prefect.services.up.stack_config import DROPPED, child_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mloc_prefect.process.notify import ReadySocket
    from mloc_prefect.services.profile.native_commands import NativeCommand
    from mloc_prefect.services.up.databases import RedisDatabases
    from mloc_prefect.services.up.parts import Part
    from mloc_prefect.services.up.stack_config import StackConfig

_PROBE_SECONDS = 0.3
_ANSWER_SECONDS = 5.0


class PrefectPart(CommandPart):
    """A stock Prefect process, which reports nothing: it is ready when it answers, or, without HTTP, when it runs."""

    ready_url: str | None = None

    async def is_ready(self, ready: ReadySocket) -> None:
        """See `CommandPart`."""
        del ready
        import httpx

        if self.ready_url is None:
            return
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            while True:
                try:
                    if (await client.get(self.ready_url)).is_success:
                        return
                except httpx.HTTPError:
                    pass  # it does not listen yet
                await asyncio.sleep(_PROBE_SECONDS)


class OncePart(CommandPart):
    """A command that does its work at the start and ends; it is not started again."""

    async def start(self) -> None:
        """Run it to its end.

        Raises:
            DispatchError: It failed.
        """
        await super().start()
        assert self.child is not None
        await self.child.wait_gone()
        if self.child.how is None or self.child.how.code != 0:
            why = "; ".join(last_words(self.log, 1)) or "it wrote nothing"
            raise DispatchError(f"the {self.name} failed ({self.child.ending}): {why}", hint=f"its log is {self.log}")

    async def is_ready(self, ready: ReadySocket) -> None:
        """See `CommandPart`: `start` waits for the end instead."""
        del ready

    async def ended(self) -> str:
        """Never return: that it has ended is right."""
        await asyncio.Event().wait()
        return ""


def profile_groups(
    stack: StackConfig,
    redis: RedisDatabases,
    *,
    worker: bool,
    limit: float,
    on_progress: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> list[list[Part]]:
    """Return the parts of the profile, in groups that start together.

    Args:
        stack: What runs; it has a database and the ports of the profile.
        redis: The databases of Redis.
        worker: Start workers; otherwise only coordinators.
        limit: Seconds without progress after which a start is given up.
        on_progress: Called with what a start waits for.
        environ: Environment of the user.
    """
    words = {
        "store": redis.mloc,
        "messages": redis.messaging,
        "jobs": redis.docket,
        "database": stack.database or "",
        "prefect_login": stack.auth or "",
        "token": stack.token or "",
        "endpoint": stack.url,
        "results": str(stack.results),
    }
    hosts = {"prefect": stack.host, "endpoint": stack.endpoint_host}
    reached = {name: local_name(host) for name, host in hosts.items()}
    ours = child_environment(stack, redis.mloc, redis.messaging, environ)
    # The user's profile of Prefect decides nothing here.
    theirs = {name: value for name, value in environ.items() if name not in DROPPED and name != "PREFECT_PROFILE"}
    groups: list[list[Part]] = [[], [], []]
    for command in native_commands(words, stack.profile_ports, hosts, reached):
        if command.part.name == "worker" and not worker:
            continue
        home = {"PREFECT_HOME": str(stack.home / "prefect" / command.name)}
        env = ours if command.part.program == "mloc" else {**theirs, **home}
        made = _kind(command)(
            command.name,
            command.argv,
            env={**env, **command.environment},
            log=stack.logs / f"{command.name}.log",
            run_dir=stack.run_dir,
            cwd=Path.cwd(),
            limit=limit,
            on_progress=on_progress,
        )
        if isinstance(made, PrefectPart):
            made.ready_url = command.ready
        groups[0 if command.part.once else 2 if command.part.after == ("prefect",) else 1].append(made)
    return groups


def _kind(command: NativeCommand) -> type[CommandPart]:
    if command.part.once:
        return OncePart
    return PrefectPart if command.part.program == "prefect" else CommandPart
