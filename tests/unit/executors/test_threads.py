"""How many threads an executor computes with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.executors.common import threads

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("quota", "named", "cores"),
    [
        ("max 100000", "", 8),
        ("250000 100000", "", 2),
        ("10000 100000", "", 1),
        ("9900000 100000", "", 8),
        (None, "", 8),
        ("max 100000", "3", 3),
        ("max 100000", "0", 8),
    ],
)
def test_affinity_quota_and_the_users_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, named: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(threads, "_CGROUP_CPU", tmp_path / "cpu.max")
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert threads.usable_cores() == cores


def test_the_users_wait_policy_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back after the test
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
