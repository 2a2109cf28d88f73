"""Real vLLM on the CPU, through flow runs: one warm engine, many tasks, kills, adapters, structured output."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.flow.build import WorkflowFailedError
from mloc_prefect.flow.dispatcher import InProcessDispatcher
from mloc_prefect.hardware.inventory import Inventory
from mloc_prefect.leases import MemoryLeaseBook
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.settings import get_settings
from tests.support import vllm_chats
from tests.support.flows import Killable, lines
from tests.support.patience import FACT_SECONDS
from tests.support.server import embedded_server
from tests.support.smollm import prepared_home
from tests.support.tiny_model import cut_short, save_tiny_model, with_nan
from tests.support.vllm_env import save_adapter, vllm_python
from tests.support.vllm_place import ENGINE, Place, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.alone, pytest.mark.asyncio(loop_scope="module")]

COUNTRIES = ["France", "Italy", "Japan", "Peru", "Kenya", "Norway", "Chile", "India"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_server(tmp_path_factory.mktemp("server")) as url, temporary_settings({PREFECT_API_URL: url}):
        yield url
        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, url: str) -> AsyncIterator[Place]:
    root = tmp_path_factory.mktemp("vllm")
    python = await asyncio.to_thread(vllm_python)
    mirrors = prepared_home() / "mirrors.yaml"
    settings = get_settings(
        home=root / "home", mirrors=mirrors, python={"vllm-cpu": python}, vllm_cpu=True, retry_base_delay=0.0
    )
    inventory = Inventory(2)
    async with HostPool(run_dir(settings.home), 300, 60) as pool:
        hosts = Killable(pool)
        leases = MemoryLeaseBook(inventory)
        dispatcher = InProcessDispatcher(settings=settings, hosts=hosts, leases=leases, inventory=inventory)
        yield Place(root, python, settings, hosts, dispatcher)


def capitals(count: int) -> list[str]:
    return [f"{n}. The capital of {COUNTRIES[n % len(COUNTRIES)]} is" for n in range(count)]


async def test_two_flow_runs_share_one_warm_engine(place: Place) -> None:
    first = await place(["The capital of France is", "The capital of Italy is"])
    second = await place(["The capital of France is"], max_tokens=4)
    assert "Paris" in first.outputs[0]
    assert "Rome" in first.outputs[1]
    assert first.outputs[0].startswith(second.outputs[0])
    assert (first.pid, first.summary["loads"]) == (second.pid, second.summary["loads"]) == (second.pid, 1)
    assert first.result["engine"] == {"name": "vllm", "why": "the spec asks for vLLM"}
    assert first.summary["engine"] == "vllm"
    assert "engine: vllm-cpu (the spec asks for vLLM)" in first.watch.messages()
    usage = first.result["usage"]
    assert usage["num_requests"] == 2
    assert usage["completion_tokens"] == 32
    assert usage["latency_sec"] > 0
    assert {"index", "output", "finish_reason", "prompt", "metadata"} <= set(first.result["items"][0])
    phases = [e.data["text"] for e in first.watch.events if e.kind == "phase"]
    assert {"importing vllm", "loading weights", "generating"} <= set(phases)


async def test_rows_equal_raw_generate(place: Place) -> None:
    """The same prompts, engine options and temperature 0 in a process of its own."""
    prompts = capitals(24)
    done = await place(prompts)
    script = """
import json, os, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
from vllm import LLM, SamplingParams
asked = json.load(sys.stdin)
llm = LLM(asked["model"], enforce_eager=True, distributed_executor_backend="uni", seed=0, **asked["engine"])
out = llm.generate(asked["prompts"], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
open(asked["to"], "w").write(json.dumps([o.outputs[0].text for o in out]))
os._exit(0)
"""
    to = place.root / "raw.json"
    model = str(prepared_home() / "models" / "smollm2")
    asked = json.dumps({"model": model, "engine": ENGINE, "prompts": prompts, "to": str(to)})
    command = [str(place.python), "-c", script]
    await asyncio.to_thread(subprocess.run, command, input=asked, text=True, capture_output=True, check=True)
    assert done.outputs == json.loads(to.read_text())


async def test_a_data_set_as_chats_with_metadata(place: Place) -> None:
    file = place.root / "questions.jsonl"
    file.write_text("".join(json.dumps({"q": f"Name a fruit, {n}.", "id": n}) + "\n" for n in range(6)))
    data = {"type": "dataset", "url": str(file), "column": "q", "metadata_columns": {"id": "number"}}
    export = {"path": "out/answers.jsonl", "fields": {"id": "metadata.number", "answer": "output"}}
    more = {"postprocess": {"jsonl_export": export}}
    done = await place(data, chat_template=True, system_prompt="Be brief.", more=more)
    assert [item["metadata"]["number"] for item in done.result["items"]] == list(range(6))
    assert "Be brief." in done.result["items"][0]["metadata"]["rendered_prompt"]
    assert all(done.outputs)
    told = done.result["jsonl_export"]
    written = [json.loads(line) for line in Path(told["path"]).read_text().splitlines()]
    assert written == [{"id": str(n), "answer": output} for n, output in enumerate(done.outputs)]
    assert (told["record_count"], told["relative_path"]) == (6, "out/answers.jsonl")


async def test_chats_are_what_transformers_makes_of_them(place: Place, tmp_path: Path) -> None:
    """The same prompts as in the other engine, which `test_chats.py` holds to the same words."""
    await vllm_chats.check_sources(place, tmp_path)


async def test_chats_by_reference_and_template_are_the_same(place: Place) -> None:
    await vllm_chats.check_references(place)


async def test_chats_are_divided(place: Place) -> None:
    await vllm_chats.check_shards(place)


async def test_an_answer_continues_the_last_message(place: Place) -> None:
    own = [[{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "A bird is"}]]
    begun = await place({"type": "list", "items": own}, continue_final_message=True)
    template = {"tokenize": False, "continue_final_message": True}
    rendered = vllm_chats.tokenizer().apply_chat_template(own[0], **template)
    assert begun.result["items"][0]["metadata"]["rendered_prompt"] == rendered
    images = [[{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]]
    with pytest.raises(AssertionError, match="only parts of text are read so far"):
        await place({"type": "list", "items": images})


async def test_two_tasks_at_once_are_batched_together(place: Place) -> None:
    """A short task that comes while a long one is answered ends long before it, on the same engine."""
    watch, answering = Watch(), asyncio.Event()
    watch.on_tokens = lambda data: answering.set() if data["tokens_out"] else None
    long = asyncio.create_task(place(capitals(16), watch=watch, max_tokens=256, ignore_eos=True))
    await asyncio.wait([long, asyncio.create_task(answering.wait())], return_when=asyncio.FIRST_COMPLETED)
    second = await place(capitals(8), max_tokens=4)
    assert not long.done()
    first = await long
    assert first.pid == second.pid
    assert second.summary["loads"] == first.summary["loads"] == 1
    assert first.result["usage"]["completion_tokens"] == 16 * 256
    assert [len(first.outputs), len(second.outputs)] == [16, 8]


async def test_structured_outputs_all_parse(place: Place) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    people = [f"Person {n} as JSON:" for n in range(20)]
    done = await place(people, max_tokens=160, response_schema=schema)
    for output in done.outputs:
        person = json.loads(output)
        assert set(person) == {"name", "age"}
        assert isinstance(person["age"], int)
    chosen = await place(["Is water wet? Answer:"] * 3, response_schema={"choices": ["yes", "no"]}, n=2, temperature=1)
    assert {o["output"] for item in chosen.result["items"] for o in item["outputs"]} <= {"yes", "no"}
    coded = await place(["A code:"], response_schema={"regex": "[A-Z]{3}-[0-9]{2}"}, logprobs=1)
    assert len(coded.outputs[0]) == len("ABC-12")
    assert coded.result["items"][0]["logprobs"][0]["logprob"] <= 0


async def test_what_the_engine_refuses_costs_no_other_task(place: Place) -> None:
    refused = [
        ({"response_schema": {"regex": "("}}, "unclosed group"),
        ({"response_schema": {"properties": {"a": {"$ref": "#/$defs/none"}}}}, "does not exist"),
        ({"response_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"logprobs": 1000}, "greater than max allowed"),
    ]
    watch, answering = Watch(), asyncio.Event()
    watch.on_tokens = lambda data: answering.set() if data["tokens_out"] else None
    healthy = asyncio.create_task(place(capitals(8), watch=watch, max_tokens=96, ignore_eos=True))
    await asyncio.wait([healthy, asyncio.create_task(answering.wait())], return_when=asyncio.FIRST_COMPLETED)
    retries: list[str] = []
    for asked, told in refused:
        other = Watch()
        other.on_retry = lambda told=told: retries.append(told)
        with pytest.raises(WorkflowFailedError, match=rf"spec\.inference: .*{told}"):
            await place(capitals(4), watch=other, **asked)
    assert retries == []
    done = await healthy
    assert done.result["usage"]["completion_tokens"] == 8 * 96
    assert done.pid == (await place(capitals(1))).pid


async def test_one_row_that_is_too_long_fails_alone(place: Place) -> None:
    rows = capitals(50)
    rows[17] = "word " * 600
    done = await place(rows, max_tokens=4, max_failed_rows=1)
    failed = [item for item in done.result["items"] if "error" in item]
    assert [item["index"] for item in failed] == [17]
    assert failed[0]["error"] == "the prompt has 601 tokens, but the model reads at most 512"
    assert sum(map(bool, done.outputs)) == 49


async def test_an_unknown_engine_argument_is_one_line(place: Place) -> None:
    watch = Watch()
    with pytest.raises(WorkflowFailedError):
        await place(["x"], model={"vllm": {**ENGINE, "enable_prefix_cachin": True}}, watch=watch)
    error = watch.outcomes["answers"].error
    assert error is not None
    assert "spec.model.vllm.enable_prefix_cachin: 'enable_prefix_cachin' is not a plain value" in error
    assert "did you mean 'enable_prefix_caching'?" in error
    assert [call for call in watch.calls if call[0] == "started"] == [], "no engine is asked"


async def test_damaged_weights_are_one_line_and_the_host_goes_on(place: Place) -> None:
    whole = save_tiny_model(place.root / "whole", window=512, hidden=64, heads=2)
    folder = cut_short(whole, place.root / "torn")
    watch = Watch()
    with pytest.raises(WorkflowFailedError):
        await place(["x"], identifier=str(folder), watch=watch)
    error = watch.outcomes["answers"].error
    assert error is not None
    assert error.startswith(f"vLLM cannot load {folder}: {folder}/model.safetensors is damaged or cut short: ")
    assert [call for call in watch.calls if call[0] == "started"] == [("started", "answers", 1)]
    pid = place.hosts.pids[-1]
    (folder / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    repaired = await place(["x"], identifier=str(folder))
    assert (repaired.pid, repaired.summary["loads"]) == (pid, 1)


async def test_a_cancelled_task_leaves_the_engine_to_others(place: Place) -> None:
    """It is cancelled while its first rows are being generated: their tokens count already."""
    watch, begun = Watch(), asyncio.Event()
    watch.on_tokens = lambda data: begun.set() if data["tokens_out"] > 32 else None
    task = asyncio.create_task(place(capitals(400), watch=watch, max_tokens=200, ignore_eos=True))
    try:
        await asyncio.wait_for(begun.wait(), FACT_SECONDS)
    finally:
        task.cancel()  # else the engine would be busy for the tests that follow, too
    progress = [e.data for e in watch.events if e.kind == "progress"]
    assert (progress[0]["tokens_out"], progress[-1]["done"]) == (0, 0)
    assert progress[-1]["tokens_in"] > 32
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = place.hosts.pids[-1]
    done = await asyncio.wait_for(place(["The capital of France is"], max_tokens=4), FACT_SECONDS)
    assert done.pid == pid
    assert "Paris" in done.outputs[0]


async def test_the_pinned_engine_takes_what_is_given_only_on_gpus(place: Place) -> None:
    """Not run here, for want of a GPU: the arguments exist, with the types that we give."""
    given = [
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "download_dir",
        "dtype",
        "distributed_executor_backend",
        "enable_sleep_mode",
    ]
    script = """
import dataclasses, inspect, json, sys
from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.llm_engine import LLMEngine
fields = {f.name: str(f.type) for f in dataclasses.fields(EngineArgs)}
methods = {n: list(inspect.signature(getattr(LLMEngine, n)).parameters) for n in ("sleep", "wake_up")}
config = [f.name for f in dataclasses.fields(ModelConfig)]
can_sleep = current_platform.is_sleep_mode_available()
open(sys.argv[1], "w").write(json.dumps([fields, methods, config, can_sleep]))
"""
    to = place.root / "fields.json"
    command = [str(place.python), "-c", script, str(to)]
    await asyncio.to_thread(subprocess.run, command, text=True, capture_output=True, check=True)
    fields, methods, config, can_sleep = json.loads(to.read_text())
    assert methods == {"sleep": ["self", "level", "mode"], "wake_up": ["self", "tags"]}
    assert "enable_sleep_mode" in config
    assert can_sleep is False  # of the CPU: so no engine here is asked to
    assert set(given) <= set(fields)
    assert "int" in fields["tensor_parallel_size"]
    assert "float" in fields["gpu_memory_utilization"]
    assert {"max_lora_rank", "max_loras", "enable_lora", "revision", "enforce_eager", "seed"} <= set(fields)


async def test_base_and_adapter_alternate_in_one_engine(place: Place) -> None:
    base_model = prepared_home() / "models" / "smollm2"
    paths = [save_adapter(place.root / f"adapter{n}", base_model, seed=n, rank=4) for n in range(2)]
    lora, more = ([{"type": "lora", "name": f"random{n}", "path": str(path)}] for n, path in enumerate(paths))
    both = {"adapters": lora + more}
    lora = {"adapters": lora}
    prompts = capitals(4)
    together = await place(prompts, model=both)
    adapted = await place(prompts, model=lora)
    rounds = [await place(prompts, model=model) for model in ({}, lora, {})]
    base, again, base_again = rounds
    assert base.outputs == base_again.outputs
    assert adapted.outputs == again.outputs
    assert base.outputs != adapted.outputs
    assert {done.pid for done in rounds} == {adapted.pid}
    assert {done.summary["loads"] for done in rounds} == {adapted.summary["loads"]}
    assert (adapted.summary["adapter"], together.summary["adapter"]) == ("random0", "random0+random1")
    assert (together.pid, together.summary["loads"]) == (adapted.pid, adapted.summary["loads"])
    assert together.outputs not in (base.outputs, adapted.outputs)


async def test_another_model_gets_an_engine_of_its_own(place: Place) -> None:
    tiny = save_tiny_model(place.root / "tiny", window=512, hidden=128, heads=2, shard="200KB")
    before = await place(["The capital of France is"])
    other = await place(["abc"], identifier=str(tiny))
    after = await place(["The capital of France is"])
    loaded = await place(["abc"], more={"checkpoint": {"load": {"path": str(tiny)}}})
    assert (loaded.outputs, loaded.result["model"]) == (other.outputs, "smollm2")
    parts = [e.data.get("fraction") for e in other.watch.events if e.data.get("text") == "loading weights"]
    assert any(0 < part < 1 for part in parts if part is not None), parts  # of several files
    assert other.result["model"] == str(tiny)
    assert other.pid != before.pid
    assert (after.pid, after.outputs) == (before.pid, before.outputs)


async def test_memory_that_others_hold_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine wants more than there is; before the next attempt there is enough."""
    watch = Watch()
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    watch.on_retry = lambda: monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    done = await place(["The capital of France is"], model={"vllm": {**ENGINE, "max_num_seqs": 2}}, watch=watch)
    assert "Paris" in done.outputs[0]
    (retry,) = [call for call in watch.calls if call[0] == "retry"]
    assert "out of memory: Available memory on node" in retry[3]
    assert len(set(place.hosts.pids[-2:])) == 2


async def test_a_killed_engine_is_started_once_more_and_rows_are_kept(place: Place) -> None:
    rows = [[{"role": "user", "content": f"Name {n} fruits."}] for n in range(48)]
    stop = random.Random().randrange(5, 25)
    watch = Watch()
    killed: list[int] = []

    def kill_late(done: int) -> None:
        if done >= stop and not killed:
            killed.append(place.hosts.pids[-1])
            place.hosts.kill()

    watch.on_progress = kill_late
    data = {"type": "list", "items": rows}
    done = await place(data, watch=watch, max_tokens=100)  # answers end at different times
    indices = [row["index"] for row in lines(done.dir)]
    assert sorted(indices) == list(range(48)), f"killed after {stop} rows"
    assert killed
    assert done.pid != killed[0]
    assert done.summary["loads"] == 1  # of the new process: rows were missing
    assert [call for call in watch.calls if call[0] in {"started", "retry"}] == [("started", "answers", 1)]
    assert any("started again within this attempt" in message for message in watch.messages())
    assert all(done.outputs)
    assert [item["prompt"] for item in done.result["items"]] == rows
    read = [item["metadata"]["rendered_prompt"] for item in done.result["items"]]
    template = {"tokenize": False, "add_generation_prompt": True}
    assert read == [vllm_chats.tokenizer().apply_chat_template(row, **template) for row in rows]


async def test_a_model_that_gives_no_numbers_fails_its_rows_in_one_attempt(place: Place) -> None:
    broken = with_nan(save_tiny_model(place.root / "broken", window=512, hidden=64, heads=2))
    watch = Watch()
    with pytest.raises(WorkflowFailedError):
        await place(["one", "two"], identifier=str(broken), watch=watch)
    error = watch.outcomes["answers"].error
    assert error is not None
    assert error.startswith("2 of 2 rows failed (inference.max_failed_rows is 0): row 0: the model gives no numbers")
    assert [call for call in watch.calls if call[0] == "started"] == [("started", "answers", 1)]


async def test_a_tiny_temperature_is_greedy(place: Place) -> None:
    greedy = await place(["The capital of France is"], temperature=0)
    cold = await place(["The capital of France is"], temperature=1e-40, seed=1)
    assert cold.outputs == greedy.outputs
