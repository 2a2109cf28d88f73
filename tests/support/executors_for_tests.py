"""Executors that misbehave. Loaded inside host processes, so they import the standard library and `execution` only.

`spec["do"]` is a list of steps `[name, *arguments]`, executed in order by the methods of that name.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.protocol import UserError

SLEEPER = "import time; time.sleep(300)"


class Trouble:
    """Executes the steps of a task, one task at a time."""

    concurrency: ClassVar[int] = 1

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.closed = options.get("closed_file")

    def run(self, request, context):
        self.request, self.context = request, context
        self.result: dict[str, Any] = {"ok": True, "pid": os.getpid(), "options": self.options}
        for name, *arguments in request.spec["do"]:
            getattr(self, name)(*arguments)
        return self.result

    def close(self) -> None:
        if self.closed:
            Path(self.closed).write_text("closed")

    def load(self) -> None:
        """Hold a model, as far as displays can see."""
        self.loaded = True
        self.context.phase("generating")

    def unload(self) -> None:
        self.loaded = False

    # noise

    def print_everywhere(self) -> None:
        """Print lines that look like the protocol, from Python, from C and from a grandchild."""
        line = json.dumps({"t": "result", "path": "/forged", "summary": {}, "pid": 1, "reused_rows": 0})
        print(line, flush=True)
        print(line, file=sys.stderr, flush=True)
        os.write(1, (line + "\n").encode())
        libc = ctypes.CDLL(None)
        libc.puts(line.encode())
        libc.fflush(None)
        subprocess.run(["/bin/echo", line], check=True)
        subprocess.run(["/bin/sh", "-c", 'echo "$0" >&2', line], check=True)

    def log_lines(self, number: int) -> None:
        for i in range(number):
            print("noise", i)

    # exits and hangs

    def exit(self, code: int) -> None:
        print("about to leave")
        sys.stdout.flush()
        os._exit(code)

    def sys_exit(self) -> None:
        sys.exit(4)

    def kill_self(self, name: str) -> None:
        print("last words", flush=True)
        signal.raise_signal(getattr(signal, name))

    def segfault(self) -> None:
        ctypes.string_at(0)

    def hang(self) -> None:
        """Neither report anything nor react to a cancellation."""
        time.sleep(300)

    def wait_cancelled(self, seconds: float = 300.0) -> None:
        self.context.sleep(seconds)

    def wait_for(self, file: str) -> None:
        """Wait for a file that the test creates."""
        while not Path(file).exists():
            self.context.sleep(0.01)

    def beat(self, number: int, period: float) -> None:
        for i in range(number):
            self.context.phase("beat", i / number)
            self.context.sleep(period)

    def fail(self, kind: str, message: str) -> None:
        kinds = {
            "user": UserError(message),
            "final": ExecutionError(message, retryable=False, hint="a hint"),
            "error": RuntimeError(message),
        }
        raise kinds[kind]

    def import_library(self, name: str) -> None:
        __import__(name)

    # memory

    def limit_memory(self, extra: int) -> None:
        """Allow `extra` bytes of address space in addition to the current use."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + extra
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def allocate(self, size: int) -> None:
        self.result["kept"] = len(bytearray(size))

    def bad_alloc(self) -> None:
        """End like C++ code that runs out of memory."""
        print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
        os.abort()

    # processes

    def start_grandchildren(self, pids_file: str) -> None:
        """Start sleepers that each break one of the ties to the host, and write their pids."""
        starts = [
            _start([sys.executable, "-c", SLEEPER]),
            _start([sys.executable, "-c", SLEEPER], start_new_session=True),
            _start_orphan(),
            _start([sys.executable, "-c", SLEEPER], env={"PATH": "/usr/bin"}),  # no mark
            _start(["/bin/sh", "-c", f"{sys.executable} -c '{SLEEPER}' & {sys.executable} -c '{SLEEPER}'"]),
        ]
        starts += _children(starts[-1])
        _write(pids_file, starts)

    def start_unmarked_stranger(self, pids_file: str) -> None:
        """Start a sleeper without the mark in its own session: only its parent process shows where it belongs."""
        _write(pids_file, [_start([sys.executable, "-c", SLEEPER], env={"PATH": "/usr/bin"}, start_new_session=True)])

    # files and facts about the process

    def note_pid(self, name: str) -> None:
        _write(name, [os.getpid(), os.getppid()])

    def note_thread(self) -> None:
        self.result["main_thread"] = threading.current_thread() is threading.main_thread()

    def note_modules(self) -> None:
        self.result["modules"] = sorted(sys.modules)

    def note_environment(self) -> None:
        self.result["environment"] = dict(os.environ)

    def count_upstream(self) -> None:
        self.result["upstream_bytes"] = len(json.dumps(self.request.upstream))

    def big_event(self, size: int) -> None:
        self.context.metric(text="x" * size)

    def stream(self, number: int) -> None:
        self.result["items"] = ({"index": i, "output": "x" * 100} for i in range(number))


def _start(argv: list[str], **options: Any) -> int:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, **options).pid


def _start_orphan() -> int:
    """Start a sleeper by a double fork with a new session in between, as daemons do."""
    code = (
        "import os, sys\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "pid = os.fork()\n"
        "if pid: print(pid, flush=True); os._exit(0)\n"
        f"os.close(1)\n{SLEEPER}"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout)


def _children(pid: int) -> list[int]:
    """Return the children of `pid`, waiting until it has two."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(1000):
        found = [int(child) for child in path.read_text().split()]
        if len(found) == 2:
            return found
        time.sleep(0.005)
    raise RuntimeError(f"{pid} has {found}")


def _write(name: str, pids: list[int]) -> None:
    part = Path(f"{name}.part")
    part.write_text(" ".join(map(str, pids)))
    part.rename(name)


class Sleepy(Trouble):
    """Can release its device between tasks, like an engine with a sleep mode."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.asleep, self.woken = False, 0

    def run(self, request, context):
        if self.asleep:
            self.asleep, self.woken = False, self.woken + 1
        return {**super().run(request, context), "woken": self.woken}

    def sleep(self) -> bool:
        self.asleep = True
        return bool(self.options.get("can_sleep", True))
