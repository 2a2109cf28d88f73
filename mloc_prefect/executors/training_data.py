"""Rows that trainings learn from: data sets, files, rows of earlier stages, prompts and preferences of the spec.

Read and checked before any model is loaded. Three shapes leave this module: texts (`text`, or `prompt` and
`completion`, or chat `messages`), pairs (`prompt`, `chosen`, `rejected`) and prompts (`prompt` and whatever columns
rewards may read).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.datasets_source import Table, load_table
from mloc_prefect.executors.demo_data import DEMO_PAIRS, DEMO_PROMPTS
from mloc_prefect.executors.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mloc_prefect.executors.places import Places

Row = dict[str, Any]


@dataclass(slots=True)
class TrainingRows:
    """What is trained on.

    Attributes:
        rows: Rows of one of the three shapes, all of the same.
        notes: What was left out or assumed, in words.
        demo: Whether these are our own demo rows, because the spec has none.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    demo: bool = False


def text_rows(spec: Fields, places: Places, task: str) -> TrainingRows:
    """Return the rows of sft and lora_sft.

    With a prompt and a response column each row is `prompt` + separator and `completion`, and the loss counts the
    completion only (`training.completion_only_loss: false` counts all). [protocol 4.3]

    Args:
        spec: The resolved spec.
        places: Mirrors and local paths.
        task: Name of the task type in MLOC's error texts.

    Raises:
        UserError: No data, a missing column, or only empty rows.
    """
    data = spec.child("data")
    table = source_table(data, places)
    if table is None:
        return _of_prompts(data, task)
    jsonl = data.child("jsonl")
    prompt = jsonl.text("prompt_field") or data.text("prompt_column")
    response = jsonl.text("response_field") or data.text("response_column")
    if prompt and response:
        _need(table, [prompt, response])
        separator = _separator(jsonl, data)
        return _kept(_joined(row, prompt, response, separator) for row in table.rows)
    column = jsonl.text("text_field") or data.text("text_field") or "text"
    if column not in table.columns:
        raise UserError(f"Dataset missing text field '{column}'. Columns: {list(table.columns)}")
    return _kept(_whole(row[column], column) if row.get(column) is not None else None for row in table.rows)


def pair_rows(spec: Fields, places: Places) -> TrainingRows:
    """Return the rows of dpo; pairs whose two answers are the same teach nothing and are left out. [protocol 4.5].

    Raises:
        UserError: A missing column or value, or no pair that differs.
    """
    data = spec.child("data")
    table = source_table(data, places)
    if table is not None:
        jsonl = data.child("jsonl")
        names = [
            jsonl.text(f"{name}_field") or data.text(f"{name}_column") or name
            for name in ("prompt", "chosen", "rejected")
        ]
        wanted = names if names[0] in table.columns or not _is_chat(table, names[1]) else names[1:]
        _need(table, wanted)
        found: Iterable[Row | None] = (_pair(row, *names) for row in table.rows)
    elif data.get("pairs") is not None:
        found = _zipped(data.child("pairs"))
    elif data.get("preferences"):
        found = (_pair(row, "prompt", "chosen", "rejected") for row in data.get("preferences"))
    else:
        note = "no preference data is given, so four demo pairs are used"
        return TrainingRows([dict(pair) for pair in DEMO_PAIRS], [note], demo=True)
    kept = _kept(found)
    differ = [row for row in kept.rows if row["chosen"] != row["rejected"]]
    if not differ:
        raise UserError("spec.data: in every pair chosen and rejected are the same, so there is nothing to learn")
    if len(differ) < len(kept.rows):
        same = len(kept.rows) - len(differ)
        kept.notes.append(f"{same} of {len(kept.rows)} pairs are left out: both answers are the same")
    return TrainingRows(differ, kept.notes)


def prompt_rows(spec: Fields, places: Places) -> TrainingRows:
    """Return the rows of ppo and grpo; other columns stay for the rewards.

    Raises:
        UserError: A missing column, or only empty prompts.
    """
    data = spec.child("data")
    table = source_table(data, places)
    if table is None:
        prompts = data.get("prompts")
        if not prompts:
            note = "no prompts are given, so four demo prompts are used"
            return TrainingRows([{"prompt": text} for text in DEMO_PROMPTS], [note], demo=True)
        return _kept({"prompt": str(text)} if str(text).strip() else None for text in prompts)
    jsonl = data.child("jsonl")
    column = (
        jsonl.text("query_field", "prompt_field", "text_field")
        or data.text("prompt_column", "text_field")
        or ("prompt" if "prompt" in table.columns else "text")
    )
    _need(table, [column])
    return _kept(_prompt(row, column) for row in table.rows)


def source_table(data: Fields, places: Places) -> Table | None:
    """Return the rows of `dataset_name`, `jsonl` or `rows`, first that is given; None without any.

    Raises:
        UserError: They cannot be read, or there are none.
    """
    named, path = data.text("dataset_name"), data.child("jsonl").text("path") or data.text("jsonl_path")
    if named or path:
        fields = {name: data.get(name) for name in ("split", "revision", "max_samples", "shuffle", "seed")}
        fields |= {"url": named or path, "name": data.text("config_name") if named else None}
        table = load_table(Fields(fields, data.path), places)
    elif data.get("rows") is not None:
        table = _given(data)
    else:
        return None
    if not table.rows:
        raise UserError(f"{data.path}: {named or path or 'rows'} has no rows to train on")
    return table


def _given(data: Fields) -> Table:
    rows = data.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise data.error("rows", type(rows).__name__, "a list of mappings")
    if data.get("max_samples") is not None:
        rows = rows[: data.integer("max_samples", 0, minimum=1)]
    return Table(tuple(dict.fromkeys(name for row in rows for name in row)), [dict(row) for row in rows])


def _of_prompts(data: Fields, task: str) -> TrainingRows:
    prompts = data.get("prompts")
    if prompts is None:
        raise UserError(f"spec.data must define dataset_name or prompts for {task} tasks")
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise UserError("spec.data.prompts must be a non-empty list of strings")
    return _kept({"text": text} if text.strip() else None for text in prompts)


def _separator(jsonl: Fields, data: Fields) -> str:
    """Return the text between prompt and response as it was written: blanks count."""
    found = next((block.get("separator") for block in (jsonl, data) if block.get("separator") is not None), "\n\n")
    return str(found)


def _joined(row: Mapping[str, Any], prompt: str, response: str, separator: str) -> Row | None:
    before, after = _text(row.get(prompt), prompt), _text(row.get(response), response)
    if before is None or after is None:
        return None
    return {"prompt": before + separator, "completion": after}


def _whole(value: Any, column: str) -> Row | None:
    if _is_messages(value):
        return {"messages": [dict(message) for message in value]}
    text = _text(value, column)
    return None if text is None else {"text": text}


def _pair(row: Mapping[str, Any], prompt: str, chosen: str, rejected: str) -> Row | None:
    better, worse, before = row.get(chosen), row.get(rejected), row.get(prompt)
    if _is_messages(better) and _is_messages(worse):
        pair = {"chosen": [dict(m) for m in better], "rejected": [dict(m) for m in worse]}
        return {"prompt": [dict(m) for m in before], **pair} if _is_messages(before) else pair
    texts = _text(before, prompt), _text(better, chosen), _text(worse, rejected)
    return None if None in texts else dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))


def _prompt(row: Mapping[str, Any], column: str) -> Row | None:
    value = row.get(column)
    rest = {name: item for name, item in row.items() if name not in {column, "prompt"}}
    if _is_messages(value):
        return {"prompt": [dict(message) for message in value], **rest}
    text = _text(value, column)
    return None if text is None else {"prompt": text, **rest}


def _zipped(pairs: Fields) -> list[Row | None]:
    """Return the pairs of two stages that answered the same prompts."""
    better, worse = pairs.get("chosen"), pairs.get("rejected")
    if not isinstance(better, list) or not isinstance(worse, list):
        raise UserError(f"{pairs.path} needs chosen and rejected, the items of two earlier stages")
    if len(better) != len(worse):
        raise UserError(f"{pairs.path}: chosen has {len(better)} items and rejected {len(worse)}; they must be pairs")
    rows: list[Row | None] = []
    for index, (one, other) in enumerate(zip(better, worse, strict=True)):
        prompts = {item.get("prompt") for item in (one, other) if isinstance(item, Mapping)} - {None}
        if len(prompts) != 1:
            found = "different prompts" if prompts else "no prompt"
            raise UserError(f"{pairs.path}: the items {index} have {found}; both stages must answer the same prompts")
        row = {"prompt": prompts.pop(), "chosen": _output(one), "rejected": _output(other)}
        rows.append(_pair(row, "prompt", "chosen", "rejected"))
    return rows


def _output(item: Any) -> Any:
    return (None if item.get("error") else item.get("output")) if isinstance(item, Mapping) else item


def _kept(found: Iterable[Row | None]) -> TrainingRows:
    """Return the rows that are not None; None stands for one with an empty value."""
    every = list(found)
    rows = [row for row in every if row is not None]
    if not rows:
        raise UserError(f"spec.data: all {len(every)} rows are empty, so there is nothing to train on")
    if len({frozenset(_shape(row)) for row in rows}) > 1:
        raise UserError("spec.data: some rows are chat messages and others are plain text; use one form")
    left_out = len(every) - len(rows)
    return TrainingRows(rows, [f"{left_out} of {len(every)} rows are left out: they are empty"] if left_out else [])


def _shape(row: Row) -> list[str]:
    return [
        f"{name}:{type(row[name]).__name__}"
        for name in ("text", "messages", "prompt", "completion", "chosen", "rejected")
        if name in row
    ]


def _need(table: Table, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise UserError(f"Dataset missing columns {missing}. Columns: {list(table.columns)}")


def _text(value: Any, column: str) -> str | None:
    """Return a value as text, None when it is empty."""
    if value is None:
        return None
    if isinstance(value, (Mapping, list)):
        raise UserError(f"column '{column}' holds {type(value).__name__} values, not text: {str(value)[:60]}")
    text = str(value)
    return text if text.strip() else None


def _is_messages(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in value)
    )


def _is_chat(table: Table, column: str) -> bool:
    return any(_is_messages(row.get(column)) for row in table.rows[:1])
