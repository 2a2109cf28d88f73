"""Bearer rules, health, unknown paths. [protocol 1.1, 1.2]"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from mloc_prefect.errors import DispatchError, StoreError
from mloc_prefect.server import bind
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import memory_stores
from tests.support.endpoint import served

TOKEN = "dev-token"
GUARDED = [
    ("GET", "/workers"),
    ("GET", "/workers/x"),
    ("POST", "/workers/x/elastic"),
    ("POST", "/admin/cleanup"),
    ("POST", "/api/v1/tasks"),
    ("POST", "/api/v1/tasks/validate"),
    ("GET", "/api/v1/tasks"),
    ("GET", "/api/v1/tasks/x"),
    ("POST", "/api/v1/tasks/x/cancel"),
    ("GET", "/api/v1/tasks/x/logs"),
    ("GET", "/api/v1/events"),
    ("POST", "/api/v1/results"),
    ("GET", "/api/v1/results/x"),
    ("POST", "/api/v1/results/x/files"),
    ("GET", "/api/v1/results/x/files/f"),
    ("PATCH", "/api/v1/results/x/files/f"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(
    ("header", "status", "detail"),
    [
        (None, 401, "Missing bearer token"),
        ("Basic abc", 401, "Missing bearer token"),
        ("bearer dev-token", 401, "Missing bearer token"),
        ("Bearer", 401, "Missing bearer token"),
        ("Bearer ", 401, "Missing bearer token"),
        ("Bearer wrong", 403, "Invalid token"),
        ("Bearer  dev-token", 403, "Invalid token"),
        ("Bearer dev-token x", 403, "Invalid token"),
        ("Bearer dev-token-and-more", 403, "Invalid token"),
        ("Bearer tök€n".encode(), 403, "Invalid token"),
        ("Bearer dev-token", 200, None),
        ("Bearer dev-token \t", 200, None),
    ],
)
async def test_the_header_is_compared_as_a_whole(tmp_path, header, status, detail):
    async with served(tmp_path, token=TOKEN) as endpoint:
        headers = {"authorization": header} if header is not None else {}
        answer = await endpoint.client.get("/workers", headers=headers)
        assert answer.status_code == status
        assert answer.json() == ([] if detail is None else {"detail": detail})
        assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_every_route_but_the_probes_wants_the_token(tmp_path, method, path):
    async with served(tmp_path, token=TOKEN) as endpoint:
        answer = await endpoint.client.request(method, path)
        assert (answer.status_code, answer.json()) == (401, {"detail": "Missing bearer token"})


def guarded_routes(schema) -> set[tuple[str, str]]:
    return {
        (method.upper(), path)
        for path, methods in schema["paths"].items()
        for method, route in methods.items()
        if route.get("security")
    }


async def test_the_openapi_names_the_routes_that_want_a_token(tmp_path):
    async with served(tmp_path) as endpoint:
        schema = (await endpoint.client.get("/openapi.json")).json()
    everything = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    assert everything - guarded_routes(schema) == {("GET", "/healthz"), ("GET", "/readyz")}
    assert len(guarded_routes(schema)) == len(GUARDED)


@pytest.mark.parametrize("token", [None, ""])
async def test_without_a_token_any_header_passes(tmp_path, token):
    async with served(tmp_path, token=token) as endpoint:
        for header in ("Bearer wrong", "Basic x", "nonsense"):
            answer = await endpoint.client.get("/workers", headers={"authorization": header})
            assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize(
    ("origin", "token", "status"),
    [
        ("http://evil.example", None, 403),
        ("null", None, 403),
        ("http://[", None, 403),
        ("http://endpoint", None, 200),
        ("http://evil.example", TOKEN, 200),
    ],
)
async def test_a_page_of_another_site_cannot_post_to_the_loopback_address(tmp_path, origin, token, status):
    async with served(tmp_path, token=token) as endpoint:
        headers = {"origin": origin, "authorization": f"Bearer {TOKEN}"}
        answer = await endpoint.client.post("/admin/cleanup", headers=headers)
        assert answer.status_code == status
        assert (await endpoint.client.get("/workers", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("name", "settings", "status"),
    [
        ("evil.example:8000", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("[::", {}, 403),
        ("localhost:8000", {}, 200),
        ("LOCALHOST.", {}, 200),
        ("127.0.0.1:8000", {}, 200),
        ("[::1]:8000", {}, 200),
        ("lab:8000", {"base_url": "http://lab:8000"}, 200),
        ("lab:8000", {"host": "lab"}, 200),
        ("lab:8000", {"host": "127.0.0.1"}, 403),
        ("lab:8000", {"token": TOKEN}, 200),
    ],
)
async def test_without_a_token_it_goes_by_the_names_of_this_machine_only(tmp_path, name, settings, status):
    async with served(tmp_path, **({"host": None} | settings)) as endpoint:
        headers = {"host": name, "authorization": f"Bearer {TOKEN}"}
        for method, path in (("GET", "/workers"), ("POST", "/admin/cleanup"), ("GET", "/api/v1/tasks")):
            answer = await endpoint.client.request(method, path, headers=headers)
            assert answer.status_code == status
            assert status == 200 or "set ORCHESTRATOR_TOKEN" in answer.json()["detail"]


async def test_probes_are_open(tmp_path):
    async with served(tmp_path, token=TOKEN) as endpoint:
        for path in ("/healthz", "/readyz"):
            answer = await endpoint.client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"ok": True})


@pytest.mark.parametrize("path", ["/api/v1/tasks", "/api/v1/results"])
async def test_broken_json_is_told_before_the_token_is_asked_for(tmp_path, path):
    async with served(tmp_path, token=TOKEN) as endpoint:
        headers = {"content-type": "application/json"}
        broken = await endpoint.client.post(path, content="{oops", headers=headers)
        assert broken.status_code == 422
        assert broken.json()["detail"][0]["type"] == "json_invalid"
        fine = await endpoint.client.post(path, content='{"a": 1}', headers=headers)
        assert fine.status_code == 401
        large = await endpoint.client.post(path, content="{" * 100_000, headers=headers)
        assert large.status_code == 401, "a stranger's large body is not parsed"


async def test_unknown_paths_and_methods(tmp_path):
    async with served(tmp_path) as endpoint:
        lost = await endpoint.client.get("/nope")
        assert (lost.status_code, lost.json()) == (404, {"detail": "Not Found"})
        wrong = await endpoint.client.delete("/api/v1/tasks/x")
        assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})
        slash = await endpoint.client.get("/api/v1/tasks/")
        assert slash.status_code == 307
        assert httpx.URL(slash.headers["location"]).path == "/api/v1/tasks"


class Gone:
    """Stores behind which nothing answers."""

    async def check(self) -> None:
        raise StoreError("Redis at lab:6379 does not serve: Connection refused", hint="see REDIS_URL")

    async def close(self) -> None:
        """Nothing to close."""


class GoneTasks:
    def __getattr__(self, name):
        async def method(*_args, **_options):
            await Gone().check()

        return method


async def test_a_store_that_is_gone_is_503_and_named(tmp_path):
    stores = memory_stores()
    broken = type(stores)(
        **{**{name: getattr(stores, name) for name in stores.__slots__}, "tasks": GoneTasks(), "backing": Gone()}
    )
    async with served(tmp_path, stores=broken) as endpoint:
        ready = await endpoint.client.get("/readyz")
        assert ready.status_code == 503
        assert "lab" not in ready.text, "an open route tells no address"
        answer = await endpoint.client.get("/api/v1/tasks")
        assert answer.status_code == 503
        assert answer.json() == {"detail": "Redis at lab:6379 does not serve: Connection refused; see REDIS_URL"}
        posted = await endpoint.client.post("/api/v1/results", json={"task_id": "t", "result": {}})
        assert posted.status_code == 503
        assert not endpoint.results.exists(), "nothing half-done"
        stored = await endpoint.client.post(
            "/api/v1/results", json={"task_id": "t", "result": {}}, headers={"X-MLOC-Stage-Run": "run"}
        )
        assert stored.status_code == 200, "our own stage runner only stores"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "127.0.0.1"), ({"token": "t"}, "0.0.0.0"), ({"host": "::1"}, "::1"), ({"host": "lab", "token": "t"}, "lab")],
)
def test_where_it_listens(settings, expected):
    assert bind.address(get_settings(**settings)) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "lab", "::"])
def test_it_does_not_listen_to_others_without_a_token(host):
    with pytest.raises(DispatchError, match="without a token"):
        bind.address(get_settings(host=host))


@pytest.mark.parametrize(
    ("redis", "settings", "refused"),
    [
        ("redis://r.lab:6379/0", {"token": "t"}, True),
        ("redis://r.lab:6379/0", {"token": "t", "host": "10.0.0.5"}, True),
        ("redis://r.lab:6379/0", {}, False),
        ("redis://r.lab:6379/0", {"token": "t", "host": "127.0.0.1"}, False),
        ("redis://:pw@r.lab:6379/0", {"token": "t"}, False),
        ("redis://127.0.0.1:6379/0", {"token": "t"}, False),
    ],
)
def test_it_does_not_listen_to_others_beside_an_open_redis(redis, settings, refused):
    in_force = get_settings(redis_url=redis, **settings)
    if refused:
        with pytest.raises(DispatchError, match=r"needs a Redis with a password, and REDIS_URL has none for r.lab"):
            bind.address(in_force)
    else:
        assert bind.address(in_force)


def test_a_port_in_use_is_one_line():
    with bind.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert bind.url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(DispatchError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind.bind("127.0.0.1", port)


async def test_every_route_stands_in_the_documentation(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "http.md").read_text()
    async with served(tmp_path) as endpoint:
        schema = (await endpoint.client.get("/openapi.json")).json()
    routes = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    page = page.replace("{id}", "{worker_id}").replace("{name}", "{filename}")
    assert sorted(route for route in routes if route not in page) == []
