"""What a vLLM engine that does not start leaves behind: nothing. vLLM itself is a stand-in."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import SafetensorError

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.vllm.engine_loop import EngineLoop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Weights:
    """Stands for what an engine holds on the device."""


class Vllm:
    """As much of vLLM as loads an engine."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.held: list[weakref.ref[Weights]] = []
        self.error: Exception | None = None

    def from_engine_args(self, *_: Any) -> Any:
        weights = Weights()
        self.held.append(weakref.ref(weights))
        if self.error is not None:
            raise self.error
        core = SimpleNamespace(shutdown=lambda: self.told.append("shutdown"), get_output=SimpleNamespace)
        return SimpleNamespace(engine_core=core, output_processor=SimpleNamespace(), weights=weights)

    @property
    def alive(self) -> int:
        gc.collect()
        return sum(ref() is not None for ref in self.held)


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """Keep the collections of loads and unloads from walking through all that other tests have imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Vllm:
    stand_in = Vllm()
    names: dict[str, dict[str, Any]] = {
        "vllm.engine.arg_utils": {"EngineArgs": dict},
        "vllm.usage.usage_lib": {"UsageContext": SimpleNamespace(LLM_CLASS=1)},
        "vllm.v1.engine.llm_engine": {"LLMEngine": stand_in},
        "vllm.distributed.parallel_state": {"cleanup_dist_env_and_memory": lambda: stand_in.told.append("cleanup")},
        "vllm.model_executor.model_loader": {"weight_utils": SimpleNamespace(tqdm=object)},
    }
    for name, values in names.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
        vars(sys.modules[name]).update(values)
    return stand_in


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    loop = EngineLoop()
    yield loop
    loop.end()


def load(loop: EngineLoop, model: str = "m") -> Any:
    return loop.load({"model": model}, lambda _text, _fraction: None).result(10)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("no such\n dtype"), UserError, "vLLM cannot load m: no such dtype"),
        (SafetensorError("header too small"), UserError, "vLLM cannot load m: its weights are damaged or cut short"),
        (RuntimeError("start (0) + length (8) exceeds dimension size (4)."), UserError, "m: its weights have other sh"),
        (ValueError("Free memory is less than desired GPU memory utilization"), MemoryError, "Free memory is less"),
        (RuntimeError("Failed to find C compiler"), MissingExtraError, "found no compiler"),
        (RuntimeError("CUDA error: unspecified launch failure"), RuntimeError, "CUDA error: unspecified"),
    ],
)
def test_a_load_that_fails_says_why_and_frees_what_it_had(
    vllm: Vllm, loop: EngineLoop, error: Exception, kind: type[Exception], text: str
) -> None:
    vllm.error = error
    with pytest.raises(kind) as caught:
        load(loop)
    assert text in str(caught.value)
    assert (vllm.told, vllm.alive) == (["cleanup"], 0)  # although the error is still there, with its traceback
    vllm.error = None
    load(loop)
    loop.unload().result(10)
    assert (vllm.told, vllm.alive) == (["cleanup", "shutdown", "cleanup"], 0)


def test_the_reason_of_a_worker_process_is_looked_for_in_the_files(
    vllm: Vllm, loop: EngineLoop, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    vllm.error = RuntimeError("WorkerProc initialization failed due to an exception in a background process.")
    with pytest.raises(UserError, match=rf"^vLLM cannot load {tmp_path}: {tmp_path}/model.safetensors is damaged"):
        load(loop, str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="WorkerProc"):
        load(loop, str(tmp_path))


def test_an_engine_that_nobody_took_gives_way_to_the_next(vllm: Vllm, loop: EngineLoop) -> None:
    """Its task was cancelled while it loaded."""
    load(loop)
    load(loop)
    assert (vllm.told, vllm.alive) == (["shutdown", "cleanup"], 1)
