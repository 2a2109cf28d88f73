"""Main of a host process: one executor, kept warm, served over a unix socket. Standard library only.

Started by `supervisor.py` in the interpreter of the executor's environment, with its configuration in the variable
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

from mloc_prefect.execution.server import CANCEL_GRACE, HostServer
from mloc_prefect.execution.tasks import THREAD_PREFIX

CONFIG = "MLOC_HOST_CONFIG"
HUNG_EXIT_CODE = 75
"""Exit status of a host that gave itself up because a cancelled task went on."""

CLOSE_SECONDS = 20.0
"""Time for the executor to close when the host leaves."""


def main() -> None:
    """Serve until idle, stopped or killed. Does not return."""
    config = json.loads(os.environ.pop(CONFIG))  # popped: children need not know
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    server = HostServer(
        Path(config["socket"]),
        config["executor"],
        config["options"],
        idle_seconds=config["idle_seconds"],
        on_hung=_give_up,
    )
    _note(f"host of {config['executor']} listens, pid {os.getpid()}")
    threading.excepthook = _lost_thread
    threading.Thread(target=_serve, args=(server,), name=f"{THREAD_PREFIX}sockets", daemon=True).start()
    try:
        server.runner.work()
    except BaseException:  # boundary: the process ends here, and no library thread may keep it
        traceback.print_exc()
        _leave(1)
    _note("host leaves")
    _leave(0)


def _lost_thread(what: threading.ExceptHookArgs) -> None:
    """End the host when one of its own threads fails: a task of it would never be answered."""
    threading.__excepthook__(what)
    if what.thread is not None and what.thread.name.startswith(THREAD_PREFIX):
        _leave(1)


def _serve(server: HostServer) -> None:
    server.serve()
    time.sleep(CLOSE_SECONDS)
    _note(f"the executor did not close within {CLOSE_SECONDS:g} s")
    _leave(0)


def _give_up() -> None:
    _note(f"a cancelled task went on for more than {CANCEL_GRACE:g} s; the host ends itself")
    _leave(HUNG_EXIT_CODE)


def _note(text: str) -> None:
    sys.stderr.write(f"mloc: {text}\n")


def _leave(code: int) -> None:
    """End now: interpreter teardown with an engine loaded takes seconds, and library threads may block it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
