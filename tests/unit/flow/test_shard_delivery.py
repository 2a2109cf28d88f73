"""A divided task is done when its merged result was delivered, not before; no shard is delivered by itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts.transfer.outgoing import DeliveryError
from mloc_prefect.flow import commit
from mloc_prefect.flow.shards.sharding_dispatcher import ShardingDispatcher, ShardScope
from tests.support.sharding import ROWS, answers
from tests.support.stages import StageBench

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_whole_is_done_when_the_merge_was_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "results" / "id-a" / "manifest.json"
    sent: list[tuple[str, Any]] = []

    async def deliver(destination: Any, *, task_id: str, result: Path, envelope: bool, **_: Any) -> None:
        assert not manifest.exists(), "done before it was delivered"
        assert envelope
        sent.append((task_id, json.loads(result.read_text())))
        if len(sent) == 1:
            raise DeliveryError("busy", retryable=True)

    async def three(_: Any) -> int:
        return 3

    monkeypatch.setattr(commit, "deliver", deliver)
    bench = StageBench(tmp_path, answers)
    inner, options = bench.dispatcher, bench.options
    scope = ShardScope(dispatcher=inner, settings=options.settings, root=options.root)
    bench.dispatcher = ShardingDispatcher(scope, capacity=three)  # type: ignore[assignment]
    outcome = await bench(
        {
            "a": (
                [],
                {
                    "parallel": {"enabled": True},
                    "data": {"type": "list", "items": ROWS},
                    "output": {"destination": {"type": "http", "url": "http://127.0.0.1:8080/x"}},
                },
            )
        }
    )
    assert outcome.ok
    assert manifest.exists()
    assert [task_id for task_id, _ in sent] == ["id-a", "id-a"]
    body = sent[1][1]
    assert (body["worker_id"], body["metadata"]) == ("MULTI", {"aggregated": True, "shards": 3})
    assert [item["output"] for item in body["result"]["merged"]["items"]] == [row.upper() for row in ROWS]
    assert json.loads(manifest.with_name("responses.json").read_text()) == body
    assert len(inner.requests) == 3  # what failed was the delivery only
