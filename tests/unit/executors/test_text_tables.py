"""Text with two readings is refused with its line; text as the tools of the field write it is read."""

from __future__ import annotations

import io
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.text_tables import csv_table, json_lines, json_table

if TYPE_CHECKING:
    from collections.abc import Callable

READERS: dict[str, Callable[..., Any]] = {
    "csv": csv_table,
    "tsv": partial(csv_table, separator="\t"),
    "jsonl": json_lines,
    "json": json_table,
}


def read(name: str, text: str | bytes) -> list[dict[str, Any]]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(READERS[name.rpartition(".")[2]](io.BytesIO(data), name))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.csv", "text,id,text\na,1,b\n", "a.csv:1: column 'text' occurs twice"),
        ("a.csv", 'text\n"a\nb\nc\n', "a.csv:2: not valid CSV: unexpected end of data"),
        ("a.csv", 'text\n"a"b\n', "a.csv:2: not valid CSV: ',' expected after '\"'"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv:3: 1 value for 2 columns"),
        ("a.csv", 'a,b\n"x\ny",2\n1,2,3\n', "a.csv:4: 3 values for 2 columns"),
        ("a.csv", "a,,\n1, ,2\n", "a.csv:2: a value in one of the last 2 columns, which have no name"),
        ("a.csv", ",,a\n1,2,3\n", "a.csv:1: columns 1 and 2 have no name"),
        ("a.csv", "text;answer\na;b\n", "a.csv:1: the columns are separated by semicolons, not by commas; save"),
        ("a.csv", "text\tanswer\na\tb\n", "a.csv:1: the columns are separated by tabs, not by commas; save"),
        ("a.csv", "sep=;\na;b\n1;2\n3\n", "a.csv:4: 1 value for 2 columns"),
        ("a.tsv", "a\tb\n1\n", "a.tsv:2: 1 value for 2 columns"),
        ("a.jsonl", '{"a": 1},\n{"a": 2}\n', "a.jsonl:1:9: not valid JSON: a comma after the object; JSON lines"),
        (
            "a.jsonl",
            '[{"a": 1},\n{"a": 2}]\n',
            "a.jsonl:1: each line must be a JSON object; give the file the ending .json",
        ),
        ("a.jsonl", '{\n "a": 1\n}\n', "a.jsonl:1: each line must be a JSON object; give the file the ending .json"),
        ("a.csv", "a\nb\n".encode("utf-16-le"), "a.csv is UTF-16 text; save it as UTF-8"),
        ("a.csv", b"a\n\xe9\n", "a.csv:2: not UTF-8 text: .*0xe9 after 0 bytes of the line"),
        ("a.csv", "a\nb\n".encode("utf-16"), "a.csv is UTF-16 text; save it as UTF-8"),
        ("a.csv", "a\nb\n\ufeffa\nc\n", r"a.csv:3: a byte-order mark \(U\+FEFF\) in the middle"),
        ("a.jsonl", '{"a": 1}\n\ufeff{"a": 2}\n', r"a.jsonl:2: a byte-order mark \(U\+FEFF\) in the middle"),
        ("a.jsonl", '{"a": 1, "a": 2}\n', "a.jsonl:1: key 'a' occurs twice in one object"),
        ("a.jsonl", '{"a": [{"b": 1, "b": 2}]}\n', "a.jsonl:1: key 'b' occurs twice in one object"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 30000 + "]" * 30000, "a.jsonl:2: nested too deeply"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "a.jsonl:1: not valid JSON: Exceeds the limit"),
        ("a.jsonl", '{"a": "b\n', "a.jsonl:1:9: not valid JSON: "),
        ("a.json", "[" * 30000 + "]" * 30000, "a.json: nested too deeply"),
        ("a.json", '{"a": 1, "a": 2}', "a.json: key 'a' occurs twice in one object"),
        ("a.json", '{"a": 1}\n{"a": 1, "a": 2}', "a.json:2: key 'a' occurs twice in one object"),
        ("a.json", '{"columns": ["a", "a"], "data": [[1, 2]]}', "a.json: column 'a' occurs twice"),
        ("a.json", '{"columns": ["a"], "data": [[1, 2]]}', "a.json: a row of 'data' has another length"),
    ],
)
def test_what_has_two_readings_is_refused_with_its_line(name: str, text: str | bytes, problem: str) -> None:
    with pytest.raises(UserError, match=f"^{problem}"):
        read(name, text)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.csv", 'a,b\n"1,""2\r\n3",\n\n', [{"a": '1,"2\r\n3', "b": ""}]),
        ("a.csv", "a,b\r1,2\r3,4\r", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        ("a.csv", ",text\n0,x\n", [{"": "0", "text": "x"}]),  # pandas writes its index without a name
        ("a.csv", "a\n\u2028b\x0cc\n", [{"a": "\u2028b\x0cc"}]),
        ("a.csv", f"a\n{'x' * 140_000}\n", [{"a": "x" * 140_000}]),
        ("a.csv", "a,b,,\r\n1,2,,\r\n", [{"a": "1", "b": "2"}]),  # of a spreadsheet with a wider table once
        ("a.csv", "sep=;\r\na;b\r\n1,5;x\r\n", [{"a": "1,5", "b": "x"}]),  # of Excel
        ("a.csv", "sep=\t\na\tb\n1\t2\n", [{"a": "1", "b": "2"}]),
        ("a.csv", "a,b;c\n1,2\n", [{"a": "1", "b;c": "2"}]),
        ("a.tsv", 'a\tb\n1,5\t"x\ty"\n', [{"a": "1,5", "b": "x\ty"}]),
        ("a.csv", "a\n", []),
        ("a.csv", "", []),
        ("a.jsonl", '\ufeff{"a": "\u2028"}\r\n\r\n{"a": 2}', [{"a": "\u2028"}, {"a": 2}]),
        ("a.json", '[{"a": 1}, {"b": {"c": [1]}}]', [{"a": 1}, {"b": {"c": [1]}}]),
        ("a.json", '{"a": "\u2028"}\n{"a": 2}', [{"a": "\u2028"}, {"a": 2}]),
        ("a.json", '{"a": [1, 2], "b": [3, 4]}', [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ("a.json", '{"a": {"0": 1, "1": 2}, "b": {"0": 3, "1": 4}}', [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ("a.json", '{"columns": ["a", "b"], "index": [0], "data": [[1, 2]]}', [{"a": 1, "b": 2}]),
        ("a.json", '{"schema": {"fields": []}, "data": [{"index": 0, "a": 1}]}', [{"index": 0, "a": 1}]),
        ("a.json", '{"a": {"x": 1}, "b": {"x": 2}}', [{"a": {"x": 1}, "b": {"x": 2}}]),
        ("a.json", '{"a": 1}', [{"a": 1}]),
    ],
)
def test_what_the_tools_of_the_field_write_is_read(name: str, text: str, rows: list[dict[str, Any]]) -> None:
    assert read(name, text) == rows


def test_forms_of_pandas_are_those_of_the_library() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "n": [1, 2]})
    wanted = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    for orient in ("columns", "records", "split"):
        assert read("a.json", frame.to_json(orient=orient)) == wanted
    table = read("a.json", frame.to_json(orient="table"))
    assert [{name: row[name] for name in ("text", "n")} for row in table] == wanted
    assert read("a.jsonl", frame.to_json(orient="records", lines=True)) == wanted
    assert json.dumps(read("a.csv", frame.to_csv())) == json.dumps(
        [{"": "0", "text": "a", "n": "1"}, {"": "1", "text": "b", "n": "2"}]
    )
