"""`spec.inference` as decided values."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.sampling import Sampling, cut_at_stop
from mloc_prefect.executors.common.spec_reader import SpecReader


def sampling(**inference: Any) -> Sampling:
    return Sampling.of(SpecReader(inference, "spec.inference"))


def test_defaults() -> None:
    assert sampling() == Sampling(512, 0.7, 0.95, 50, 0.0, sample=True, repetition_penalty=1.0, stop=(), seed=None)


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ({}, True),
        ({"temperature": 0}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"do_sample": False}, False),
        ({"temperature": "0.5", "top_p": "1", "top_k": "0"}, True),
        ({"do_sample": "no"}, False),
        ({"temperature": 1e-40}, False),
        ({"temperature": "9.9e-6", "do_sample": True}, False),
        ({"temperature": 1e-5}, True),
    ],
)
def test_when_tokens_are_drawn(given: dict[str, Any], drawn: bool) -> None:
    assert sampling(**given).sample is drawn


def test_max_new_tokens_wins_and_texts_are_numbers() -> None:
    assert sampling(max_tokens=5).max_new_tokens == 5
    assert sampling(max_tokens=5, max_new_tokens="8").max_new_tokens == 8
    assert sampling(top_k=-1).top_k == 0


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"temperature": -1}, "spec.inference.temperature must be >= 0, found -1"),
        ({"top_p": 1.5}, "spec.inference.top_p must be between 0 and 1, found 1.5"),
        ({"max_tokens": 0}, "spec.inference.max_tokens must be a whole number >= 1, found 0"),
        ({"max_new_tokens": "many"}, "spec.inference.max_new_tokens must be a number, found 'many'"),
        ({"repetition_penalty": 0}, "spec.inference.repetition_penalty must be > 0, found 0"),
        ({"stop": 3}, "spec.inference.stop must be text or a list of texts, found 3"),
        ({"seed": 1.5}, "spec.inference.seed must be a whole number, found 1.5"),
        ({"do_sample": "maybe"}, "spec.inference.do_sample must be true or false, found 'maybe'"),
        ({"temperature": True}, "spec.inference.temperature must be a number, found True"),
    ],
)
def test_wrong_values_are_named(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        sampling(**given)
    assert str(caught.value) == problem


def test_stop_texts() -> None:
    assert sampling(stop="END").stop == ("END",)
    assert sampling(stop=["a", "", "b"]).stop == ("a", "b")
    assert cut_at_stop("one two three", ("three", "two")) == ("one ", True)
    assert cut_at_stop("one", ("two",)) == ("one", False)
    assert cut_at_stop("one", ()) == ("one", False)


def test_seeds_of_rows_differ_and_repeat() -> None:
    seeded = sampling(seed=1)
    assert seeded.row_seed(0) == sampling(seed=1).row_seed(0)
    assert len({seeded.row_seed(0), seeded.row_seed(1), sampling(seed=2).row_seed(0)}) == 3
    assert sampling().row_seed(0) != sampling().row_seed(0)


def test_key_has_what_decides_the_text_and_nothing_else() -> None:
    greedy = sampling(temperature=0, seed=1).key()
    assert greedy == sampling(temperature=0, top_p=0.5).key()
    assert greedy != sampling(temperature=0, max_tokens=5).key()
    assert sampling(seed=1).key() != sampling(seed=2).key()
    assert sampling().key() != sampling(temperature=0.1).key()


def test_extreme_options_mean_what_their_limit_means() -> None:
    greedy = sampling(temperature=0, seed=1).key()
    assert sampling(temperature=1e-40, seed=1).key() == greedy, "vLLM takes anything below 1e-5 as greedy, too"
    assert sampling(temperature=1e300) == sampling(temperature=1e25)
    assert sampling(repetition_penalty=1e-300) == sampling(repetition_penalty=1e-25)
    assert sampling(repetition_penalty=1e300) == sampling(repetition_penalty=1e25)


@pytest.mark.parametrize(("given", "read"), [(7, 7), ("-5", -5), (-1, None), (None, None)])
def test_seeds(given: Any, read: int | None) -> None:
    assert sampling(seed=given).seed == read
