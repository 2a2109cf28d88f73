"""Results are for their owner only, or for one group."""

from __future__ import annotations

import grp
import os
import stat
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import new_attempt_dir, open_task_dir, task_dir
from mloc_prefect.artifacts.private_files import keep_private
from mloc_prefect.artifacts.result_guard import result_lock
from mloc_prefect.errors import SettingsError
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def files_of_a_task(root: Path) -> Iterator[Path]:
    """Make the usual files of a task, and yield everything below the root."""
    home = open_task_dir(root, "t", task_dir(root, "t"))
    attempt = new_attempt_dir(home, 1, 1)
    atomic.write_json(home / "responses.json", {})
    atomic.create_exclusive(home / "manifest.json", b"{}")
    (attempt / "result.json").write_text("{}")
    with result_lock(home):
        yield from root.rglob("*")


def test_directories_are_0700_and_files_0600(tmp_path: Path) -> None:
    settings = get_settings(home=tmp_path / "home")
    keep_private(settings)
    found = {(path.is_dir(), mode(path)) for path in files_of_a_task(settings.results_root)}
    assert found == {(True, 0o700), (False, 0o600)}
    assert mode(settings.results_root) == 0o700


def test_a_root_that_a_flow_makes_is_closed(tmp_path: Path) -> None:
    list(files_of_a_task(tmp_path / "results"))
    assert mode(tmp_path / "results") == 0o700


def test_an_older_root_below_home_is_closed(tmp_path: Path) -> None:
    settings = get_settings(home=tmp_path)
    settings.results_root.mkdir(mode=0o755)
    keep_private(settings)
    assert mode(settings.results_root) == 0o700


def test_a_root_elsewhere_keeps_its_mode(tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    root.mkdir(mode=0o755)
    keep_private(get_settings(home=tmp_path / "home", results_dir=root))
    assert mode(root) == 0o755
    assert {mode(path) & 0o077 for path in files_of_a_task(root)} == {0}


def test_a_group_may_read_and_write(tmp_path: Path) -> None:
    name = grp.getgrgid(os.getegid()).gr_name
    settings = get_settings(home=tmp_path, results_group=name)
    keep_private(settings)
    assert mode(settings.results_root) == 0o2770
    for path in files_of_a_task(settings.results_root):
        assert path.stat().st_gid == os.getegid()
        assert mode(path) & 0o777 == (0o770 if path.is_dir() else 0o660)


def test_an_unknown_group_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MLOC_RESULTS_GROUP: there is no group 'no-such-group'"):
        keep_private(get_settings(home=tmp_path, results_group="no-such-group"))


def test_a_root_that_cannot_be_made_is_left_to_those_who_need_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keep_private(get_settings(home=tmp_path, results_dir=tmp_path / "file" / "results"))
