"""Uploads in pieces while somebody else is at the same name. The rest of them is in tests/integration."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from mloc_prefect.server.files import resumable_upload
from tests.support.endpoint import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

    from tests.support.endpoint import Served

URL = "/api/v1/results/f1/files/model.zip"
FIRST, SECOND = b"a" * 3000, b"b" * 3000


class Sender:
    """Sends half of a file, waits, and sends the rest."""

    def __init__(self, endpoint: Served, data: bytes) -> None:
        self._client, self._data = endpoint.client, data
        self.half, self.go_on = asyncio.Event(), asyncio.Event()
        self.answer = asyncio.create_task(self._send())

    async def _send(self) -> httpx.Response:
        return await self._client.patch(URL, content=self._body(), headers=headers(self._data))

    async def _body(self) -> AsyncIterator[bytes]:
        yield self._data[:1000]
        self.half.set()
        await self.go_on.wait()
        yield self._data[1000:]


def headers(data: bytes) -> dict[str, str]:
    return {
        "Upload-Offset": "0",
        "Upload-Length": str(len(data)),
        "Upload-Digest": hashlib.sha256(data).hexdigest(),
    }


def parts(endpoint: Served) -> list[Path]:
    return list(endpoint.results.rglob(".*.part"))


async def test_two_files_of_one_name_at_once_are_both_taken_and_the_last_one_stays(tmp_path):
    async with served(tmp_path) as endpoint:
        first = Sender(endpoint, FIRST)
        await first.half.wait()
        other = await endpoint.client.patch(URL, content=SECOND, headers=headers(SECOND))
        assert (other.status_code, (await endpoint.client.get(URL)).content) == (200, SECOND)
        first.go_on.set()
        assert (await first.answer).json() == {"ok": True, "offset": len(FIRST)}
        got = await endpoint.client.get(URL)
        assert (got.content, got.headers["etag"]) == (FIRST, f'"{hashlib.sha256(FIRST).hexdigest()}"')
        assert parts(endpoint) == []


async def test_what_nobody_sends_any_more_goes_away_for_another_file_of_that_name(tmp_path):
    async with served(tmp_path) as endpoint:
        await endpoint.client.patch(URL, content=FIRST[:1000], headers=headers(FIRST))
        (left,) = parts(endpoint)
        await endpoint.client.patch(URL, content=SECOND[:1000], headers=headers(SECOND))
        (now,) = parts(endpoint)
        assert now != left


async def test_an_upload_whose_beginning_was_removed_has_to_be_sent_again(tmp_path):
    async with served(tmp_path) as endpoint:
        sender = Sender(endpoint, FIRST)
        await sender.half.wait()
        for part in parts(endpoint):
            part.unlink()
        sender.go_on.set()
        answer = await sender.answer
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "0")
        assert (await endpoint.client.patch(URL, content=FIRST, headers=headers(FIRST))).status_code == 200
        assert (await endpoint.client.get(URL)).content == FIRST


def test_a_lock_on_a_file_that_has_just_gone_counts_for_nothing(tmp_path):
    """Else two senders would write, and the one would put the other's half into its place."""
    path = tmp_path / "x.part"
    with path.open("ab") as before:
        path.unlink()
        with path.open("ab") as after:
            assert (resumable_upload._lock(before), resumable_upload._lock(after)) == (False, True)
            with path.open("ab") as third:
                assert not resumable_upload._lock(third)
