"""What `test_vllm.py` asks of chats: the same prompts as transformers makes of them, whatever way they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.plan.shard_ranges import ShardRange, shard_spec
from tests.support.chats import CHATS, TEMPLATE, items, wanted, write_chats
from tests.support.smollm import prepared_home
from tests.support.vllm_place import ENGINE, GREEDY, Watch

if TYPE_CHECKING:
    from tests.support.vllm_place import Done, Place

ASKED: dict[str, Any] = {"chat_template": TEMPLATE, "max_tokens": 1}
LISTED = {"type": "list", "items": items()}


def tokenizer() -> Any:
    """Return the tokenizer of the model that answers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(prepared_home() / "models" / "smollm2")


def rendered(done: Done) -> list[str]:
    """Return what the model read."""
    return [item["metadata"]["rendered_prompt"] for item in done.result["items"]]


async def check_sources(place: Place, folder: Path) -> None:
    """Chats of a list, with an export, and of files."""
    texts, reader = wanted(tokenizer()), tokenizer()
    export = {"path": "out.jsonl", "fields": {"asked": "prompt", "read": "metadata.rendered_prompt"}}
    listed = await place(LISTED, more={"postprocess": {"jsonl_export": export}}, **ASKED)
    assert rendered(listed) == texts
    counts = [len(reader(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert listed.result["usage"]["prompt_tokens"] == sum(counts)
    written = [json.loads(line) for line in Path(listed.result["jsonl_export"]["path"]).read_text().splitlines()]
    assert [json.loads(row["asked"]) for row in written] == [chat["messages"] for chat in CHATS]
    assert [row["read"] for row in written] == texts
    for kind in ("jsonl", "csv", "parquet"):
        file, numbers = write_chats(folder, kind)
        read = await place({"type": "dataset", "url": str(file)}, **ASKED)
        assert rendered(read) == [texts[n] for n in numbers]


async def check_references(place: Place) -> None:
    """Chats by reference to the prompts of an earlier stage, and by a graph template."""
    texts, plain = wanted(tokenizer()), [n for n, chat in enumerate(CHATS) if "tools" not in chat]
    asked = [f"${{ask.result.items[{number}].prompt}}" for number in range(len(CHATS))]
    again = [
        {"messages": text, "tools": chat["tools"]} if "tools" in chat else text
        for text, chat in zip(asked, CHATS, strict=True)
    ]
    templates = [
        {
            "name": f"one-{number}",
            "dependsOn": ["ask"],
            "spec": {
                "data": {
                    "type": "graph_template",
                    "template": {
                        "name": "own",
                        "text": "{col0_value}",
                        "columns": [{"expr": f"ask.result.items[{number}].prompt"}],
                    },
                }
            },
        }
        for number in plain[:3]
    ]
    nodes = [
        {"name": "ask", "spec": {"data": LISTED}},
        {"name": "again", "dependsOn": ["ask"], "spec": {"data": {"type": "list", "items": again}}},
        *templates,
    ]
    spec = {
        "taskType": "inference",
        "resources": {"replicas": 1, "hardware": {"cpu": "1", "memory": "1Gi"}},
        "model": {"source": {"identifier": "smollm2"}, "vllm": ENGINE},
        "inference": {**GREEDY, **ASKED},
        "graph": {"nodes": nodes},
    }
    ask, other, *single = await place.run_spec(spec, Watch())
    assert rendered(ask) == rendered(other) == texts
    assert [rendered(done) for done in single] == [[texts[number]] for number in plain[:3]]


async def check_shards(place: Place) -> None:
    """The parts of a divided task ask what the whole does."""
    texts = wanted(tokenizer())
    for number in range(3):
        part = shard_spec({"data": LISTED}, ShardRange(number, 3))
        done = await place(part["data"], more={"shard": part["shard"]}, **ASKED)
        assert rendered(done) == [texts[item["index"]] for item in done.result["items"]]
