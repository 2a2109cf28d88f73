"""The estimate of the memory that a training needs, against numbers worked out by hand."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors import training_memory
from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.training_arguments import Options
from mloc_prefect.executors.training_lengths import Lengths
from mloc_prefect.executors.training_memory import Estimate, check_fit, estimate_of

GIB = 1 << 30


class Config(SimpleNamespace):
    def get_text_config(self) -> Config:
        return self


# Llama 3.1 8B: 8.03 billion parameters.
LLAMA = Config(
    num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
    vocab_size=128256, hidden_act="silu", tie_word_embeddings=False,
)  # fmt: skip


def job(kind: Any, training: dict[str, Any] | None = None, *, cuda: bool = True, **spec: Any) -> Any:
    spec = {"training": {"gradient_checkpointing": False, **(training or {})}, **spec}
    logs: list[str] = []
    return SimpleNamespace(
        options=Options.of(kind, Fields(spec)),
        spec=Fields(spec),
        cuda=cuda,
        group=SimpleNamespace(world=1),
        lengths=Lengths(10, 512, 1024, 0, 0),
        request=SimpleNamespace(settings={}),
        context=SimpleNamespace(log=lambda text, level: logs.append(text)),
        logs=logs,
    )


def terms(wanted: Any) -> dict[str, float]:
    estimate = estimate_of(wanted, LLAMA, None)
    assert estimate is not None
    return {name: size / GIB for name, size in estimate.terms}


def test_all_weights_in_float32() -> None:
    found = terms(job("sft"))
    assert found["parameters"] == pytest.approx(8.03e9 * 4 / GIB, rel=0.01)
    assert found["gradients"] == found["parameters"]
    assert found["optimiser (Adam)"] == 2 * found["parameters"]
    assert found["activations"] == pytest.approx(32 * 68 * 2 * 512 * 4096 / GIB)


def test_what_each_remedy_changes() -> None:
    plain = terms(job("sft"))
    lora = terms(job("lora_sft", {"bf16": True}))
    assert lora["parameters"] == pytest.approx(plain["parameters"] / 2, rel=0.02)
    assert lora["optimiser (Adam)"] < 0.2
    assert terms(job("sft", {"bf16": True}))["activations"] == plain["activations"] / 2
    again = terms(job("sft", {"gradient_checkpointing": True}))
    assert again["activations"] == pytest.approx(plain["activations"] * 98 / (34 * 32))
    assert terms(job("sft", {"batch_size": 1}))["activations"] == plain["activations"] / 2


def test_models_beside_the_one_in_training() -> None:
    assert "reference model" not in terms(job("sft"))
    assert terms(job("dpo"))["reference model"] == pytest.approx(8.03e9 * 4 / GIB, rel=0.01)
    assert "reference model" not in terms(job("dpo", lora={}))
    ppo = terms(job("ppo"))
    assert ppo["value model with its optimiser"] == pytest.approx(8.03e9 * 16 / GIB, rel=0.01)


def test_a_warning_names_the_largest_terms_and_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_memory, "_room", lambda _job: 80 * GIB)
    wanted = job("sft")
    estimate = check_fit(wanted, LLAMA)
    assert estimate is not None
    assert not estimate.fits
    assert len(wanted.logs) == 1
    assert re.match(
        r"the training needs about 1[34]\d\.\d GiB, and there are 80\.0 GiB: optimiser \(Adam\) 59\.8 GiB, .*; "
        r"try LoRA \(lora_sft, or a lora block\), or bf16: true$",
        wanted.logs[0],
    ), wanted.logs
    fits = job("lora_sft", {"bf16": True})
    check_fit(fits, LLAMA)
    assert fits.logs == []


@pytest.mark.parametrize("way", ["strict", "error"])
def test_it_is_an_error_when_warnings_are(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_memory, "_room", lambda _job: 80 * GIB)
    wanted = job("sft", {"fit_check": "error"} if way == "error" else {})
    wanted.request.settings["strict"] = way == "strict"
    with pytest.raises(UserError, match="the training needs about"):
        check_fit(wanted, LLAMA)
    ignored = job("sft", {"fit_check": "ignore"})
    assert check_fit(ignored, LLAMA) is None
    assert ignored.logs == []


def test_without_a_gpu_the_request_of_the_spec_counts() -> None:
    wanted = job("sft", cuda=False, resources={"hardware": {"memory": "1Gi"}})
    estimate = check_fit(wanted, LLAMA)
    assert estimate is not None
    assert estimate.room == GIB


def test_processes_without_a_gpu_share_the_memory_of_the_machine() -> None:
    wanted = job("sft", cuda=False, resources={"hardware": {"memory": "1Gi"}})
    wanted.group.world = 4
    estimate = check_fit(wanted, LLAMA)
    assert estimate is not None
    assert estimate.room == GIB // 4


@pytest.mark.parametrize(("share", "room"), [("1", 80), ("0.25", 20)])
def test_a_part_of_a_card_is_all_the_room(share: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=80 * GIB)
    cuda = SimpleNamespace(current_device=lambda: 1, get_device_properties=lambda device: {1: properties}[device])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    monkeypatch.setenv("MLOC_GPU_SHARE", share)
    estimate = check_fit(job("lora_sft"), LLAMA)
    assert estimate is not None
    assert estimate.room == room * GIB


def test_configurations_that_do_not_say_enough() -> None:
    assert estimate_of(job("sft"), Config(hidden_size=8), None) is None
    assert Estimate((("parameters", 10),), None).fits
