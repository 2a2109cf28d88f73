"""What a run of one echo stage costs on `mloc up`: CPU seconds of each part, and the requests to Prefect, by call.

    python benchmarks/run_cost.py [--quick] [--runs N] [--queue N ...] [--json]

Submits N specs at once and waits for their ends. Then the same on a second `mloc up` whose bridge, endpoint and worker
count their requests (`tests/support/probe`); that one's CPU seconds do not count.

With `--queue`, bursts of these sizes instead, on one `mloc up` after another: CPU seconds a run and runs a second for
each size; the table shows whether a long queue makes each run dearer.

Printed: CPU seconds a run of each part of `mloc up`, with those of all together; CPU seconds that it uses in a minute
at rest; requests a run, by call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.memory import PROBE, processes, run_all
from tests.support.up import Up, running_up

_PORT = 26300


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="few runs, for CI: shows that it runs")
    parser.add_argument("--runs", type=int, default=100, help="runs that are counted (default 100)")
    parser.add_argument("--rest", type=float, default=60, help="seconds at rest (default 60)")
    parser.add_argument("--queue", type=int, nargs="+", metavar="N", help="compare bursts of these sizes instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    runs, rest = (4, 2.0) if args.quick else (args.runs, args.rest)
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
        if args.queue:
            figures: dict[str, Any] = {"queue": {size: burst(Path(folder), size) for size in args.queue}}
        else:
            figures = burst(Path(folder), runs, rest) | {"requests": requests(Path(folder), runs)}
    if args.json:
        print(json.dumps(figures))
    elif args.queue:
        show_queue(figures["queue"])
    else:
        show(figures, runs)


def burst(folder: Path, runs: int, rest: float = 0.0) -> dict[str, Any]:
    """Return CPU seconds a run by part, runs a second, and CPU seconds in a minute at rest."""
    with running_up(folder / f"burst-{runs}", _PORT) as up:
        warm_up(up)
        idle: Counter[str] = Counter()
        if rest:
            before = cpu(up)
            time.sleep(rest)
            idle = cpu(up) - before
        before, began = cpu(up), time.monotonic()
        run_all(up.url, runs)
        seconds = time.monotonic() - began
        used = cpu(up) - before
    return {
        "cpu a run": {part: used[part] / runs for part in sorted(used)} | {"all": used.total() / runs},
        "runs a second": runs / seconds,
        "cpu a minute at rest": {part: 60 * idle[part] / rest for part in sorted(idle)} if rest else {},
    }


def requests(folder: Path, runs: int) -> list[tuple[float, str, str, str, str]]:
    """Return requests a run with part, method, path and caller, most frequent first."""
    notes = folder / "requests"
    notes.mkdir()
    with running_up(folder / "counted", _PORT, PYTHONPATH=str(PROBE), MLOC_PROBE=str(notes)) as up:
        warm_up(up)
        before = count(notes)
        run_all(up.url, runs)
        found = count(notes) - before
    return [(number / runs, *line.split("\t", 3)) for line, number in found.most_common()]  # type: ignore[misc]


def warm_up(up: Up) -> None:
    """Run a few, so that all is imported and every deployment and queue exists, and wait for quiet."""
    run_all(up.url, 4)
    time.sleep(3)


def count(notes: Path) -> Counter[str]:
    """Return the requests so far, by line."""
    return Counter(line for file in notes.glob("requests-*") for line in file.read_text().splitlines())


def cpu(up: Up) -> Counter[str]:
    """Return the CPU seconds of each part so far, in hundredths as the kernel counts them."""
    found: Counter[str] = Counter()
    for part, process in processes(up):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[part] += times.user + times.system  # type: ignore[assignment] # seconds
    return found


def show(figures: dict[str, Any], runs: int) -> None:
    """Print the tables."""
    print(f"part       CPU s a run ({runs} runs)   CPU s a minute at rest")
    for part, seconds in figures["cpu a run"].items():
        rest = figures["cpu a minute at rest"]
        at_rest = sum(rest.values()) if part == "all" else rest.get(part, 0.0)
        print(f"{part:10} {seconds:11.3f} {at_rest:27.2f}")
    print(f"runs a second: {figures['runs a second']:.2f}\n")
    print("requests a run   part      call, and who sends it")
    for number, part, method, path, caller in figures["requests"]:
        print(f"{number:14.2f}   {part:8}  {method} {path}  ({caller})")
    print(f"{sum(row[0] for row in figures['requests']):14.2f}   all")


def show_queue(figures: dict[int, dict[str, Any]]) -> None:
    """Print the table of bursts."""
    parts = list(dict.fromkeys(part for row in figures.values() for part in row["cpu a run"]))
    print("in the queue   runs/s   CPU s a run: " + "  ".join(f"{part:>8}" for part in parts))
    for size, row in figures.items():
        cells = "  ".join(f"{row['cpu a run'].get(part, 0.0):8.3f}" for part in parts)
        print(f"{size:12}   {row['runs a second']:6.2f}                {cells}")


if __name__ == "__main__":
    main()
