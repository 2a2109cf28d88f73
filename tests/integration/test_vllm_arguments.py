"""Every argument of the pinned vLLM was judged: it is plain, or it needs the operator's consent."""

from __future__ import annotations

import subprocess

from mloc_prefect.trust.remote_code import FLAG, VLLM_PLAIN, VLLM_WORDS, CodeConsent
from mloc_prefect.trust.spec_inputs import VLLM_INPUTS
from tests.support.vllm_env import vllm_python

_FIELDS = """
import dataclasses
from vllm.engine.arg_utils import AsyncEngineArgs
print("fields:", *(field.name for field in dataclasses.fields(AsyncEngineArgs)))
"""
_ASKED = """
_api_process_count _api_process_rank additional_config aggregate_engine_logging allowed_local_media_path
allowed_media_domains attention_config aux_output_config code_revision collect_detailed_traces compilation_config
data_parallel_address data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb
data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port data_parallel_size
data_parallel_size_local data_parallel_start_rank default_mm_loras device_ids diffusion_config
disable_nccl_for_dp_synchronization dp_sync_interval ec_manager_config ec_transfer_config elastic_ep_max_dp_size
enable_elastic_ep enable_fault_tolerance enable_layerwise_nvtx_tracing enable_log_requests
enable_logging_iteration_details enable_mfu_metrics enable_mm_embeds enable_nccl_comm_suspend enable_prompt_embeds
enable_return_routed_experts enable_shm_tensor_arena enable_trace_replay engram_config eplb_config
fail_on_environ_validation fault_tolerance_config hf_overrides hf_token io_processor_plugin ir_op_priority
jit_monitor_mode jit_monitor_verbose kernel_config kv_events_config kv_transfer_config log_config_file logging_config
logits_processors mamba_config master_addr master_port max_lora_cls_labels media_io_kwargs mm_device_do_normalize
mm_encoder_attn_backend mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path
mm_ipc_gpu_memory_gb mm_processor_device mm_processor_kwargs mm_shm_cache_max_object_size_mb mm_tensor_ipc
model_class_overrides model_loader_extra_config model_weights nnodes node_rank numa_bind_cpus numa_bind_nodes
offload_backend otlp_traces_endpoint per_request_spec_decode_metrics pooler_config profiler_config quantization_config
ray_workers_use_nsight reasoning_config reasoning_parser reasoning_parser_plugin renderer_num_workers
replayssm_buffer_len return_sampling_mask scheduler_cls shutdown_timeout sleep_mode_offload_cudagraph
sleep_preserve_parameter_names spec_method spec_tokens speculative_config structured_outputs_config tokens_only
use_replayssm video_pruning_method watermark_config weight_transfer_config worker_cls worker_extension_cls
"""
"""Arguments that were looked at and need consent: classes, plug-ins, hosts, ports, files, settings of any depth, and
what no task of one engine needs."""
_EARLIER = {"swap_space"}
"""Plain arguments of earlier versions."""


def test_every_argument_of_the_pinned_engine_was_judged() -> None:
    done = subprocess.run([vllm_python(), "-c", _FIELDS], capture_output=True, text=True, check=True, timeout=300)
    line = next(line for line in done.stdout.splitlines() if line.startswith("fields:"))
    fields = set(line.split()[1:])
    passed, asked = {*VLLM_PLAIN, *VLLM_WORDS, *VLLM_INPUTS}, set(_ASKED.split())
    elsewhere = {"model", "revision", "runner", FLAG}
    assert fields - passed - asked - elsewhere == set(), "judge these, here or in trust/remote_code.py"
    assert (asked & passed, asked - fields, passed - fields - _EARLIER) == (set(), set(), set())
    spec = {"model": {"vllm": dict.fromkeys((*asked, "argument_of_a_newer_engine"), "1")}}
    refused = {problem.path[-1] for problem in CodeConsent.of("org/model").problems(spec, VLLM_INPUTS)}
    assert refused == {*asked, "argument_of_a_newer_engine"}
