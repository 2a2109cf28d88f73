"""`mloc gc`: what goes, in which order, and what never goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mloc_prefect.artifacts.garbage import DAY, collect
from mloc_prefect.artifacts.layout import open_task_dir

NOW = 1_000_000_000.0


def make(
    root: Path, name: str, *, age_days: float, size: int = 100, finished: bool = True, destination: str = ""
) -> Path:
    target = root / destination / name if destination else root / name
    directory = open_task_dir(root, name, target)
    attempt = directory / "attempts" / "1-1"
    attempt.mkdir(parents=True)
    (attempt / "items.jsonl").write_bytes(b"x" * size)
    (directory / "responses.json").write_bytes(b"x" * size)
    (directory / "final_model.zip").write_bytes(b"x" * size)
    if finished:
        (directory / "manifest.json").write_bytes(b"x" * size)
    moment = NOW - age_days * DAY
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, (moment, moment))
    return directory


def test_dry_run_reports_and_removes_nothing(tmp_path: Path) -> None:
    old = make(tmp_path, "old", age_days=40)
    make(tmp_path, "new", age_days=1)
    report = collect(tmp_path, now=NOW)
    assert [(i.path, i.kind) for i in report.items] == [(old, "result")]
    assert (report.freed, report.removed, report.total) == (400, False, 800)
    assert old.exists()


def test_old_results_go_with_the_link_that_leads_to_them(tmp_path: Path) -> None:
    old = make(tmp_path, "old", age_days=40, destination="mine")
    new = make(tmp_path, "new", age_days=1)
    assert collect(tmp_path, dry_run=False, now=NOW).removed
    assert not old.exists()
    assert not (tmp_path / "old").is_symlink()
    assert new.exists()


def test_old_attempts_and_archives_of_a_finished_task_go_and_the_result_stays(tmp_path: Path) -> None:
    task = make(tmp_path, "t", age_days=40)
    os.utime(task / "responses.json", (NOW, NOW))
    assert {i.kind for i in collect(tmp_path, dry_run=False, now=NOW).items} == {"attempt", "archive"}
    assert sorted(p.name for p in task.iterdir()) == ["attempts", "manifest.json", "responses.json"]
    assert not list((task / "attempts").iterdir())


def test_a_task_that_may_be_at_work_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path, "busy", age_days=0.01, finished=False)
    make(tmp_path, "failed", age_days=2, finished=False)
    assert [i.path.name for i in collect(tmp_path, max_age=DAY / 1000, now=NOW).items] == ["failed"]


def test_size_takes_attempts_first_then_archives_then_the_oldest_results(tmp_path: Path) -> None:
    make(tmp_path, "a", age_days=3)
    make(tmp_path, "b", age_days=2)

    def kinds(limit: int) -> list[tuple[str, str]]:
        found = collect(tmp_path, max_age=None, max_bytes=limit, now=NOW).items
        return [(i.path.relative_to(tmp_path).parts[0], i.kind) for i in found]

    assert kinds(800) == []
    assert kinds(700) == [("a", "attempt")]
    assert kinds(500) == [("a", "attempt"), ("b", "attempt"), ("a", "archive")]
    assert kinds(300) == [("b", "attempt"), ("b", "archive"), ("a", "result")]
    assert kinds(0) == [("a", "result"), ("b", "result")]


def test_what_no_stage_made_stays(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.zip").write_text("mine")
    (tmp_path / ".specs").mkdir()
    assert collect(tmp_path, max_age=0, max_bytes=0, now=NOW * 2).items == ()
    assert collect(tmp_path / "absent").items == ()


@pytest.mark.parametrize("age", [29.0, 31.0])
def test_the_default_limit_is_thirty_days(tmp_path: Path, age: float) -> None:
    make(tmp_path, "t", age_days=age)
    assert bool(collect(tmp_path, now=NOW).items) == (age > 30)
