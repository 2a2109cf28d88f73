"""The journal of an agent's steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.executors.agent.step_journal import STEPS, StepJournal, step_digest

if TYPE_CHECKING:
    from pathlib import Path


def journal(root: Path, attempt: str) -> StepJournal:
    return StepJournal(root, root / "attempts" / attempt)


def test_steps_of_all_attempts_are_found_and_the_last_one_counts(tmp_path: Path) -> None:
    first = journal(tmp_path, "1-9")
    first.append("item", "a", {"text": "old"})
    first.append("item", "b", ["kept"])
    first.close()
    second = journal(tmp_path, "1-10")
    second.append("item", "a", {"text": "new"})
    assert second.recorded("item", "a") == {"text": "new"}
    assert second.recorded("item", "b") == ["kept"]
    assert second.recorded("other", "b") is None
    second.close()
    assert journal(tmp_path, "2-1").recorded("item", "a") == {"text": "new"}


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    first = journal(tmp_path, "1-1")
    first.append("item", "a", "whole")
    first.close()
    with (tmp_path / "attempts" / "1-1" / STEPS).open("ab") as file:
        file.write(b'{"item": "item", "step": "b", "val')
    again = journal(tmp_path, "1-1")
    assert again.recorded("item", "b") is None
    again.append("item", "c", "after")
    assert again.recorded("item", "c") == "after"
    again.close()
    later = journal(tmp_path, "1-2")
    assert [later.recorded("item", step) for step in "abc"] == ["whole", None, "after"]


def test_a_short_write_is_an_error_and_does_not_spoil_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = journal(tmp_path, "1-1")
    steps.append("item", "a", "first")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:9]))
    with pytest.raises(OSError, match="is the disk full"):
        steps.append("item", "b", "lost")
    monkeypatch.undo()
    steps.append("item", "c", "after")
    steps.close()
    later = journal(tmp_path, "1-2")
    assert [later.recorded("item", step) for step in "abc"] == ["first", None, "after"]


@pytest.mark.parametrize("other", [("model", 1, {"a": 1}), ("tool", 2, {"a": 1}), ("tool", 1, {"a": 2})])
def test_a_digest_names_everything_that_a_step_depends_on(other: tuple[object, ...]) -> None:
    assert step_digest("tool", 1, {"a": 1}) == step_digest("tool", 1, {"a": 1})
    assert step_digest("tool", 1, {"a": 1}) != step_digest(*other)
