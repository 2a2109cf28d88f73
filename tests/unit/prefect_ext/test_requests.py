"""Requests: what any database of Prefect can store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mloc_prefect.prefect_ext.requests import ask, storable


def test_texts_are_stored_without_nul_characters() -> None:
    value = {"na\0me": ["a\0b", 7, None, {"x": "\0"}], "tags": ("t\0",)}
    assert storable(value) == {"na\ufffdme": ["a\ufffdb", 7, None, {"x": "\ufffd"}], "tags": ["t\ufffd"]}


async def test_a_request_never_carries_one() -> None:
    sent: list[Any] = []

    async def request(_method: str, _path: str, json: Any = None) -> Any:
        sent.append(json)
        return SimpleNamespace(content=b"")

    await ask(cast("Any", SimpleNamespace(request=request)), "POST", "/x", {"message": "the model wrote \0"})
    assert sent == [{"message": "the model wrote \ufffd"}]
