"""The last number of a text, in the forms that people and models write."""

from __future__ import annotations

import pytest

from mloc_prefect.executors.training.rewards.number_reading import last_number

READ = [
    ("5e3", 5000),
    ("1e-3", 0.001),
    ("1.5E+10", 1.5e10),
    ("3 x 10^4", 3e4),
    ("5\u00d710^-3", 0.005),
    (r"2\times 10^{3}", 2000),
    (".5", 0.5),
    ("-.5", -0.5),
    ("\u22125", -5),
    ("= \u22121,200.5", -1200.5),
    ("-$5", -5),
    ("x=-4", -4),
    ("+7", 7),
    ("10-12", 12),
    ("10 - 12", 12),
    ("10\u201312", 12),
    ("(3)-4", 4),
    ("2024-05-06", 6),
    ("[1,2,3]", 3),
    ("1,20", 20),
    ("1,2345", 2345),
    ("1,200", 1200),
    ("$1,234,567.89", 1234567.89),
    ("5\u202f000", 5000),
    ("1/2", 0.5),
    ("3/4.", 0.75),
    ("-3/4", -0.75),
    ("1 3/4", 1.75),
    (r"\frac{1}{4}", 0.25),
    ("3/4/2026", 2026),
    ("50%", 0.5),
    ("12.5 %", 0.125),
    ("it is 1200.", 1200),
    ("... #### 42", 42),
    ("7 of 10", 10),
    ("H2O", 2),
    ("12345678901234567890", 12345678901234567890),
    ("3e", 3),
    ("none", None),
    ("1/0", None),
    ("5e999", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "value"), READ)
def test_the_last_number(text: str, value: float | None) -> None:
    found = last_number(text)
    assert (None if found is None else found.value) == (value if value is None else pytest.approx(value, rel=1e-12))


@pytest.mark.parametrize(
    ("wanted", "answer", "right"),
    [
        ("5e3", "3", False),
        ("5e3", "5000", True),
        ("50%", "0.5", True),
        ("50%", "50 %", True),
        ("50%", "50", True),
        ("50%", "5000", False),
        ("0.5%", "0.5", True),
        ("0.5%", "50%", False),
        ("50%", "0.5%", False),
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("1/3", "3", False),
        ("0.75", "3/4", True),
    ],
)
def test_answers(wanted: str, answer: str, right: bool) -> None:
    found, gold = last_number(answer), last_number(wanted)
    assert found is not None
    assert gold is not None
    assert found.answers(gold, 1e-6) is right
