"""Generates docs/compatibility.md from the differences that the tests check: `python docs/compatibility_table.py`."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("compatibility.md")
DIFFERENCES = ROOT / "tests" / "transcript_differences.yaml"
RECORDING = ROOT / "tests" / "data" / "transcript"

_TEXT = Path(__file__).with_name("compatibility.in.md")
_HEAD = "| conversation, step | where | here | why |\n|---|---|---|---|\n"
_AMENDED = "| conversation, step | sent | instead | why |\n|---|---|---|---|\n"


def page() -> str:
    """Return the whole text of docs/compatibility.md."""
    found = yaml.safe_load(DIFFERENCES.read_text(encoding="utf-8"))
    recorded = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDING.glob("*.json"))]
    steps = sum(len(one["steps"]) for one in recorded)
    messages = sum(len(one.get("messages", [])) for one in recorded)
    text = _TEXT.read_text(encoding="utf-8")
    for name, value in {
        "steps": steps,
        "messages": messages,
        "conversations": len(recorded),
        "table": _HEAD + "".join(_rows(found["differences"])),
        "amended": _AMENDED + "".join(_amended(entry) for entry in found["amended"]),
    }.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _rows(entries: list[dict[str, Any]]) -> list[str]:
    """Return one row for each entry; neighbours that differ only in step and field share a row."""

    def alike(entry: dict[str, Any]) -> tuple[str, str]:
        return _ours(entry), entry["reason"]

    rows = []
    for (ours, reason), group in groupby(entries, key=alike):
        same = list(group)
        places = dict.fromkeys(_place(entry) for entry in same)
        fields = dict.fromkeys(name for entry in same for name in _listed(entry["field"]))
        rows.append(_row("<br>".join(places), "<br>".join(f"`{name}`" for name in fields), ours, reason))
    return rows


def _amended(entry: dict[str, Any]) -> str:
    by = _code(entry["by"].strip()) if entry["by"].strip() else "left out"
    return _row(_place(entry), _code(" ".join(entry["replace"].split())), by, entry["reason"])


def _place(entry: dict[str, Any]) -> str:
    names, steps = (", ".join("all" if one == "*" else one for one in _listed(entry[k])) for k in ("scenario", "step"))
    return names if steps == "all" else f"{names}: {steps}"


def _ours(entry: dict[str, Any]) -> str:
    if "replaced" in entry:
        return ", ".join(f"{_code(new)} for {_code(old)}" for old, new in entry["replaced"].items())
    words = {"<more>": "more keys", "<absent>": "not there", "<present>": "there"}
    ours = entry["ours"]
    return words.get(ours) or (_code(ours) if isinstance(ours, str) else _code(json.dumps(ours)))


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _code(text: str) -> str:
    return f"`{text}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.strip().replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
