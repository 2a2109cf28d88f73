"""Adds lines to a mirrors file and keeps all other lines, including comments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from mloc_prefect.artifacts.atomic import write_bytes
from mloc_prefect.artifacts.mirrors import Mirrors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_HEADER = """\
# Where models and data sets come from, before local paths and the Hugging Face hub are tried.
# Names or patterns (meta-llama/*) to paths (relative ones start here) or fsspec URLs.
"""


def add_models(file: Path, models: Mapping[str, str]) -> None:
    """Add `models` to the `models:` map of `file`; existing names stay as they are.

    The text is kept if the map is in block style; a file in another style is rewritten.

    Raises:
        ArtifactError: The file exists and is not a valid mirrors file, or it cannot be written.
    """
    known = {e.name for e in Mirrors.load(file).entries if e.kind == "models"} if file.is_file() else set()
    missing = {name: target for name, target in models.items() if name not in known}
    if not missing:
        return
    text = file.read_text(encoding="utf-8") if file.is_file() else _HEADER
    data: dict[str, Any] = yaml.safe_load(text) or {}
    wanted = {**data, "models": {**(data.get("models") or {}), **missing}}
    edited = _inserted(text, data, missing)
    if _parsed(edited) != wanted:
        edited = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    write_bytes(file, edited.encode())


def _inserted(text: str, data: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    """Return `text` with the new lines under `models:`, indented like the line that follows it."""
    added = yaml.safe_dump(dict(missing), sort_keys=False, allow_unicode=True).splitlines()
    lines = text.splitlines()
    index = next((n for n, line in enumerate(lines) if line.split("#")[0].rstrip() == "models:"), None)
    if index is None:
        tail = [] if "models" in data else ["models:", *(f"  {line}" for line in added)]
        return "\n".join([*lines, *tail]) + "\n"
    following = next((line for line in lines[index + 1 :] if line.strip() and not line.lstrip().startswith("#")), "")
    indent = following[: len(following) - len(following.lstrip())] or "  "
    return "\n".join([*lines[: index + 1], *(indent + line for line in added), *lines[index + 1 :]]) + "\n"


def _parsed(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
