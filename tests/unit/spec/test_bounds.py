"""The work on a text is linear or bounded: small specs that once cost minutes, and large ones that mean nothing.

Counted are steps of the interpreter, not seconds: they are the same on every machine.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.plan import check
from mloc_prefect.spec.secrets import mask_text

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = """apiVersion: mloc/v1
kind: EchoTask
metadata: {name: n}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: "1", memory: 64Mi}}
"""


def calls(work: Callable[[], object]) -> int:
    """Return how many functions `work` calls, those written in C included."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


CASES = {
    "unknown fields": lambda n: HEAD + "".join(f"  unknwn{i}: 1\n" for i in range(n)),
    "envelope fields": lambda n: HEAD + "".join(f"x{i}: &a{i} 1\n" for i in range(n)),
    "placeholders": lambda n: HEAD + '  data: {message: "' + "${a}" * n + '"}\n',
    "stages": lambda n: HEAD + "  stages:\n" + "".join(f"    - {{name: s{i}}}\n" for i in range(n)),
    "long names": lambda n: HEAD + f"  stages: [{{name: {'a' * n}1}}, {{name: {'a' * n}2, dependsOn: [x]}}]\n",
    "tags": lambda n: HEAD + "  data: [" + "!!python/object/apply:os.system [id], " * n + "]\n",
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_twice_the_text_costs_at_most_twice_the_work(case: Callable[[int], str]) -> None:
    small, large = (calls(lambda n=n: check(case(n))) for n in (4000, 8000))  # type: ignore[misc]
    assert large < 2.2 * small


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_findings_are_counted_up_to_a_bound(case: Callable[[int], str]) -> None:
    found = check(case(4000))[1]
    assert len(found) <= 2 * 501


def test_a_spec_with_too_many_unknown_fields_is_still_accepted() -> None:
    """The original takes any field; only the warnings end."""
    plan, found = check(CASES["unknown fields"](600))
    assert plan is not None
    assert len(found) == 501
    assert [d.message for d in found if d.code == "too-many-findings"] == [
        "There are more than 500 warnings; the rest is not shown"
    ]


def test_an_error_behind_many_warnings_is_found() -> None:
    plan, found = check(CASES["unknown fields"](600) + "  dependsOn: 5\n")
    assert plan is None
    assert [d.code for d in found if d.severity == "error"] == ["depends-on-not-list"]


def test_tasks_are_counted_before_they_are_read() -> None:
    cheap = calls(lambda: check(HEAD + "  stages: [" + "{}, " * 30 + "]\n", max_tasks=20))
    dear = calls(lambda: check(HEAD + "  stages: [" + "{}, " * 30 + "]\n", max_tasks=30))
    assert cheap < dear / 3
    plan, found = check(HEAD + "  stages: [" + "{}, " * 30 + "]\n", max_tasks=20)
    assert plan is None
    assert [d.message for d in found] == ["30 tasks are more than the 20 that one submission may have"]


@pytest.mark.parametrize("word", ["ACGT" * 50_000, "aC" * 100_000, "a." * 100_000, "a-b://" * 30_000])
def test_a_long_word_is_masked_at_once(word: str) -> None:
    """Patterns that try again at each letter took 25 s of CPU for 30 kB; the limit of time of the test sees that."""
    text = f"{HEAD}  data: {{message: {word}}}\n"
    assert mask_text(text) == text
    secret = f"{HEAD}  {word[:900]}_api_key: hidden-value\n"
    assert "hidden-value" not in mask_text(secret)


def test_many_secrets_are_all_hidden_in_their_fields() -> None:
    many = HEAD + "".join(f"  x{i}: {{token: value-of-{i:05d}}}\n" for i in range(2000))
    assert "value-of-" not in mask_text(many)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("https://me:pass@host/x", "https://me:***@host/x"),
        ("1https://me:pass@host/x", "1https://me:***@host/x"),
        ("see s3+x://me:pass@host", "see s3+x://me:***@host"),
        ("https://host/?a=1&api_key=abc&b=2", "https://host/?a=1&api_key=***&b=2"),
    ],
)
def test_logins_in_urls_are_masked(before: str, after: str) -> None:
    text = f"{HEAD}  data: {{message: '{before}'}}\n"
    assert mask_text(text) == text.replace(before, after)


@pytest.mark.parametrize(
    ("name", "character"),
    [
        ("cp\u200bu", "U+200B ZERO WIDTH SPACE"),
        ("cpu\u00a0", "U+00A0 NO-BREAK SPACE"),
        ("\uff43pu", "U+FF43 FULLWIDTH LATIN SMALL LETTER C"),
        ("\ufeffcpu", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
    ],
)
def test_a_name_that_only_looks_right_is_told_by_its_character(name: str, character: str) -> None:
    assert did_you_mean(name, ["cpu", "memory"]) == f"did you mean 'cpu' (one of the two has {character})?"
    assert did_you_mean("cpu", [name]) == f"did you mean '{name}' (one of the two has {character})?"
    assert did_you_mean("cpus", ["cpu"]) == "did you mean 'cpu'?"


def test_more_secrets_than_are_searched_for_are_masked_each() -> None:
    secrets = "".join(f"    - {{password: hidden-value-{n:06d}}}\n" for n in range(2000))
    masked = mask_text(f"{HEAD}  data:\n{secrets}")
    assert "hidden-value" not in masked
    assert masked.count("'***'") == 2000


@pytest.mark.parametrize(
    "data",
    ["{message: " + "x" * 400_000 + "}", "{type: list, items: [" + ",".join(["a"] * 10_000) + "]}"],
)
def test_a_large_base_is_not_copied_to_many_stages(data: str) -> None:
    """Otherwise a megabyte of text means gigabytes of documents."""
    text = f"{HEAD}  data: {data}\n  stages:\n" + "".join(f"    - {{name: s{n}}}\n" for n in range(1000))
    plan, found = check(text)
    assert plan is None
    assert [one.code for one in found] == ["too-large"]
    few, _ = check(f"{HEAD}  data: {data}\n  stages:\n    - {{name: a}}\n    - {{name: b}}\n")
    assert few is not None
