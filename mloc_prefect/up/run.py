"""The life of one `mloc up`: claim the directory, start the parts, wait for the signal, stop the parts."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.execution.dirs import run_dir
from mloc_prefect.execution.owners import kill_left_over
from mloc_prefect.orchestrate.embedded import EmbeddedServer
from mloc_prefect.orchestrate.server_main import Private
from mloc_prefect.up.join import join_file
from mloc_prefect.up.keeper import Keeper
from mloc_prefect.up.logs import LogView
from mloc_prefect.up.notify import tell_ready
from mloc_prefect.up.parts import CommandPart, ServerPart
from mloc_prefect.up.redis import RedisPart, databases
from mloc_prefect.up.stack import child_environment, command, decide
from mloc_prefect.up.state import UpFiles, UpState, refuse_second
from mloc_prefect.up.summary import summary

if TYPE_CHECKING:
    from typing import TextIO

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.up.parts import Part
    from mloc_prefect.up.redis import Databases
    from mloc_prefect.up.stack import Stack

_DRAIN_SECONDS = 2.0


async def run_up(settings: MlocSettings, *, worker: bool, show_token: bool, stream: TextIO) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP; a second signal ends the parts by force.

    Args:
        settings: Settings in force, options included.
        worker: Start a worker; otherwise only a coordinator, which runs no stage itself.
        show_token: Print the endpoint's token.
        stream: Where the log view goes.

    Raises:
        DispatchError: It runs already, a port is in use, a part does not start.
    """
    files = UpFiles(settings.home)
    if not files.claim():
        raise refuse_second(files, settings.home)
    try:
        await asyncio.to_thread(kill_left_over, run_dir(settings.home))
        stack = decide(settings, files.ports())
        files.keep_ports(stack.ports)
        await _Up(settings, stack, files, stream, worker=worker, show_token=show_token).run()
    finally:
        files.release()


class _Up:
    def __init__(
        self, settings: MlocSettings, stack: Stack, files: UpFiles, stream: TextIO, *, worker: bool, show_token: bool
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
        self._ready = False
        self._signals = 0
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        groups = self._groups()
        for part in (part for group in groups for part in group):
            # What Prefect cannot reach it tells with long tracebacks of its libraries.
            self._view.follow(part.name, part.log, folds=isinstance(part, ServerPart))
        self._keeper = Keeper(groups, say=self._view.warn, changed=self._publish)

    async def run(self) -> None:
        """Start, wait, stop."""
        self._listen_to_signals()
        viewing = asyncio.create_task(self._view.run())
        try:
            self._view.say(f"starting in {self._stack.home}")
            if await self._started():
                await self._stop.wait()
            self._view.say("stopping; once more to end everything at once")
        finally:
            await self._end()
            viewing.cancel()
            with suppress(asyncio.CancelledError):
                await viewing
            self._view.say("ended")
            self._view.close()

    async def _started(self) -> bool:
        """Start the parts; returns False when a signal came first."""
        starting = asyncio.create_task(self._keeper.start())
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
        self._publish()
        for line in summary(self._stack, worker=self._worker, show_token=self._show_token):
            self._view.say(line)
        tell_ready()
        return True

    async def _end(self) -> None:
        """Stop the parts; a signal meanwhile takes their time from them."""
        stopping = asyncio.create_task(self._keeper.stop())
        forced = asyncio.create_task(self._force.wait())
        await asyncio.wait({stopping, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not stopping.done():
            stopping.cancel()
            with suppress(asyncio.CancelledError):
                await stopping
            await self._keeper.stop(grace=0)

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
        endpoint = self._command("endpoint", env, "serve")
        bridge = self._command("bridge", env, "bridge")
        worker = self._command("worker", env, "worker", "start", *([] if self._worker else ["--coordinator-only"]))
        servers: list[Part] = [] if stack.prefect_port is None else [self._server(redis)]
        store: list[Part] = [] if redis.embedded is None else [RedisPart(redis.embedded)]
        # Endpoint and bridge wait for Prefect by themselves; a worker registers with it first.
        groups: list[list[Part]] = [store, [*servers, endpoint, bridge], [worker]]
        return [group for group in groups if group]

    def _command(self, name: str, env: dict[str, str], *arguments: str) -> CommandPart:
        stack = self._stack
        log = stack.logs / f"{name}.log"
        return CommandPart(name, command(*arguments), env=env, log=log, run_dir=stack.run_dir, cwd=Path.cwd())

    def _server(self, redis: Databases) -> ServerPart:
        stack = self._stack
        assert stack.prefect_port is not None
        private = Private(auth=stack.auth, messaging_url=redis.messaging, docket_url=redis.docket)

        def make(port: int, exact: bool) -> EmbeddedServer:
            return EmbeddedServer(stack.home, port, host=stack.host, exact=exact, private=private)

        return ServerPart(make, stack.prefect_port, stack.logs / "prefect-server.log", on_progress=self._view.say)

    def _publish(self) -> None:
        """Tell other commands what runs."""
        stack = self._stack
        self._files.write(
            UpState(
                pid=os.getpid(),
                url=stack.url,
                api_url=stack.api_url,
                ui_url=stack.ui_url,
                redis=stack.redis_text,
                ready=self._ready,
                parts={part.name: part.pid for part in self._keeper.parts},
                token_file=str(stack.token_file) if stack.token_file else None,
                auth_file=str(stack.secrets.prefect_auth) if stack.auth else None,
            )
        )
