"""Write docs/settings.md from the settings model: `python docs/settings_table.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AliasChoices

from mloc_prefect.settings import MlocSettings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PAGE = Path(__file__).with_name("settings.md")

_HEAD = """# Settings

Made by `python docs/settings_table.py` from `mloc_prefect/settings.py`; a test compares the two.

Order, first wins: options of the command, environment, `$MLOC_HOME/config.toml` (keys are the names in the first
column, e.g. `host_idle_seconds = 60`), default. Where several variables are listed the first that is set counts; each
setting can also be given as `PREFECT_INTEGRATIONS_MLOC_<NAME>`. A path beginning with `~` is expanded.

| setting | variables | default | bounds | meaning |
|---|---|---|---|---|
"""


def page() -> str:
    """Return the whole text of docs/settings.md."""
    rows = (_row(name, field) for name, field in MlocSettings.model_fields.items())
    return _HEAD + "".join(rows)


def _row(name: str, field: FieldInfo) -> str:
    choices = field.validation_alias
    names = choices.choices if isinstance(choices, AliasChoices) else []
    shown = [f"`{n}`" for n in names if isinstance(n, str) and not n.startswith("PREFECT_INTEGRATIONS_")]
    cells = (f"`{name}`", ", ".join(shown), _default(name, field), _bounds(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(name: str, field: FieldInfo) -> str:
    if name == "home":
        return "`~/.mloc`"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]  # no factory here takes the data
    return f"`{value}`" if value not in (None, "", {}) else ""


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(m, key):g}" for m in field.metadata for key, sign in signs.items() if hasattr(m, key)]
    return ", ".join(found)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
