"""Inference with vLLM.

One engine in one thread serves all tasks of the host. Knows nothing of the transformers executor and training.
Requests name the class as `mloc_prefect.executors.vllm:VllmExecutor`, which stored plans contain.

* `engine_arguments`: `spec.model.vllm` as arguments of vLLM's engine.
* `engine_loop`: the thread that owns the engine.
* `held_engine`: loads, lends, replaces and puts to sleep the engine of the host.
* `load_progress`: reports the steps of loading an engine.
* `raw_generate`: `LLM.generate` alone, for `mloc selftest`; a script.
* `sampling_parameters`: vLLM's `SamplingParams` of one row.
* `score_watch`: finds rows whose scores are NaN.
* `vllm_executor`: the executor class.
* `vllm_rows`: one pass over the missing rows of a task.
* `vllm_sampling`: `spec.inference` for vLLM.
"""

from mloc_prefect.executors.vllm.vllm_executor import VllmExecutor

__all__ = ["VllmExecutor"]
