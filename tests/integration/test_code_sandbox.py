"""Code of a model in its sandbox: whatever it tries ends within its limits, and nothing of this machine is in reach."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mloc_prefect.executors.agent.sandbox import code_sandbox
from mloc_prefect.executors.agent.sandbox.code_sandbox import SandboxError, SandboxLimits, run_code, sandbox_fault
from tests.support.hosts import until

FAULT = asyncio.run(sandbox_fault())
needs_sandbox = pytest.mark.skipif(FAULT is not None, reason=f"no sandbox can be built on this machine: {FAULT}")
LIMITS = SandboxLimits(seconds=20, disk_mb=8, processes=8, output_bytes=4_000)


def _called(call: str) -> str:
    """Return code that makes a call of the C library."""
    clone = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
    made = call.format(clone=clone)
    fault = f"c.{made} < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"
    return f"import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\nif {fault}"


REFUSED = {
    "reads a file of the machine": ("open('/etc/passwd').read()", "No such file"),
    "reads the home of the worker": (f"import os; os.listdir({str(Path.home())!r} + '/.ssh')", "No such file"),
    "opens a socket to loopback": ("import socket; socket.create_connection(('127.0.0.1', 4200), 5)", "unreachable"),
    "opens a socket elsewhere": ("import socket; socket.create_connection(('192.0.2.1', 80), 5)", "unreachable"),
    "fills the disk": ("with open('a', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "No space left"),
    "fills the disk with files": (
        "for n in range(100_000): open(f'a{n}', 'w').close()",
        "No space left",
    ),
    "writes to the system": ("open('/usr/bin/new', 'w')", "Read-only"),
    "writes to the root": ("open('/new', 'w')", "Read-only"),
    "takes all memory": ("x = bytes(4 << 30)", "MemoryError"),
    "mounts": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
        "if c.mount(b'none', b'/work', b'tmpfs', 0, None): raise OSError(ctypes.get_errno(), 'mount')",
        "mount",
    ),
    "takes memory of no process": ("import os; os.memfd_create('x')", "Operation not permitted"),
    "takes memory of System V": (_called("shmget(0, 1 << 20, 0o1600)"), "Operation not permitted"),
    "makes a user namespace": (_called("unshare(0x10000000)"), "Operation not permitted"),
    "makes a process in a user namespace": (_called("syscall({clone}, 0x10000011, 0, 0, 0, 0)"), "Operation not"),
    "makes a process by clone3": (_called("syscall(435, 0, 0)"), "Function not implemented"),
    "sees packages of the machine": ("import pip", "No module named"),
    "becomes root": ("import os; os.setuid(0) if os.getuid() else os.mkdir('/new')", "Error"),
}


@needs_sandbox
@pytest.mark.parametrize("attack", REFUSED)
async def test_what_is_refused(attack: str) -> None:
    code, why = REFUSED[attack]
    run = await run_code(f"print('kept', flush=True)\n{code}", LIMITS)
    assert run.status == 1
    assert why in run.stderr
    assert run.stdout == "kept\n"


@needs_sandbox
async def test_a_program_that_hangs_ends_at_its_limit_and_its_output_is_kept() -> None:
    run = await run_code("print('kept')\nimport time\nwhile True: time.sleep(1)", SandboxLimits(seconds=1))
    assert run.stdout == "kept\n"
    assert run.ended_by is not None
    assert "longer than 1 s" in run.ended_by


@needs_sandbox
async def test_of_much_output_beginning_and_end_are_kept() -> None:
    run = await run_code("print('begin'); print('x' * 50_000_000); print('end')", LIMITS)
    assert len(run.stdout) < 5_000
    assert run.stdout.startswith("begin\n")
    assert run.stdout.endswith("end\n")
    assert "of 50000011 bytes left out" in run.stdout


@needs_sandbox
async def test_a_fork_bomb_is_bounded_and_nothing_of_it_remains() -> None:
    bomb = (
        "import os, time\nmade = 0\n"
        "try:\n    while True:\n        if os.fork() == 0: os.setsid(); time.sleep(300)\n        made += 1\n"
        "except OSError as error:\n    print(made, error)"
    )
    run = await run_code(bomb, LIMITS)
    made, _, why = run.stdout.partition(" ")
    assert int(made) < LIMITS.processes
    assert "temporarily unavailable" in why
    await until(lambda: not _of_sandboxes())


@needs_sandbox
async def test_memory_of_all_processes_together_is_bounded() -> None:
    code = (
        "import os, time\nfor _ in range(4): os.fork()\nx = bytearray(60 << 20)\nx[:] = b'x' * len(x)\ntime.sleep(60)"
    )
    run = await run_code(code, SandboxLimits(seconds=30, memory_mb=200, processes=40))
    assert run.ended_by is not None
    assert "memory" in run.ended_by


@needs_sandbox
async def test_memory_that_processes_share_is_bounded_and_counts_once() -> None:
    code = "import mmap, os, time\n{}\nx = mmap.mmap(-1, {} << 20)\nx.write(b'x' * len(x))\n{}\ntime.sleep({})\n"
    forks = "for _ in range(4): os.fork()"
    limits = SandboxLimits(seconds=30, memory_mb=300, processes=40)
    run = await run_code(code.format(forks, 60, "", 60), limits)
    assert run.ended_by is not None
    assert "memory" in run.ended_by
    run = await run_code(code.format("", 120, forks, 1), limits)
    assert run.ended_by is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a file system")
@needs_sandbox
def test_what_is_mounted_in_folders_of_the_machine_is_read_only() -> None:
    script = """
import asyncio, pathlib, subprocess
from mloc_prefect.executors.agent.sandbox import code_sandbox
def mount(where):
    pathlib.Path(where).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", where], check=True)
mount("/mnt")
mount("/mnt/shown")
mount("/mnt/shown/a disk")
code_sandbox._SYSTEM += ("/mnt/shown",)
code = "open('/mnt/shown/a disk/new', 'w')"
print(asyncio.run(code_sandbox.run_code(code, code_sandbox.SandboxLimits())).stderr)
"""
    command = ["unshare", "--mount", sys.executable, "-c", script]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "Read-only file system: '/mnt/shown/a disk/new'" in shown


async def test_without_a_filter_for_the_machine_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "mips")
    with pytest.raises(SandboxError, match="no filter of system calls for machines of the kind mips"):
        await run_code("print('it ran')", LIMITS)


@needs_sandbox
async def test_two_calls_share_nothing() -> None:
    await run_code("open('mine', 'w').write('x'); open('/tmp/mine', 'w').write('x')", LIMITS)
    run = await run_code("import os; print(sorted(os.listdir('/work')), os.environ.get('SECRET'))", LIMITS)
    assert run.stdout == "['main.py'] None\n"


@needs_sandbox
async def test_a_cancelled_call_ends_its_processes() -> None:
    work = asyncio.ensure_future(run_code("import time; time.sleep(300)", SandboxLimits(seconds=300)))
    await until(_of_sandboxes)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: not _of_sandboxes())


@needs_sandbox
async def test_the_code_ends_with_its_owner(tmp_path: Path) -> None:
    script = (
        "import asyncio\nfrom mloc_prefect.executors.agent.sandbox.code_sandbox import *\n"
        "asyncio.run(run_code('import time; time.sleep(300)', SandboxLimits(seconds=300)))"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    await until(lambda: len(_of_sandboxes()) >= 3)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    await until(lambda: not _of_sandboxes())


async def test_without_namespaces_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "init.py"
    text = code_sandbox._INIT.read_text()
    broken.write_text(text.replace("_checked(_libc.unshare(", "_checked(-1 + 0 * (", 1))
    monkeypatch.setattr(code_sandbox, "_INIT", broken)
    with pytest.raises(SandboxError, match="unshare"):
        await run_code("print('it ran')", LIMITS)
    fault = await sandbox_fault()
    assert fault is not None


def _of_sandboxes() -> list[int]:
    """Return the processes of sandboxes that were started below this test, orphans included."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        mine = str(code_sandbox._INIT).encode() in command or b"/work/main.py" in command
        if mine and state != "Z":
            found.append(int(folder.name))
    return found
