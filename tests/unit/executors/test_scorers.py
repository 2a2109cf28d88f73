"""Rules that rate answers, their sum, and functions that only the operator can allow."""

from __future__ import annotations

import inspect
import re
import sys
import types
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.rewards import scorers
from mloc_prefect.executors.training.rewards.scorers import scorer_of


def score(
    rewards: Any, answers: list[str], rows: list[dict[str, Any]] | None = None, allowed: tuple[str, ...] = ()
) -> Any:
    places = SourceLookup.of({"home": "/nowhere"})
    scorer = scorer_of(SpecReader({"rewards": rewards}), places, allowed)
    return scorer(["p"] * len(answers), answers, rows or [{}] * len(answers))


def test_length() -> None:
    assert score([{"name": "length", "target": 4}], ["", "ab", "abcd", "abcdef", "a" * 9]) == [0, 0.5, 1, 0.5, 0]
    assert score([{"name": "length", "target": 2, "unit": "words"}], ["one", "one two"]) == [0.5, 1]


def test_regex() -> None:
    assert score([{"name": "regex", "pattern": "a.c"}], ["xx a\nc", "ac"]) == [1, 0]


def test_a_pattern_that_never_ends_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "_PATTERN_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"rewards\[0\].pattern took more than 0.05 s for an answer of 61 characters"):
        score([{"name": "regex", "pattern": "(x|xx)+$"}], ["x" * 60 + "z"])


def test_exact_and_numeric_answers() -> None:
    rows = [{"answer": "Yes"}] * 2
    assert score([{"name": "exact"}], [" yes\n", "yes!"], rows) == [1, 0]
    rows = [{"gold": "so 2 x 600 #### 1,200"}] * 4
    rule = [{"name": "numeric", "answer_column": "gold"}]
    assert score(rule, ["it is 1200.0", "1200 or 3", "none", "about 1,200."], rows) == [1, 0, 0, 1]
    assert score([{**rule[0], "tolerance": 5}], ["1196"], rows[:1]) == [1]


def test_one_of_several_right_answers() -> None:
    rows = [{"answer": ["Yes", "true"]}] * 3
    assert score([{"name": "exact"}], ["true", "yes", "no"], rows) == [1, 1, 0]
    assert score([{"name": "numeric"}], ["7", "3"], [{"answer": [2, 3.0]}] * 2) == [0, 1]
    assert score([{"name": "exact"}], ["2", "2024-05-06"], [{"answer": 2.0}, {"answer": date(2024, 5, 6)}]) == [1, 1]


def test_a_failure_that_may_pass_is_not_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lab_rewards")

    def ask(**_: Any) -> list[float]:
        raise ConnectionError("reset")

    module.ask = ask  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab_rewards", module)
    with pytest.raises(ConnectionError):
        score([{"path": "lab_rewards:ask"}], ["A"], allowed=("lab_rewards",))


def test_json() -> None:
    assert score([{"name": "json"}], ['{"a": 1}', "[1]", "{a: 1}"]) == [1, 1, 0]
    assert score([{"name": "json", "keys": ["a", "b"]}], ['{"a": 1, "b": 2}', '{"a": 1}', "[1]"]) == [1, 0.5, 0]


def test_the_sum_is_weighted() -> None:
    both = [{"name": "regex", "pattern": "a", "weight": 2}, {"name": "json", "weight": -0.5}]
    assert score(both, ["a", "1", "x"]) == [2, -0.5, 0]
    assert score(None, ["x" * 100, ""]) == [1, 0], "a task without rewards has a demo rule"


def test_functions_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lab_rewards")
    module.shout = lambda *, prompts, completions, rows, gain=1: [gain * c.isupper() for c in completions]  # type: ignore[attr-defined]
    module.short = lambda **_: [1.0]  # type: ignore[attr-defined]
    module.nothing = lambda **_: None  # type: ignore[attr-defined]
    module.single = lambda **_: 0.5  # type: ignore[attr-defined]
    module.lost = lambda *, rows, **_: [row["gone"] for row in rows]  # type: ignore[attr-defined]
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]  # of the function above
    module.form = lambda texts: [1.0]  # type: ignore[attr-defined]
    module.number = 5  # type: ignore[attr-defined]

    async def later(**_: Any) -> list[float]:
        return []

    module.later = later  # type: ignore[attr-defined]
    module.wrong = lambda *, completions, **_: ["much"] * len(completions)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab_rewards", module)
    rule = {"path": "lab_rewards:shout", "options": {"gain": 3}}
    assert score([rule], ["A", "b"], allowed=("lab_rewards",)) == [3, 0]
    for path, allowed, message in (
        ("lab_rewards:shout", (), "MLOC_ALLOWED_REWARDS=lab_rewards"),
        ("lab_rewards:shout", ("lab",), "which specs may not run"),
        ("os:system", ("lab_rewards",), "module 'os'"),
        ("lab_rewards:none", ("lab_rewards",), "cannot be imported"),
        ("lab_rewards:nothing", ("lab_rewards",), "gave None, which is no list of numbers"),
        ("lab_rewards:single", ("lab_rewards",), "gave 0.5, which is no list of numbers"),
        ("lab_rewards:lost", ("lab_rewards",), f"failed for 2 answers at test_scorers.py:{line}: KeyError: 'gone'"),
        ("lab_rewards:form", ("lab_rewards",), "cannot be called as def form(*, prompts, completions, rows, ...)"),
        ("lab_rewards:number", ("lab_rewards",), "reward 'lab_rewards:number' is no function: 5"),
        ("lab_rewards:later", ("lab_rewards",), "reward 'lab_rewards:later' is async; write it as a plain function"),
        ("lab_rewards:short", ("lab_rewards",), "gave 1 numbers for 2 answers"),
        ("lab_rewards:wrong", ("lab_rewards",), "gave 'much', which is not a number"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            score([{"path": path}], ["A", "b"], allowed=allowed)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"name": "rude"}, "spec.rewards[0].name must be one of length, regex, exact, numeric, json"),
        ({"name": "regex", "pattern": "("}, "is not a regular expression"),
    ],
)
def test_rules_that_cannot_rate(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        score([rule], ["x"], [{"gold": 1}])


def test_an_allowed_module_allows_what_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "lab_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rules.py").write_text("def one(*, completions, **_):\n    return [1] * len(completions)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert score([{"path": "lab_package.rules:one"}], ["x"], allowed=("lab_package",)) == [1]
