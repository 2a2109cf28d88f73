"""Runs Python code in a sandbox: within limits, with a bounded part of its output, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.executors.agent.sandbox.syscall_filter import syscall_filter
from mloc_prefect.process.process_memory import held_bytes

if TYPE_CHECKING:
    from asyncio import StreamReader
    from asyncio.subprocess import Process

_INIT = Path(__file__).with_name("sandbox_init.py")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SETUP_SECONDS = 20.0
_WATCH_PERIOD = 0.2
_END_SECONDS = 3.0
_MIB = 1 << 20


class SandboxError(Exception):
    """This machine does not let us build a sandbox; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What the code may use.

    Attributes:
        seconds: Time from start to end.
        memory_mb: Memory of all its processes together, and address space of each.
        disk_mb: Files in `/work`, which are in memory.
        processes: Processes and threads at once.
        files: Open files of each process.
        output_bytes: Bytes of stdout and stderr that are kept, of each.
    """

    seconds: float = 30.0
    memory_mb: int = 512
    disk_mb: int = 64
    processes: int = 16
    files: int = 64
    output_bytes: int = 20_000


@dataclass(frozen=True, slots=True)
class SandboxRun:
    """How the code ended.

    Attributes:
        status: Its exit status; 128 + n after signal n.
        stdout: The beginning and the end of what it printed.
        stderr: The same of its errors.
        ended_by: The limit that ended it, or None.
    """

    status: int
    stdout: str
    stderr: str
    ended_by: str | None = None


async def run_code(code: str, limits: SandboxLimits) -> SandboxRun:
    """Run Python code in a sandbox of its own; nothing of it remains.

    Raises:
        SandboxError: No sandbox can be built here, so nothing was run.
    """
    calls = syscall_filter(platform.machine())
    if calls is None:
        raise SandboxError(f"there is no filter of system calls for machines of the kind {platform.machine()}")
    root = tempfile.mkdtemp(prefix="mloc-sandbox-")
    reader, writer = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-I",
                "-S",
                str(_INIT),
                json.dumps({**_wanted(limits, root, writer), "filter": calls.hex()}),
            ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(writer,),
            start_new_session=True,
            env={"PATH": "/usr/bin:/bin"},
        )
        os.close(writer)
        writer = -1
        try:
            return await _watched(process, reader, code, limits)
        finally:
            await _end(process)
    except OSError as error:
        raise SandboxError(f"its program cannot be started: {error.strerror or error}") from None
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        with contextlib.suppress(OSError):
            Path(root).rmdir()


async def sandbox_fault() -> str | None:
    """Return why this machine cannot build a sandbox, None if it can."""
    if sys.platform != "linux":
        return "it needs Linux"
    try:
        run = await run_code("print(6 * 7)", SandboxLimits(seconds=_SETUP_SECONDS))
    except SandboxError as error:
        return str(error)
    return None if run.stdout.strip() == "42" else f"Python does not start in it: {run.stderr.strip()[-300:]}"


async def _watched(process: Process, status: int, code: str, limits: SandboxLimits) -> SandboxRun:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    kept = [
        asyncio.ensure_future(_read_bounded(stream, limits.output_bytes)) for stream in (process.stdout, process.stderr)
    ]
    with contextlib.suppress(ConnectionError):
        process.stdin.write(code.encode("utf-8", "backslashreplace"))
        await process.stdin.drain()
    process.stdin.close()
    fault = await _setup_fault(status, process)
    if fault is not None:
        raise SandboxError(fault)
    ended_by = await _wait(process, limits)
    await _end(process)
    stdout, stderr = await asyncio.gather(*kept)
    code_of = process.returncode if process.returncode is not None else -signal.SIGKILL
    return SandboxRun(code_of if code_of >= 0 else 128 - code_of, stdout, stderr, ended_by)


async def _setup_fault(status: int, process: Process) -> str | None:
    """Return what the first program could not do, None once it has locked itself in."""
    os.set_blocking(status, False)
    until = time.monotonic() + _SETUP_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            text = os.read(status, 500).decode(errors="replace")
            if text == "ok":
                return None
            stderr = "" if text else f"it ended with status {process.returncode}"
            return text or stderr
        await asyncio.sleep(0.005)
    return f"it was not ready after {_SETUP_SECONDS:g} s"


async def _wait(process: Process, limits: SandboxLimits) -> str | None:
    """Wait until the code ends, and return the limit that it reaches, if it does."""
    until = time.monotonic() + limits.seconds
    ended = asyncio.ensure_future(process.wait())
    try:
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return f"it ran longer than {limits.seconds:g} s"
            done, _ = await asyncio.wait([ended], timeout=min(_WATCH_PERIOD, left))
            if done:
                return None
            used = await asyncio.to_thread(held_bytes, process.pid)
            if used is not None and used > limits.memory_mb * _MIB:
                return f"its processes used more than {limits.memory_mb} MB of memory"
    finally:
        ended.cancel()


async def _end(process: Process) -> None:
    """End the code and all that it started; the kernel ends a process namespace with its first process."""
    if process.returncode is not None:
        return  # its number may be that of another process by now
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(process.wait())), _END_SECONDS)


async def _read_bounded(stream: StreamReader, limit: int) -> str:
    """Read a stream to its end and return the beginning and the end of it."""
    first, last, total = bytearray(), bytearray(), 0
    half = max(1, limit // 2)
    while chunk := await stream.read(1 << 16):
        total += len(chunk)
        room = half - len(first)
        if room > 0:
            first += chunk[:room]
            chunk = chunk[room:]
        last += chunk
        del last[: max(0, len(last) - half)]
    left_out = total - len(first) - len(last)
    note = f"\n... {left_out} of {total} bytes left out ...\n".encode() if left_out else b""
    return (bytes(first) + note + bytes(last)).decode("utf-8", "replace")


def _wanted(limits: SandboxLimits, root: str, status: int) -> dict[str, object]:
    return {
        "root": root,
        "status": status,
        "python": str(_interpreter()),
        "binds": _binds(),
        "memory_bytes": limits.memory_mb * _MIB,
        "cpu_seconds": max(1, int(limits.seconds) + 1),
        "disk_bytes": limits.disk_mb * _MIB,
        "processes": limits.processes,
        "files": limits.files,
    }


def _interpreter() -> Path:
    """Return the interpreter that our environment was made from: packages of the environment are not shown."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Path(os.path.realpath(base))


def _binds() -> list[str]:
    """Return what the sandbox shows of this machine."""
    found = [path for path in (*_SYSTEM, *_DEVICES) if Path(path).exists()]
    for prefix in dict.fromkeys((os.path.realpath(sys.base_prefix), str(_interpreter().parent.parent))):
        if not any(prefix == path or prefix.startswith(f"{path}/") for path in found):
            found.append(prefix)
    return found
