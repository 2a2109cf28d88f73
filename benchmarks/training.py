"""Steps per second of SFT and LoRA tasks through the stack, compared with TRL's own trainer with the same options.

    python benchmarks/training.py [--quick] [--rounds N] [--steps N] [--kinds sft,lora_sft] [--json]

Arms, interleaved in each round in an order that changes, on SmolLM2 and the CPU, in float32, each with its libraries
loaded before the first round. A whole `mloc up` (Valkey, Prefect server, endpoint, bridge, worker) runs beside all.
  mloc      a task sent to the endpoint and followed until TASK_SUCCEEDED: record, dispatch, flow, lease, warm host,
            progress, metrics, model, archive
  executor  our executor in a process of its own, without the rest
  trl       TRL's `SFTTrainer` in a process of its own, as its users write it

Steps per second are those of TRL's own clock, which runs in `trainer.train()`; without checkpoints, which are measured
once more by themselves. Printed: the losses of all arms and whether they are equal to four digits; steps/s of each arm
(median and range) and the ratios in each round; CPU seconds of a step, which a busy machine changes less; seconds of
what our executor adds to a training, by part; a checkpoint of both; and seconds of the phases of a whole task.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for every arm: idle threads of one must not slow the others

from benchmarks.training_arms import spec
from tests.support.smollm import prepared_home
from tests.support.up import Up, running_up

ARMS = ("mloc", "executor", "trl")
SFT, LORA = "sft", "lora_sft"
_PORT = 26380
_DIGITS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round, for CI: shows that it runs")
    parser.add_argument("--rounds", type=int, default=5, help="times that each arm runs (default 5)")
    parser.add_argument("--steps", type=int, default=10, help="steps of each training (default 10)")
    parser.add_argument("--kinds", default=f"{SFT},{LORA}", help="which trainings (default: both)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    rounds, steps, batch = (1, 2, 1) if args.quick else (args.rounds, args.steps, 2)
    kinds = LORA if args.quick else args.kinds
    figures = measure(kinds.split(","), rounds=rounds, steps=steps, batch=batch)
    if args.json:
        print(json.dumps(figures))
    else:
        show(figures)
    if any(set(map(len, runs["losses"].values())) != {steps} for runs in figures.values()):
        sys.exit("an arm did not log the loss of each step")


def measure(kinds: list[str], *, rounds: int, steps: int, batch: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each kind of training."""
    model = prepared_home() / "models" / "smollm2"
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mloc-bench-"))) / "home"
        up = stack.enter_context(running_up(home, _PORT, MLOC_DATA_ROOTS=str(model)))
        arms: dict[str, Any] = {"mloc": Mloc(up, str(model))}
        for name in ARMS[1:]:
            arms[name] = Process(name, str(model))
            stack.callback(arms[name].close)
        warm = {"kind": LORA, "steps": 1, "batch": 1, "checkpoint": False}
        for arm in arms.values():
            arm.run(warm)
        return {
            kind: interleave(arms, {"kind": kind, "steps": steps, "batch": batch, "checkpoint": False}, rounds)
            for kind in kinds
        }


def interleave(arms: dict[str, Any], job: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return what the arms say: one number for each round, losses and parts of the last one."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in ARMS[1:]}
    last: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for name in ARMS[:: -1 if number % 2 else 1]:  # none of them always comes first
            last[name] = found = arms[name].run(job)
            rates[name].append(job["steps"] / found["train_seconds"])
            if name in cpu:
                cpu[name].append(found["cpu_seconds"] / job["steps"])
            told = f"{job['steps']} steps in {found['train_seconds']:.2f} s, {found['seconds']:.1f} s in all"
            print(f"{job['kind']} round {number} {name}: {told}", file=sys.stderr, flush=True)
    saved = {name: arms[name].run({**job, "steps": 1, "checkpoint": True}) for name in ARMS[1:]}
    return {
        "rates": rates,
        "cpu": cpu,
        "losses": {name: found["losses"] for name, found in last.items()},
        "spent": last["executor"]["spent"],
        "train_seconds": last["executor"]["train_seconds"],
        "checkpoint": {name: found["spent"]["checkpoint"] for name, found in saved.items()},
        "checkpoint callbacks": saved["executor"]["spent"].get("callback CheckpointMarker", 0.0),
        "phases": last["mloc"]["phases"],
    }


class Mloc:
    """Tasks through a running `mloc up`."""

    def __init__(self, up: Up, model: str) -> None:
        self._up, self._model = up, model
        self._client = httpx.Client(base_url=up.url, timeout=600)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Train, and return what the result and the log of the stage say."""
        document = {"apiVersion": "mloc/v1", "kind": "Task", "metadata": {"name": "bench"}}
        task_id = self._send(json.dumps({**document, "spec": spec(self._model, job)}))
        folder = self._up.home / "results" / task_id
        answer = self._client.get(f"/api/v1/results/{task_id}").raise_for_status().json()
        result = answer.get("result", answer)
        rows = [json.loads(line) for line in Path(result["metrics_path"]).read_text().splitlines()]
        phases = phases_of((folder / "logs" / "stage.log").read_text())
        return {
            "losses": [row["loss"] for row in rows if "loss" in row],
            "train_seconds": result["metrics"]["train_runtime"],
            "seconds": sum(phases.values()),
            "phases": phases,
        }

    def _send(self, text: str) -> str:
        """Submit a task, hear of its end, and return its id."""
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


class Process:
    """An arm in a process of its own, which keeps its libraries loaded."""

    def __init__(self, arm: str, model: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("training_arms.py")), arm, model]
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | quiet,
        )

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Train, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def phases_of(log: str) -> dict[str, float]:
    """Return the seconds between the phases of a task, by the phase that began, until the last line of its log."""
    marks = [(line.split()[0], re.search(r"phase: ([a-z ]+)", line)) for line in log.splitlines() if line[:2] == "20"]
    seen = [(datetime.fromisoformat(at).timestamp(), found[1].strip()) for at, found in marks if found]
    seen.append((datetime.fromisoformat(marks[-1][0]).timestamp(), ""))
    phases: dict[str, float] = {}
    for (begun, name), (ended, _) in pairwise(seen):
        phases[name] = phases.get(name, 0.0) + ended - begun
    return phases


def show(figures: dict[str, dict[str, Any]]) -> None:
    """Print the tables."""
    for kind, found in figures.items():
        rates, losses = found["rates"], found["losses"]
        print(f"{kind}, losses by step")
        for arm, values in losses.items():
            print(f"  {arm:<10} " + " ".join(f"{loss:.{_DIGITS}f}" for loss in values))
        gap = max(abs(one - other) for row in zip(*losses.values(), strict=True) for one in row for other in row)
        equal = "equal" if gap < 0.5 * 10**-_DIGITS else "NOT equal"
        print(f"  largest difference {gap:.1e}: {equal} to {_DIGITS} digits")
        print(f"{kind}, steps/s")
        for arm, values in rates.items():
            print(f"  {arm:<18} {statistics.median(values):6.3f}   ({min(values):.3f} to {max(values):.3f})")
        for arm, other in (("mloc", "trl"), ("executor", "trl"), ("mloc", "executor")):
            ratios = [ours / theirs for ours, theirs in zip(rates[arm], rates[other], strict=True)]
            name = f"{arm} / {other}"
            print(f"  {name:<18} {statistics.median(ratios):6.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
        ratios = [theirs / ours for ours, theirs in zip(found["cpu"]["executor"], found["cpu"]["trl"], strict=True)]
        print(f"{kind}, CPU seconds of a step")
        for arm, values in found["cpu"].items():
            print(f"  {arm:<18} {statistics.median(values):6.3f}   ({min(values):.3f} to {max(values):.3f})")
        print(f"  {'trl / executor':<18} {statistics.median(ratios):6.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
        print(f"{kind}, seconds of {found['train_seconds']:.2f} s of training in what the executor adds")
        for part, seconds in found["spent"].items():
            print(f"  {part:<40} {seconds:7.3f}")
        mark = found["checkpoint callbacks"]
        both = ", ".join(f"{arm} {seconds:.2f} s" for arm, seconds in found["checkpoint"].items())
        print(f"{kind}, a checkpoint: {both}; marking it {mark:.3f} s")
        print(f"{kind}, a whole task: " + ", ".join(f"{name} {s:.2f} s" for name, s in found["phases"].items()))


if __name__ == "__main__":
    main()
