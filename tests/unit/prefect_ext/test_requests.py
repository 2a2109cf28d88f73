"""Requests: what any database of Prefect can store."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from mloc_prefect.prefect_ext.requests import LOGIN_HINT, ask, late_answer, server_refusal, storable


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


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [(401, "wants another login", LOGIN_HINT), (403, "wants another login", LOGIN_HINT), (500, "cannot be used", None)],
)
def test_a_refusal_says_what_to_do(status: int, message: str, hint: str | None) -> None:
    request = httpx.Request("GET", "http://127.0.0.1:4200/api/x")
    error = httpx.HTTPStatusError("Client error", request=request, response=httpx.Response(status, request=request))
    refusal = server_refusal("http://127.0.0.1:4200/api", error)
    assert f"http://127.0.0.1:4200/api {message}" in refusal.message
    assert refusal.hint == hint


async def test_a_late_answer_is_taken_and_one_that_does_not_come_is_given_up() -> None:
    asked = asyncio.Event()

    async def answer(value: Any) -> Any:
        await asked.wait()
        if isinstance(value, Exception):
            raise value
        return value

    never = asyncio.ensure_future(answer(1))
    assert await late_answer(never, 0.01) is None
    await asyncio.wait({never})
    assert never.cancelled(), "nobody waits for it any more"
    asked.set()
    assert await late_answer(asyncio.ensure_future(answer(2)), 5) == 2
    assert await late_answer(asyncio.ensure_future(answer(ValueError("no"))), 5) is None
