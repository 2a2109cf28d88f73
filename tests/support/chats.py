"""Twenty conversations as people have them, and a chat template that prints everything that is in them."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Chat = dict[str, Any]

TEMPLATE = (
    "{% set nl = '\\n' %}{% if tools %}[tools]{{ tools | tojson }}{{ nl }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}]"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ nl }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if quiet %}<quiet>{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def _said(role: str, content: Any, **more: Any) -> Chat:
    return {"role": role, "content": content, **more}


def _call(name: str, **arguments: Any) -> Chat:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _parts(*texts: str) -> list[Chat]:
    return [{"type": "text", "text": text} for text in texts]


CHATS: list[Chat] = [
    {"messages": [_said("user", "hi")]},
    {"messages": [_said("system", "Be brief."), _said("user", "Name a bird.")]},
    {"messages": [_said("user", "hi"), _said("assistant", "hello"), _said("user", "and you?")]},
    {"messages": [_said("system", "S"), _said("user", "a"), _said("assistant", "b"), _said("user", "c")]},
    {"messages": [_said("user", "Weather in Rome?")], "tools": [_WEATHER]},
    {"messages": [_said("system", "Use tools."), _said("user", "What time is it?")], "tools": [_WEATHER, _CLOCK]},
    {
        "messages": [
            _said("user", "Weather in Rome?"),
            _said("assistant", "", tool_calls=[_call("weather", place="Rome")]),
            _said("tool", "sunny", name="weather"),
        ],
        "tools": [_WEATHER],
    },
    {
        "messages": [
            _said("user", "Both, please."),
            _said("assistant", "", tool_calls=[_call("weather", place="Oslo"), _call("clock", zone=2)]),
            _said("tool", "rain", name="weather", tool_call_id="1"),
            _said("tool", "noon", name="clock", tool_call_id="2"),
            _said("user", "Thanks. And tomorrow?"),
        ],
        "tools": [_WEATHER, _CLOCK],
    },
    {"messages": [_said("user", _parts("one text"))]},
    {"messages": [_said("user", _parts("first, ", "second"))]},
    {"messages": [_said("system", _parts("Be brief.")), _said("user", _parts("Name ", "a fruit."))]},
    {"messages": [_said("user", _parts("q")), _said("assistant", "a"), _said("user", "why?")]},
    {"messages": [_said("user", "2+2?"), _said("assistant", "4", reasoning_content="add"), _said("user", "sure?")]},
    {
        "messages": [
            _said("user", "Weather?"),
            _said("assistant", "", reasoning_content="ask", tool_calls=[_call("weather", place="Bern")]),
            _said("tool", '{"sky": "grey"}', name="weather"),
        ],
        "tools": [_WEATHER],
    },
    {"messages": [_said("user", "")]},
    {"messages": [_said("system", ""), _said("user", "x")]},
    {"messages": [_said("user", "x"), _said("assistant", ""), _said("user", "y")]},
    {"messages": [_said("user", "Grüße, 你好, 🙂\n'quoted' \"twice\"")]},
    {"messages": [_said("user", "hi", name="Ada"), _said("assistant", "hello"), _said("user", "bye", name="Ada")]},
    {"messages": [_said("user", "[{'role': 'user'}] and {{ braces }}")]},
]


def chats() -> list[Chat]:
    """Return the conversations; the caller may change them."""
    return copy.deepcopy(CHATS)


def wanted(tokenizer: Any, **options: Any) -> list[str]:
    """Return the text that transformers makes of each conversation."""
    asked = {"add_generation_prompt": True, "chat_template": TEMPLATE, **options}
    return [
        tokenizer.apply_chat_template(chat["messages"], tools=chat.get("tools"), tokenize=False, **asked)
        for chat in chats()
    ]


def items() -> list[Any]:
    """Return the conversations as entries of `data.items`."""
    return [chat if "tools" in chat else chat["messages"] for chat in chats()]


def write_chats(folder: Path, kind: str) -> tuple[Path, list[int]]:
    """Write conversations to a file and return it with the numbers of those in it.

    Args:
        folder: Where to.
        kind: `jsonl`, `json`, `csv` (JSON text in cells), `text.parquet` (the same), or `parquet`, whose columns have
            one type, so that only those of text fit; Arrow fills the fields that others have with nulls.
    """
    import csv

    import pyarrow
    import pyarrow.parquet

    rows, file = chats(), folder / f"chats.{kind}"
    numbers = list(range(len(rows)))
    cells = [{name: json.dumps(row.get(name)) for name in ("messages", "tools")} for row in rows]
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["messages", "tools"])
            writer.writeheader()
            writer.writerows(cells)
    elif kind == "text.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(cells), file)
    else:
        numbers = [n for n, row in enumerate(rows) if all(isinstance(m["content"], str) for m in row["messages"])]
        table = pyarrow.Table.from_pylist([{"tools": None, **rows[n]} for n in numbers])
        pyarrow.parquet.write_table(table, file)
    return file, numbers
