"""Start and end of a host process: one executor, kept warm, served over a unix socket. Standard library only.

The supervisor starts it in the interpreter of the executor's environment, with its configuration in the variable
`MLOC_HOST_CONFIG` (arguments are visible to other users of the machine, and engine options may hold a token). Standard
output and error are the host's log file: whatever a library, C code or a grandchild prints cannot reach the protocol.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from mloc_prefect.execution.host.host_server import CANCEL_GRACE, HostServer
from mloc_prefect.execution.host.task_runner import THREAD_PREFIX
from mloc_prefect.execution.host_types import HOST_CONFIG

HUNG_EXIT_CODE = 75
"""Exit status of a host that gave itself up because a cancelled task went on."""

CLOSE_SECONDS = 20.0
"""Time for the executor to close when the host leaves."""


def main() -> None:
    """Serve until idle, stopped or killed. Does not return."""
    config = json.loads(os.environ.pop(HOST_CONFIG))  # popped: children need not know
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    server = HostServer(
        Path(config["socket"]),
        config["executor"],
        config["options"],
        idle_seconds=config["idle_seconds"],
        on_hung=_end_hung_host,
    )
    _log(f"host of {config['executor']} listens, pid {os.getpid()}")
    threading.excepthook = _on_thread_error
    threading.Thread(target=_serve, args=(server,), name=f"{THREAD_PREFIX}sockets", daemon=True).start()
    try:
        server.runner.work()
    except BaseException:  # boundary: the process ends here, and no library thread may keep it
        traceback.print_exc()
        _leave(1)
    _log("host leaves")
    _leave(0)


def _on_thread_error(error: threading.ExceptHookArgs) -> None:
    """End the host when one of its own threads fails: a task of it would never be answered."""
    threading.__excepthook__(error)
    if error.thread is not None and error.thread.name.startswith(THREAD_PREFIX):
        _leave(1)


def _serve(server: HostServer) -> None:
    server.serve()
    time.sleep(CLOSE_SECONDS)
    _log(f"the executor did not close within {CLOSE_SECONDS:g} s")
    _leave(0)


def _end_hung_host() -> None:
    _log(f"a cancelled task went on for more than {CANCEL_GRACE:g} s; the host ends itself")
    _leave(HUNG_EXIT_CODE)


def _log(text: str) -> None:
    sys.stderr.write(f"mloc: {text}\n")


def _leave(code: int) -> None:
    """End now: interpreter teardown with an engine loaded takes seconds, and library threads may block it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
