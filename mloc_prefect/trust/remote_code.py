"""Everything that can run code that comes with a spec, a model or a data set, and the operator's consent to it.

Standard library only. What runs code is listed here and nowhere else:

* `trust_remote_code` in every block that has it: Python modules of models, tokenizers and data sets (`CODE_FLAGS`).
* Arguments of vLLM's engine that are not plain values: classes, plug-ins, parsers, settings of transfers and
  compilation, and overrides of a model's configuration, whose fields name classes (all but `VLLM_PLAIN`).
* Sections of a DeepSpeed configuration beside those of the training itself (`DEEPSPEED_PLAIN`): trackers that call
  hosts, profilers that write files, compilers.
* Adapters whose configuration names modules (`adapter_fault`).
* `rewards[].path`: functions, by the setting `MLOC_ALLOWED_REWARDS` (`executors.training.rewards.scorers`).

What does not run code, and so needs no consent: weights in pickles (torch reads them with `weights_only`), chat
templates (rendered in the sandbox of transformers), and loading scripts of data sets (the library no longer has them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTING = "MLOC_ALLOW_REMOTE_CODE"
FLAG = "trust_remote_code"
_FALSE = frozenset({"false", "no", "off", "0", ""})
_SHOWN = 80  # characters of a name in messages

CODE_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "model.source": (("model.source.identifier",), "model.source.revision"),
    "model.transformers": (("model.source.identifier",), "model.source.revision"),
    "model.vllm": (("model.source.identifier",), "model.source.revision"),
    "reward_model": (("reward_model.identifier",), "reward_model.revision"),
    "data": (("data.url", "data.dataset_name"), "data.revision"),
    "training": ((), ""),
}
"""Blocks that may have `trust_remote_code`, each with the fields that name what is trusted, and with its revision."""

_WEIGHTS_FROM_ELSEWHERE = ("checkpoint.load", "training.resume_from_path")

_PLAIN = """
all2all_backend allow_deprecated_quantization async_scheduling attention_backend block_size convert
cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params
cudagraph_capture_sizes cudagraph_metrics custom_histogram_buckets dbo_decode_token_threshold
dbo_prefill_token_threshold dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate
decode_context_parallel_size disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
disable_hybrid_kv_cache_manager disable_log_stats disable_sliding_window distributed_timeout_seconds dtype
enable_batch_sharded_sampling enable_chunked_prefill enable_cumem_allocator enable_dbo enable_ep_weight_filter
enable_eplb enable_expert_parallel enable_flashinfer_autotune enable_hc_sp enable_lora
enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint enable_mixed_moe_lora_format
enable_mm_processor_stats enable_moe_shared_loras enable_prefix_caching enable_sleep_mode
enable_tower_connector_lora enforce_eager expert_placement_strategy fully_sharded_loras gdn_prefill_backend
gpu_memory_utilization ignore_patterns interleave_mm_strings kda_decode_backend kda_prefill_backend kv_cache_dtype
kv_cache_dtype_skip_layers kv_cache_memory_bytes kv_cache_metrics kv_cache_metrics_sample kv_offloading_backend
kv_offloading_size kv_sharing_fast_prefill language_model_only limit_mm_per_prompt linear_backend log_level
logprobs_mode long_prefill_token_threshold long_prefill_token_threshold_adaptive lora_dtype lora_target_modules
mamba_backend mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds mamba_ssm_cache_dtype
mamba_ssu_algorithm max_cpu_loras max_cudagraph_capture_size max_logprobs max_lora_rank max_loras max_model_len
max_num_active_seqs max_num_batched_tokens max_num_queued_reqs max_num_queued_tokens max_num_scheduled_tokens
max_num_seqs max_parallel_loading_workers mm_encoder_attn_dtype mm_encoder_only mm_encoder_tp_mode
mm_hasher_algorithm mm_processor_cache_gb mm_processor_cache_type model_impl moe_backend num_gpu_blocks_override
numa_bind offload_group_size offload_num_in_group offload_params offload_prefetch_step optimization_level
override_generation_config performance_mode pipeline_parallel_size prefill_context_parallel_size
prefill_schedule_interval prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit
pt_load_map_location quantization safetensors_load_strategy safetensors_prefetch_block_size
safetensors_prefetch_num_threads scheduler_reserve_full_isl scheduling_policy seed served_model_name
show_hidden_metrics_for_version skip_mm_profiling skip_tokenizer_init sparse_indexer_topk_backend
specialize_active_lora stream_interval swa_bounded_replay swap_space tensor_parallel_size tokenizer_revision
ubatch_size use_fp64_gumbel use_tqdm_on_load video_pruning_rate watermark
"""
VLLM_PLAIN = frozenset(_PLAIN.split())
"""Arguments of vLLM's engine that are numbers, flags and words of its own: they run and read nothing."""

_FORMATS = "auto dummy fastsafetensors gguf hf mistral npcache pt safetensors sharded_state"
VLLM_WORDS: dict[str, frozenset[str]] = {
    "distributed_executor_backend": frozenset({"uni", "mp", "ray", "external_launcher"}),
    "load_format": frozenset(_FORMATS.split()),
    "tokenizer_mode": frozenset({"auto", "hf", "slow", "mistral"}),
    "config_format": frozenset({"auto", "hf", "mistral"}),
}
"""Arguments that are plain if they have one of these words; other values name classes, plug-ins or loaders."""

_SECTIONS = """
activation_checkpointing aio amp bf16 bfloat16 communication_data_type data_types disable_allgather dump_state fp16
fp32_allreduce gradient_accumulation_steps gradient_clipping gradient_predivide_factor memory_breakdown optimizer
prescale_gradients scheduler seq_parallel_communication_data_type sparse_gradients steps_per_print torch_autocast
train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown zero_allow_untested_optimizer
zero_force_ds_cpu_optimizer zero_optimization
"""
DEEPSPEED_PLAIN = frozenset(_SECTIONS.split())
"""Sections of a DeepSpeed configuration that only say how to train; paths in them are judged as paths."""

_SET_ELSEWHERE = frozenset({"model", "revision", "runner"})  # the engine's own error names the right field


@dataclass(frozen=True, slots=True)
class CodeProblem:
    """A value that runs code without the operator's consent.

    Attributes:
        path: Its path below `spec`.
        message: What it runs.
        fix: How the operator can allow it.
    """

    path: tuple[str | int, ...]
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class CodeConsent:
    """What `MLOC_ALLOW_REMOTE_CODE` says: `off`, `on`, or the names of models and data sets.

    Attributes:
        everything: Whether any code may run.
        names: Models and data sets whose code may run; `org/*` means all of that owner, `name@revision` a revision.
    """

    everything: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> CodeConsent:
        """Read the setting."""
        words = tuple(word.strip() for word in text.split(",") if word.strip())
        if len(words) == 1 and words[0].lower() in {"on", "true", "yes", "1", "off", "false", "no", "0"}:
            return cls(everything=words[0].lower() in {"on", "true", "yes", "1"})
        return cls(names=words)

    def covers(self, name: str | None) -> bool:
        """Return whether the code of a model or data set may run; None: of something that has no name."""
        return self.everything or (name is not None and any(_matches(name, allowed) for allowed in self.names))

    def problems(
        self, spec: Mapping[str, Any], vllm_paths: tuple[str, ...], *, filled: bool = False
    ) -> Iterator[CodeProblem]:
        """Yield every value of a spec that runs code without consent.

        Args:
            spec: The spec; flags that are not known yet (`${...}`) are left for later.
            vllm_paths: Arguments of vLLM's engine that name files, which are judged as paths.
            filled: Whether references are filled in: a `${` that is left is plain text.
        """
        if self.everything:
            return
        for block, (names, revision) in CODE_FLAGS.items():
            options = _at(spec, block)
            if not isinstance(options, Mapping) or not _is_set(options.get(FLAG), filled=filled):
                continue
            name = _named(spec, names, revision)
            if any(_at(spec, where) for where in _WEIGHTS_FROM_ELSEWHERE) and block.startswith("model."):
                name = None  # the code would be that of the checkpoint
            if not self.covers(name):
                what = f"that comes with {_shown(name)}" if name else "that comes with what the task loads"
                fix = f"the operator can allow it with {SETTING}={name if name else 'on'}"
                yield CodeProblem((*block.split("."), FLAG), f"{FLAG} runs Python code {what}", fix)
        yield from self._engine_problems(spec, vllm_paths, filled=filled)
        deepspeed = _at(spec, "training.deepspeed")
        for name in odd_sections(deepspeed) if isinstance(deepspeed, Mapping) else ():
            message = (
                f"{_shown(name)} of DeepSpeed is not about the training: it may call hosts, write files or run code"
            )
            allow = f"remove it; the operator can allow it with {SETTING}=on"
            yield CodeProblem(("training", "deepspeed", name), message, allow)

    def _engine_problems(
        self, spec: Mapping[str, Any], vllm_paths: tuple[str, ...], *, filled: bool
    ) -> Iterator[CodeProblem]:
        arguments = _at(spec, "model.vllm")
        if not isinstance(arguments, Mapping) or not arguments:
            return
        known = VLLM_PLAIN | _SET_ELSEWHERE | {FLAG, *vllm_paths}
        for name, value in arguments.items():
            if value is None or name in known or (not filled and has_reference(value)):
                continue
            if name in VLLM_WORDS and str(value).strip() in VLLM_WORDS[name]:
                continue
            message = f"{_shown(str(name))} is not a plain value for vLLM: it may name code, files or hosts"
            near = did_you_mean(str(name), known)
            allow = f"the operator can allow it with {SETTING}=on"
            yield CodeProblem(("model", "vllm", name), message, f"{near} Otherwise {allow}" if near else allow)


def odd_sections(config: Mapping[str, Any]) -> list[str]:
    """Return the sections of a DeepSpeed configuration that need consent."""
    return [str(name) for name, value in config.items() if str(name) not in DEEPSPEED_PLAIN and value is not None]


def adapter_fault(config: Mapping[str, Any]) -> str | None:
    """Return why an adapter is refused, None for plain LoRA: other kinds name modules and files."""
    kind = str(config.get("peft_type") or "LORA").upper()
    if kind != "LORA":
        return f"its peft_type is {_shown(kind)}, and only LORA is loaded"
    named = [name for name in ("megatron_config", "corda_config", "auto_mapping") if config.get(name)]
    if named == ["auto_mapping"] or not named:  # a class of a library, which PEFT does not import here
        return None
    return f"its {named[0]} names modules or files, which are not loaded"


def _named(spec: Mapping[str, Any], names: tuple[str, ...], revision: str) -> str | None:
    """Return what a flag trusts: the name, with `@revision` if there is one; None without a name."""
    found = next((value for name in names if (value := _at(spec, name)) not in (None, "")), None)
    if found is None:
        return None
    at = _at(spec, revision)
    return str(found).strip() if at in (None, "") else f"{str(found).strip()}@{str(at).strip()}"


def _matches(name: str, allowed: str) -> bool:
    if not allowed.endswith("/*"):
        return name == allowed
    owner, _, rest = name.partition("/")
    return owner == allowed[:-2] and "@" not in rest and fnmatchcase(rest, "[A-Za-z0-9_]*") and "/" not in rest


def has_reference(value: Any) -> bool:
    """Return whether a value is text that may hold a reference, `${...}`."""
    return isinstance(value, str) and "${" in value


def _is_set(value: Any, *, filled: bool) -> bool:
    if value is None or (not filled and has_reference(value)):
        return False
    return str(value).strip().lower() not in _FALSE


def _at(value: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if path else None


def _shown(text: str | None) -> str:
    text = text or ""
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
