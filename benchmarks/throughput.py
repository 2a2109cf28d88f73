"""Runs per second: a burst of runs that do nothing, on a stock process worker and on ours.

    python benchmarks/throughput.py [--quick] [--rounds N] [--json]

Arms, interleaved in each round, each with a pool and a worker process of its own, all on one server (the embedded one):
  stock  `prefect worker start --type process` with PREFECT_WORKER_QUERY_SECONDS=1
  ours   the mloc-gpu worker, running the same no-op flow in its loop
  specs  the mloc-gpu worker, running whole MLOC specs of one echo task

Printed: runs a second from the first creation to the last end (median and range), and the ratio of medians
ours / stock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dispatch import Bench
from tests.support.pool import spec
from tests.support.prefect_api import ENDS

ARMS = {"stock": ("tuned", 10), "ours": ("ours", 40), "specs": ("spec", 40)}
"""Arm: its deployment, and how many runs a burst has (the stock worker would take minutes for more)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one small burst each, for CI")
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each arm (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as home, ExitStack() as stack:
        bench = Bench(Path(home), stack, stock=("tuned",))
        burst(bench, "ours", 2)  # the worker's first run imports what later ones find
        burst(bench, "spec", 2)
        for _ in range(1 if args.quick else args.rounds):
            for arm, (deployment, size) in ARMS.items():
                rates[arm].append(burst(bench, deployment, min(size, 4) if args.quick else size))
    ratio = statistics.median(rates["ours"]) / statistics.median(rates["stock"])
    if args.json:
        print(json.dumps({"rates": rates, "ours / stock": ratio}))
        return
    print("arm    bursts  runs/s, median (range)")
    for arm, found in rates.items():
        print(f"{arm:6} {len(found):6}  {statistics.median(found):6.2f}  ({min(found):.2f} - {max(found):.2f})")
    print(f"ratio of medians ours / stock: {ratio:.1f}x")


def burst(bench: Bench, deployment: str, size: int) -> float:
    """Start `size` runs as fast as the server takes them and return how many ended a second."""
    began = time.monotonic()
    parameters = {"spec": spec("burst")} if deployment == "spec" else {}
    runs = [bench.api.start(bench.deployments[deployment], **parameters) for _ in range(size)]
    wanted = {"flow_runs": {"id": {"any_": runs}}, "limit": size}
    while True:
        found: list[Any] = bench.api.post("/flow_runs/filter", wanted)
        if all(run["state"]["type"] in ENDS for run in found):
            break
        time.sleep(0.1)
    seconds = time.monotonic() - began
    bad = [run["state"] for run in found if run["state"]["type"] != "COMPLETED"]
    assert not bad, bad
    return size / seconds


if __name__ == "__main__":
    main()
