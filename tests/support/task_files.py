"""Files of a task that go up over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


RESULTS = "/api/v1/results"


async def put(client: httpx.AsyncClient, name: str, content: bytes = b"z", task: str = "f1") -> httpx.Response:
    return await client.post(f"{RESULTS}/{task}/files", files={"file": (name, content)})


def body(*parts: tuple[str, bytes], boundary: str = "XX", end: bool = True) -> bytes:
    """Return a multipart body of parts, each a header line and its data."""
    text = b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), data) for head, data in parts)
    return text + (b"--%s--\r\n" % boundary.encode() if end else b"")
