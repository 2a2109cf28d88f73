"""Unpacks a GGUF file into safetensors, configuration and tokenizer. Run as a script, in its own process.

    python -P convert_gguf.py MODEL.gguf OUTPUT_DIR

Progress goes to standard output, one JSON object per line: {"text": ..., "fraction": 0..1}. The script imports nothing
of our package, so that any interpreter with `transformers[torch]` and `gguf` can run it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description="Unpack a GGUF file into a transformers folder.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.output)


def convert(gguf: Path, output: Path) -> None:
    """Write the model in `gguf` to the folder `output`.

    The weights are unpacked in float32 (as the kernels of the quantized form compute) and saved as bfloat16, the format
    of the original checkpoint: half the size, and up to twice as fast on a CPU that supports bfloat16.
    """
    _report("importing torch", 0.0)
    os.environ["HF_HUB_OFFLINE"] = "1"  # the file is complete; contacting the hub would only take time
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    _report("reading the tokenizer", 0.2)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.padding_side = "left"
    _report("unpacking the weights", 0.4)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    _report("saving", 0.9)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    if not tokenizer.chat_template:
        sys.exit(f"{gguf} has no chat template")
    _report("saved", 1.0)


def _report(text: str, fraction: float) -> None:
    sys.stdout.write(json.dumps({"text": text, "fraction": fraction}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
