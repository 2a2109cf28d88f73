"""Starts one training in several processes with torchrun's launcher; the first process reports.

The processes are children of the host, which ends them when it exits, as its supervisor does when the host dies. They
exchange files in `<attempt dir>/ranks`: the request, the failure of each process that failed, and the result.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.errors import ExecutionFailure
from mloc_prefect.execution.leased_devices import leased_gpus
from mloc_prefect.execution.protocol import Cancelled, ExecutionEvent, UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.common.threads import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.training.training_run import PreparedTraining

LAUNCHER = "mloc_prefect.executors.training.ranks.rank_main"
REQUEST, RESULT, CANCEL, ENDED, EVENTS = "request.json", "result.json", "cancel", "ended.json", "events"

_POLL_SECONDS = 0.2
_STOP_SECONDS = 60.0  # for the current step and the checkpoint after it
_KILL_SECONDS = 5.0


class RankFailedError(RuntimeError):
    """A training process failed; its traceback is the cause."""


class _RemoteTraceback(Exception):  # noqa: N818 - only shown as the cause, as in multiprocessing
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def world_of(spec: SpecReader) -> int:
    """Return the number of processes: one per leased GPU, unless the spec sets it.

    Raises:
        UserError: The spec requests more processes than there are GPUs.
    """
    training, gpus = spec.child("training"), len(leased_gpus())
    if training.get("nproc_per_node") is not None:
        wanted = training.integer("nproc_per_node", 1, minimum=1)
        if gpus and wanted > gpus:
            raise UserError(
                f"spec.training.nproc_per_node {wanted} is more than the {gpus} GPUs of the lease; ask for them in "
                "resources.hardware.gpu.count"
            )
        return wanted
    return gpus if gpus > 1 and training.flag("allow_multi_gpu", default=True) else 1


def launch(
    request: ExecutionRequest, context: ExecutionContext, prepared: PreparedTraining, world: int
) -> dict[str, Any]:
    """Train in `world` processes and return the result object.

    Raises:
        UserError: A process found the spec, the data or the model at fault.
        RankFailedError: A process failed or was killed.
        Cancelled: The task was cancelled; a checkpoint was saved if there was time.
    """
    folder = context.attempt_dir / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(folder / REQUEST, {"request": request.to_wire(), "prepared": prepared.to_wire(), "world": world})
    context.phase(f"starting {world} processes")
    with tempfile.TemporaryDirectory(prefix="mloc-ranks-") as pipes:
        pipe = Path(pipes) / EVENTS
        os.mkfifo(pipe, 0o600)
        with _EventPipe(pipe, context) as events, _launcher(folder, pipe, world) as process:
            _wait_for_end(process, events, context, folder)
    if context.cancelled:
        raise Cancelled
    if process.returncode:
        raise _failure(folder, process.returncode)
    result: dict[str, Any] = atomic.read_json(folder / RESULT)
    return result


class _EventPipe:
    """Forwards events of the first process, which arrive through a named pipe."""

    def __init__(self, pipe: Path, context: ExecutionContext) -> None:
        self._context = context
        self._fd = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # also for writing, so that it never ends
        self._rest = b""
        self.began = False

    def __enter__(self) -> _EventPipe:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def forward(self, seconds: float) -> None:
        """Forward the events that arrive within `seconds`."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return
        with suppress(BlockingIOError):
            *lines, self._rest = (self._rest + os.read(self._fd, 1 << 16)).split(b"\n")
            for line in lines:
                event = ExecutionEvent(**json.loads(line))
                self.began = self.began or event.kind == "progress"
                self._context.relay(event)


@contextmanager
def _launcher(folder: Path, pipe: Path, world: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the launcher; all its processes end with the block."""
    threads = str(max(1, usable_cores() // world))
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MLOC_RANK_EVENTS": str(pipe)}
    if len(leased_gpus()) > world:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(leased_gpus()[:world])
    command = [sys.executable, "-m", LAUNCHER, str(folder), str(world)]
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        _end_processes(process, folder)


def _wait_for_end(
    process: subprocess.Popen[bytes], events: _EventPipe, context: ExecutionContext, folder: Path
) -> None:
    deadline = None
    while process.poll() is None:
        events.forward(_POLL_SECONDS)
        if not context.cancelled:
            continue
        if deadline is None:
            if not events.began:  # nothing has been trained, so there is nothing to save
                return
            context.phase("saving a checkpoint", patience=_STOP_SECONDS)
            (folder / CANCEL).touch()
            deadline = time.monotonic() + _STOP_SECONDS
        elif time.monotonic() > deadline:
            context.log(f"the training did not stop within {_STOP_SECONDS:g} s, ending it", "warning")
            return
    events.forward(0.0)


def _end_processes(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the launcher and its processes: with SIGTERM, then with SIGKILL."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_SECONDS)
    for file in folder.glob("rank-*.pid"):
        with suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
        file.unlink(missing_ok=True)
    if process.poll() is None:
        process.kill()
        process.wait()


def _failure(folder: Path, code: int) -> Exception:
    """Return the most informative error: a mistake of the user, else the first failure, else how a process ended."""
    found = {f.stem: ExecutionFailure.from_wire(atomic.read_json(f)) for f in sorted(folder.glob("rank-*.json"))}
    user = next((failure for failure in found.values() if failure.kind == "user"), None)
    if user is not None:
        return UserError(user.message)
    killed = _killed_rank(folder)
    if killed:
        return RankFailedError(killed)
    if found:
        name, failure = next(iter(found.items()))
        error = RankFailedError(f"{name.replace('-', ' ')} of {_world(folder)} failed: {failure.message}")
        error.__cause__ = _RemoteTraceback(failure.traceback or failure.message)
        return error
    return RankFailedError(f"the launcher of the training ended with exit code {code}")


def _killed_rank(folder: Path) -> str | None:
    """Return which process was killed, as recorded by the launcher."""
    try:
        failures: list[dict[str, Any]] = atomic.read_json(folder / ENDED)
    except FileNotFoundError:
        return None
    # The launcher ends the other processes with SIGTERM.
    killed = [f for f in failures if f["exit_code"] < 0 and f["signal"] != "SIGTERM"]
    if not killed:
        return None
    return f"rank {killed[0]['rank']} of {_world(folder)} was killed by {killed[0]['signal']}"


def _world(folder: Path) -> int:
    return int(atomic.read_json(folder / REQUEST)["world"])
