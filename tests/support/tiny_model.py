"""A random Llama with a byte-level tokenizer, saved in a fraction of a second without a network."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def save_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    window: int = 64,
    chat: bool = True,
    hidden: int = 32,
    heads: int = 4,
    shard: str = "1GB",
) -> Path:
    """Save a model and its tokenizer to `folder`: float32, one token per byte, `window` positions.

    Args:
        folder: Created if missing.
        seed: Different seeds give different weights and answers.
        window: Largest number of tokens that it reads.
        chat: Whether the tokenizer has a chat template.
        hidden: Width.
        heads: Attention heads; vLLM requires a width of at least 32 per head.
        shard: Largest size of one weight file.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", *letters])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<pad>", "<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=window,
        initializer_range=0.6,  # sharp enough that answers differ between prompts
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


def with_nan(folder: Path) -> Path:
    """Replace a weight of a saved model by NaN, as after a broken merge, and return its folder."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def cut_short(model: Path, folder: Path) -> Path:
    """Copy a model to `folder`, with its weights truncated as by an interrupted copy."""
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])
    return folder


def reshaped(model: Path, folder: Path) -> Path:
    """Copy a model to `folder`, with a configuration of twice the width of its weights."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": config["intermediate_size"] * 2}))
    return folder
