"""The grammar of references. [protocol 2.6]"""

from __future__ import annotations

import pytest

from mloc_prefect.plan.expressions import PLACEHOLDER, ExpressionError, MissingValueError, complete, lookup, parse

CONTENT = {
    "result": {"items": [{"output": "a"}, {"output": "b"}], "usage": {"total_tokens": 8}, "0": "zero", "none": None},
    "task_id": "t",
}


@pytest.mark.parametrize(
    ("text", "root", "path"),
    [
        ("draft", "draft", ()),
        (" draft.result ", "draft", ("result",)),
        ("a.result.items[0].output", "a", ("result", "items", 0, "output")),
        ("a.result.items.0.output", "a", ("result", "items", "0", "output")),
        ("a.matrix[1][22]", "a", ("matrix", 1, 22)),
        ("a.[3]", "a", (3,)),
        ("a..b.", "a", ("b",)),
        ("a[0].b", "a[0]", ("b",)),
        ("a.with space.k-e_y", "a", ("with space", "k-e_y")),
    ],
)
def test_parse(text: str, root: str, path: tuple[str | int, ...]) -> None:
    parsed = parse(text)
    assert (parsed.root, parsed.path, parsed.text) == (root, path, text.strip())


@pytest.mark.parametrize(
    "text", ["a.b[-1]", "a.b[x]", "a.b[0", "a.b]", "a.b[]", "a.b[0]c", "a.b[1:2]", "a.b[9999999999]"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ExpressionError, match="is not a key with indices"):
        parse(text)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a.result.items[1].output", "b"),
        ("a.result.items.1.output", "b"),
        ("a.result.usage.total_tokens", 8),
        ("a.result.0", "zero"),
        ("a.result.none", None),
        ("a.task_id", "t"),
        ("a", CONTENT),
    ],
)
def test_lookup(expression: str, value: object) -> None:
    assert lookup(CONTENT, parse(expression).path) == value


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("a.result.item", "'result' has no key 'item' (it has: items, usage, 0, none)"),
        ("a.resul", "its result file has no key 'resul' (it has: result, task_id)"),
        ("a.result.items[2]", "'result.items' has 2 items, so there is no item 2"),
        ("a.result.items.output", "'result.items' is a list, so it has no key 'output'"),
        ("a.result[0]", "'result' is a mapping, so it has no item 0"),
        ("a.result.none.deeper", "'result.none' is null, so it has no key 'deeper'"),
        ("a.result.items[0].output.x", "'result.items[0].output' is a str, so it has no key 'x'"),
    ],
)
def test_lookup_names_the_missing_step(expression: str, why: str) -> None:
    with pytest.raises(MissingValueError) as caught:
        lookup(CONTENT, parse(expression).path)
    assert str(caught.value) == why


def test_long_key_lists_are_cut() -> None:
    with pytest.raises(MissingValueError, match=r"k0, k1, k2, k3, k4, k5, k6, k7, \.\.\.\)$"):
        lookup({f"k{n}": n for n in range(20)}, ("x",))


def test_placeholders_in_text() -> None:
    assert PLACEHOLDER.findall("$${a.b} and ${ c } and ${} and ${open") == ["a.b", " c "]


def test_what_is_never_closed_is_not_searched_again_and_again() -> None:
    text = "a ${b} c ${d" + "${" * 200_000
    assert [m[1] for m in PLACEHOLDER.finditer(text, 0, complete(text))] == ["b"]
    assert complete("no end ${") == 0
