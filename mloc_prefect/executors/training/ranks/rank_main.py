"""Started by `launch`: torchrun's launcher, and the main function of each training process.

python -m mloc_prefect.executors.training.ranks.rank_main <folder> <world>     # the launcher
python -m mloc_prefect.executors.training.ranks.rank_main <folder>             # one process; RANK is set
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.artifacts import atomic
from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.failures import failure_of
from mloc_prefect.execution.protocol import Cancelled, ExecutionRequest
from mloc_prefect.executors.training.ranks.launch import CANCEL, ENDED, LAUNCHER, REQUEST, RESULT
from mloc_prefect.executors.training.recipe import ProcessGroup
from mloc_prefect.executors.training.training_executor import recipe_of
from mloc_prefect.executors.training.training_run import PreparedTraining, train

if TYPE_CHECKING:
    from mloc_prefect.execution.protocol import ExecutionEvent

_POLL_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    """Run the launcher or one process; return the exit status."""
    folder = Path(arguments[0])
    return _run_launcher(folder, int(arguments[1])) if len(arguments) > 1 else _run_rank(folder)


def _run_launcher(folder: Path, world: int) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", LAUNCHER, str(folder))
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "exit_code": failure.exitcode, "signal": failure.signal_name()}
            for rank, failure in error.failures.items()
        ]
        atomic.write_json(folder / ENDED, failures)
        return 1
    return 0


def _run_rank(folder: Path) -> int:
    import torch

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    given = atomic.read_json(folder / REQUEST)
    request = ExecutionRequest.from_wire(given["request"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    context = _RankContext(request, folder, main=rank == 0)
    try:
        recipe = recipe_of(request.task_type)
        result = train(
            request, context, recipe, PreparedTraining.from_wire(given["prepared"]), ProcessGroup(rank, world)
        )
        if rank == 0:
            atomic.write_json(folder / RESULT, result)
    except Cancelled:
        return 0
    except BaseException as error:  # boundary: a failed process records why, and its exit status ends the others
        traceback.print_exc()
        atomic.write_json(folder / f"rank-{rank}.json", failure_of(error).to_wire())
        return 1
    finally:
        context.flush()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


class _RankContext(ExecutionContext):
    """The context of one process: only the first one sends events to the host, and only `StopOnRequest` stops it."""

    def __init__(self, request: ExecutionRequest, folder: Path, *, main: bool) -> None:
        self._pipe = os.open(os.environ["MLOC_RANK_EVENTS"], os.O_WRONLY | os.O_CLOEXEC) if main else None
        super().__init__(request, self._write, _FileEvent(folder / CANCEL))  # type: ignore[arg-type]  # is_set and wait

    def check(self) -> None:
        """Do nothing: processes that stopped one by one would wait for each other indefinitely."""

    def _write(self, event: ExecutionEvent) -> None:
        if self._pipe is not None:
            data = {"kind": event.kind, "data": event.data, "ts": event.ts}
            os.write(self._pipe, json.dumps(data).encode() + b"\n")


class _FileEvent:
    """An event that is set when a file exists."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked = 0.0
        self._exists = False

    def is_set(self) -> bool:
        """Return whether the file exists; checked at most five times a second."""
        now = time.monotonic()
        if not self._exists and now - self._checked > _POLL_SECONDS:
            self._checked, self._exists = now, self._path.exists()
        return self._exists

    def wait(self, seconds: float) -> Any:
        """Wait for `seconds`, and return whether the file exists."""
        time.sleep(seconds)
        return self.is_set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
