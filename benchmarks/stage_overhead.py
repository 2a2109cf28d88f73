"""The cost of a stage: chains and fans of echo stages, ours on the embedded server and plain Prefect on a stock one.

    python benchmarks/stage_overhead.py [--quick] [--rounds N] [--json]

Arms, interleaved in each round, each in a process and on a server of its own:
  mloc   echo stages through the whole stack (plan, subflow, executor process, responses.json, manifest.json) on the
         embedded server of `mloc run`
  plain  async subflows that only return a mapping, chained or gathered, on `prefect server start --no-ui` as it comes

Printed: seconds of each shape (median and range), milliseconds a stage, what a stage of ours adds to a plain one in the
chain, and the ratio plain / mloc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Prefect reads these when it is imported; its console lines are no part of what is measured.
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import httpx
from prefect import Flow

from mloc_prefect.flow.build import run_plan
from mloc_prefect.flow.dispatcher import local_dispatcher
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.plan import check
from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

HEAD = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: overhead}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: '1', memory: 64Mi}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round, for CI: shows that it runs")
    parser.add_argument("--rounds", type=int, default=5, help="times that each arm runs (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--arm", choices=("mloc", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        asyncio.run(serve(args.arm))
        return
    chain, fan, rounds = (3, 4, 1) if args.quick else (10, 16, args.rounds)
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as home:
        table = measure(Path(home), chain=chain, fan=fan, rounds=rounds)
    figures = summary(table, chain=chain, fan=fan)
    if args.json:
        print(json.dumps({"seconds": table, **figures}))
    else:
        show(table, figures, chain=chain, fan=fan)


def measure(home: Path, *, chain: int, fan: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds of each arm and shape, one for each round."""
    shapes = [("chain", chain), ("fan", fan)]
    seconds: dict[str, list[float]] = {f"{arm} {shape}": [] for shape, _ in shapes for arm in ("mloc", "plain")}
    with (
        embedded(home / "mloc") as ours,
        stock(home / "stock") as theirs,
        Arm("mloc", ours, home / "mloc") as mloc,
        Arm("plain", theirs, home / "plain") as plain,
    ):
        for arm in (mloc, plain):
            arm.run("chain", 1)  # first connections, first executor process
        for _ in range(rounds):
            for shape, count in shapes:
                for arm in (mloc, plain):
                    seconds[f"{arm.name} {shape}"].append(arm.run(shape, count))
    return seconds


class Arm:
    """A process of its own for each arm, with its own Prefect settings."""

    def __init__(self, name: str, url: str, home: Path) -> None:
        self.name = name
        env = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(home / "client"), "MLOC_HOME": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--arm", name], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, shape: str, count: int) -> float:
        """Return the seconds that one shape takes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{shape} {count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


async def serve(name: str) -> None:
    """Run the shapes that stdin names and print the seconds of each."""
    shapes: dict[str, Callable[[int], Awaitable[None]]] = {"chain": plain_chain, "fan": plain_fan}
    async with AsyncExitStack() as stack:
        if name == "mloc":
            settings = get_settings()
            options = RunOptions(
                settings=settings, dispatcher=await stack.enter_async_context(local_dispatcher(settings))
            )
            shapes = {
                "chain": lambda count: mloc_run(chain_spec(count), options),
                "fan": lambda count: mloc_run(fan_spec(count), options),
            }
        while line := await asyncio.to_thread(sys.stdin.readline):
            shape, count = line.split()
            start = time.perf_counter()
            await shapes[shape](int(count))
            print(time.perf_counter() - start, flush=True)


async def mloc_run(text: str, options: RunOptions) -> None:
    plan, _ = check(text)
    assert plan is not None
    outcome = await run_plan(plan, options=options)
    assert outcome.ok, outcome.message


def chain_spec(count: int) -> str:
    return HEAD + "  stages:\n" + "".join(f"    - {{name: s{i}, spec: {{n: {i}}}}}\n" for i in range(count))


def fan_spec(count: int) -> str:
    return (
        HEAD + "  graph:\n    nodes:\n" + "".join(f"      - {{name: s{i}, spec: {{n: {i}}}}}\n" for i in range(count))
    )


async def plain_chain(count: int) -> None:
    async def root() -> dict[str, Any]:
        result: dict[str, Any] = {}
        for i in range(count):
            result = await plain_stage(i)({"before": result})
        return result

    await Flow(fn=root, name="plain-chain")()


async def plain_fan(count: int) -> None:
    async def root() -> list[Any]:
        return list(await asyncio.gather(*(plain_stage(i)({}) for i in range(count))))

    await Flow(fn=root, name="plain-fan")()


def plain_stage(number: int) -> Any:
    async def stage(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"n": number, "inputs": len(inputs)}

    return Flow(fn=stage, name="plain-stage", flow_run_name=f"s{number}", validate_parameters=False)


def summary(seconds: dict[str, list[float]], *, chain: int, fan: int) -> dict[str, float]:
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "mloc_chain_ms_per_stage": 1000 * middle["mloc chain"] / chain,
        "plain_chain_ms_per_stage": 1000 * middle["plain chain"] / chain,
        "added_ms_per_stage": 1000 * (middle["mloc chain"] - middle["plain chain"]) / chain,
        "mloc_fan_ms_per_stage": 1000 * middle["mloc fan"] / fan,
        "chain_ratio": statistics.median(
            p / m for p, m in zip(seconds["plain chain"], seconds["mloc chain"], strict=True)
        ),
        "fan_ratio": statistics.median(p / m for p, m in zip(seconds["plain fan"], seconds["mloc fan"], strict=True)),
    }


def show(seconds: dict[str, list[float]], figures: dict[str, float], *, chain: int, fan: int) -> None:
    print(f"{'shape':<14}{'stages':>7}{'median s':>10}{'range s':>16}{'ms/stage':>10}")
    for name, values in seconds.items():
        count = chain if name.endswith("chain") else fan
        middle = statistics.median(values)
        spread = f"{min(values):.2f} - {max(values):.2f}"
        print(f"{name:<14}{count:>7}{middle:>10.2f}{spread:>16}{1000 * middle / count:>10.0f}")
    print(f"chain: ours costs {figures['mloc_chain_ms_per_stage']:.0f} ms a stage, which is", end=" ")
    print(f"{figures['added_ms_per_stage']:+.0f} ms beside plain Prefect on a stock server (target <= +100)")
    print(f"ratio plain / mloc: chain {figures['chain_ratio']:.1f}x, fan {figures['fan_ratio']:.1f}x (target >= 5x)")


@contextmanager
def embedded(home: Path) -> Iterator[str]:
    server = EmbeddedServer(home, free_port())
    server.launch()
    try:
        while (address := server.poll()) is None:
            time.sleep(0.05)
        yield address.api_url
    finally:
        server.stop_now()


@contextmanager
def stock(home: Path) -> Iterator[str]:
    port, url = free_port(), ""
    home.mkdir(parents=True)
    env = {**os.environ, "PREFECT_HOME": str(home)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}/api"
    try:
        wait_until_healthy(url, server)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(f"{url}/health").json() is True:
                return
        except (httpx.HTTPError, ValueError):
            time.sleep(0.1)
    raise SystemExit("the stock Prefect server did not start")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
