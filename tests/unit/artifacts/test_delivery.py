"""The http destination of protocol 4.8."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from mloc_prefect.artifacts.transfer.delivery import HttpDestination, deliver
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANY = AllowedHosts(frozenset({"h", "other"}))


async def send(
    tmp_path: Path,
    answer: Callable[[httpx.Request], httpx.Response],
    allowed: AllowedHosts = ANY,
    *,
    envelope: bool = False,
    **destination: object,
) -> list[httpx.Request]:
    seen: list[httpx.Request] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        await request.aread()
        seen.append(request)
        return answer(request)

    result = tmp_path / "result.json"
    result.write_text('{"ok": true, "text": "ü"}', encoding="utf-8")
    target = HttpDestination.of({"type": "http", "url": "http://h/api/v1/results", **destination})
    assert target is not None
    await deliver(
        target,
        task_id="t1",
        result=result,
        worker_id="w",
        allowed=allowed,
        envelope=envelope,
        transport=httpx.MockTransport(handler),
    )
    return seen


async def test_body_method_and_headers(tmp_path: Path) -> None:
    (request,) = await send(
        tmp_path, lambda _: httpx.Response(204), method="put", headers={"Authorization": "Bearer x"}
    )
    assert request.method == "PUT"
    assert json.loads(request.content) == {"task_id": "t1", "result": {"ok": True, "text": "ü"}, "worker_id": "w"}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(request.content))
    assert request.headers["authorization"] == "Bearer x"


async def test_an_envelope_is_sent_as_it_is(tmp_path: Path) -> None:
    (request,) = await send(tmp_path, lambda _: httpx.Response(200), envelope=True)
    assert json.loads(request.content) == {"ok": True, "text": "ü"}
    assert request.headers["content-length"] == str(len(request.content))


async def test_the_users_content_type_wins_in_any_case(tmp_path: Path) -> None:
    (request,) = await send(tmp_path, lambda _: httpx.Response(200), headers={"CONTENT-type": "application/x"})
    assert request.headers["content-type"] == "application/x"


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (403, False), (404, False), (429, True), (503, True)])
async def test_error_statuses_have_mlocs_text(tmp_path: Path, status: int, retryable: bool) -> None:
    with pytest.raises(DeliveryError) as caught:
        await send(tmp_path, lambda _: httpx.Response(status, text="no " * 100), headers={"Authorization": "hush"})
    assert caught.value.message == f"HTTP delivery for task t1 returned status {status}: {('no ' * 100)[:200]}"
    assert caught.value.retryable is retryable
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("soon", 0.0), (None, 0.0)])
async def test_the_wait_that_a_destination_asks_for(tmp_path: Path, value: str | None, seconds: float) -> None:
    headers = {"Retry-After": value} if value else {}
    with pytest.raises(DeliveryError) as caught:
        await send(tmp_path, lambda _: httpx.Response(503, headers=headers))
    assert caught.value.asked_to_wait == seconds


async def test_network_errors_have_mlocs_text_and_hide_secrets_in_the_url(tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(DeliveryError) as caught:
        await send(tmp_path, refuse, url="http://user:pw@h/x?token=1")
    assert caught.value.message == "Failed to deliver task t1 result to http://h/x: connection refused"
    assert caught.value.retryable


async def test_redirects_keep_method_and_body_but_not_headers_for_another_origin(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(307, headers={"location": "http://other/y"})
            if request.url.host == "h"
            else httpx.Response(200)
        )

    first, second = await send(tmp_path, answer, headers={"Authorization": "Bearer x"})
    assert (second.method, str(second.url)) == ("POST", "http://other/y")
    assert second.content == first.content
    assert "authorization" not in second.headers


async def test_each_redirect_target_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match=r"host '169\.254\.169\.254' of .* is not allowed") as caught:
        await send(tmp_path, lambda _: httpx.Response(302, headers={"location": "http://169.254.169.254/latest"}))
    assert not caught.value.retryable


async def test_redirect_loops_end(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="more than 5 redirects"):
        await send(tmp_path, lambda _: httpx.Response(308, headers={"location": "/again"}))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/x", "//h/x", "h/x", "http://", "http://h:x/"])
async def test_only_http_urls(tmp_path: Path, url: str) -> None:
    with pytest.raises(DeliveryError, match=r"not an http or https URL|not a URL"):
        await send(tmp_path, lambda _: httpx.Response(200), url=url)


def test_destinations_are_read_from_the_spec() -> None:
    assert HttpDestination.of(None) is HttpDestination.of({"type": "local"}) is None
    found = HttpDestination.of({"type": "HTTP", "url": "http://h", "timeoutSec": "3", "headers": {"a": 1}})
    assert found == HttpDestination("http://h", "POST", {"a": "1"}, 3.0)
    assert "headers" not in repr(found)
    with pytest.raises(DeliveryError) as caught:
        HttpDestination.of({"type": "http"})
    assert caught.value.message == "spec.output.destination.url is required when type is 'http'"
    with pytest.raises(DeliveryError, match="timeoutSec must be a number"):
        HttpDestination.of({"type": "http", "url": "http://h", "timeoutSec": "soon"})


@pytest.mark.parametrize(
    "header", [("X-Token", "S3CRET\nX: y"), ("X-Token", "S3CRET\u00e4"), ("a b", "S3CRET"), ("", "S3CRET")]
)
def test_headers_that_http_cannot_carry_are_refused_without_their_value(header: tuple[str, str]) -> None:
    with pytest.raises(DeliveryError, match="cannot be sent") as caught:
        HttpDestination.of({"type": "http", "url": "http://h/x", "headers": dict([header])})
    assert not caught.value.retryable
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("method", ["po st", "DELETE", "patch", "GET", "CONNECT", "post\r\nX: y"])
def test_other_methods_than_post_and_put_are_refused(method: str) -> None:
    with pytest.raises(DeliveryError, match="is not allowed: a result is sent with POST or PUT"):
        HttpDestination.of({"type": "http", "url": "http://h/x", "method": method})


async def test_the_length_is_ours_and_line_ends_of_values_are_dropped(tmp_path: Path) -> None:
    headers = {"content-length": "1", "Transfer-Encoding": "gzip", "Authorization": "Bearer x\n"}
    (request,) = await send(tmp_path, lambda _: httpx.Response(200), headers=headers)
    assert request.headers["content-length"] == str(len(request.content))
    assert "transfer-encoding" not in request.headers
    assert request.headers["authorization"] == "Bearer x"


async def test_both_methods_carry_the_result(tmp_path: Path) -> None:
    (request,) = await send(tmp_path, lambda _: httpx.Response(200), method="put")
    assert json.loads(request.content)["task_id"] == "t1"


async def test_what_the_client_itself_refuses_is_not_tried_again(tmp_path: Path) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError("no")

    with pytest.raises(DeliveryError) as caught:
        await send(tmp_path, answer)
    assert not caught.value.retryable
