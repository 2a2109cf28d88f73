"""`spec.model.transformers`: devices."""

from __future__ import annotations

import re

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.model_options import ModelOptions, choose_device
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.registry import task_type


def device(word: object, gpus: int) -> str:
    options = ModelOptions.of(SpecReader({"model": {"transformers": {"device_map": word}}}))
    return choose_device(options.device, gpus)


@pytest.mark.parametrize(
    ("word", "gpus", "chosen"),
    [
        (None, 0, "cpu"),
        (None, 2, "cuda"),
        ("auto", 0, "cpu"),
        ("Balanced", 2, "auto"),
        ("sequential", 2, "auto"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:0", 1, "cuda:0"),
        ("CUDA:1", 2, "cuda:1"),
        (0, 1, "cuda:0"),
    ],
)
def test_devices(word: object, gpus: int, chosen: str) -> None:
    assert device(word, gpus) == chosen
    if word is not None:
        spec = {"data": {"type": "list", "items": ["x"]}, "model": {"transformers": {"device_map": word}}}
        assert check_spec(task_type("inference").model, spec).problems == ()


@pytest.mark.parametrize(
    ("word", "gpus", "message"),
    [
        ("cuda", 0, "Requested CUDA but no GPU is available."),
        ("cuda:0", 0, "Requested CUDA but no GPU is available."),
        ("cuda:1", 1, "Requested cuda:1 but this task has 1 GPU, counted from 0"),
        ("gpu", 1, "Unsupported device_map: gpu; use auto, cuda, cuda:N or cpu"),
    ],
)
def test_devices_that_are_not_there(word: str, gpus: int, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        device(word, gpus)


@pytest.mark.parametrize("word", ["gpu", "cuda:x", "cuda:", "mps", "disk"])
@pytest.mark.parametrize("kind", ["inference", "sft"])
def test_other_words_are_refused_when_the_spec_is_checked(kind: str, word: str) -> None:
    data = {"type": "list", "items": ["x"]} if kind == "inference" else {"prompts": ["x"]}
    spec = {"data": data, "model": {"transformers": {"device_map": word}}}
    (found,) = check_spec(task_type(kind).model, spec).problems
    assert (found.code, found.path) == ("unsupported-device", ("model", "transformers", "device_map"))
    assert found.message == f"Unsupported device_map: {word}"
