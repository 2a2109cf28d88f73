"""Machines of one test: network namespaces on one switch, whose links can be cut.

Every machine has an address of its own and sees the others only through its link. Files are shared, as on a cluster
with a network file system. The test itself stands beside them, on the same switch.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_NAMES = Path("/run/netns")


class Network:
    """Machines on one switch; the first is the one that the switch stands in.

    Args:
        names: Names of the machines.
    """

    def __init__(self, *names: str) -> None:
        self._mark = f"mloc{os.getpid() % 10_000}"
        self._subnet = f"10.{random.randrange(64, 128)}.{random.randrange(1, 255)}"
        self._names = names
        self._stack = ExitStack()

    def __enter__(self) -> Network:
        require()
        try:
            for name in self._names:
                self._add(name)
            self._switch()
            for number, name in enumerate(self._names[1:], start=10):
                self._connect(name, number)
            self._connect_test()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def address(self, name: str) -> str:
        """Return the address of a machine."""
        place = self._names.index(name)
        return f"{self._subnet}.{1 if place == 0 else 9 + place}"

    def on(self, name: str, do: Callable[[], _T]) -> _T:
        """Return what `do()` gives on a machine; processes that it starts stay there."""
        answer: list[_T] = []
        errors: list[BaseException] = []

        def there() -> None:
            try:
                _enter(_NAMES / self._namespace(name))
                answer.append(do())
            except BaseException as error:  # boundary: it belongs to who asked, in the thread of the test
                errors.append(error)

        thread = threading.Thread(target=there, name=f"on {name}")
        thread.start()  # a namespace belongs to a thread, and ends with it
        thread.join()
        if errors:
            raise errors[0]
        return answer[0]

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Pull the plug of a machine until the block ends."""
        switch = self._namespace(self._names[0])
        port = self._port(name)
        _ip("-n", switch, "link", "set", port, "down")
        try:
            yield
        finally:
            _ip("-n", switch, "link", "set", port, "up")

    def _namespace(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def _port(self, name: str) -> str:
        return f"p-{name}"[:15]

    def _add(self, name: str) -> None:
        namespace = self._namespace(name)
        _ip("netns", "add", namespace)
        self._stack.callback(_ip, "netns", "del", namespace)  # and with it its links
        _ip("-n", namespace, "link", "set", "lo", "up")

    def _switch(self) -> None:
        switch = self._namespace(self._names[0])
        _ip("-n", switch, "link", "add", "switch", "type", "bridge", "forward_delay", "0")
        _ip("-n", switch, "addr", "add", f"{self._subnet}.1/24", "dev", "switch")
        _ip("-n", switch, "link", "set", "switch", "up")

    def _connect(self, name: str, number: int) -> None:
        switch, machine, port = self._namespace(self._names[0]), self._namespace(name), self._port(name)
        _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine)
        self._plug(switch, port)
        _ip("-n", machine, "addr", "add", f"{self._subnet}.{number}/24", "dev", "eth0")
        _ip("-n", machine, "link", "set", "eth0", "up")

    def _connect_test(self) -> None:
        switch, own = self._namespace(self._names[0]), f"{self._mark}t"
        _ip("link", "add", own, "type", "veth", "peer", "name", "p-test", "netns", switch)
        self._plug(switch, "p-test")
        _ip("addr", "add", f"{self._subnet}.254/24", "dev", own)
        _ip("link", "set", own, "up")

    def _plug(self, switch: str, port: str) -> None:
        _ip("-n", switch, "link", "set", port, "master", "switch")
        _ip("-n", switch, "link", "set", port, "up")


def require() -> None:
    """Say what is missing where no namespaces can be made: the tests are left out there; in CI they fail."""
    give_up = pytest.fail if os.environ.get("CI") else pytest.skip
    if shutil.which("ip") is None:
        give_up("tests/multihost need `ip` (package iproute2), which is not there")
    probe = f"mloc-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        give_up(f"tests/multihost need root and `ip netns`, which this machine refuses: {made.stderr.strip()}")
    _ip("netns", "del", probe)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"


def _enter(namespace: Path) -> None:
    """Put the calling thread into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(handle)
