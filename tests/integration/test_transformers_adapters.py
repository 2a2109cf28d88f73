"""LoRA adapters and checkpoints on the transformers executor, beside peft alone, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import UserError
from tests.support.bench import Bench, outputs
from tests.support.tiny_model import save_tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = ["one", "two words", "a somewhat longer prompt"]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters that change answers, as a `lora_sft` leaves them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
        folders.append(tmp_path_factory.mktemp("adapters") / f"lora-{seed}")
        model.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Bench(tmp_path, tiny)


def answers(bench: Bench, task: str, adapters: Sequence[dict[str, Any]] = (), **more: Any) -> list[str]:
    model = {"source": {"identifier": str(bench.model)}, "adapters": list(adapters)}
    spec = {"model": model, "data": {"type": "list", "items": WORDS}, "inference": GREEDY, **more}
    return outputs(bench.run(spec, task))


def by_peft(tiny: Path, adapter: Path) -> list[str]:
    """Return what peft and transformers alone say, with the weights merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), adapter).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    found = []
    for word in WORDS:
        ids = tokenizer(word, return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=12, do_sample=False)
        found.append(tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def test_adapters_and_the_base_take_turns_on_one_model(bench: Bench, tiny: Path, adapters: list[Path]) -> None:
    base = answers(bench, "base")
    held = bench.executor._engine
    first, second = (answers(bench, a.name, [{"path": str(a)}]) for a in adapters)
    assert [first, second] == [by_peft(tiny, adapter) for adapter in adapters]
    assert len({tuple(base), tuple(first), tuple(second)}) == 3
    assert answers(bench, "base again") == base
    assert answers(bench, "first again", [{"path": str(adapters[0])}]) == first
    assert answers(bench, "nothing of it", [{"path": str(adapters[0]), "scale": 0.0}]) == base
    assert bench.executor._engine is held


def test_two_adapters_act_together(bench: Bench, adapters: list[Path]) -> None:
    alone = answers(bench, "alone", [{"path": str(adapters[0])}])
    both = [{"path": str(adapters[0])}, {"path": str(adapters[1])}, {"path": str(adapters[1]), "scale": -1.0}]
    assert answers(bench, "both", both) == alone


def test_a_checkpoint_is_an_adapter_or_a_whole_model(bench: Bench, tiny: Path, adapters: list[Path]) -> None:
    load = {"checkpoint": {"load": {"path": str(adapters[1])}}}
    assert answers(bench, "lora", **load) == by_peft(tiny, adapters[1])
    other = save_tiny_model(bench.root / "other", seed=3)
    assert answers(bench, "whole", checkpoint={"load": {"path": str(other)}}) == outputs(
        bench(WORDS, task="named", model=other, **GREEDY)
    )
    (bench.root / "empty").mkdir()
    with pytest.raises(UserError, match="neither a model"):
        answers(bench, "neither", checkpoint={"load": {"path": str(bench.root / "empty")}})


def test_rows_of_another_adapter_are_not_taken_over(bench: Bench, adapters: list[Path]) -> None:
    first = answers(bench, "task", [{"path": str(adapters[0])}])
    assert answers(bench, "task", [{"path": str(adapters[1])}]) != first
    assert answers(bench, "task", [{"path": str(adapters[0])}]) == first


def test_what_an_adapter_leaves_in_the_model_goes_with_the_model(
    bench: Bench, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A trained `lm_head` takes the place of the base model's own, and peft does not put that back."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.normal_(0.0, 0.5)
    folder = tmp_path_factory.mktemp("adapters") / "headed"
    model.save_pretrained(folder)
    base = answers(bench, "base")
    headed = answers(bench, "headed", [{"path": str(folder)}])
    assert headed != base
    assert answers(bench, "headed again", [{"path": str(folder)}]) == headed
    assert answers(bench, "base again") == base


def test_an_adapter_of_another_model_is_one_line(bench: Bench, adapters: list[Path]) -> None:
    bench.model = save_tiny_model(bench.root / "wide", hidden=64)
    with pytest.raises(UserError, match=r"LoRA adapter 'lora-1' .* does not fit the model: ") as caught:
        answers(bench, "task", [{"path": str(adapters[0])}])
    assert "\n" not in str(caught.value)
    assert answers(bench, "after")  # the model is whole again
    broken = bench.root / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(UserError, match="does not fit the model"):
        answers(bench, "broken", [{"path": str(broken)}])
