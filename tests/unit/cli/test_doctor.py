"""`mloc doctor` on what lies around us."""

from __future__ import annotations

import socket
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from importlib import metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import pytest

from mloc_prefect.cli.commands import doctor, doctor_machine
from mloc_prefect.hardware.inventory import read_inventory
from mloc_prefect.prefect_ext.requests import server_time
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 5, 1, 12, 0, 0, 600_000, tzinfo=UTC)
Usage = namedtuple("Usage", "total used free")


def needs(monkeypatch: pytest.MonkeyPatch, *lines: str, **installed: str) -> list[tuple[str, str, str | None]]:
    """Return the findings about a package that needs `lines` where `installed` is."""

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "requires", lambda _name: list(lines))
    monkeypatch.setattr(metadata, "version", version)
    found = list(doctor_machine.wrong_versions())
    assert {f.level for f in found} <= {"bad"}
    return [(f.name, f.text, f.fix) for f in found]


def test_the_environment_of_the_tests_has_what_is_needed() -> None:
    assert list(doctor_machine.wrong_versions()) == []


def test_a_version_that_is_not_admitted_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs(monkeypatch, "sqlalchemy[asyncio]<2.1,>=2.0", sqlalchemy="2.1.9") == [
        ("sqlalchemy", "2.1.9 is installed; mloc-prefect needs <2.1,>=2.0", "pip install 'sqlalchemy<2.1,>=2.0'")
    ]
    assert needs(monkeypatch, "sqlalchemy[asyncio]<2.1,>=2.0", sqlalchemy="2.0.58") == []


def test_what_is_missing_counts_unless_an_extra_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = needs(monkeypatch, "a>=1", 'b>=1; extra == "train"', 'c>=1; python_version < "3"')
    assert found == [("a", "not installed", "pip install 'a>=1'")]


def test_one_of_several_extras_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ('trl<1.17,>=1.12; extra == "train"', 'trl==1.12.*; extra == "ppo"')
    assert needs(monkeypatch, *lines, trl="1.16.0") == []
    assert needs(monkeypatch, *lines, trl="1.12.0") == []
    ((name, text, _fix),) = needs(monkeypatch, *lines, trl="1.17.0")
    assert (name, text) == ("trl", "1.17.0 is installed; mloc-prefect needs <1.17,>=1.12 or ==1.12.*")


@pytest.mark.parametrize(
    ("size", "gpus", "text"),
    [(64 << 20, 2, "an engine on several GPUs"), (64 << 20, 0, "a task of several processes"), (2 << 30, 2, None)],
)
def test_little_shared_memory_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, gpus: int, text: str | None
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(size, 0, size))
    inventory = SimpleNamespace(gpus=[None] * gpus)
    found = list(doctor_machine.shared_memory(inventory, tmp_path))
    assert [(f.level, text in f.text) for f in found] == ([("note", True)] if text else [])


def test_a_port_that_somebody_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MLOC_PORT", str(port))
        (told,) = doctor_machine.endpoint_port(get_settings())
        assert told.text == f"port {port} of 127.0.0.1 is in use by another program: `mloc up` will not start"
    assert list(doctor_machine.endpoint_port(get_settings())) == []


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (timedelta(0), None),
        (timedelta(seconds=4), None),
        (timedelta(seconds=-30), "its clock is 31 s behind that of this machine"),
        (timedelta(hours=1), "its clock is 3599 s ahead of that of this machine"),
    ],
)
def test_clocks_that_differ_are_told(ahead: timedelta, text: str | None) -> None:
    found = list(doctor_machine.clock_skew((NOW + ahead).replace(microsecond=0), NOW))
    assert [f.text for f in found] == ([text] if text else [])
    assert {f.level for f in found} <= {"bad"}


async def test_the_time_of_the_server_is_read_from_its_answer() -> None:
    headers = {"date": "Fri, 01 May 2026 12:00:00 GMT"}

    async def answer(method: str, path: str) -> httpx.Response:
        assert (method, path) == ("GET", "/health")
        return httpx.Response(200, headers=headers)

    client = SimpleNamespace(request=answer)
    assert await server_time(client) == NOW.replace(microsecond=0)
    headers.clear()
    assert await server_time(client) is None


async def test_a_server_that_does_not_answer_must_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        url = f"http://127.0.0.1:{once.getsockname()[1]}/api"
    (found,) = await doctor_machine.prefect_server(url)
    assert (found.topic, found.name, found.level) == ("prefect", "server", "bad")
    assert f"the Prefect server at {url} does not answer" in found.text


def test_the_machine_that_runs_the_tests_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_prefect", lambda _settings: iter(()))
    found = doctor.examine(get_settings())
    assert [f for f in found if f.level == "bad"] == []
    assert str(read_inventory(get_settings())) in [f.text for f in found if f.topic == "machine"]
