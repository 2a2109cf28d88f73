"""The reading of YAML: equal to PyYAML's safe loader where JSON can carry it, with a place for everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mloc_prefect.diagnostics.positions import Positions
from mloc_prefect.spec.construct import MAX_VALUES, construct
from mloc_prefect.spec.diagnostic_report import DiagnosticReport
from mloc_prefect.spec.loader import read_spec
from mloc_prefect.spec.syntax import MAX_DEPTH, compose, decode


def parsed(text: str | bytes, max_bytes: int = 1 << 20) -> tuple[Any, Positions | None, DiagnosticReport]:
    report = DiagnosticReport("f.yaml")
    decoded = decode(text, report, max_bytes)
    node = compose(decoded, report) if decoded is not None else None
    built = construct(node, report) if node is not None else None
    return (*built, report) if built else (None, None, report)


def heads(report: DiagnosticReport) -> list[str]:
    return [f"{d.line}:{d.column} {d.severity} {d.code}" for d in report.diagnostics()]


SAME_AS_PYYAML = [
    "a: 0o17\nb: 0x1F\nc: 0b101\nd: +12\ne: 1_000\nf: -0\ng: 1__2\nh: 08\ni: _1",
    "a: 1e3\nb: 1.e3\nc: 1.0e+3\nd: .5\ne: -.5e-3\nf: 6.8523015e+5\ng: 685_230.15\nh: 1.\ni: 5e-7\nj: 1.41e-5",
    "a: ~\nb:\nc: null\nd: Null\ne: ''",
    "a: yes\nb: No\nc: ON\nd: off\ne: TRUE\nf: y\ng: n\nh: 'yes'",
    "x: &a {p: 1, q: {r: 2}}\ny: {<<: *a, p: 3}\nz:\n  <<: [*a, {p: 9, s: 1}]\n  t: 0",
    "b: &b {<<: {x: 1, y: 2}, x: 3}\nc: {<<: *b, <<: {x: 7}}",
    "<<: {a: 1}\nb: 2",
    "- - a\n- {b: c}\n- [d: e]",
    "'a': \"\\u00e9\\n\"\n? k\n: |\n  x\n  y\nf: >-\n  p\n  q",
    "a: !!str 12\nb: !!int '8'\nc: !!float 3\nd: !!bool yes\ne: !!null ''\nf: ! 12\ng: !<tag:yaml.org,2002:str> 5",
    "=: 1",
    "{a, b: c}",
    "%YAML 1.1\n---\na: 1\n...\n",
    "é: [ü, 日本]\r\nb: 1\r\n",
    "a: &x [1, 2]\nb: *x\nc: *x",
]


@pytest.mark.parametrize("text", SAME_AS_PYYAML)
def test_data_equals_safe_load(text: str) -> None:
    data, _, report = parsed(text)
    assert data == yaml.safe_load(text)
    assert [type(v) for v in _leaves(data)] == [type(v) for v in _leaves(yaml.safe_load(text))]
    assert heads(report) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc<=é 1-", max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(json_values, st.booleans(), st.sampled_from(["", "'", '"']))
def test_any_json_value_survives_yaml(value: Any, flow: bool, style: str) -> None:
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=flow, default_style=style or None)
    data, _, report = parsed(text)
    assert data == yaml.safe_load(text)
    assert not [h for h in heads(report) if " error " in h]


@settings(max_examples=150, deadline=None)
@given(st.text("ab01 :-[]{}&*!|>'\"#,?%@~<=.\n\t_exé", max_size=30))
def test_whatever_the_c_loader_accepts_is_read_alike(text: str) -> None:
    data, places, report = parsed(text)
    found = {d.code for d in report.diagnostics()}
    ours_only = {
        "duplicate-key",
        "non-text-key",
        "date-value",
        "non-finite-number",
        "unsupported-tag",
        "recursive-alias",
    }
    try:
        expected = yaml.load(text, yaml.CSafeLoader)  # the C scanner differs from the Python one on a few odd texts
        json.dumps(expected, allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        assert found, f"refused by PyYAML or JSON, but nothing was said about {text!r}"
        return
    if not found & ours_only:
        assert data == expected
        assert "error" not in {d.severity for d in report.diagnostics()}
    assert places is not None or expected is None


def test_places_count_characters_and_know_keys_and_values() -> None:
    _, places, _ = parsed("é: {ü: 1}\r\nlist:\r\n  - a\r\n  - k: |\r\n      text\r\n")
    assert places is not None
    assert _at(places, "é") == (1, 4, 1, 1)
    assert _at(places, "é", "ü") == (1, 8, 1, 5)
    assert _at(places, "list", 0) == (3, 5, 3, 5)
    assert _at(places, "list", 1, "k") == (4, 8, 4, 5)


def test_an_alias_stands_at_its_anchor_and_its_key_where_it_is_used() -> None:
    _, places, _ = parsed("a: &x {k: 1}\nb: *x\nc:\n  <<: *x\n")
    assert places is not None
    assert _at(places, "b") == (1, 4, 2, 1)
    assert _at(places, "b", "k") == (1, 11, 1, 8)
    assert _at(places, "c", "k") == (1, 11, 1, 8)


def test_aliases_do_not_share_data() -> None:
    data, _, _ = parsed("a: &x {k: [1]}\nb: *x\nc: {<<: *x}")
    data["a"]["k"].append(2)
    assert data == {"a": {"k": [1, 2]}, "b": {"k": [1]}, "c": {"k": [1]}}


FAULTS = [
    ("a: 1\n\tb: 2", "2:1 error tab-indentation"),
    ("a:\n\t- b", "2:1 error tab-indentation"),
    ("a: |\n  x\n\ty", "3:1 error tab-indentation"),
    ("a: 'x", "1:4 error unclosed-quote"),
    ("a: [1,\nb: 2", "1:4 error unclosed-bracket"),
    ("a: {b: c", "1:4 error unclosed-bracket"),
    ("a: b: c", "1:5 error yaml-syntax"),
    ("a:\n  - b\n c: 1", "3:2 error yaml-syntax"),
    ("- a\nb: 1", "2:1 error yaml-syntax"),
    ("a: @x", "1:4 error yaml-syntax"),
    ("é: %x", "1:4 error yaml-syntax"),
    ("a: *x", "1:4 error undefined-alias"),
    ("a: &x 1\nb: &x 2", "2:4 error duplicate-anchor"),
    ("--- 1\n--- 2", "2:1 error multiple-documents"),
    ('a: "C:\\path"', "1:7 error bad-escape"),
    ("a: é\x01", "1:5 error bad-character"),
    ("a: 1\nb: \ud800", "2:4 error bad-character"),
    ("a: !foo x", "1:4 error unknown-tag"),
    ("- !foo {x: 1}", "1:3 error unknown-tag"),
    ("a: !!python/object/apply:os.system [x]", "1:4 error unknown-tag"),
    ("a: =", "1:4 error unknown-tag"),
    ("a: !!seq {}", "1:4 error unknown-tag"),
    ("a: !!binary aGk=", "1:4 error unsupported-tag"),
    ("a: !!set {x, y}", "1:4 error unsupported-tag"),
    ("a: 1\nb: 2\na: 3", "3:1 error duplicate-key"),
    ("{x: 1, x: 2}", "1:8 error duplicate-key"),
    ("1: a\n'1': b", "1:1 warning non-text-key", "2:1 error duplicate-key"),
    ("? [a]\n: b", "1:3 error key-not-text"),
    ("<<: 3", "1:5 error bad-merge"),
    ("<<: [{a: 1}, x]", "1:14 error bad-merge"),
    ("a: .nan\nb: -.inf", "1:4 error non-finite-number", "2:4 error non-finite-number"),
    ("a: 2024-13-45", "1:4 error bad-scalar"),
    ("a: !!int x", "1:4 error bad-scalar"),
    ("a: 0x_", "1:4 error bad-scalar"),
    ("a: 2024-01-31", "1:4 warning date-value"),
    ("on: x", "1:1 warning non-text-key"),
    ("a: 12:30", "1:4 warning base-60-number"),
    ("a: 010", "1:4 warning octal-number"),
    ("a: &a {b: *a}", "1:4 error recursive-alias"),
    ("a: &a [*a]", "1:4 error recursive-alias"),
    ("a: &a {<<: *a}", "1:4 error recursive-alias"),
]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: repr(case[0])[:40])
def test_faults_are_found_where_they_stand(case: tuple[str, ...]) -> None:
    text, *expected = case
    _, _, report = parsed(text)
    assert heads(report) == expected
    for finding in report.diagnostics():
        assert "\n" not in finding.message


@pytest.mark.parametrize("case", [c for c in FAULTS if c[1].endswith(("syntax", "documents", "alias", "tag", "quote"))])
def test_syntax_errors_start_with_the_original_wording(case: tuple[str, ...]) -> None:
    _, _, report = parsed(case[0])
    first = report.diagnostics()[0]
    assert first.message.startswith("Invalid YAML: ") or first.code in {"unsupported-tag", "recursive-alias"}


def test_dates_and_other_keys_become_text() -> None:
    data, _, _ = parsed("d: 2024-01-31\nt: 2001-12-14t21:59:43Z\ntrue: 1\nnull: 2\n1.5: 3\n7: 4")
    assert data == {"d": "2024-01-31", "t": "2001-12-14T21:59:43+00:00", "true": 1, "null": 2, "1.5": 3, "7": 4}


def test_bytes_that_are_no_utf8_are_placed_by_character() -> None:
    _, _, report = parsed("a: é\r\nb: ö".encode() + b"\xff x")
    assert heads(report) == ["2:5 error bad-utf8"]
    assert report.diagnostics()[0].found == "byte 0xff"
    _, _, report = parsed("a: 1".encode("utf-16"))
    assert "UTF-16" in report.diagnostics()[0].message


@pytest.mark.parametrize("text", ["\ufeffa: b: c", "\ufeffa: b: c".encode()])
def test_a_byte_order_mark_is_not_a_column(text: str | bytes) -> None:
    _, _, report = parsed(text)
    assert heads(report) == ["1:5 error yaml-syntax"]


def test_too_large_texts_are_not_parsed() -> None:
    for text in ("a: " + "x" * 100, b"a: " + b"x" * 100, "a: " + "é" * 49):
        assert heads(parsed(text, max_bytes=100)[2]) == ["1:1 error too-large"]
    assert heads(parsed("a: " + "x" * 97, max_bytes=100)[2]) == []


@pytest.mark.parametrize("text", ["[" * 500_000, "- " * 400_000 + "a", "{a: " * 200_000, "? " * 300_000])
def test_nesting_that_would_exhaust_the_stack_is_refused(text: str) -> None:
    assert [h.split()[-1] for h in heads(parsed(text)[2])] == ["too-deep"]


def test_nesting_has_one_limit_however_deep() -> None:
    assert parsed("[" * MAX_DEPTH + "]" * MAX_DEPTH)[0] is not None
    assert heads(parsed("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))[2]) == ["1:65 error too-deep"]


def test_many_brackets_side_by_side_are_fine() -> None:
    data, _, report = parsed("a: [" + "[], " * 1500 + "]")
    assert len(data["a"]) == 1500
    assert heads(report) == []


@pytest.mark.parametrize(
    "start, line",
    [
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n", "{0}: &{0} [" + "*{1}, " * 10 + "]\n"),
        ("a: &a {k: 1}\n", "{0}: &{0} {{<<: [" + "*{1}, " * 10 + "]}}\n"),
    ],
)
def test_alias_bombs_are_refused(start: str, line: str) -> None:
    text = start + "".join(line.format(chr(98 + n), chr(97 + n)) for n in range(9))
    _, _, report = parsed(text)
    assert [d.code for d in report.diagnostics()] == ["alias-expansion"]
    assert str(MAX_VALUES) in report.diagnostics()[0].message


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


def _at(places: Positions, *path: str | int) -> tuple[int, int, int, int]:
    place = places.find(path)
    return place.line, place.column, place.key_line, place.key_column


def test_emoji_as_json_spells_them_are_read() -> None:
    document = {"apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": "json"}}
    hardware = {"cpu": "1", "memory": "1Gi"}
    texts = ["\U0001f600\U0001f680 a", "\\ud83d\\ude00", "\\\U0001f600"]
    spec = {"taskType": "echo", "resources": {"replicas": 1, "hardware": hardware}, "data": texts}
    workflow, found = read_spec(json.dumps({**document, "spec": spec}))
    assert found == ()
    assert workflow is not None
    assert workflow.nodes[0].effective["spec"]["data"] == texts


def test_half_an_emoji_stays_a_mistake() -> None:
    assert [d.severity for d in read_spec('{"x": "\\ud83d"}')[1]] == ["error"]


@pytest.mark.parametrize(
    ("text", "help_"),
    [
        ("a: {b: \u201cx: y\u201d}\n", "write a straight quote (\" or ') instead of \u201c"),
        ("a: [\u2018x: y\u2019: z, b: c: d]\n", "write a straight quote (\" or ') instead of \u2018"),
        ("a: {b: x #comment}\nc: 1\n", "' #' starts a comment, so the rest of the line is not read"),
        ("a: [b, c # d]\ne: 1\n", "' #' starts a comment, so the rest of the line is not read"),
        ("a: {b: c\nd: 1\n", "close it with '}'"),
        ("a: [b, c\nd: 1\n", "close it with ']'"),
    ],
)
def test_a_bracket_that_looks_closed_names_the_quote_or_the_comment(text: str, help_: str) -> None:
    (found,) = parsed(text)[2].diagnostics()
    assert (found.code, found.suggestion is not None and help_ in found.suggestion) == ("unclosed-bracket", True), found
