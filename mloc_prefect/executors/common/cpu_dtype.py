"""Detects whether this CPU computes well in 16 bits."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# oneDNN multiplies matrices of 16-bit floats from AVX-512 on, and on later small cores with AVX-NE-CONVERT.
_FLAGS_16_BIT = frozenset({"avx512bw", "amx_bf16", "avx_ne_convert"})


def slow_in_16_bits() -> bool:
    """Return whether this is an x86 processor that computes products of bfloat16 numbers one by one.

    Weights widened to float32 then compute two to three times as fast, with twice the memory.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return False  # unknown: keep the default of the library
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), None)
    return flags is not None and not _FLAGS_16_BIT.intersection(flags)
