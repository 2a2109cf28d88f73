"""When the engine of a vLLM host sleeps, wakes and is replaced; the engine itself is a stand-in."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.execution.protocol import Cancelled
from mloc_prefect.executors.vllm import held_engine
from mloc_prefect.executors.vllm.engine_arguments import EngineRequest
from mloc_prefect.executors.vllm.engine_loop import EngineDeadError
from mloc_prefect.executors.vllm.held_engine import HeldEngine


class Context:
    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, text: str, fraction: float | None = None) -> None:
        self.phases.append(text)

    def check(self) -> None:
        pass


class Engine:
    """Notes what it is told."""

    def __init__(self, can_sleep: bool) -> None:
        self.told: list[str] = []
        self.broken = False
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=can_sleep))

    def sleep(self, level: int) -> None:
        self.told.append(f"sleep {level}")

    def wake_up(self) -> bool:
        if self.broken:
            raise RuntimeError("no memory left")
        self.told.append("wake")
        return True


class Loop:
    """Does at once what the engine's thread would do."""

    def __init__(self, engines: list[Engine]) -> None:
        self.engines, self.loaded = engines, 0

    def call(self, action: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(action())
        except Exception as error:
            done.set_exception(error)
        return done

    def load(self, arguments: Any, on_phase: Any) -> Future[Any]:
        self.loaded += 1
        return self.call(lambda: self.engines[self.loaded - 1])

    def unload(self) -> Future[Any]:
        return self.call(lambda: None)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    engines = [Engine(can_sleep=True) for _ in range(3)]
    monkeypatch.setattr(held_engine, "EngineLoop", lambda: Loop(engines))
    return engines


ONE, OTHER = EngineRequest("1", {"model": "one"}), EngineRequest("2", {"model": "other"})


def use(held: HeldEngine, request: EngineRequest = ONE) -> tuple[Any, int, list[str]]:
    context = Context()
    with held.lend(lambda: request, context) as (_, engine, loads):  # type: ignore[arg-type]
        return engine, loads, context.phases


def test_an_engine_that_sleeps_wakes_for_the_next_task(engines: list[Engine]) -> None:
    held = HeldEngine()
    use(held)
    assert held.sleep()
    assert held.sleep()  # it sleeps already
    engine, loads, phases = use(held)
    assert (engine, loads) == (engines[0], 1)
    assert phases[-1] == "waking the model"
    assert engines[0].told == ["sleep 1", "wake"]
    assert "waking the model" not in use(held)[2]


def test_a_sleeping_engine_is_replaced_for_another_model(engines: list[Engine]) -> None:
    held = HeldEngine()
    use(held)
    held.sleep()
    engine, loads, phases = use(held, OTHER)
    assert (engine, loads) == (engines[1], 2)
    assert engines[0].told == ["sleep 1"]
    assert "waking the model" not in phases
    use(held, OTHER)
    assert engines[1].told == []


def test_only_an_idle_engine_with_a_sleep_mode_sleeps(engines: list[Engine]) -> None:
    held = HeldEngine()
    assert not held.sleep()  # nothing is loaded
    with held.lend(lambda: ONE, Context()):  # type: ignore[arg-type]
        assert not held.sleep()
    engines[0].vllm_config.model_config.enable_sleep_mode = False
    assert not held.sleep()
    assert engines[0].told == []


def test_an_engine_that_does_not_wake_up_is_dead(engines: list[Engine]) -> None:
    held = HeldEngine()
    use(held)
    held.sleep()
    engines[0].broken = True
    with pytest.raises(EngineDeadError, match="no memory left"):
        use(held)


def test_tasks_that_come_together_wake_it_once(engines: list[Engine]) -> None:
    held = HeldEngine()
    use(held)
    held.sleep()
    threads = [threading.Thread(target=use, args=(held,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert engines[0].told == ["sleep 1", "wake"]


def test_a_task_that_needs_another_engine_is_not_passed_by_later_ones(engines: list[Engine]) -> None:
    held, entered, names = HeldEngine(), threading.Event(), list[str]()
    busy, leave = threading.Event(), threading.Event()

    def work(name: str, request: EngineRequest) -> None:
        with held.lend(lambda: request, Waiting(entered)):  # type: ignore[arg-type]
            names.append(name)
            busy.set()
            leave.wait(10)

    class Waiting(Context):
        def __init__(self, event: threading.Event) -> None:
            super().__init__()
            self.event = event

        def phase(self, text: str, fraction: float | None = None) -> None:
            if text == "waiting for the engine":
                self.event.set()

    threads = []
    for name, request in (("first", ONE), ("other", OTHER), ("late", ONE)):
        entered.clear()
        threads.append(threading.Thread(target=work, args=(name, request)))
        threads[-1].start()
        assert (busy if name == "first" else entered).wait(10)
    assert names == ["first"]  # the late one could have used the engine, but came after the other
    leave.set()
    for thread in threads:
        thread.join(10)
    assert names == ["first", "other", "late"]


def test_who_gives_up_waiting_leaves_the_line(engines: list[Engine]) -> None:
    held = HeldEngine()

    class Gone(Context):
        def check(self) -> None:
            raise Cancelled

    with held.lend(lambda: ONE, Context()):  # type: ignore[arg-type]
        with pytest.raises(Cancelled), held.lend(lambda: OTHER, Gone()):  # type: ignore[arg-type]
            pass
        assert use(held)[1] == 1
