"""`HostPool`: the owner of host processes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.host_types import Host, HostExit, HostSpec
from mloc_prefect.execution.hosts.host_control import ANSWER_SECONDS, ask, clear_devices
from mloc_prefect.execution.hosts.host_environment import gpu_names
from mloc_prefect.execution.hosts.supervised_host import SupervisedHost
from mloc_prefect.process.marks import kill_left_over
from mloc_prefect.process.process_memory import available_bytes, resident_bytes
from mloc_prefect.process.supervised_child import END_SECONDS

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

logger = logging.getLogger(__name__)

EXIT_SECONDS = 2.0
"""How long `exit_of` waits for the report that a host has ended."""

STOP_SECONDS = 25.0
"""How long a host that leaves may take to close its executor."""

SLEEP_SECONDS = 60.0
"""How long a host may take to move its weights out of the way; after that it is asked to leave."""

LOG_DAYS = 7
"""Age at which logs of hosts are removed."""

_REMEMBERED = 256
_CPU = "cpu"
_SPARE = 1.25  # an engine that is as large as another needs a little more while it loads
_ROUNDING = 1e-3


class HostPool:
    """Hosts of this process, one for each key, warm until idle. They end when the pool closes or the process ends.

    Bound to the event loop that enters it. With `idle_seconds` 0 every acquisition starts a host of its own, which
    leaves after its task.

    Args:
        run_dir: Directory for sockets and logs (`process.run_dir`).
        idle_seconds: A host without a task leaves after this time.
        start_seconds: Longest time until a host listens.
        warm_limit: Hosts kept warm at most; the one not used for the longest time leaves before a further one starts.
        end_seconds: How long the end of a host may take before its supervisor is killed.
    """

    def __init__(
        self,
        run_dir: Path,
        idle_seconds: float,
        start_seconds: float,
        *,
        warm_limit: int = 8,
        end_seconds: float = END_SECONDS,
    ) -> None:
        self._run_dir = run_dir
        self._idle_seconds = idle_seconds
        self._start_seconds = start_seconds
        self._warm_limit = warm_limit
        self._end_seconds = end_seconds
        self._hosts: dict[str, SupervisedHost] = {}
        self._starts: dict[str, asyncio.Task[Host]] = {}
        self._wanted: Counter[str] = Counter()  # callers that wait for each start
        self._exits: dict[tuple[str, int | None], HostExit] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._closed = False

    async def __aenter__(self) -> HostPool:
        await asyncio.to_thread(tidy, self._run_dir)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def acquire(self, spec: HostSpec) -> Host:
        """Return a host of `spec` that listens; see `HostProvider`."""
        key = spec.key if self._idle_seconds else f"{spec.key}.{next(self._numbers)}"
        while True:
            if self._closed:
                raise DispatchError("executor processes are being ended, no new one is started")
            start = self._starts.get(key) or self._launch(spec, key)
            self._wanted[key] += 1
            try:
                host = await asyncio.shield(start)  # one caller that gives up does not stop the others
            finally:
                self._wanted[key] -= 1
                if not self._wanted[key]:
                    del self._wanted[key]
            child = self._hosts.get(key)
            if child is not None and child.usable:
                child.last_used = time.monotonic()
                if child.asleep:
                    child.asleep = False  # before the wait: no other caller need wake it
                    await self._make_room(child.spec, keep=key)
                return host
            if child is not None:
                await self._wait_gone(child)

    async def discard(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """End the host `key` now; see `HostProvider`."""
        child = self._hosts.get(key)
        if child is None or pid not in {None, child.pid}:
            return self._remembered(key, pid)
        how = await child.end()
        self._retire(child)
        return how

    async def leave(self, key: str) -> bool:
        """End the host `key` if no caller waits for it; one that starts, as soon as it can. Return whether it ended."""
        start = self._starts.get(key)
        if start is not None and not start.done() and not self._wanted[key]:
            await asyncio.wait({start})  # it would listen, and stay warm without a use
        child = self._hosts.get(key)
        idle = child is not None and child.usable and not self._wanted[key]
        return child is not None and idle and await self._stop_idle(child)

    async def exit_of(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """Return how the host `key` ended; see `HostProvider`."""
        child = self._hosts.get(key)
        if child is None or pid not in {None, child.pid}:
            return self._remembered(key, pid)
        try:
            return await asyncio.wait_for(child.exited(), EXIT_SECONDS)
        except TimeoutError:
            return None

    async def evict(self, devices: Collection[str], *, keep: str | None = None, share: float = 1.0) -> int:
        """Let idle hosts on any of `devices` give back their memory, the one used least recently first.

        One that can sleep stays and needs no loading later; any other leaves. A busy host keeps what it has: the device
        is still leased for its task.

        Args:
            devices: Names as in `HostSpec.devices`.
            keep: Key of a host that stays.
            share: Share of each device's memory that is needed; no more hosts leave than that takes.

        Returns:
            How many gave back theirs.
        """
        count = 0
        for child in self._by_use():
            shared = set(child.spec.devices) & set(devices)
            if (
                child.key != keep
                and not child.asleep
                and any(self._used(d, keep) + share > 1.0 + _ROUNDING for d in shared)
            ):
                count += await self._sleep(child) or await self._stop_idle(child)
        return count

    def snapshot(self) -> list[dict[str, Any]]:
        """Return executor, engine, model, devices, pid, RAM and idle time of every host, for displays.

        The model is None until it is loaded: one that was never found is not warm.
        """
        now = time.monotonic()
        return [
            {
                "key": child.key,
                "executor": child.spec.executor,
                "engine": child.spec.engine,
                "model": child.spec.options.get("model") if child.loaded else None,
                "devices": list(child.spec.devices),
                "pid": child.pid,
                "memory_bytes": resident_bytes(child.pid),
                "last_used_seconds": round(now - child.last_used, 1),
                "asleep": child.asleep,
            }
            for child in self._hosts.values()
        ]

    async def close(self) -> None:
        """End every host; nothing of any is left then."""
        self._closed = True
        for start in list(self._starts.values()):
            start.cancel()
        await asyncio.gather(*self._starts.values(), return_exceptions=True)
        await asyncio.gather(*(child.end() for child in self._hosts.values()))
        await asyncio.gather(*self._watchers)

    def _launch(self, spec: HostSpec, key: str) -> asyncio.Task[Host]:
        start = asyncio.create_task(self._start(spec, key), name=f"start host {key}")
        start.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved even if no caller waits
        self._starts[key] = start
        return start

    async def _start(self, spec: HostSpec, key: str) -> Host:
        try:
            await self._make_room(spec)
            child = SupervisedHost(
                spec, key, self._run_dir, idle_seconds=self._idle_seconds, end_seconds=self._end_seconds
            )
            self._hosts[key] = child
            host = await child.start(self._start_seconds)
        except BaseException:
            self._starts.pop(key, None)
            self._hosts.pop(key, None)
            raise
        logger.info("started host %s of %s, pid %d", key, spec.executor, host.pid)
        watcher = asyncio.create_task(self._watch(child), name=f"watch host {key}")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return host

    async def _watch(self, child: SupervisedHost) -> None:
        how = await child.exited()
        self._remember(child, how)
        await child.wait_gone()
        self._retire(child)

    def _retire(self, child: SupervisedHost) -> None:
        """Forget a host of which nothing is left; the first to notice calls it."""
        if self._hosts.get(child.key) is child:
            del self._hosts[child.key]
            self._starts.pop(child.key, None)

    def _remember(self, child: SupervisedHost, how: HostExit) -> None:
        self._exits[child.key, child.pid] = how
        while len(self._exits) > _REMEMBERED:
            del self._exits[next(iter(self._exits))]

    def _remembered(self, key: str, pid: int | None) -> HostExit | None:
        if pid is not None:
            return self._exits.get((key, pid))
        return next((how for (name, _), how in reversed(self._exits.items()) if name == key), None)

    def _by_use(self) -> list[SupervisedHost]:
        return sorted((c for c in self._hosts.values() if c.usable), key=lambda child: child.last_used)

    async def _make_room(self, spec: HostSpec, *, keep: str | None = None) -> None:
        """Give a host the memory of its GPUs, or of the CPU, and keep the number of warm hosts bounded."""
        gpus = [name for name in spec.devices if name.startswith("gpu:")]
        await self.evict(gpus, keep=keep, share=spec.share)
        if gpus:
            own = {child.socket for child in self._hosts.values()}
            await clear_devices(self._run_dir, gpu_names(gpus), spare={path for path in own if path})
        if _CPU in spec.devices:
            await self._free_memory()
        for child in self._by_use():
            if keep is not None or len(self._hosts) < self._warm_limit:
                return
            await self._stop_idle(child)

    def _used(self, device: str, keep: str | None) -> float:
        """Return the share of a device's memory that our hosts hold, `keep` left out."""
        others = (c for c in self._hosts.values() if device in c.spec.devices and c.key != keep and not c.asleep)
        return sum(child.spec.share for child in others)

    async def _free_memory(self) -> None:
        """Let idle engines on the CPU leave until one as large as the largest of them has room."""
        engines = [child for child in self._by_use() if _CPU in child.spec.devices]
        largest = max((resident_bytes(child.pid) or 0 for child in engines), default=0)
        for child in engines:
            available = available_bytes()
            if available is None or available >= largest * _SPARE:
                return
            await self._stop_idle(child)

    async def _sleep(self, child: SupervisedHost) -> bool:
        """Let `child` give back the memory of its device but keep its model; return whether it did."""
        answer = await ask(child.socket, {"op": "sleep"}, SLEEP_SECONDS) if child.socket else None
        child.asleep = bool(answer and answer.get("ok"))
        return child.asleep

    async def _stop_idle(self, child: SupervisedHost) -> bool:
        """Let `child` leave if it has no task; return whether it did."""
        answer = await ask(child.socket, {"op": "stop", "if_idle": True}, ANSWER_SECONDS) if child.socket else None
        if answer is None or not answer.get("ok"):
            return False
        await self._wait_gone(child)
        return True

    async def _wait_gone(self, child: SupervisedHost) -> None:
        """Wait until nothing is left of a host that leaves; one that takes too long is ended."""
        try:
            await asyncio.wait_for(child.wait_gone(), STOP_SECONDS)
        except TimeoutError:
            await child.end()
        self._retire(child)


def tidy(run_dir: Path) -> None:
    """Remove what dead owners left in `run_dir`: processes, sockets without a listener, old logs."""
    count = kill_left_over(run_dir)
    if count:
        logger.warning("ended the processes of %d hosts whose owner was killed", count)
    for path in run_dir.glob("*.sock*"):
        if _is_dead(path):
            path.unlink(missing_ok=True)
    for path in run_dir.glob("*.loaded"):
        if not path.with_suffix(".sock").exists():
            path.unlink(missing_ok=True)
    for path in run_dir.glob("*.log*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LOG_DAYS * 86_400:
                path.unlink()


def _is_dead(path: Path) -> bool:
    """Return whether a socket has no listener; one that is about to get one is spared by its age."""
    if path.name.endswith(".new"):
        with suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime > 600
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
