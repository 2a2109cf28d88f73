"""Echo returns its spec, and none of its secrets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mloc_prefect.executors.echo import EchoExecutor


def test_the_echo_holds_no_secrets() -> None:
    spec = {"api_key": "hidden-value", "note": "it is hidden-value", "message": "hi"}
    context = SimpleNamespace(sleep=lambda _: None)
    result = EchoExecutor({}).run(cast("Any", SimpleNamespace(spec=spec)), cast("Any", context))
    assert result == {"ok": True, "echo": {"api_key": "***", "note": "it is ***", "message": "hi"}}
