"""What becomes a prompt: texts, numbers and messages, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.prompt_data import Prompt, load_prompts
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from tests.support.chats import CHATS, items, write_chats

if TYPE_CHECKING:
    from pathlib import Path

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def places(tmp_path: Path) -> SourceLookup:
    return SourceLookup.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path)})


class Rows:
    """Reads rows that were written to a JSON Lines file."""

    def __init__(self, folder: Path, places: SourceLookup) -> None:
        self.folder, self.places = folder, places

    def __call__(self, *rows: dict[str, Any], inference: dict[str, Any] | None = None, **data: Any) -> list[Prompt]:
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = {"data": {"type": "dataset", "url": "rows.jsonl", **data}, "inference": inference or {}}
        return load_prompts(spec, {}, self.places)


@pytest.fixture
def read(tmp_path: Path, places: SourceLookup) -> Rows:
    return Rows(tmp_path, places)


def as_prompt(chat: dict[str, Any]) -> Prompt:
    return Prompt("", messages=chat["messages"], tools=chat.get("tools"))


def test_twenty_chats_are_rows_of_a_list(places: SourceLookup) -> None:
    found = load_prompts({"data": {"type": "list", "items": items()}}, {}, places)
    assert found == [as_prompt(chat) for chat in CHATS]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "text.parquet", "parquet"])
def test_twenty_chats_are_rows_of_every_kind_of_file(tmp_path: Path, places: SourceLookup, kind: str) -> None:
    file, numbers = write_chats(tmp_path, kind)
    found = load_prompts({"data": {"type": "dataset", "url": str(file)}}, {}, places)
    assert found == [as_prompt(CHATS[n]) for n in numbers]
    assert len(found) >= 16


def test_sharegpt_is_mapped(read: Rows) -> None:
    said = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "r"},
        {"from": "gpt", "value": "a"},
    ]
    (found,) = read({"conversations": said})
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert found.messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]


def test_a_system_prompt_stands_beside_a_prompt(read: Rows) -> None:
    found = read({"prompt": "q", "system_prompt": "S"}, {"prompt": "q", "system_prompt": None}, {"prompt": HI})
    system = {"role": "system", "content": "S"}
    asked = {"role": "user", "content": "q"}
    assert [p.messages for p in found] == [[system, asked], [asked], HI]
    assert read({"question": "q", "system_prompt": "S"}, column="question")[0].shown == "q"
    (same,) = read({"messages": [system, asked], "system_prompt": "S"})
    assert same.messages == [system, asked]
    with pytest.raises(UserError, match="row 0, column 'messages' has a system message of its own, and another"):
        read({"messages": [system, asked], "system_prompt": "T"})


def test_tools_make_a_chat_of_a_text_only_where_chats_are_asked_for(read: Rows) -> None:
    row = {"text": "hi", "tools": [{"name": "f", "parameters": {}}]}
    assert read(row)[0] == Prompt("hi")
    found = read(row, inference={"chat_template": True})[0]
    assert (found.messages, found.tools) == (HI, row["tools"])


@pytest.mark.parametrize("column", ["images", "videos", "audios"])
def test_images_beside_messages_are_refused_by_name(read: Rows, column: str) -> None:
    with pytest.raises(UserError, match=f"^spec.data: row 1, column '{column}' stands beside messages, and only text"):
        read({"messages": HI, column: []}, {"messages": HI, column: ["a.png"]})
    assert read({"text": "hi", column: ["a.png"]}) == [Prompt("hi")], "a text asks nothing about it"


def test_a_column_called_image_may_be_anything(read: Rows) -> None:
    assert read({"messages": HI, "image": "7.png"})[0].shown == HI
    with pytest.raises(UserError, match="column 'image' stands beside messages"):
        read({"messages": [{"role": "user", "content": "<image> What is this?"}], "image": "7.png"})


def test_the_column_is_found_by_name(read: Rows) -> None:
    assert read({"text": "a", "messages": HI})[0].shown == "a"
    assert read({"id": 1, "messages": HI})[0].shown == HI
    assert read({"id": 1, "prompt": "p"})[0].shown == "p"
    body = {"custom_id": "1", "body": {"model": "m", "messages": HI, "tools": [{"name": "f"}]}}
    found = read(body, column="body.messages")[0]
    assert (found.messages, found.tools) == (HI, [{"name": "f"}])


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (" ", " "), (7, "7"), (-0.5, "-0.5"), ("[1, 2]", "[1, 2]"), ("[{}]", "[{}]"), ("[", "[")],
)
def test_texts_and_numbers_are_asked(read: Rows, value: Any, text: str) -> None:
    assert read({"q": value}, column="q")[0] == Prompt(text)


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_a_cell_without_a_value_is_a_fault_of_its_row(read: Rows, value: Any) -> None:
    assert read({"q": value}, {"q": "x"}, column="q")[0].error == "column 'q' has no value in this row"


def test_what_data_frames_hold(tmp_path: Path, places: SourceLookup) -> None:
    import pyarrow
    import pyarrow.parquet

    def read_one(value: Any) -> Prompt:
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([value])}), tmp_path / "one.parquet")
        return load_prompts({"data": {"type": "dataset", "url": "one.parquet"}}, {}, places)[0]

    assert read_one(date(2024, 5, 1)).text == "2024-05-01"
    assert read_one(time(7, 30)).text == "07:30:00"
    assert read_one(datetime(2024, 5, 1, 7, 30, tzinfo=UTC)).text == "2024-05-01T07:30:00+00:00"
    assert read_one(Decimal("1.50")).text == "1.50"
    with pytest.raises(UserError, match="row 0, column 'text' holds bytes, not text, a number or chat messages"):
        read_one(b"abc")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": 1}, "row 1, column 'q' holds a mapping, not text, a number or chat messages"),
        ({"messages": HI}, "a mapping, not text, a number or chat messages; to ask its messages, write column: q.mess"),
        ([1, 2], "row 1, column 'q' holds a list of numbers, not text"),
        (["a"], "row 1, column 'q' holds a list of texts, not text"),
        ([], "row 1, column 'q' holds an empty list, not text"),
        (True, "row 1, column 'q' holds true or false, not text"),
        (float("inf"), "row 1, column 'q' holds a number that is not finite, not text"),
        ("[{'role': 'user', 'content': 'hi'}]", "row 1, column 'q': holds messages as Python prints them; write the"),
        ([{"role": "users", "content": "x"}], "message 0 has the role 'users'; roles are system, developer, user,"),
        ([*HI, {"content": "x"}], "message 1 has no role; roles are"),
        ([{"role": "user"}], "message 0 (of role user) has no content"),
        ([{"role": "user", "content": {"a": 1}}], "message 0 has a mapping as content, not text or a list of parts"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "message 0, part 0 holds an image (type image_url), and only parts of text are read so far",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 0, part 0 holds an image (type image)"),
        ([{"role": "user", "content": [{"type": "poem"}]}], "message 0, part 0 has the type 'poem' without text"),
        ([{"from": "bot", "value": "x"}], "message 0 is from 'bot'; known are system, human,"),
        ([*HI, "x"], "row 1, column 'q' holds a list of mappings and texts, not text"),
        ([{"role": "assistant", "tool_calls": "x"}], "message 0: tool_calls must be a list of mappings, found text"),
    ],
)
def test_anything_else_is_refused_with_row_and_column(read: Rows, value: Any, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read({"q": "fine"}, {"q": value}, column="q")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["no json", {"name": "f"}, [1], [{"type": "function"}]])
def test_a_column_of_tools_holds_tools(read: Rows, value: Any) -> None:
    with pytest.raises(UserError, match=r"row 0, column 'tools' (must be a list of tools|tool 0 has neither)"):
        read({"messages": HI, "tools": value})


def test_one_chat_in_a_json_file_is_one_row(tmp_path: Path, places: SourceLookup) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"messages": [*HI, {"role": "assistant", "content": "yes"}]}))
    (found,) = load_prompts({"data": {"type": "dataset", "url": "one.json", "column": "messages"}}, {}, places)
    assert found.messages == [*HI, {"role": "assistant", "content": "yes"}]
    (tmp_path / "two.json").write_text(json.dumps({"messages": [HI, HI], "id": [1, 2]}))
    assert len(load_prompts({"data": {"type": "dataset", "url": "two.json"}}, {}, places)) == 2


def test_a_template_may_give_messages(places: SourceLookup) -> None:
    results = {"first": {"result": {"items": [{"prompt": CHATS[3]["messages"], "output": "yes"}]}}}
    columns = [{"expr": "first.result.items[0].prompt"}, {"expr": "first.result.items[0].output"}]

    def filled(**template: Any) -> Prompt:
        data = {"type": "graph_template", "template": {"columns": columns, **template}}
        return load_prompts({"data": data}, results, places)[0]

    assert filled(name="own", text="{col0_value}").messages == CHATS[3]["messages"]
    assert filled(name="own", text="{col1_value}") == Prompt("yes")
    assert filled(name="own", text="Read {col0_value}").text == f"Read {json.dumps(CHATS[3]['messages'])}"
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "Is '{col1_value}' right?"}]
    assert filled(messages=asked).messages == [asked[0], {"role": "user", "content": "Is 'yes' right?"}]
