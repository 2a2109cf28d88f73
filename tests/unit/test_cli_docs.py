"""Documents that must follow the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from mloc_prefect.settings import MlocSettings, get_settings

ROOT = Path(__file__).parents[2]


def settings_table():
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "docs" / "settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_the_one_that_the_code_makes(monkeypatch):
    monkeypatch.delenv("MLOC_HOME")
    module = settings_table()
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python docs/settings_table.py"


def test_every_setting_stands_in_the_page():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in MlocSettings.model_fields)


@pytest.mark.parametrize("name", ["HOME", "TOKEN", "PYTHON", "INVENTORY", "MIRRORS", "BASE_URL"])
def test_bare_variables_of_the_shell_are_no_settings(monkeypatch, name):
    monkeypatch.setenv("MLOC_MAX_RETRIES", "1")
    before = get_settings()
    monkeypatch.setenv(name, '{"bare": "/value"}')
    assert get_settings() == before


def test_documents_link_to_files_that_exist():
    pages = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
