"""Rows that trainings learn from: data sets, files, rows of earlier stages, prompts and preferences of the spec.

Read and checked before any model is loaded. Rows have one of three shapes: texts (`text`, or `prompt` and
`completion`, or chat `messages`), pairs (`prompt`, `chosen`, `rejected`) and prompts (`prompt` and the columns that
rewards may read). `prompt`, `completion` and answers are texts, or lists of chat messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.datasets_source import DataTable, load_table
from mloc_prefect.executors.training.demo_data import DEMO_PAIRS, DEMO_PROMPTS
from mloc_prefect.executors.training.guards.row_reading import ValueReader, as_turn, broken_name
from mloc_prefect.tasks.chat_messages import looks_like_messages, media_column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mloc_prefect.executors.sources.source_lookup import SourceLookup

Row = dict[str, Any]

_CONTENT = ("text", "messages", "prompt", "completion", "chosen", "rejected")
_PROMPT = ("prompt",)
_SHOWN_ROWS = 3


@dataclass(slots=True)
class TrainingRows:
    """The rows of a training.

    Attributes:
        rows: Rows, all of the same shape.
        notes: What was left out or assumed, as text.
        demo: Whether these are demo rows, because the spec has no data.
        numbers: Number of each row in the data, which has more where some are left out.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    demo: bool = False
    numbers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = self.numbers or list(range(len(self.rows)))

    def keep(self, positions: Sequence[int]) -> None:
        """Keep only the rows at `positions`."""
        self.rows = [self.rows[at] for at in positions]
        self.numbers = [self.numbers[at] for at in positions]


def text_rows(spec: SpecReader, sources: SourceLookup, task: str) -> TrainingRows:
    """Return the rows of sft and lora_sft.

    With a prompt and a response column each row is `prompt` + separator and `completion`, and the loss counts the
    completion only (`training.completion_only_loss: false` counts all). [protocol 4.3]

    Args:
        spec: The resolved spec.
        sources: Mirrors and local paths.
        task: Name of the task type in MLOC's error texts.

    Raises:
        UserError: There is no data, a column is missing, or all rows are empty.
    """
    data = spec.child("data")
    table = source_table(data, sources)
    if table is None:
        return _rows_of_prompts(data, task)
    jsonl = data.child("jsonl")
    prompt = jsonl.text("prompt_field") or data.text("prompt_column")
    response = jsonl.text("response_field") or data.text("response_column")
    if prompt and response:
        _require_columns(table, [prompt, response])
        separator = _separator(jsonl, data)
        names = {"prompt": prompt, "completion": response}
        return _usable(table.rows, lambda row, read: _completion_row(row, names, separator, read), names)
    column = jsonl.text("text_field") or data.text("text_field") or "text"
    if column not in table.columns:
        raise UserError(f"Dataset missing text field '{column}'. Columns: {list(table.columns)}")
    return _usable(table.rows, lambda row, read: _text_row(row.get(column), column, read), {"text": column})


def pair_rows(spec: SpecReader, sources: SourceLookup) -> TrainingRows:
    """Return the rows of dpo; pairs of two equal answers are left out, because they teach nothing [protocol 4.5].

    Raises:
        UserError: A column or value is missing, or no pair differs.
    """
    data = spec.child("data")
    table = source_table(data, sources)
    if table is not None:
        jsonl = data.child("jsonl")
        names = {
            name: jsonl.text(f"{name}_field") or data.text(f"{name}_column") or name
            for name in ("prompt", "chosen", "rejected")
        }
        columns = list(names.values())
        _require_columns(
            table, columns if columns[0] in table.columns or not _is_chat(table, columns[1]) else columns[1:]
        )
        found: Sequence[Mapping[str, Any]] = table.rows
    elif data.get("pairs") is not None:
        found, names = _pairs_of_stages(data.child("pairs")), {}
    elif data.get("preferences"):
        found, names = data.get("preferences"), {}
    else:
        note = "no preference data is given, so four demo pairs are used"
        return TrainingRows([dict(pair) for pair in DEMO_PAIRS], [note], demo=True)
    kept = _usable(found, lambda row, read: _pair_row(row, names, read), names)
    differ = [at for at, row in enumerate(kept.rows) if row["chosen"] != row["rejected"]]
    if not differ:
        raise UserError("spec.data: in every pair chosen and rejected are the same, so there is nothing to learn")
    if len(differ) < len(kept.rows):
        same = len(kept.rows) - len(differ)
        kept.notes.append(f"{same} of {len(kept.rows)} pairs are left out: both answers are the same")
    kept.keep(differ)
    return kept


def prompt_rows(spec: SpecReader, sources: SourceLookup) -> TrainingRows:
    """Return the rows of ppo and grpo; other columns are kept for the rewards.

    Raises:
        UserError: A column is missing, or all prompts are empty.
    """
    data = spec.child("data")
    table = source_table(data, sources)
    if table is None:
        prompts = data.get("prompts")
        if not prompts:
            note = "no prompts are given, so four demo prompts are used"
            return TrainingRows([{"prompt": text} for text in DEMO_PROMPTS], [note], demo=True)
        return _usable(
            [{"prompt": text} for text in prompts], lambda row, read: _prompt_row(row, "prompt", read), {}, _PROMPT
        )
    jsonl = data.child("jsonl")
    column = (
        jsonl.text("query_field", "prompt_field", "text_field")
        or data.text("prompt_column", "text_field")
        or ("prompt" if "prompt" in table.columns else "text")
    )
    _require_columns(table, [column])
    return _usable(table.rows, lambda row, read: _prompt_row(row, column, read), {"prompt": column}, _PROMPT)


def source_table(data: SpecReader, sources: SourceLookup) -> DataTable | None:
    """Return the rows of `dataset_name`, `jsonl` or `rows`, whichever is given first; None if none is.

    Raises:
        UserError: They cannot be read, or there are none.
    """
    named, path = data.text("dataset_name"), data.child("jsonl").text("path") or data.text("jsonl_path")
    if named or path:
        fields = {name: data.get(name) for name in ("split", "revision", "max_samples", "shuffle", "seed")}
        fields |= {"url": named or path, "name": data.text("config_name") if named else None}
        table = load_table(SpecReader(fields, data.path), sources)
    elif data.get("rows") is not None:
        table = _table_of_rows(data)
    else:
        return None
    if not table.rows:
        raise UserError(f"{data.path}: {named or path or 'rows'} has no rows to train on")
    return table


def _table_of_rows(data: SpecReader) -> DataTable:
    rows = data.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise data.error("rows", type(rows).__name__, "a list of mappings")
    if data.get("max_samples") is not None:
        rows = rows[: data.integer("max_samples", 0, minimum=1)]
    return DataTable(tuple(dict.fromkeys(name for row in rows for name in row)), [dict(row) for row in rows])


def _rows_of_prompts(data: SpecReader, task: str) -> TrainingRows:
    prompts = data.get("prompts")
    if prompts is None:
        raise UserError(f"spec.data must define dataset_name or prompts for {task} tasks")
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise UserError("spec.data.prompts must be a non-empty list of strings")
    return _usable([{"text": text} for text in prompts], lambda row, _read: row if row["text"].strip() else None, {})


def _separator(jsonl: SpecReader, data: SpecReader) -> str:
    """Return the text between prompt and response exactly as written, blanks included."""
    found = next((block.get("separator") for block in (jsonl, data) if block.get("separator") is not None), "\n\n")
    return str(found)


def _completion_row(row: Row, names: Mapping[str, str], separator: str, read: ValueReader) -> Row | None:
    before, after = (read.content(row.get(column), column) for column in names.values())
    if before is None or after is None:
        return None
    if isinstance(before, str) and isinstance(after, str):
        return {"prompt": before + separator, "completion": after}
    return {"prompt": as_turn(before, "user"), "completion": as_turn(after, "assistant")}


def _text_row(value: Any, column: str, read: ValueReader) -> Row | None:
    found = read.content(value, column)
    return None if found is None else {"text" if isinstance(found, str) else "messages": found}


def _pair_row(row: Mapping[str, Any], names: Mapping[str, str], read: ValueReader) -> Row | None:
    """Return a pair of texts, or of chat messages; a conversation as answer has its prompt in it."""
    columns = [names.get(name, name) for name in ("prompt", "chosen", "rejected")]
    better, worse = (read.content(row.get(column), column) for column in columns[1:])
    if better is None or worse is None:
        return None
    if isinstance(better, list) and isinstance(worse, list) and better[0]["role"] != "assistant":
        given = row.get(columns[0])
        pair = {"chosen": better, "rejected": worse}
        return {"prompt": read.content(given, columns[0]), **pair} if looks_like_messages(given) else pair
    if columns[0] not in row:
        raise UserError(f"row {read.number}: the answers have no prompt: there is no column '{columns[0]}'")
    before = read.content(row[columns[0]], columns[0])
    if before is None:
        return None
    if isinstance(before, str) and isinstance(better, str) and isinstance(worse, str):
        return {"prompt": before, "chosen": better, "rejected": worse}
    answers = {"chosen": as_turn(better, "assistant"), "rejected": as_turn(worse, "assistant")}
    return {"prompt": as_turn(before, "user"), **answers}


def _prompt_row(row: Mapping[str, Any], column: str, read: ValueReader) -> Row | None:
    found = read.content(row.get(column), column)
    rest = {name: item for name, item in row.items() if name not in {column, "prompt"}}
    return None if found is None else {"prompt": found, **rest}


def _pairs_of_stages(pairs: SpecReader) -> list[Row]:
    """Return the pairs of two stages that answered the same prompts."""
    better, worse = pairs.get("chosen"), pairs.get("rejected")
    if not isinstance(better, list) or not isinstance(worse, list):
        raise UserError(f"{pairs.path} needs chosen and rejected, the items of two earlier stages")
    if len(better) != len(worse):
        raise UserError(f"{pairs.path}: chosen has {len(better)} items and rejected {len(worse)}; they must be pairs")
    rows: list[Row] = []
    for index, (one, other) in enumerate(zip(better, worse, strict=True)):
        prompts = [item["prompt"] for item in (one, other) if isinstance(item, Mapping) and item.get("prompt")]
        if not prompts or prompts[0] != prompts[-1]:
            found = "different prompts" if prompts else "no prompt"
            raise UserError(f"{pairs.path}: the items {index} have {found}; both stages must answer the same prompts")
        rows.append({"prompt": prompts[0], "chosen": _output(one), "rejected": _output(other)})
    return rows


def _output(item: Any) -> Any:
    return (None if item.get("error") else item.get("output")) if isinstance(item, Mapping) else item


def _usable(
    given: Iterable[Mapping[str, Any]],
    make: Callable[[Row, ValueReader], Row | None],
    names: Mapping[str, str],
    content: tuple[str, ...] = _CONTENT,
) -> TrainingRows:
    """Return the rows that have values of valid Unicode text, and notes about the others.

    Args:
        given: The rows of the data.
        make: Returns what a row becomes, None when a value is empty.
        names: The column of the data that each column of the result comes from, where it has another name.
        content: The columns of the result that are read here; others are left as they are.
    """
    read, found, broken, total = ValueReader(), TrainingRows([]), [], 0
    for number, row in enumerate(given):
        read.number, total = number, number + 1
        made = make(dict(row), read)
        if made is None:
            continue
        _refuse_media(row, made, number)
        if content != _PROMPT and _is_chat_row(made):
            made["tools"] = read.tools(row.get("tools"))
        name = broken_name(made, content)
        if name is None:
            found.rows.append(made)
            found.numbers.append(number)
        else:
            broken.append(f"row {number}, column '{names.get('text' if name == 'messages' else name, name)}'")
    if not found.rows and broken:
        raise UserError(f"spec.data: no row has valid Unicode text: {_shown(broken)}")
    if not found.rows:
        raise UserError(f"spec.data: all {total} rows are empty, so there is nothing to train on")
    if len({frozenset(_shape(row, content)) for row in found.rows}) > 1:
        raise UserError("spec.data: some rows are chat messages and others are plain text; use one form")
    found.rows = found.rows if content == _PROMPT else _with_tools(found.rows)
    empty = total - len(found.rows) - len(broken)
    if empty:
        found.notes.append(f"{empty} of {total} rows are left out: they are empty")
    if broken:
        found.notes.append(f"{len(broken)} of {total} rows are left out: no valid Unicode text: {_shown(broken)}")
    found.notes += read.notes()
    return found


def _refuse_media(row: Mapping[str, Any], made: Row, number: int) -> None:
    """Refuse images beside chat messages, which would be trained as if there were none."""
    chats = (made.get(name) for name in ("messages", "prompt", "chosen"))
    messages = next((chat for chat in chats if isinstance(chat, list)), None)
    if messages is not None and (media := media_column(row, messages)) is not None:
        raise UserError(f"spec.data: row {number}, column '{media}' stands beside messages, and only text is trained")


def _with_tools(rows: list[Row]) -> list[Row]:
    """Return the rows, without the column `tools` if no chat has any."""
    if any(row.get("tools") for row in rows):
        return rows
    return [{name: value for name, value in row.items() if name != "tools"} for row in rows]


def _is_chat_row(row: Row) -> bool:
    """Return whether a row is a chat that TRL renders with the tools of its column `tools`."""
    return "messages" in row or any(isinstance(row.get(name), list) for name in ("completion", "chosen"))


def _shown(places: Sequence[str]) -> str:
    return "; ".join(places[:_SHOWN_ROWS]) + ("; ..." if len(places) > _SHOWN_ROWS else "")


def _shape(row: Row, content: tuple[str, ...]) -> list[str]:
    return [f"{name}:{type(row[name]).__name__}" for name in content if name in row]


def _require_columns(table: DataTable, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise UserError(f"Dataset missing columns {missing}. Columns: {list(table.columns)}")


def _is_chat(table: DataTable, column: str) -> bool:
    return any(isinstance(ValueReader().content(row.get(column), column), list) for row in table.rows[:1])
