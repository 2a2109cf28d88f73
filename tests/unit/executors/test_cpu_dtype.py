"""Which numbers vLLM and transformers compute with on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mloc_prefect.executors.common import cpu_dtype
from mloc_prefect.executors.common.model_options import ModelOptions
from tests.unit.executors.test_vllm_mapping import request_for

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu_dtype, "_CPUINFO", info)
    monkeypatch.setattr(cpu_dtype.platform, "machine", lambda: "x86_64")
    return info


@pytest.mark.parametrize(
    ("info", "dtype"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx avx2 fma\n", "float32"),
        ("processor\t: 0\nflags\t\t: fpu avx avx2 fma avx512f avx512bw\n", None),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx_ne_convert\n", None),
        ("processor\t: 0\n", None),
    ],
)
def test_a_cpu_without_16_bit_products_computes_in_32_bits(cpu: Path, info: str, dtype: str | None) -> None:
    cpu.write_text(info)
    assert request_for({}).engine_arguments().get("dtype") == dtype
    assert request_for({"dtype": "bfloat16"}).engine_arguments()["dtype"] == "bfloat16"
    assert "dtype" not in request_for({}, on_cpu=False).engine_arguments()


def test_without_knowledge_of_the_cpu_vllm_decides(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cpu.exists()
    assert not cpu_dtype.slow_in_16_bits()
    cpu.write_text("flags\t: fpu avx2\n")
    assert cpu_dtype.slow_in_16_bits()
    monkeypatch.setattr(cpu_dtype.platform, "machine", lambda: "aarch64")
    assert not cpu_dtype.slow_in_16_bits()


def test_transformers_too(cpu: Path) -> None:
    cpu.write_text("flags\t: fpu avx2\n")
    assert ModelOptions().loading_dtype("cpu") == "float32"
    assert ModelOptions(dtype="bfloat16").loading_dtype("cpu") == "bfloat16"
    assert ModelOptions().loading_dtype("cuda") == "auto"
    cpu.write_text("flags\t: fpu avx2 avx512bw\n")
    assert ModelOptions().loading_dtype("cpu") == "auto"
