"""Arguments of vLLM's engine from `spec.model.vllm` [protocol 4.2]."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.execution.leased_devices import leased_gpus, leased_share
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.cpu_dtype import slow_in_16_bits
from mloc_prefect.executors.common.model_options import trusts_remote_code
from mloc_prefect.executors.common.threads import wait_passively
from mloc_prefect.trust.spec_inputs import VLLM_INPUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.models_source import ModelLocation

_SET_ELSEWHERE = frozenset({"model", "revision", "runner"})  # the spec has other fields for these
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # supported by vLLM's LoRA kernels
_USED = 0.9  # of the leased memory, MLOC's default [protocol 4.2]
_CPU_KV_SHARE = 1 / 16
_GIB = 1 << 30


@dataclass(frozen=True)
class EngineRequest:
    """The engine that a task needs.

    Attributes:
        fingerprint: Fingerprint of the weights.
        arguments: Keyword arguments of `EngineArgs`, without those of LoRA.
        lora_rank: Smallest LoRA rank that it must support; 0 = no adapter.
    """

    fingerprint: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lora_rank: int = 0

    def served_by(self, held: EngineRequest) -> bool:
        """Return whether the engine made for `held` can run this task; with LoRA it can also run the base model."""
        same = self.fingerprint == held.fingerprint and self.arguments == held.arguments
        return same and self.lora_rank <= held.lora_rank

    def engine_arguments(self) -> dict[str, Any]:
        """Return all keyword arguments of `EngineArgs`."""
        if not self.lora_rank:
            return dict(self.arguments)
        rank = next((r for r in _RANKS if r >= self.lora_rank), self.lora_rank)
        return {"max_lora_rank": rank, "max_loras": 2, **self.arguments, "enable_lora": True}


def engine_request(
    spec: SpecReader,
    location: ModelLocation,
    *,
    lora_rank: int,
    on_cpu: bool,
    known: Collection[str],
    can_sleep: bool = False,
    named: Callable[[str], str] = lambda text: text,
) -> EngineRequest:
    """Return the engine that `spec` needs.

    Args:
        spec: The resolved spec.
        location: Location of the weights.
        lora_rank: Rank of the task's adapter, 0 without one.
        on_cpu: Whether this vLLM runs on the CPU.
        known: Argument names of this vLLM's `EngineArgs`.
        can_sleep: Whether its platform can move weights to RAM and back.
        named: Returns where a model or folder lies that an argument names (`SourceLookup.named`).

    Raises:
        UserError: A field of `model.vllm` is unknown to this vLLM, has an invalid value, or names what may not be read.
    """
    options = spec.child("model").child("vllm")
    given = {name: value for name, value in options.data.items() if value is not None}
    for name in given:
        if name in _SET_ELSEWHERE:
            raise UserError(f"{options.path}.{name} is set in spec.model.source, remove it here")
        if name not in known:
            near = did_you_mean(name, known) or "see vLLM's engine arguments"
            raise UserError(f"{options.path}.{name} is not an engine argument of this vLLM: {near}")
    inputs = {name: named(str(given[name])) for name in VLLM_INPUTS if name in given}
    arguments: dict[str, Any] = {**given, **_typed(options, given), **inputs, "model": location.path}
    if location.commit:
        arguments["revision"] = location.commit
    if trusts_remote_code(spec, options):
        arguments["trust_remote_code"] = True
    arguments.setdefault("seed", 0)
    arguments.setdefault("disable_log_stats", True)
    if on_cpu:
        arguments.pop("gpu_memory_utilization", None)  # applies to GPUs; for the CPU it is VLLM_CPU_KVCACHE_SPACE
        arguments = {**_cpu_defaults(), **arguments, "tensor_parallel_size": 1}
    else:
        arguments.setdefault("gpu_memory_utilization", round(_USED * leased_share(), 4))
        leased = max(1, len(leased_gpus()))
        arguments["tensor_parallel_size"] = min(int(arguments.get("tensor_parallel_size") or leased), leased)
        arguments.setdefault("enable_sleep_mode", can_sleep)
    if arguments["tensor_parallel_size"] == 1:
        arguments.setdefault("distributed_executor_backend", "uni")
    if options.flag("enable_lora", default=False) or lora_rank:
        lora_rank = max(lora_rank, options.integer("max_lora_rank", 0 if lora_rank else 16))
    for name in ("enable_lora", "max_lora_rank"):
        arguments.pop(name, None)
    return EngineRequest(location.fingerprint, arguments, lora_rank)


def prepare_environment() -> None:
    """Set the environment variables that vLLM reads on import; those set by the user win.

    A single process (without a separate EngineCore) starts in a third of the time, and rows need not cross a pipe.
    """
    wait_passively()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_COMPUTE_NANS_IN_LOGITS", "1")  # otherwise a broken model answers with tokens
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cpu_cache_gib()))


def cpu_cache_gib() -> int:
    """Return the GiB of the key-value cache on this CPU: a sixteenth of the memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(32, round(total * _CPU_KV_SHARE / _GIB)))


def _cpu_defaults() -> dict[str, Any]:
    eager = {"enforce_eager": True}  # compiling takes minutes and gains little on a CPU
    return {**eager, "dtype": "float32"} if slow_in_16_bits() else eager


def _typed(options: SpecReader, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of protocol 4.2 with the types that vLLM needs; they may be written as text."""
    typed: dict[str, Any] = {}
    for name in (
        "tensor_parallel_size",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_loras",
        "seed",
    ):
        if name in given:
            typed[name] = options.integer(name, 0, minimum=0 if name == "seed" else 1)
    if "gpu_memory_utilization" in given:
        typed["gpu_memory_utilization"] = options.number("gpu_memory_utilization", 0.9)
    if "enforce_eager" in given:
        typed["enforce_eager"] = options.flag("enforce_eager", default=False)
    return typed
