"""Rate and latency of durable submissions: ours with both fsync settings, compared with a handler that stores nothing.

    python benchmarks/submit.py [--quick] [--rounds N] [--seconds N] [--processes N] [--cores N]

Arms: `everysec` and `always` are `python -m mloc_prefect.server` on an embedded Valkey with that setting: read, check,
plan, records and journal entry in one step, answer. `plain` is `submit_plain.py`: FastAPI, `yaml.safe_load`, publish,
answer. All of them, Valkey and the load generator (`submit_load.py`, 32 kept connections, four templates in turn) share
`--cores` cores. Arms take turns; first as many submissions as possible, then at half of each arm's own rate, where
latency counts from the moment at which a submission was due. At the end the accepted ones are counted in the store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mloc_prefect.services.valkey import EmbeddedValkey  # noqa: E402
from tests.support.valkey import embedded_valkey  # noqa: E402

TEXTS = [
    (ROOT / "templates" / f"{n}.yaml").read_text() for n in ("quickstart", "echo", "dataset_inference", "lora_sft")
]
CONNECTIONS = 32
PORT = 27600
TARGET_RATE, TARGET_P99_MS = 500, 100


@dataclass
class Arm:
    """One of the things compared."""

    name: str
    ports: list[int]
    valkey: EmbeddedValkey
    durable: bool
    rates: list[float] = field(default_factory=list)
    calm: list[list[float]] = field(default_factory=list)
    accepted: int = 0
    failures: int = 0

    @property
    def rate(self) -> float:
        """Submissions a second, median of the turns."""
        return statistics.median(self.rates)

    def load(self, seconds: float, rate: float | None) -> dict:
        """Send submissions for so long, at a rate or as fast as answers come."""
        options = {"ports": self.ports, "connections": CONNECTIONS, "seconds": seconds, "texts": TEXTS, "rate": rate}
        command = [sys.executable, str(ROOT / "benchmarks" / "submit_load.py"), json.dumps(options)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        self.accepted += found["accepted"]
        self.failures += found["failures"]
        return found


def start(stack: ExitStack, root: Path, processes: int) -> list[Arm]:
    """Start the servers of all arms."""
    arms = []
    for number, name in enumerate(("everysec", "always", "plain")):
        fsync = "always" if name == "always" else "everysec"
        home = root / name
        valkey = stack.enter_context(embedded_valkey(home, port=PORT + 50 + number, fsync=fsync))
        arm = Arm(name, [PORT + 10 * number + at for at in range(processes)], valkey, durable=name != "plain")
        for port in arm.ports:
            if arm.durable:
                command = [sys.executable, "-m", "mloc_prefect.server"]
            else:
                command = [sys.executable, str(ROOT / "benchmarks" / "submit_plain.py"), str(port), valkey.url()]
            env = {**os.environ, "REDIS_URL": valkey.url(), "PORT": str(port), "MLOC_HOME": str(home)}
            server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            stack.callback(server.wait)
            stack.callback(server.terminate)
            assert "listening" in server.stdout.readline()
        arms.append(arm)
    return arms


def measure(arms: list[Arm], rounds: int, seconds: float) -> None:
    """Load the arms in turn, in an order that changes with each round; one turn before is not counted."""
    for arm in arms:
        arm.load(1.0, None)
    for number in range(rounds):
        for arm in arms[:: -1 if number % 2 else 1]:
            found = arm.load(seconds, None)
            arm.rates.append(found["answers"] / found["seconds"])
    for number in range(rounds):
        for arm in arms[:: -1 if number % 2 else 1]:
            arm.calm.append(arm.load(seconds, arm.rate / 2)["latencies"])


def report(arms: list[Arm]) -> None:
    """Print one line an arm, then the targets."""
    columns = f"{'arm':10} {'submissions/s':>14} {'range':>12} {'/ plain':>8}"
    print(f"{columns}   at half of that: {'p50 ms':>7} {'p99 ms':>7} {'max ms':>8}")
    plain = next(arm for arm in arms if not arm.durable)
    for arm in arms:
        ratio = statistics.median(ours / theirs for ours, theirs in zip(arm.rates, plain.rates, strict=True))
        calm = [percentiles(latencies) for latencies in arm.calm]
        p50, p99, most = (statistics.median(column) for column in zip(*calm, strict=True))
        print(
            f"{arm.name:10} {arm.rate:14.0f} {f'{min(arm.rates):.0f} - {max(arm.rates):.0f}':>12} {ratio:8.2f}"
            f"   {'':16} {p50:7.1f} {p99:7.1f} {most:8.1f}"
        )
    for arm in arms:
        if arm.durable:
            stored = Redis.from_url(arm.valkey.url()).xlen("mloc:journal")
            print(f"{arm.name}: {arm.accepted} accepted, {stored} in the journal, {arm.failures} failed")
            assert (stored, arm.failures) == (arm.accepted, 0)
            worst = max(percentiles(latencies)[1] for latencies in arm.calm)
            print(
                f"  target: >= {TARGET_RATE}/s: {'met' if arm.rate >= TARGET_RATE else 'not met'}; "
                f"p99 <= {TARGET_P99_MS} ms at half of it: {'met' if worst <= TARGET_P99_MS else 'not met'} "
                f"(worst round {worst:.0f} ms)"
            )


def percentiles(latencies: list[float]) -> tuple[float, float, float]:
    """Return p50, p99 and maximum in milliseconds."""
    ordered = [1000 * seconds for seconds in sorted(latencies)]
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn")
    parser.add_argument("--processes", type=int, default=1, help="endpoint processes of each arm")
    parser.add_argument("--cores", type=int, default=2, help="cores that everything shares")
    parser.add_argument("--quick", action="store_true", help="one turn of a second: shows that it works")
    arguments = parser.parse_args()
    rounds, seconds = (1, 1.0) if arguments.quick else (arguments.rounds, arguments.seconds)
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    os.sched_setaffinity(0, cores)  # children inherit it
    print(
        f"Python {platform.python_version()}, {len(cores)} cores for everything, {arguments.processes} endpoint "
        f"process(es), {rounds} rounds of {seconds:g} s, {CONNECTIONS} connections"
    )
    with ExitStack() as stack:
        arms = start(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())), arguments.processes)
        measure(arms, rounds, seconds)
        report(arms)


if __name__ == "__main__":
    main()
