"""Errors of libraries that every attempt would meet cost one attempt, others are tried again."""

from __future__ import annotations

import re

import pytest

from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.training.guards.refusals import named_options, refused_as_mistake

WORKERS = "persistent_workers option needs num_workers > 0"
OPTIONS = ("dataloader_persistent_workers", "learning_rate", "beta")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError(WORKERS), f"TRL refuses it: {WORKERS} (see spec.training.dataloader_persistent_workers)"),
        (AssertionError("no GPU"), "TRL refuses it: no GPU"),
        (KeyError("keep"), "TRL refuses it: KeyError: 'keep'"),
        (AttributeError("no logits"), "TRL refuses it: AttributeError: no logits"),
        (NotImplementedError("not yet"), "TRL refuses it: not yet"),
        (TypeError(""), "TRL refuses it: TypeError"),
    ],
)
def test_what_every_attempt_would_meet(error: Exception, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"), refused_as_mistake("TRL refuses it", OPTIONS):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError("disk"),
        ConnectionError("reset"),
        MemoryError(),
        RuntimeError("NCCL error"),
        UserError("own"),
        Cancelled(),
    ],
)
def test_what_another_attempt_may_not_meet_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, refused_as_mistake("TRL refuses it", OPTIONS):
        raise error
    assert caught.value is error


def test_only_before_the_first_step_a_runtime_error_lasts() -> None:
    lasting, passing = RuntimeError("no assistant tokens"), RuntimeError("CUDA error: out of memory")
    with pytest.raises(UserError, match="no assistant tokens"), refused_as_mistake("x", (), building=True):
        raise lasting
    with pytest.raises(RuntimeError, match="no assistant"), refused_as_mistake("x", ()):
        raise lasting
    with pytest.raises(RuntimeError, match="out of memory"), refused_as_mistake("x", (), building=True):
        raise passing


def test_options_are_found_with_a_prefix_less() -> None:
    assert named_options(WORKERS, OPTIONS) == ["dataloader_persistent_workers"]
    assert named_options("--dataloader_prefetch_factor can only", ("dataloader_prefetch_factor",)) == [
        "dataloader_prefetch_factor"
    ]
    assert named_options("beta must be positive", OPTIONS) == []
