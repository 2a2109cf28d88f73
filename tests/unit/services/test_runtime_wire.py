"""What runtime and clients agree on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mloc_prefect.services.local_runtime import runtime_wire
from mloc_prefect.services.local_runtime.runtime_wire import (
    RuntimeConfig,
    base_environment,
    encode,
    fingerprint,
    host_environment,
)

CONFIG = RuntimeConfig(home="/h", server_port=4200, idle_seconds=1, host_idle_seconds=2, host_start_seconds=3)


def test_hosts_get_what_executors_read_and_nothing_that_changes_by_itself():
    shell = {
        "MLOC_MIRRORS": "m",
        "HF_TOKEN": "t",
        "https_proxy": "p",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "3",  # the lease decides
        "PREFECT_API_URL": "u",
        "PWD": "/somewhere",
        "TMUX_PANE": "%1",
    }
    assert host_environment(shell) == {
        "HF_TOKEN": "t",
        "MLOC_MIRRORS": "m",
        "OMP_NUM_THREADS": "2",
        "https_proxy": "p",
    }
    assert list(host_environment(shell)) == sorted(host_environment(shell))


def test_the_runtime_itself_gets_nothing_that_one_shell_wants():
    shell = {"PATH": "/bin", "HOME": "/h", "HF_TOKEN": "t", "MLOC_HOME": "/m", "PREFECT_API_URL": "u"}
    assert base_environment(shell) == {"PATH": "/bin", "HOME": "/h"}


@pytest.mark.parametrize(
    "change",
    [{"host_idle_seconds": 0}, {"server_port": 4201}, {"home": "/other"}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_another_runtime(change: dict):
    assert fingerprint(CONFIG) == fingerprint(CONFIG)
    assert fingerprint(replace(CONFIG, **change)) != fingerprint(CONFIG)


def test_other_code_is_another_runtime(monkeypatch: pytest.MonkeyPatch):
    before = fingerprint(CONFIG)
    monkeypatch.setattr(runtime_wire, "_changed", lambda _file: 1 << 62)
    assert fingerprint(CONFIG) != before


def test_a_message_is_one_line():
    assert encode({"text": "a\nb"}).count(b"\n") == 1
    assert json.loads(encode({"text": "a\nb"})) == {"text": "a\nb"}
