"""The estimate of the memory that a training needs, against numbers worked out by hand."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training import trainer_arguments
from mloc_prefect.executors.training.estimate import memory_estimate
from mloc_prefect.executors.training.estimate.memory_estimate import Estimate, check_fit, estimate_of
from mloc_prefect.executors.training.row_lengths import Lengths
from mloc_prefect.executors.training.trainer_arguments import TrainerOptions

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
        options=TrainerOptions.of(kind, SpecReader(spec)),
        spec=SpecReader(spec),
        cuda=cuda,
        group=SimpleNamespace(world=1),
        lengths=Lengths(10, 512, 1024, 0, 0),
        sources=SourceLookup.of({"home": "/nowhere"}),
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
    assert found["optimizer (Adam)"] == 2 * found["parameters"]
    assert found["activations"] == pytest.approx(32 * 68 * 2 * 512 * 4096 / GIB)


def test_what_each_remedy_changes() -> None:
    plain = terms(job("sft"))
    lora = terms(job("lora_sft", {"bf16": True}))
    assert lora["parameters"] == pytest.approx(plain["parameters"] / 2, rel=0.02)
    assert lora["optimizer (Adam)"] < 0.2
    assert terms(job("sft", {"bf16": True}))["activations"] == plain["activations"] / 2
    again = terms(job("sft", {"gradient_checkpointing": True}))
    assert again["activations"] == pytest.approx(plain["activations"] * 98 / (34 * 32))
    assert terms(job("sft", {"batch_size": 1}))["activations"] == plain["activations"] / 2


def test_models_beside_the_one_in_training() -> None:
    assert "reference model" not in terms(job("sft"))
    assert terms(job("dpo"))["reference model"] == pytest.approx(8.03e9 * 4 / GIB, rel=0.01)
    assert "reference model" not in terms(job("dpo", lora={}))
    ppo = terms(job("ppo"))
    assert ppo["value model with its optimizer"] == pytest.approx(8.03e9 * 16 / GIB, rel=0.01)


@pytest.mark.parametrize(
    ("training", "there"),
    [
        ({}, False), ({"beta": 0}, False), ({"beta": 0.04}, True), ({"kl_coef": "0.1"}, True),
        ({"init_kl_coef": 0.2}, True), ({"beta": 0.04, "kl_coef": 0.0}, False),
    ],
)  # fmt: skip
def test_grpo_has_a_reference_only_when_it_is_held_near_one(training: dict[str, Any], there: bool) -> None:
    assert ("reference model" in terms(job("grpo", training))) is there


def batch_terms(wanted: Any, lengths: Lengths) -> tuple[float, float]:
    wanted.lengths = lengths
    found = terms(wanted)
    return found["activations"], found["logits"]


@pytest.mark.parametrize("kind", ["sft", "lora_sft"])
def test_packed_rows_are_as_long_as_the_limit(kind: Any) -> None:
    training = {"max_seq_length": 4096, "batch_size": 4}
    full, short, few = (Lengths(1000, 4096, 4096, 0, 0), Lengths(1000, 128, 4096, 0, 0), Lengths(8, 128, 4096, 0, 0))
    packed = {**training, "packing": True}
    assert batch_terms(job(kind, packed), short) == batch_terms(job(kind, training), full)
    assert batch_terms(job(kind, packed), few) == batch_terms(job(kind, training), Lengths(8, 1024, 4096, 0, 0))
    assert batch_terms(job(kind, training), short)[0] < batch_terms(job(kind, packed), short)[0] / 20


@pytest.mark.parametrize("kind", ["ppo", "grpo", "sft", "dpo"])
def test_what_is_cut_does_not_count(kind: Any) -> None:
    cut, whole = Lengths(10, 9000, 768, 10, 0), Lengths(10, 768, 768, 0, 0)
    assert batch_terms(job(kind), cut) == batch_terms(job(kind), whole)


def test_quantised_weights_count_as_they_lie() -> None:
    whole = terms(job("lora_sft", {"bf16": True}))["parameters"]
    layers, ends = 6.98e9, 1.05e9  # the embeddings stay in 16 bits
    for option, size in (("load_in_4bit", 0.5625), ("load_in_8bit", 1.0)):
        found = terms(job("lora_sft", {"bf16": True}, model={"transformers": {option: True}}))["parameters"]
        assert found == pytest.approx((layers * size + ends * 2) / GIB, rel=0.02)
        assert found < whole * 0.65


@pytest.mark.parametrize(
    ("optim", "name", "size"),
    [
        ("adamw_torch", "Adam", 8), ("sgd", "sgd", 0), ("adafactor", "adafactor", 0), ("adamw_8bit", "adamw_8bit", 2),
        ("adamw_torch_4bit", "adamw_torch_4bit", 1), ("paged_adamw_32bit", "paged_adamw_32bit", 8),
        ("lion_8bit", "lion_8bit", 1), ("adagrad", "adagrad", 4), ("schedule_free_adamw", "schedule_free_adamw", 8),
    ],
)  # fmt: skip
def test_the_states_of_the_optimizer_that_is_asked_for(optim: str, name: str, size: int) -> None:
    found = terms(job("sft", {"optim": optim}))
    assert found[f"optimizer ({name})"] == pytest.approx(found["gradients"] / 4 * size)


@pytest.mark.parametrize(
    ("training", "parameters", "gradients", "optimizer"),
    [
        ({}, 1, 1, 1),
        ({"zero_stage": 1}, 1, 1, 4),
        ({"zero_stage": 2}, 1, 4, 4),
        ({"zero_stage": 3}, 4, 4, 4),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, 1, 1, 1),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, 1, 1, 4),
        ({"deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}}, 1, 4, math.inf),
        ({"deepspeed": {"zero_optimization": {"stage": "x"}}}, 1, 1, 1),
        ({"auto_deepspeed": True}, 1, 4, 4),
        ({"fsdp": True}, 4, 4, 4),
        ({"fsdp": "shard_grad_op auto_wrap"}, 1, 4, 4),
        ({"fsdp": "no_shard"}, 1, 1, 1),
        ({"fsdp": ["full_shard", "offload"]}, math.inf, math.inf, math.inf),
    ],
)
def test_states_are_divided_as_the_training_does_it(
    training: dict[str, Any], parameters: float, gradients: float, optimizer: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_arguments.importlib.util, "find_spec", lambda _name: object())
    whole, wanted = terms(job("sft")), job("sft", training)
    wanted.group.world = 4
    found = terms(wanted)
    assert found["parameters"] == pytest.approx(whole["parameters"] / parameters)
    assert found["gradients"] == pytest.approx(whole["gradients"] / gradients)
    assert found["optimizer (Adam)"] == pytest.approx(whole["optimizer (Adam)"] / optimizer)
    assert wanted.options.notes == []


def test_a_file_of_deepspeed_lies_beside_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_arguments.importlib.util, "find_spec", lambda _name: object())
    wanted = job("sft", {"deepspeed": "zero.json"})
    wanted.group.world, wanted.sources = 4, SourceLookup.of({"home": str(tmp_path), "base_dir": str(tmp_path)})
    with pytest.raises(UserError, match=r"there is no file .*/zero\.json"):
        terms(wanted)
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    assert terms(wanted)["parameters"] == pytest.approx(terms(job("sft"))["parameters"] / 4)


def test_what_is_dropped_divides_nothing() -> None:
    on_cpu = job("sft", {"fsdp": True, "fp16": True}, cuda=False)
    on_cpu.group.world = 4
    assert terms(on_cpu) == terms(job("sft", cuda=False))
    with pytest.raises(UserError, match="deepspeed needs a package that is not installed"):
        terms(job("sft", {"zero_stage": 3}))


def test_a_warning_names_the_largest_terms_and_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "_room", lambda _job: 80 * GIB)
    wanted = job("sft")
    estimate = check_fit(wanted, LLAMA)
    assert estimate is not None
    assert not estimate.fits
    assert len(wanted.logs) == 1
    assert re.match(
        r"the training needs about 1[34]\d\.\d GiB, and there are 80\.0 GiB: optimizer \(Adam\) 59\.8 GiB, .*; "
        r"try LoRA \(lora_sft, or a lora block\), or bf16: true$",
        wanted.logs[0],
    ), wanted.logs
    fits = job("lora_sft", {"bf16": True})
    check_fit(fits, LLAMA)
    assert fits.logs == []


@pytest.mark.parametrize("way", ["strict", "error"])
def test_it_is_an_error_when_warnings_are(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "_room", lambda _job: 80 * GIB)
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
