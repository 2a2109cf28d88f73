"""Checks of inference: vLLM and transformers, their start, speed, sleep, packing, cancel, kill, and two cards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.selftest.trial import TOO_LATE, CheckFailedError, NotHereError
from mloc_prefect.cli.selftest.trial_specs import GPU_MEMORY, inference, training
from mloc_prefect.execution.environments.catalog import interpreter_of
from mloc_prefect.hardware.inventory import read_inventory
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.lora_sft import LORA_SFT

if TYPE_CHECKING:
    from mloc_prefect.cli.selftest.trial import Trial

_MODEL_LEN = 512
_RAW = Path(__file__).parents[2] / "executors" / "vllm" / "raw_generate.py"
_LONG: dict[str, Any] = {"rows": 64, "tokens": 400}
_RAW_LOAD: dict[str, Any] = {"rows": 32, "tokens": 64}
_FREE_SECONDS = 60.0
_FREE_BYTES = 256 << 20
"""Memory of the cards that may stay in use: other processes of the desktop come and go."""


def inventory(trial: Trial) -> dict[str, Any]:
    """Read the hardware as workers do."""
    found = read_inventory(get_settings())
    if not found.gpus:
        raise NotHereError(f"NVML shows no GPU; this machine has {found}")
    sizes = [round((gpu.memory_bytes or 0) / 2**30, 1) for gpu in found.gpus]
    return {"gpus": [gpu.type for gpu in found.gpus], "memory_gib": sizes, "in_use_gib": _gib(trial.card_memory())}


def cold_start(trial: Trial) -> dict[str, Any]:
    """Start vLLM: import, weights, cache, first answers."""
    _needs_vllm(trial)
    done = trial.run(_vllm(trial))
    engine = (done.result.get("engine") or {}).get("name")
    if engine != "vllm":
        raise CheckFailedError(f"{engine} ran instead of vLLM")
    trial.facts["answers"] = done.outputs
    return {"seconds": done.seconds, "tokens_per_second": done.tokens_per_second, "engine": engine}


def warm_start(trial: Trial) -> dict[str, Any]:
    """Run the same again: the same engine gives the same answers at once."""
    _needs_vllm(trial)
    if "answers" not in trial.facts:
        raise NotHereError("vLLM did not start")
    before = {host["pid"] for host in _engines(trial)}
    done = trial.run(_vllm(trial))
    if not before & {host["pid"] for host in _engines(trial)}:
        raise CheckFailedError("the engine was not kept warm")
    if done.outputs != trial.facts["answers"]:
        raise CheckFailedError("the warm engine gave other answers at temperature 0")
    return {"seconds": done.seconds, "tokens_per_second": done.tokens_per_second}


def visible_devices(trial: Trial) -> dict[str, Any]:
    """Compare the device that is leased with the one that the engine sees."""
    _needs_gpu(trial)
    host = _engines(trial)[-1]
    variables = dict(
        entry.split("=", 1)
        for entry in Path(f"/proc/{host['pid']}/environ").read_bytes().decode().split("\0")
        if "=" in entry
    )
    seen = variables.get("CUDA_VISIBLE_DEVICES", "")
    if len(host["devices"]) != trial.devices or len(seen.split(",")) != trial.devices:
        raise CheckFailedError(f"leased {host['devices']}, the engine sees CUDA_VISIBLE_DEVICES={seen!r}")
    return {"leased": host["devices"], "visible": seen}


def beside_raw_generate(trial: Trial) -> dict[str, Any]:
    """Compare tokens per second with `LLM.generate` of the same vLLM, prompts and options."""
    _needs_vllm(trial)
    # On a CPU the product computes in float32 where 16 bits are slow; raw vLLM does not.
    spec = _vllm(trial, **_RAW_LOAD, options={} if trial.gpus else {"dtype": "float32"})
    trial.run(spec)
    ours = trial.run(spec)
    trial.down()  # both need the card
    asked = {
        "model": trial.model,
        "prompts": spec["spec"]["data"]["items"],
        "tokens": _RAW_LOAD["tokens"],
        "options": spec["spec"]["model"]["vllm"],
    }
    seconds = max(1.0, trial.deadline - time.monotonic())
    command = [_interpreter(trial), str(_RAW)]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise CheckFailedError(f"LLM.generate {TOO_LATE}") from None
    if done.returncode != 0:
        raise CheckFailedError(f"LLM.generate: {done.stderr.strip().splitlines()[-1:]}")
    raw = json.loads(done.stdout.splitlines()[-1])["tokens_per_second"]
    if ours.tokens_per_second is None:
        raise CheckFailedError("the result does not say how long the engine worked")
    ratio = round(ours.tokens_per_second / raw, 3)
    return {"tokens_per_second": ours.tokens_per_second, "raw_tokens_per_second": raw, "ratio": ratio}


def turns(trial: Trial) -> dict[str, Any]:
    """Let two engines that need the whole card take turns: the idle one sleeps, and wakes with the same answers."""
    _needs_gpu(trial)
    trial.down()
    one, two = _vllm(trial), _vllm(trial, options={"max_model_len": 2 * _MODEL_LEN})
    first = trial.run(one)
    slept = trial.run(two)
    if not any(host["asleep"] for host in _engines(trial)):
        raise CheckFailedError("the idle engine does not sleep")
    woken = trial.run(one)
    if woken.outputs != first.outputs:
        raise CheckFailedError("the engine gave other answers after its sleep")
    trial.down()
    return {"cold_seconds": first.seconds, "other_cold_seconds": slept.seconds, "wake_seconds": woken.seconds}


def packing(trial: Trial) -> dict[str, Any]:
    """Keep two small engines on one card at a time, each with a share of its memory."""
    _needs_gpu(trial)
    trial.down()
    for length in (_MODEL_LEN, 2 * _MODEL_LEN):
        spec = _vllm(trial, options={"max_model_len": length})
        spec["spec"]["resources"]["hardware"]["gpu"]["memory"] = GPU_MEMORY
        trial.run(spec)
    awake = [host for host in _engines(trial) if not host["asleep"]]
    if len(awake) < 2:
        raise CheckFailedError("only one engine is awake")
    return {"engines": len(awake), "in_use_gib": _gib(trial.card_memory())}


def adapter(trial: Trial) -> dict[str, Any]:
    """Train a LoRA adapter and generate with it."""
    _needs_vllm(trial)
    trained = trial.run(training(LORA_SFT, trial.model, steps=2, gpus=trial.devices))
    folder = str((trained.folder or Path()) / "final_lora")
    done = trial.run(_vllm(trial, more={"adapters": [{"type": "lora", "name": "selftest", "path": folder}]}))
    return {"training_seconds": trained.seconds, "seconds": done.seconds, "answers": len(done.outputs)}


def cancel(trial: Trial) -> dict[str, Any]:
    """Cancel a long task: it ends at once, and its engine serves the next one."""
    _needs_vllm(trial)
    process = trial.start(_vllm(trial, **_LONG))
    trial.until(lambda: "generating" in trial.log_of_latest(), "the start of the generation")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    trial.wait(process)
    seconds = round(time.monotonic() - began, 1)
    if process.returncode == 0:
        raise CheckFailedError("the task ended before it could be cancelled")
    after = trial.run(_vllm(trial))
    return {"cancel_seconds": seconds, "next_task_seconds": after.seconds}


def killed(trial: Trial) -> dict[str, Any]:
    """Kill the engine's process in the middle of a task: the task goes on in a new one and loses no row."""
    _needs_vllm(trial)
    began = time.monotonic()
    process = trial.start(_vllm(trial, **_LONG))
    trial.until(lambda: "generating" in trial.log_of_latest(), "the start of the generation")
    for host in _engines(trial):
        os.kill(host["pid"], signal.SIGKILL)
    done = trial.finish(process, began)
    if len(done.outputs) != _LONG["rows"]:
        raise CheckFailedError(f"{len(done.outputs)} of {_LONG['rows']} rows are there")
    return {"seconds": done.seconds, "rows": len(done.outputs)}


def with_transformers(trial: Trial) -> dict[str, Any]:
    """Generate with transformers, on a GPU in bfloat16."""
    options = {"dtype": "bfloat16" if trial.gpus else "float32"}
    done = trial.run(inference(trial.model, gpus=trial.devices, engine="transformers", options=options))
    return {"seconds": done.seconds, "answers": len(done.outputs), **options}


def tensor_parallel(trial: Trial) -> dict[str, Any]:
    """Run one engine on two cards."""
    _needs_gpu(trial, 2)
    trial.down()
    spec = inference(trial.model, gpus=2, options={"max_model_len": _MODEL_LEN, "tensor_parallel_size": 2})
    done = trial.run(spec)
    return {"seconds": done.seconds, "tokens_per_second": done.tokens_per_second}


def memory_is_free(trial: Trial) -> dict[str, Any]:
    """End everything and compare the memory of the cards with that of the beginning."""
    if not trial.gpus:
        raise NotHereError("no GPU")
    used = trial.card_memory()
    trial.down()
    trial.until(
        lambda: trial.card_memory() <= trial.baseline + _FREE_BYTES,
        f"free memory ({_gib(trial.baseline)} GiB were in use at the beginning)",
        _FREE_SECONDS,
    )
    return {
        "before_gib": _gib(trial.baseline),
        "in_use_gib": _gib(used),
        "after_gib": _gib(trial.card_memory()),
    }


def _vllm(
    trial: Trial,
    *,
    rows: int = 8,
    tokens: int = 16,
    options: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    engine = {"max_model_len": _MODEL_LEN, **(options or {})}
    return inference(trial.model, rows=rows, tokens=tokens, gpus=trial.devices, options=engine, more=more)


def _engines(trial: Trial) -> list[dict[str, Any]]:
    return [host for host in trial.hosts() if "vllm" in host["executor"].lower()]


def _environment(trial: Trial) -> str:
    return "vllm" if trial.gpus else "vllm-cpu"


def _interpreter(trial: Trial) -> str:
    settings = get_settings()
    return interpreter_of(_environment(trial), settings.home, settings.python)


def _needs_vllm(trial: Trial) -> None:
    name = _environment(trial)
    if name not in trial.environments:
        raise NotHereError(f"the environment {name} is not built (mloc env create {name})")


def _needs_gpu(trial: Trial, count: int = 1) -> None:
    if trial.gpus < count:
        raise NotHereError("no GPU" if count == 1 else f"fewer than {count} GPUs")
    _needs_vllm(trial)


def _gib(size: int) -> float:
    return round(size / 2**30, 2)
