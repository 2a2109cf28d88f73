"""Tokens per second of `LLM.generate` alone, beside which `mloc selftest` puts its own; run as a script.

Reads `{"model", "prompts", "tokens", "options"}` from standard input and prints `{"tokens_per_second"}`.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Load the model, generate all prompts twice, and print the speed of the second time."""
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    asked = json.load(sys.stdin)
    on_cpu = {"enforce_eager": True, "distributed_executor_backend": "uni"} if current_platform.is_cpu() else {}
    llm = LLM(asked["model"], seed=0, disable_log_stats=True, **on_cpu, **asked["options"])
    sampling = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True)
    seconds, tokens = 0.0, 0
    for _ in range(2):  # the first time warms up
        began = time.perf_counter()
        done = llm.generate(asked["prompts"], sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(row.outputs[0].token_ids) for row in done)
    sys.stdout.write(json.dumps({"tokens_per_second": round(tokens / seconds, 1)}) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
    sys.stdout.flush()
    os._exit(0)  # the engine's threads would hold up the end
