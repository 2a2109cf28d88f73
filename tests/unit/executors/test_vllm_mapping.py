"""How a spec becomes arguments of vLLM; the engine's thread with a stand-in for the engine."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.models_source import ModelLocation
from mloc_prefect.executors.vllm import engine_loop
from mloc_prefect.executors.vllm.engine_arguments import EngineRequest, engine_request
from mloc_prefect.executors.vllm.engine_loop import EngineAnswer, EngineDeadError, EngineJob, EngineLoop, EngineRow
from mloc_prefect.executors.vllm.vllm_sampling import VllmSampling
from mloc_prefect.spec.loader import read_spec

PLACE = ModelLocation("m", "/models/m", "f00")
KNOWN = frozenset({"dtype", "max_model_len", "enable_prefix_caching", "max_num_seqs", "enable_lora", "max_lora_rank"})
COMMON = frozenset({"tensor_parallel_size", "gpu_memory_utilization", "trust_remote_code", "model", "revision"})


def request_for(vllm: dict[str, Any], *, on_cpu: bool = True, lora_rank: int = 0) -> EngineRequest:
    spec = SpecReader({"model": {"vllm": vllm}})
    return engine_request(spec, PLACE, lora_rank=lora_rank, on_cpu=on_cpu, known=KNOWN | COMMON)


def test_engine_arguments_on_a_cpu() -> None:
    found = request_for({"max_model_len": "512", "gpu_memory_utilization": 0.5, "dtype": "bfloat16"}).engine_arguments()
    assert found == {
        "model": "/models/m",
        "max_model_len": 512,
        "dtype": "bfloat16",
        "seed": 0,
        "disable_log_stats": True,
        "enforce_eager": True,
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "uni",
    }


def test_engine_arguments_on_leased_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found = request_for({}, on_cpu=False).engine_arguments()
    assert (found["tensor_parallel_size"], found["gpu_memory_utilization"]) == (2, 0.9)
    assert "enforce_eager" not in found
    assert "distributed_executor_backend" not in found
    assert (
        request_for({"tensor_parallel_size": 1}, on_cpu=False).engine_arguments()["distributed_executor_backend"]
        == "uni"
    )
    assert request_for({"tensor_parallel_size": 8}, on_cpu=False).engine_arguments()["tensor_parallel_size"] == 2


def test_a_leased_part_of_a_card_bounds_the_engine_unless_the_spec_says_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOC_GPU_SHARE", "0.5")
    assert request_for({}, on_cpu=False).engine_arguments()["gpu_memory_utilization"] == 0.45
    assert (
        request_for({"gpu_memory_utilization": 0.7}, on_cpu=False).engine_arguments()["gpu_memory_utilization"] == 0.7
    )


@pytest.mark.parametrize(
    ("vllm", "problem"),
    [
        ({"enable_prefix_cachin": True}, "did you mean 'enable_prefix_caching'?"),
        ({"zzzz": 1}, "see vLLM's engine arguments"),
        ({"model": "x"}, "is set in spec.model.source"),
        ({"max_model_len": "many"}, "must be a number"),
    ],
)
def test_unknown_engine_arguments_are_refused(vllm: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=r"spec\.model\.vllm") as caught:
        request_for(vllm)
    assert problem in str(caught.value)


def test_an_engine_with_lora_serves_the_base_model_too() -> None:
    base, small, large = request_for({}), request_for({}, lora_rank=8), request_for({}, lora_rank=20)
    assert base.served_by(small)
    assert not small.served_by(base)
    assert not large.served_by(small)
    assert not request_for({"dtype": "float16"}).served_by(small)
    assert large.engine_arguments()["max_lora_rank"] == 32
    assert base.engine_arguments().get("enable_lora") is None
    assert small.served_by(request_for({"enable_lora": True}))


def sampling(**inference: Any) -> VllmSampling:
    return VllmSampling.of(SpecReader(inference, "spec.inference"))


def test_sampling_defaults_are_those_of_the_protocol() -> None:
    found = sampling().arguments(0, 512)
    assert (found["temperature"], found["top_p"], found["top_k"], found["max_tokens"]) == (0.7, 0.95, -1, 512)
    assert found["seed"] is None
    assert found["stop"] is None


def test_seeds_depend_on_the_row_only() -> None:
    seeded = sampling(seed=7)
    assert seeded.arguments(3, 8)["seed"] == seeded.arguments(3, 9)["seed"] != seeded.arguments(4, 8)["seed"]
    assert sampling(seed=7, temperature=0).arguments(3, 8)["seed"] is None


def test_everything_that_decides_a_row_is_in_its_key() -> None:
    plain = sampling(temperature=0).key()
    for more in ({"presence_penalty": 1}, {"n": 2}, {"logprobs": 1}, {"response_schema": ["a"]}, {"min_p": 0.1}):
        assert sampling(temperature=0, **more).key() != plain
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("schema", "structure"),
    [
        ({"type": "object"}, ("json", '{"type": "object"}')),
        ('{"type": "object"}', ("json", '{"type": "object"}')),
        ({"regex": "[ab]+"}, ("regex", '"[ab]+"')),
        ("[ab]+$", ("regex", '"[ab]+$"')),
        ({"choices": ["x", "y"]}, ("choice", '["x", "y"]')),
        (["x", "y"], ("choice", '["x", "y"]')),
        ({"json_schema": {"type": "array"}}, ("json", '{"type": "array"}')),
        (None, None),
    ],
)
def test_response_schema(schema: Any, structure: Any) -> None:
    assert sampling(response_schema=schema).structure == structure


@pytest.mark.parametrize("schema", [{"colour": "red"}, {"choices": []}, {"choices": [1]}, 7])
def test_response_schema_that_is_none(schema: Any) -> None:
    with pytest.raises(UserError, match="response_schema must be"):
        sampling(response_schema=schema)


def test_fields_for_vllm_are_no_typos_unless_they_are_near_one() -> None:
    text = """
apiVersion: mloc/v1
kind: Task
metadata: {name: a}
spec:
  taskType: inference
  resources: {replicas: 1, hardware: {cpu: '1', memory: 1Gi}}
  model: {source: {identifier: m}, vllm: {enable_prefix_caching: true, max_modl_len: 3}}
  data: {type: list, items: [a]}
"""
    _, diagnostics = read_spec(text)
    assert [d.message for d in diagnostics if "modl" in d.message or "prefix" in d.message] == [
        d.message for d in diagnostics if "modl" in d.message
    ]
    assert any("max_modl_len" in d.message for d in diagnostics)


class RefusedError(Exception):
    """Stands for `vllm.exceptions.VLLMClientError`, which is no `ValueError` either."""


class FakeEngine:
    """Ends every row after two steps; refuses rows whose only token is 13, dies of 666."""

    def __init__(self, seats: int = 2) -> None:
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=seats))
        self.rows: dict[str, tuple[int, ...]] = {}
        self.age: dict[str, int] = {}
        self.most = 0
        self.aborted: list[str] = []
        self.steps: list[set[int]] = []  # first tokens of the rows of each step
        self.may_step = threading.Event()
        self.may_step.set()
        self.output_processor = SimpleNamespace(request_states={})

    def add_request(self, name: str, prompt: dict[str, list[int]], _parameters: Any, lora_request: Any) -> None:
        del lora_request
        if prompt["prompt_token_ids"] == [13]:
            raise RefusedError("refused")
        self.rows[name] = tuple(prompt["prompt_token_ids"])
        self.age[name] = 0
        self.most = max(self.most, len(self.rows))

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            self.rows.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.rows)

    def step(self) -> list[Any]:
        self.may_step.wait(5)
        self.steps.append({row[0] for row in self.rows.values()})
        if (666,) in self.rows.values():
            raise RuntimeError("bad kernel")
        ended = []
        for name in list(self.rows):
            self.age[name] += 1
            if self.age[name] == 2:
                del self.rows[name]
                ended.append(SimpleNamespace(request_id=name, finished=True))
        return ended


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.exceptions", SimpleNamespace(VLLMClientError=RefusedError))
    made = EngineLoop()
    yield made
    made.end()


def start(loop: EngineLoop, engine: FakeEngine) -> None:
    loop.call(lambda: setattr(loop, "_engine", engine)).result(5)


def job(*tokens: int) -> EngineJob:
    return EngineJob(deque(EngineRow(index, (token,), None) for index, token in enumerate(tokens)))


def answers(of: EngineJob, count: int) -> list[EngineAnswer | BaseException]:
    return [of.answers.get(timeout=60) for _ in range(count)]


def test_rows_of_two_jobs_share_the_engine_and_find_their_way_home(loop: EngineLoop) -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    start(loop, engine)
    first, second = job(*range(20)), job(*range(100, 105))
    loop.submit(first)
    loop.submit(second)
    engine.may_step.set()
    assert sorted(a.index for a in answers(second, 5) if isinstance(a, EngineAnswer)) == list(range(5))
    assert sorted(a.index for a in answers(first, 20) if isinstance(a, EngineAnswer)) == list(range(20))
    assert any(min(rows) < 100 <= max(rows) for rows in engine.steps), "a step computes rows of both"
    assert engine.most == 4  # twice its seats: a free one is taken at once, and no job takes them all


def test_rows_in_the_engine_are_counted_before_they_end(loop: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "_COUNT_SECONDS", 0.0)
    engine, begun = FakeEngine(), threading.Event()
    states = engine.output_processor.request_states

    def step() -> list[Any]:
        parents = {name: SimpleNamespace(external_req_id=name, parent_req=None) for name in engine.rows}
        for name, parent in parents.items():  # two answers each, of 5 and 2 tokens
            for number, tokens in ((0, 5), (1, 2)):
                words = SimpleNamespace(num_output_tokens=lambda tokens=tokens: tokens)
                states[f"{number}_{name}"] = SimpleNamespace(parent_req=parent, detokenizer=words)
        if states:
            begun.set()
        return []

    engine.step = step  # type: ignore[method-assign]
    start(loop, engine)
    endless = job(1, 2, 3)
    loop.submit(endless)
    assert begun.wait(5)
    loop.call(lambda: None).result(5)  # after the step in which they were counted
    loop.call(lambda: None).result(5)
    assert endless.live() == (3, 21)
    loop.cancel(endless).result(5)
    assert endless.live() == (0, 0)


def test_memory_that_others_hold_now_is_no_mistake_of_the_user() -> None:
    busy = "Free memory on device cuda:0 (1/24 GiB) on startup is less than desired GPU memory utilization (0.9)."
    assert engine_loop._NO_ROOM.search(busy)
    full = "Available memory on node 0 (2/23 GiB) on kv cache allocation is less than requested memory for kv (9 GiB)"
    assert engine_loop._NO_ROOM.search(full)
    assert not engine_loop._NO_ROOM.search("No available memory for the cache blocks.")


def test_a_refused_row_fails_alone(loop: EngineLoop) -> None:
    start(loop, FakeEngine())
    mixed = job(1, 13, 2)
    loop.submit(mixed)
    found = {a.index: a.error for a in answers(mixed, 3) if isinstance(a, EngineAnswer)}
    assert found == {0: None, 1: "refused", 2: None}


def test_parameters_that_are_refused_stop_their_task_alone(loop: EngineLoop) -> None:
    engine = FakeEngine()
    start(loop, engine)
    loop.try_parameters(EngineRow(0, (1, 13), None)).result(5)
    assert (engine.rows, engine.aborted) == ({}, ["parameters"])
    with pytest.raises(UserError, match=r"spec\.inference: refused"):
        loop.try_parameters(EngineRow(0, (13, 1), None)).result(5)
    healthy = job(1, 2)
    loop.submit(healthy)
    assert [a.error for a in answers(healthy, 2) if isinstance(a, EngineAnswer)] == [None, None]


def test_cancelled_rows_leave_the_engine(loop: EngineLoop) -> None:
    engine = FakeEngine()
    engine.step = list  # type: ignore[method-assign]  # nothing ever ends
    start(loop, engine)
    endless = job(*range(10))
    loop.submit(endless)
    while not engine.rows:
        pass
    loop.cancel(endless).result(5)
    assert engine.rows == {}
    assert len(engine.aborted) == 4
    with pytest.raises(queue.Empty):
        endless.answers.get(timeout=0.05)


def test_a_missing_compiler_is_named_with_what_helps(loop: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, released = FakeEngine(), threading.Event()
    monkeypatch.setattr(loop, "_release", released.set)  # what vLLM does for it is not here

    def step() -> list[Any]:
        raise RuntimeError("InductorError: InvalidCxxCompiler: No working C++ compiler found in cpp.cxx: (None, 'g++')")

    engine.step = step  # type: ignore[method-assign]
    start(loop, engine)
    wanting = job(1)
    loop.submit(wanting)
    (found,) = answers(wanting, 1)
    assert isinstance(found, MissingExtraError)
    assert "g++" in str(found.hint)
    assert released.wait(5)


def test_a_dying_engine_fails_all_its_jobs(loop: EngineLoop) -> None:
    start(loop, FakeEngine(8))
    jobs = [job(1, 666), job(1, 2, 3)]
    for each in jobs:
        loop.submit(each)
    for each in jobs:
        last: Any = None
        while not isinstance(last, BaseException):
            (last,) = answers(each, 1)
        assert isinstance(last, EngineDeadError)
        assert "bad kernel" in str(last)
    assert engine_loop.EngineDeadError.__name__ == "EngineDeadError"  # dispatchers know it by this name
