"""Our own services are no destination and no source of data, however they are written."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from mloc_prefect.artifacts.transfer import own_services
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError, check_url, redirected
from mloc_prefect.artifacts.transfer.own_services import OwnServices, addresses_of, is_result_route, service_of
from mloc_prefect.settings import get_settings

PREFECT = OwnServices(closed=frozenset({("127.0.0.1", 4200)}))
NAMES = {
    "gpu.example": "this machine",
    "alias.example": "this machine",
    "hub.example": "192.0.2.7",
    "192.0.2.7": "192.0.2.7",
    "other.example": "192.0.2.8",
    "*.example": "",
}


def look_up(host: str) -> frozenset[str]:
    return frozenset({NAMES[host]}) if host in NAMES else addresses_of(host)


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> AllowedHosts:
    monkeypatch.setattr(own_services, "addresses_of", look_up)
    settings = get_settings(
        allowed_hosts="*.example,127.0.0.1,localhost,192.0.2.7",
        redis_url="redis://:secret@hub.example/0",
        base_url="http://hub.example:8000/mloc",
        url="http://127.0.0.1:8000",
    )
    return AllowedHosts.of(settings, loopback=True, api_url="http://gpu.example:4200/api")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:4200/api/flow_runs/1",
        "http://localhost:4200/api/admin/settings",
        "http://LOCALHOST.:4200/",
        "http://[::1]:4200/",
        "http://127.8.8.8:4200/",
        "http://0.0.0.0:4200/",
        "http://2130706433:4200/",
        "http://127.1:4200/",
        "http://0x7f.0.0.1:4200/",
        "http://[::ffff:127.0.0.1]:4200/",
        "http://alias.example:4200/",
        "https://user:pass@alias.example:4200/x?y#z",
    ],
)
def test_prefects_api_has_many_names(url: str) -> None:
    assert PREFECT.names(urlsplit(url), look_up)


@pytest.mark.parametrize(
    "host", ["::ffff:192.0.2.7", "::192.0.2.7", "2002:c000:207::1", "64:ff9b::c000:207", "64:ff9b:1:c000:2:700::"]
)
def test_a_service_elsewhere_has_forms_in_ipv6(host: str) -> None:
    redis = OwnServices(closed=frozenset({("192.0.2.7", 6379)}))
    assert redis.names(urlsplit(f"http://[{host}]:6379/"))
    assert not redis.names(urlsplit("http://[2001:db8::7]:6379/"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:4201/", "http://other.example:4200/", "http://192.0.2.7:4200/"])
def test_other_services_stay(url: str) -> None:
    assert not PREFECT.names(urlsplit(url), look_up)


@pytest.mark.parametrize(
    "url",
    [
        "http://gpu.example:4200/api/flow_runs/1",
        "http://alias.example:4200/api",
        "http://hub.example:6379/",
        "http://192.0.2.7:6379/",
        "http://hub.example:8000/mloc/api/v1/tasks/1/cancel",
        "http://192.0.2.7:8000/mloc/admin/cleanup",
        "http://127.0.0.1:8000/api/v1/tasks",
        "http://hub.example:8000/mloc/api/v1/results/../tasks/1/cancel",
    ],
)
def test_allowed_hosts_do_not_open_our_own_services(url: str, allowed: AllowedHosts) -> None:
    with pytest.raises(DeliveryError, match="is a service of MLOC itself") as caught:
        allowed.check(url)
    assert not caught.value.retryable
    with pytest.raises(DeliveryError, match="is a service of MLOC itself"):
        check_url(url, allowed)
    with pytest.raises(DeliveryError, match="is a service of MLOC itself"):
        redirected("http://other.example/x", url, {}, allowed)


@pytest.mark.parametrize(
    "url",
    [
        "http://hub.example:8000/mloc/api/v1/results",
        "http://192.0.2.7:8000/mloc/api/v1/results/some-task/files/model.zip",
        "http://127.0.0.1:8000/api/v1/results/some-task/files",
        "http://hub.example:8001/anything",
    ],
)
def test_results_may_go_to_our_endpoint(url: str, allowed: AllowedHosts) -> None:
    allowed.check(url)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/results/../tasks",
        "/api/v1/results/%2e%2e/tasks",
        "/api/v1/results/%252e%252e/tasks",
        "/api/v1/results/x/..%2f..%2ftasks",
        "/api/v1/results/.%2e/tasks",
        "/api/v1/results/..\\tasks",
        "/api/v1/results//",
        "/api/v1/results;/../tasks",
        "//api/v1/results",
        "/api/v1/resultsx",
        "/api/v1/tasks",
        "/API/V1/RESULTS",
        "",
        "/",
    ],
)
def test_paths_that_are_no_plain_route_of_results(path: str) -> None:
    assert not is_result_route(path)


def test_what_hosts_get_holds_no_password() -> None:
    redis = {"redis_url": "redis://:secret@r:1/0", "events_redis_url": "redis://:secret@r/1"}
    own = OwnServices.of(get_settings(**redis, base_url="http://b"), "http://127.0.0.1:4200/api", None)
    assert own.closed == {("r", 1), ("r", 6379), ("127.0.0.1", 4200)}
    assert "secret" not in str(own.to_wire())
    assert OwnServices.from_wire(own.to_wire()) == own
    assert OwnServices.from_wire(None) == OwnServices()


@pytest.mark.parametrize("url", ["unix:///run/redis.sock", "http://[::1", "http://h:x/", "nonsense", ""])
def test_urls_without_a_host_are_no_service(url: str) -> None:
    assert service_of(url) is None
