"""Time from the creation of a run to its start and its end: stock process workers and ours.

    python benchmarks/dispatch.py [--quick] [--rounds N] [--waiting N] [--json]

Arms, interleaved in each round, each with a pool and a worker process of its own, all on one server (the embedded one):
  default  `prefect worker start --type process` as it comes
  tuned    the same with PREFECT_WORKER_QUERY_SECONDS=1
  ours     the mloc-gpu worker, running the same no-op flow in its loop (for this, the flow is put among the modules of
           the installed package: only such flows run there)
  spec     the mloc-gpu worker, running a whole MLOC spec of one echo task: plan, stage, executor, files, manifest

Then: how long a task that fits takes to start while N others wait that fit nowhere.

Printed: seconds from creation to Running and to the end, by the server's clock (median and range), and the ratio of
medians tuned / ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.pool import graph, spec, until
from tests.support.prefect_api import Api, environment
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator

ARMS = ("default", "tuned", "ours", "spec")
FLOW = "from prefect import flow\n\n@flow\nasync def noop() -> None: ...\n"
WORKER = """
import asyncio, sys, types
module = types.ModuleType("mloc_prefect.noop_flow")
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), module.__dict__)
sys.modules[module.__name__] = module
from mloc_prefect.settings import get_settings
from mloc_prefect.worker.main import run_worker
asyncio.run(run_worker(get_settings()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one round and few waiting tasks, for CI")
    parser.add_argument("--rounds", type=int, default=11, help="times that each arm runs (default 11)")
    parser.add_argument("--waiting", type=int, default=1000, help="tasks that fit nowhere (default 1000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    rounds, waiting = (1, 20) if args.quick else (args.rounds, args.waiting)
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as home, ExitStack() as stack:
        bench = Bench(Path(home), stack)
        seconds = bench.measure(rounds)
        behind = bench.behind(waiting, 3 if args.quick else 7)
    figures = {"tuned / ours": ratio(seconds["tuned"], seconds["ours"]), "behind": behind}
    if args.json:
        print(json.dumps({"seconds": seconds, **figures}))
    else:
        show(seconds, figures, waiting)


class Bench:
    """The server, the workers, and their deployments.

    Args:
        home: An empty directory.
        stack: What ends server and workers.
        stock: Arms of stock workers to start.
    """

    def __init__(self, home: Path, stack: ExitStack, stock: tuple[str, ...] = ("default", "tuned")) -> None:
        self.home, self.stack = home, stack
        self.url = stack.enter_context(embedded_server(home, port=24680))
        self.api = Api(self.url)
        self.code = home / "code"
        self.code.mkdir()
        (self.code / "noop_flow.py").write_text(FLOW)
        self.deployments = {arm: self._stock(arm) for arm in stock}
        stack.enter_context(self._process("ours", [sys.executable, "-c", WORKER, str(self.code / "noop_flow.py")]))
        self.deployments["ours"] = self._deploy("ours", "gpu", entrypoint="mloc_prefect.noop_flow.noop")
        self.deployments["spec"] = str(self.api.get("/deployments/name/run-workflow/mloc")["id"])

    def measure(self, rounds: int) -> dict[str, list[tuple[float, float]]]:
        """Return seconds to Running and to the end of each run of each arm; the first round only warms up."""
        found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
        for number in range(rounds + 1):
            for arm in ARMS if number else ARMS[2:]:
                parameters = {"spec": spec("bench")} if arm == "spec" else {}
                run = self.api.start(self.deployments[arm], **parameters)
                ended = self.api.wait(run, seconds=60)
                assert ended["state"]["type"] == "COMPLETED", (arm, ended["state"]["message"], self.log(arm))
                if number:
                    found[arm].append(self._times(ended))
        return found

    def behind(self, waiting: int, rounds: int) -> list[tuple[float, float]]:
        """Return seconds from the creation of a spec that fits to the start and the end of its task.

        `waiting` others, which fit nowhere, wait all the time.
        """
        deployment = self.deployments["spec"]
        size = min(waiting, 100)
        texts = [graph(f"nowhere-{n}", size, gpu={"count": 64}) for n in range(waiting // size)]
        for text in texts:
            self.api.start(deployment, spec=text)
        queue = {"work_pool_queues": {"name": {"any_": ["gpu-64-c1-m64m"]}}, "flow_runs": {"state": _SCHEDULED}}
        until(lambda: self.api.post("/flow_runs/count", queue) >= len(texts) * size, 1800)
        time.sleep(5)
        found = []
        for number in range(rounds):
            run = self.api.start(deployment, spec=spec(f"fits-{number}", gpu={"count": 1}))
            self.api.wait(run, seconds=60)
            (stage,) = self.api.stages(run).values()
            created = self.api.run(run)["created"]
            found.append((_seconds(created, stage["start_time"]), _seconds(created, stage["end_time"])))
        assert self.api.post("/flow_runs/count", queue) == len(texts) * size
        return found

    def log(self, arm: str) -> str:
        """Return the output of a worker."""
        return (self.home / f"{arm}.log").read_text()

    def _times(self, run: Any) -> tuple[float, float]:
        return _seconds(run["created"], run["start_time"]), _seconds(run["created"], run["end_time"])

    def _stock(self, arm: str) -> str:
        more = {"PREFECT_WORKER_QUERY_SECONDS": "1"} if arm == "tuned" else {}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", arm, "--type", "process"]
        self.stack.enter_context(self._process(arm, command, **more))
        return self._deploy(arm, arm, entrypoint="noop_flow.py:noop", path=str(self.code))

    def _deploy(self, name: str, pool: str, **fields: Any) -> str:
        flow = self.api.post("/flows/", {"name": "noop"})
        body = {"name": name, "flow_id": flow["id"], "work_pool_name": pool, "enforce_parameter_schema": False}
        return str(self.api.post("/deployments/", body | fields)["id"])

    @contextmanager
    def _process(self, name: str, command: list[str], **more: str) -> Iterator[None]:
        log = self.home / f"{name}.log"
        inventory = {"cpus": 8, "memory": "64GiB", "gpus": [{"type": "a100", "memory": "80GiB"}]}
        env = environment(self.home, self.url) | {"MLOC_INVENTORY": json.dumps(inventory), **more}
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            until(lambda: "started!" in log.read_text() or process.poll() is not None, 60, log.read_text)
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.kill()
            process.wait()


_SCHEDULED = {"type": {"any_": ["SCHEDULED"]}}


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def ratio(slower: list[tuple[float, float]], faster: list[tuple[float, float]]) -> float:
    """Return the ratio of the median times to the end."""
    return statistics.median(end for _, end in slower) / statistics.median(end for _, end in faster)


def show(seconds: dict[str, list[tuple[float, float]]], figures: dict[str, Any], waiting: int) -> None:
    """Print the table."""
    print("arm       runs   to Running s, median (range)      to the end s, median (range)")
    for arm, times in seconds.items():
        cells = [f"{statistics.median(t):8.2f}  ({min(t):5.2f} - {max(t):5.2f})" for t in zip(*times, strict=True)]
        print(f"{arm:8} {len(times):5}   {cells[0]:32}  {cells[1]}")
    print(f"ratio of medians tuned / ours: {figures['tuned / ours']:.1f}x (target >= 5x)")
    starts, ends = zip(*figures["behind"], strict=True)
    print(
        f"a task that fits, behind {waiting} that fit nowhere, starts {statistics.median(starts):.2f} s after creation "
        f"({min(starts):.2f} - {max(starts):.2f}, target <= 1) and has its result after {statistics.median(ends):.2f} s"
    )


if __name__ == "__main__":
    main()
