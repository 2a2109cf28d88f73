"""Who the embedded Prefect server answers: its own names, and no pages of other sites, on websockets too."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.prefect_ext.server.site_guard import SiteGuard

PORT = 4200


async def ask(kind: str, *headers: tuple[str, str], host: str = "127.0.0.1", names: tuple[str, ...] = ()) -> Any:
    """Return the status of an answer: 200 when the request was passed on; for a websocket whether it was."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    await SiteGuard(app, host, names)({"type": kind, "headers": raw}, receive, send)  # type: ignore[arg-type]
    return sent[0].get("status") or sent[0]["type"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.0.0.9", "x.localhost", "localhost."]
)
async def test_names_of_this_machine(host: str) -> None:
    assert await ask("http", ("host", f"{host}:{PORT}")) == 200
    assert await ask("websocket", ("host", host), ("origin", f"http://{host}")) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1/evil",
        "evil.example#127.0.0.1",
        "evil.example?127.0.0.1",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "192.0.2.1",
        "127.0.0.1:port",
        "[::1",
        "",
    ],
)
async def test_names_of_others(host: str) -> None:
    assert await ask("http", ("host", host)) == 403
    assert await ask("websocket", ("host", host)) == "websocket.close"


async def test_exactly_one_name_is_needed() -> None:
    assert await ask("http") == 403
    assert await ask("http", ("host", "localhost"), ("host", "localhost")) == 403


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1", "file://", "http://localhost:4200"],
)
async def test_pages_of_other_sites(origin: str) -> None:
    own = ("host", f"127.0.0.1:{PORT}")
    assert await ask("http", own, ("origin", origin)) == 403
    assert await ask("websocket", own, ("origin", origin)) == "websocket.close"
    assert await ask("http", own, ("origin", f"http://127.0.0.1:{PORT}"), ("origin", origin)) == 403


async def test_its_own_pages() -> None:
    for origin in (f"http://127.0.0.1:{PORT}", f"https://127.0.0.1:{PORT}"):
        assert await ask("http", ("host", f"127.0.0.1:{PORT}"), ("origin", origin)) == 200


async def test_a_server_for_other_machines_has_more_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "GPU-Box")
    beyond = {"host": "0.0.0.0", "names": ("mloc.lab.example",)}
    for host in ("gpu-box:4200", "mloc.lab.example", "192.0.2.7:4200", "[2001:db8::1]", "localhost"):
        assert await ask("http", ("host", host), **beyond) == 200, host  # type: ignore[arg-type]
    for host in ("evil.example", "gpu-box.evil.example", "0.0.0.0", "[::]"):
        assert await ask("http", ("host", host), **beyond) == 403, host  # type: ignore[arg-type]
    assert await ask("http", ("host", "mloc.lab.example")) == 403
    assert await ask("http", ("host", "mloc.lab.example"), names=("mloc.lab.example",)) == 200


async def test_what_is_no_request_is_passed_on() -> None:
    assert await ask("lifespan") == 200
