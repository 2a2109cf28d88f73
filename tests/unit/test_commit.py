"""The end of a stage: what is told of a delivery that goes half well."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.delivery import AllowedHosts, HttpDestination
from mloc_prefect.orchestrate import commit
from mloc_prefect.orchestrate.commit import Committer, Computed
from mloc_prefect.orchestrate.fence import NoFence

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_files_that_a_destination_refuses_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is delivered all the same, without their URLs. [protocol 4.8]."""
    delivered: list[Any] = []

    async def refused(*_: Any, **__: Any) -> list[str]:
        return ["final_model.zip: status 413"]

    async def deliver(destination: HttpDestination, **_: Any) -> None:
        delivered.append(destination.url)

    monkeypatch.setattr(commit, "upload_files", refused)
    monkeypatch.setattr(commit, "deliver", deliver)
    attempt = tmp_path / "attempts" / "1-1"
    attempt.mkdir(parents=True)
    (attempt / "result.json").write_text(json.dumps({"ok": True}))
    committer = Committer(
        directory=tmp_path,
        task_id="t",
        name="t",
        required=(),
        destination=HttpDestination("http://127.0.0.1:1/r"),
        allowed=AllowedHosts(),
        fence=NoFence(),
    )
    computed = Computed(spec_sha256="0", attempt_dir="1-1", attempt=1, run_count=1, path=str(attempt / "result.json"))
    told: list[str] = []
    await committer.commit(computed, worker_id="w", warn=told.append)
    assert told == ["final_model.zip: status 413"]
    assert delivered == ["http://127.0.0.1:1/r"]
