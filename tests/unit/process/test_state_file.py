"""State files, and locks that name their owner."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mloc_prefect.process.lock_file import LockFile
from mloc_prefect.process.state_file import StateFile


def test_a_state_is_private_and_whole(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "deep" / "state.json")
    assert state.read() is None
    state.write({"pid": 7})
    assert state.read() == {"pid": 7}
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o600
    state.remove()
    state.remove()
    assert state.read() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_what_is_no_state_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_bytes(text.encode("latin-1"))
    assert StateFile(tmp_path / "state.json").read() is None


def test_a_lock_names_its_owner_until_it_is_given_back(tmp_path: Path) -> None:
    first, second = LockFile(tmp_path / "x.lock"), LockFile(tmp_path / "x.lock")
    assert second.holder() is None
    assert first.acquire()
    assert not second.acquire(seconds=0)
    assert second.holder() == os.getpid()
    first.release()
    first.release()
    assert second.holder() is None
    assert second.acquire(seconds=0)
    second.release()
    assert stat.S_IMODE((tmp_path / "x.lock").stat().st_mode) == 0o600


def test_waiting_for_a_lock_can_be_given_up(tmp_path: Path) -> None:
    first, second = LockFile(tmp_path / "x.lock"), LockFile(tmp_path / "x.lock")
    assert first.acquire()
    assert not second.acquire(seconds=3600, given_up=lambda: True)
    first.release()


def test_a_child_that_inherits_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "x.lock")
    assert lock.acquire()
    copy = os.dup(lock.descriptor)
    lock.release()
    assert not LockFile(tmp_path / "x.lock").acquire(seconds=0)
    os.close(copy)
    assert LockFile(tmp_path / "x.lock").holder() is None
