"""Chats through the transformers executor: from every source the same prompt, exported, divided and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.plan import check
from mloc_prefect.plan.resolve import resolve_stage
from mloc_prefect.plan.shard_ranges import ShardRange, shard_spec
from tests.support.bench import Bench
from tests.support.chats import CHATS, NO_SYSTEM, TEMPLATE, items, wanted, write_chats
from tests.support.tiny_model import save_tiny_model

if TYPE_CHECKING:
    from collections.abc import Mapping

ASKED = {"temperature": 0, "max_tokens": 2, "chat_template": TEMPLATE}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", window=2048)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Bench(tmp_path, tiny)


def rendered(result: Mapping[str, Any]) -> list[str]:
    return [item["metadata"]["rendered_prompt"] for item in result["items"]]


def spec_of(bench: Bench, data: Any, **more: Any) -> dict[str, Any]:
    return {"model": {"source": {"identifier": str(bench.model)}}, "data": data, "inference": ASKED, **more}


def test_a_list_is_rendered_counted_exported_divided_and_resumed(bench: Bench, tokenizer: Any) -> None:
    texts, data = wanted(tokenizer), {"type": "list", "items": items()}
    fields = {"asked": "prompt", "read": "metadata.rendered_prompt"}
    export = {"jsonl_export": {"path": "out.jsonl", "fields": fields}}
    done = bench.run(spec_of(bench, data, postprocess=export))
    assert rendered(done) == texts
    assert [item["prompt"] for item in done["items"]] == [chat["messages"] for chat in CHATS]
    counts = [
        len(tokenizer.apply_chat_template(c["messages"], tools=c.get("tools"), **_options())["input_ids"])
        for c in CHATS
    ]
    assert done["usage"]["prompt_tokens"] == sum(counts)
    written = [json.loads(line) for line in Path(done["jsonl_export"]["path"]).read_text().splitlines()]
    assert [json.loads(row["asked"]) for row in written] == [chat["messages"] for chat in CHATS]
    assert [row["read"] for row in written] == texts

    again = bench.run(spec_of(bench, data))
    assert (bench.journal(), again["items"]) == ([], done["items"])
    data["items"][4] = {**data["items"][4], "tools": [{"name": "other"}]}
    bench.run(spec_of(bench, data))
    assert [row["index"] for row in bench.journal()] == [4]

    for number in range(3):
        whole = spec_of(bench, {"type": "list", "items": items()})
        part = bench.run(shard_spec(whole, ShardRange(number, 3)), task=f"shard-{number}")
        indices = [item["index"] for item in part["items"]]
        assert rendered(part) == [texts[index] for index in indices]
        assert [i["output"] for i in part["items"]] == [done["items"][index]["output"] for index in indices]


def _options() -> dict[str, Any]:
    return {"chat_template": TEMPLATE, "add_generation_prompt": True, "tokenize": True, "return_dict": True}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_are_rendered(bench: Bench, tmp_path: Path, tokenizer: Any, kind: str) -> None:
    file, numbers = write_chats(tmp_path, kind)
    texts = wanted(tokenizer)
    data = {"type": "dataset", "url": str(file)}
    whole = spec_of(bench, data)
    assert rendered(bench.run(whole)) == [texts[n] for n in numbers]
    parts = [bench.run(shard_spec(whole, ShardRange(n, 2)), task=f"shard-{n}") for n in range(2)]
    assert [text for part in parts for text in rendered(part)] == [texts[n] for n in numbers]


def test_references_and_templates_are_rendered(bench: Bench, tokenizer: Any) -> None:
    first = bench.run(spec_of(bench, {"type": "list", "items": items()}))
    results = {"ask": {"result": json.loads(json.dumps(first, default=list))}}
    text = json.dumps(
        {
            "apiVersion": "mloc/v1",
            "kind": "InferenceTask",
            "metadata": {"name": "chats"},
            "spec": {
                "taskType": "inference",
                "resources": {"replicas": 1, "hardware": {"cpu": "1", "memory": "1GiB"}},
                "stages": [
                    {"name": "ask", "spec": {"data": {"type": "list", "items": ["x"]}}},
                    {
                        "name": "again",
                        "spec": {
                            "data": {
                                "type": "list",
                                "items": [
                                    {
                                        "messages": f"${{ask.result.items[{n}].prompt}}",
                                        "tools": chat["tools"],
                                    }
                                    if "tools" in chat
                                    else f"${{ask.result.items[{n}].prompt}}"
                                    for n, chat in enumerate(CHATS)
                                ],
                            }
                        },
                    },
                ],
            },
        }
    )
    plan, found = check(text.encode(), "chats.yaml")
    assert plan is not None, found
    resolved = resolve_stage(plan.stages[1], results, {}, env={}, params={})
    texts = wanted(tokenizer)
    assert rendered(bench.run(spec_of(bench, resolved.spec["data"]), task="again")) == texts
    for number in (0, 3, 9, 12):  # the ones without tools: a template gives messages
        template = {"name": "own", "text": "{col0_value}", "columns": [{"expr": f"ask.result.items[{number}].prompt"}]}
        spec = spec_of(bench, {"type": "graph_template", "template": template}, _upstreamResults=results)
        assert rendered(bench.run(spec, task=f"template-{number}")) == [texts[number]]


def test_what_the_template_refuses_costs_no_weights(bench: Bench, tmp_path: Path) -> None:
    system = [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]
    rows = [[{"role": "user", "content": "hi"}], system]
    asked = {**ASKED, "chat_template": NO_SYSTEM}
    with pytest.raises(UserError, match=r"1 of 2 rows failed .*row 1: the chat template of .* no system role"):
        bench(rows, **asked)  # type: ignore[arg-type]
    assert "loading weights" not in bench.texts("phase")
    kept = bench(rows, **asked, max_failed_rows=1)  # type: ignore[arg-type]
    assert kept["items"][0]["metadata"]["rendered_prompt"] == "<user>hi<assistant>"
    assert "no system role" in kept["items"][1]["error"]
    bare = save_tiny_model(tmp_path / "bare", chat=False)
    with pytest.raises(UserError, match="has no chat template"):
        bench(rows, task="bare", model=bare, temperature=0, max_tokens=2)  # type: ignore[arg-type]
    assert "loading weights" not in bench.texts("phase")


def test_what_does_not_reach_the_model_is_told(bench: Bench) -> None:
    system = [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]
    asked = {**ASKED, "system_prompt": "T", "chat_template_kwargs": {"loud": True}}
    bench([system], **asked)  # type: ignore[arg-type]
    assert bench.texts("log") == [
        "1 of 1 rows have a system message of their own, which takes the place of inference.system_prompt",
        "the chat template does not read loud of chat_template_kwargs",
    ]
    bench(["a text"], temperature=0, max_tokens=2, add_generation_prompt=False)
    assert bench.texts("log") == ["the chat options of spec.inference have no effect: no row is a chat"]


def test_rows_without_a_value_cost_no_model(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "first"}\n{"text": NaN}\n{"text": null}\n')
    data = {"type": "dataset", "url": "rows.jsonl"}
    with pytest.raises(UserError, match=r"2 of 3 rows failed .*: row 1: column 'text' has no value .*; row 2:"):
        bench(data, temperature=0, max_tokens=2, max_failed_rows=1)
    assert "loading weights" not in bench.texts("phase")
    found = bench(data, temperature=0, max_tokens=2, max_failed_rows=2)
    assert [item.get("error") for item in found["items"]] == [None, *["column 'text' has no value in this row"] * 2]
