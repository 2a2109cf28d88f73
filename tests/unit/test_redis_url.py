"""URLs of Redis: forms that are read, and what is said about others."""

from __future__ import annotations

import pytest

from mloc_prefect.process.exposure import unprotected_redis
from mloc_prefect.redis_url import RedisUrl, RedisUrlError

SENTINELS = "redis+sentinel://u:p%40@s1,s2:26380,[::1]:26381/mymaster/3?sentinel_password=x"


@pytest.mark.parametrize(
    ("text", "server", "shown"),
    [
        ("redis://:pw@r:6380/2", "r:6380", "redis://r:6380/2"),
        ("valkeys://r", "r:6379", "rediss://r:6379"),
        ("rediss://:pw@[::1]/1?ssl_ca_certs=/ca.pem", "[::1]:6379", "rediss://[::1]:6379/1"),
        ("unix://:pw@/run/redis.sock?db=1", "/run/redis.sock", "unix:///run/redis.sock"),
        (
            SENTINELS,
            "mymaster behind s1:26379, s2:26380, [::1]:26381",
            "redis+sentinel://s1:26379,s2:26380,[::1]:26381/mymaster/3",
        ),
    ],
)
def test_forms(text: str, server: str, shown: str) -> None:
    found = RedisUrl.parse(text)
    assert (found.server, found.shown) == (server, shown)


def test_a_database_further_on_keeps_everything_else():
    assert RedisUrl.parse("valkey://:pw@r:1").with_database(2) == "redis://:pw@r:1/2"
    assert RedisUrl.parse("rediss://:pw@r:1/4?ssl_cert_reqs=none").with_database(1) == (
        "rediss://:pw@r:1/5?ssl_cert_reqs=none"
    )
    later = RedisUrl.parse(SENTINELS).with_database(1)
    assert later.endswith("@s1:26379,s2:26380,[::1]:26381/mymaster/4?sentinel_password=x")
    assert RedisUrl.parse(later).with_database(0) == later


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r:6379",
        "http://r",
        "redis://:secret@r:port/0",
        "redis://:secret@r/zero",
        "redis://:secret@a,b/0",
        "redis+sentinel://:secret@s1,s2",
        "redis+sentinel://:secret@s1,,s2/m",
        "redis+sentinel://:secret@s1/m/zero",
        "redis+cluster://:secret@s1/m",
        "unix+sentinel:///x/m",
    ],
)
def test_what_cannot_be_read_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(RedisUrlError) as caught:
        RedisUrl.parse(text)
    assert "secret" not in str(caught.value)


def test_a_redis_without_a_password_is_open_if_others_reach_one_of_its_hosts():
    assert unprotected_redis("redis://127.0.0.1:6379/0") is None
    assert unprotected_redis("redis://r:6379/0") == "r"
    assert unprotected_redis("redis+sentinel://localhost,s2/m") == "s2"
    assert unprotected_redis(SENTINELS) is None
    assert unprotected_redis("redis://r/0?password=pw") is None
    assert unprotected_redis("unix:///run/redis.sock") is None
