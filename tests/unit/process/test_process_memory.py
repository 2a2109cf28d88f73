"""Memory of processes, and room for a further engine on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.hosts import host_pool
from mloc_prefect.execution.hosts.host_pool import HostPool
from mloc_prefect.process.process_memory import available_bytes, held_bytes, resident_bytes

GIB = 1 << 30


def test_real_figures() -> None:
    mine, free = resident_bytes(os.getpid()), available_bytes()
    assert mine is not None
    assert free is not None
    assert 1 << 20 < mine < 64 * GIB
    assert free > 1 << 20
    assert resident_bytes(None) is None


def test_the_processes_of_an_engine_count_together() -> None:
    grandchild = "x = bytearray(200 << 20); print('there', flush=True); input()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        found = resident_bytes(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    assert found is not None
    assert 200 << 20 < found < 280 << 20
    assert resident_bytes(process.pid) is None


def test_memory_that_processes_share_counts_once() -> None:
    code = "import mmap, os; x = mmap.mmap(-1, 200 << 20); x.write(b'x' * len(x)); os.fork(); os.fork(); "
    code += "os.write(1, b'there '); os.read(0, 1)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(4 * 6) == b"there " * 4
        found = held_bytes(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    assert found is not None
    assert 200 << 20 < found < 280 << 20
    assert held_bytes(process.pid) is None


@pytest.mark.parametrize(("free", "left"), [(9, []), (2.6, []), (2, ["old"]), (0.1, ["old", "new"])])
async def test_engines_leave_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, left: list[str]
) -> None:
    """Each engine holds 2 GiB; the next one is taken to need a quarter more."""
    hosts = HostPool(tmp_path, 60, 10)
    devices = {"new": ("cpu",), "old": ("cpu",), "light": ()}
    for age, (name, given) in enumerate(devices.items()):
        spec = HostSpec("m:C", "python", devices=given)
        hosts._hosts[name] = SimpleNamespace(key=name, spec=spec, pid=1, usable=True, asleep=False, last_used=-age)  # type: ignore[assignment]
    gone: list[str] = []

    async def stop_idle(child: Any) -> bool:
        gone.append(child.key)
        return True

    monkeypatch.setattr(hosts, "_stop_idle", stop_idle)
    monkeypatch.setattr(host_pool, "resident_bytes", lambda _pid: 2 * GIB)
    monkeypatch.setattr(host_pool, "available_bytes", lambda: int((free + 0.5 * len(gone)) * GIB))
    await hosts._make_room(HostSpec("m:C", "python", devices=("cpu",)))
    assert gone == left
