"""The memory of leased GPUs after the end of an engine, read by a stand-in for NVML."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mloc_prefect.hardware.gpus import DeviceMemory
from mloc_prefect.leases.device_return import DeviceReturn, device_return
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import pytest

GIB = 1 << 30
ENDED = 4_000_001  # larger than any process id here


class Cards:
    """A stand-in for NVML: the memory of `gpu:0` at each look, the last one for ever; `None` = it does not answer."""

    def __init__(self, *looks: tuple[int, dict[int, int]] | None) -> None:
        self.looks = list(looks)
        self.asked: list[list[str]] = []

    def __call__(self, devices: Collection[str]) -> dict[str, DeviceMemory]:
        self.asked.append(list(devices))
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return {} if look is None else {device: DeviceMemory(*look) for device in devices}


async def waited(cards: Cards, *, hosts: Collection[int] = (), seconds: float = 5.0) -> list[str]:
    """Return what is reported for an engine that ends after the first look."""
    texts: list[str] = []
    returns = DeviceReturn(seconds, hosts=lambda: hosts, read=cards, poll=0.001)
    await returns.wait_free(await returns.baseline(["gpu:0"]), texts.append)
    return texts


async def test_it_waits_until_the_driver_has_freed_the_memory_of_a_killed_process() -> None:
    cards = Cards((GIB, {}), (41 * GIB, {ENDED: 40 * GIB}), (21 * GIB, {}), (GIB, {}))
    assert await waited(cards) == []
    assert len(cards.asked) == 4


async def test_after_the_limit_it_names_the_process_that_holds_the_memory() -> None:
    cards = Cards((GIB, {}), (41 * GIB, {os.getpid(): 30 * GIB, ENDED: 10 * GIB}))
    (text,) = await waited(cards, seconds=0.01)
    assert text.startswith("0.01 s after the end of its engine, gpu:0 is still in use by ")
    assert f"process {os.getpid()} (30720 MiB, " in text
    assert f"process {ENDED} (10240 MiB, it has ended)" in text


async def test_memory_without_a_process_is_waited_for_and_reported_too() -> None:
    (text,) = await waited(Cards((GIB, {}), (9 * GIB, {})), seconds=0.01)
    assert "processes that the driver does not list (8192 MiB)" in text


async def test_an_engine_that_stays_warm_and_neighbours_do_not_count() -> None:
    cards = Cards((6 * GIB, {11: 5 * GIB}), (26 * GIB, {11: 5 * GIB, 12: 20 * GIB}))
    assert await waited(cards, hosts=[11, 12]) == []
    assert len(cards.asked) == 2


async def test_other_users_processes_that_were_there_before_do_not_count() -> None:
    cards = Cards((6 * GIB, {77: 5 * GIB}), (6 * GIB, {77: 5 * GIB}))
    assert await waited(cards) == []


async def test_the_memory_of_a_host_that_was_warm_before_is_waited_for_when_it_has_died() -> None:
    warm, lives = (21 * GIB, {ENDED: 20 * GIB}), [[ENDED], []]
    cards, texts = Cards(warm, warm, (GIB, {})), list[str]()
    returns = DeviceReturn(5.0, hosts=lambda: lives.pop(0) if len(lives) > 1 else lives[0], read=cards, poll=0.001)
    await returns.wait_free(await returns.baseline(["gpu:0"]), texts.append)
    assert texts == []
    assert len(cards.asked) == 3, "a look in which it is held, and one in which it is free"


async def test_a_little_more_than_before_is_free() -> None:
    assert await waited(Cards((GIB, {}), (GIB + (200 << 20), {}))) == []


async def test_where_the_driver_lists_no_process_a_running_host_is_not_blamed() -> None:
    assert await waited(Cards((GIB, {}), (40 * GIB, {})), hosts=[12]) == []


async def test_a_driver_that_does_not_answer_ends_the_wait() -> None:
    assert await waited(Cards(None)) == []
    assert await waited(Cards((GIB, {}), None)) == []


async def test_the_cpu_is_not_looked_at() -> None:
    cards = Cards((GIB, {}))
    returns = DeviceReturn(5.0, hosts=list, read=cards)
    assert await returns.baseline(["cpu"]) == {}
    assert cards.asked == []


def test_declared_devices_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_return(get_settings(home=tmp_path)) is not None
    assert device_return(get_settings(home=tmp_path, gpu_free_seconds=0.0)) is None
    monkeypatch.setenv("MLOC_INVENTORY", '{"gpus": [{"type": "a100"}]}')
    assert device_return(get_settings(home=tmp_path)) is None
