"""The vLLM environment of the tests, built once per checkout by `mloc env create`; and a random LoRA adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_HOME = Path(__file__).parents[2] / ".cache"
_MAIN = "from mloc_prefect.cli import main; main()"


def vllm_python() -> Path:
    """Return the interpreter of the environment `vllm-cpu` (the first call takes several minutes)."""
    env = {**os.environ, "MLOC_HOME": str(_HOME)}
    command = [sys.executable, "-c", _MAIN, "env", "create", "vllm-cpu"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().rpartition(": ")[2])


def save_adapter(folder: Path, model: Path, *, seed: int = 0, rank: int = 8, strength: float = 0.05) -> Path:
    """Save a random LoRA adapter for the query and value projections of the Llama in `model`."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    values = width // config["num_attention_heads"] * config["num_key_value_heads"]
    torch.manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for name, size in (("q_proj", width), ("v_proj", values)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(rank, width) * strength
            weights[f"{stem}.lora_B.weight"] = torch.randn(size, rank) * strength
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(folder / "adapter_model.safetensors"))
    facts = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"]}
    more = {"bias": "none", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps({**facts, **more}))
    return folder
