"""The life of one `mloc up`: claim the directory, start the parts, wait for the signal, stop the parts."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from mloc_prefect.prefect_ext.server.login_page import login_file
from mloc_prefect.prefect_ext.server.main import Private
from mloc_prefect.process.marks import kill_left_over
from mloc_prefect.process.notify import report_ready
from mloc_prefect.process.proxies import bypass_proxies
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.services.up.databases import RedisPart, databases
from mloc_prefect.services.up.join_env import join_file
from mloc_prefect.services.up.log_view import LogView
from mloc_prefect.services.up.part_supervisor import PartSupervisor
from mloc_prefect.services.up.parts import CommandPart, ServerPart
from mloc_prefect.services.up.profile_parts import OncePart, PrefectPart, profile_groups
from mloc_prefect.services.up.stack_config import child_environment, command, decide, own_hosts, require_writable
from mloc_prefect.services.up.summary import summary
from mloc_prefect.services.up.up_state import UpFiles, UpState, refuse_second

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from mloc_prefect.services.up.databases import RedisDatabases
    from mloc_prefect.services.up.parts import Part
    from mloc_prefect.services.up.stack_config import StackConfig
    from mloc_prefect.settings import MlocSettings

_DRAIN_SECONDS = 2.0


async def run_up(
    settings: MlocSettings, *, worker: bool, show_token: bool, stream: TextIO, profile: bool = False
) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP; a second signal ends the parts by force.

    Args:
        settings: Settings in force, options included.
        worker: Start a worker; otherwise only a coordinator, which runs no stage itself.
        show_token: Print the endpoint's token.
        stream: Where the log view goes.
        profile: Run every part more than once, with Prefect on PostgreSQL.

    Raises:
        DispatchError: It runs already, a port is in use, the results root cannot be written, a part does not start.
    """
    files = UpFiles(settings.home)
    if not files.claim():
        raise refuse_second(files, settings.home)
    try:
        await asyncio.to_thread(kill_left_over, run_dir(settings.home))
        await asyncio.to_thread(require_writable, settings.results_root)
        stack = decide(settings, files.ports(), profile=profile)
        bypass_proxies(*own_hosts(stack))
        files.keep_ports(stack.ports)
        await _Up(settings, stack, files, stream, worker=worker, show_token=show_token).run()
    finally:
        files.release()


class _Waits(TypedDict):
    """How parts wait for their start."""

    limit: float
    on_progress: Callable[[str], None]


class _Up:
    def __init__(
        self,
        settings: MlocSettings,
        stack: StackConfig,
        files: UpFiles,
        stream: TextIO,
        *,
        worker: bool,
        show_token: bool,
    ) -> None:
        self._settings = settings
        self._stack = stack
        self._files = files
        self._worker = worker
        self._show_token = show_token
        self._view = LogView(
            stream,
            copy=settings.log_file.expanduser().absolute() if settings.log_file else None,
            max_bytes=settings.log_max_bytes,
            backups=settings.log_backup_count,
        )
        self._waits: _Waits = {"limit": settings.start_seconds, "on_progress": self._view.show}
        self._ready = False
        self._signals = 0
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        groups = self._groups()
        for part in (part for group in groups for part in group):
            # Prefect logs what it cannot reach with long tracebacks of its libraries.
            self._view.follow(part.name, part.log, folds=isinstance(part, ServerPart | PrefectPart))
        self._supervisor = PartSupervisor(groups, report=self._view.warn, changed=self._publish)

    async def run(self) -> None:
        """Start, wait, stop."""
        self._listen_to_signals()
        viewing = asyncio.create_task(self._view.run())
        try:
            self._view.show(f"starting in {self._stack.home}")
            if await self._started():
                await self._stop.wait()
            self._view.show("stopping; once more to end everything at once")
        finally:
            await self._end()
            viewing.cancel()
            with suppress(asyncio.CancelledError):
                await viewing
            self._view.show("ended")
            self._view.close()

    async def _started(self) -> bool:
        """Start the parts; return False when a signal came first."""
        starting = asyncio.create_task(self._supervisor.start())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            return False
        starting.result()
        self._ready = True
        self._supervisor.note_change()
        for line in summary(self._stack, worker=self._worker, show_token=self._show_token):
            self._view.show(line)
        report_ready()
        return True

    async def _end(self) -> None:
        """Stop the parts; a further signal ends them by force."""
        stopping = asyncio.create_task(self._supervisor.stop())
        forced = asyncio.create_task(self._force.wait())
        await asyncio.wait({stopping, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not stopping.done():
            stopping.cancel()
            with suppress(asyncio.CancelledError):
                await stopping
            await self._supervisor.stop(grace=0)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup mloc up` stays
            loop.add_signal_handler(signal.SIGHUP, self._on_signal)

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._force.set()

    def _groups(self) -> list[list[Part]]:
        stack = self._stack
        redis = databases(stack)
        env = child_environment(stack, redis.mloc, redis.messaging if stack.prefect_port else None)
        env.setdefault("MLOC_DRAIN_SECONDS", str(_DRAIN_SECONDS))
        if stack.beyond_loopback:
            stack.secrets.write(stack.secrets.join, join_file(stack, redis.mloc))
        store: list[Part] = [] if redis.embedded is None else [RedisPart(redis.embedded, **self._waits)]
        if stack.database:
            more = profile_groups(stack, redis, worker=self._worker, **self._waits)
            return [group for group in (store, *more) if group]
        if stack.auth:
            stack.secrets.write(stack.secrets.prefect_page, login_file(stack.ui_url, stack.auth))
        endpoint = self._command("endpoint", env, "serve")
        bridge = self._command("bridge", env, "bridge")
        worker = self._command("worker", env, "worker", "start", *([] if self._worker else ["--coordinator-only"]))
        servers: list[Part] = [] if stack.prefect_port is None else [self._server(redis)]
        # Endpoint and bridge wait for Prefect by themselves; a worker registers with it first.
        groups: list[list[Part]] = [store, [*servers, endpoint, bridge], [worker]]
        return [group for group in groups if group]

    def _command(self, name: str, env: dict[str, str], *arguments: str) -> CommandPart:
        stack = self._stack
        log = stack.logs / f"{name}.log"
        return CommandPart(
            name, command(*arguments), env=env, log=log, run_dir=stack.run_dir, cwd=Path.cwd(), **self._waits
        )

    def _server(self, redis: RedisDatabases) -> ServerPart:
        stack = self._stack
        assert stack.prefect_port is not None
        private = Private(auth=stack.auth, messaging_url=redis.messaging, docket_url=redis.docket)

        def make(port: int, exact: bool) -> EmbeddedServer:
            return EmbeddedServer(
                stack.home,
                port,
                host=stack.host,
                exact=exact,
                names=stack.names,
                automations=stack.automations,
                private=private,
            )

        return ServerPart(make, stack.prefect_port, stack.logs / "prefect-server.log", **self._waits)

    def _publish(self) -> None:
        """Publish what runs for other commands."""
        stack = self._stack
        self._files.write(
            UpState(
                pid=os.getpid(),
                url=stack.url,
                api_url=stack.api_url,
                ui_url=stack.ui_url,
                redis=stack.redis_text,
                ready=self._ready,
                parts={part.name: part.pid for part in self._supervisor.parts if not isinstance(part, OncePart)},
                token_file=str(stack.token_file) if stack.token_file else None,
                auth_file=str(stack.secrets.prefect_auth) if stack.auth else None,
            )
        )
