"""URLs told apart from paths, turned into paths, and made ready for the wire."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from mloc_prefect import urls
from mloc_prefect.urls import is_chained, local_path, scheme_of, wire_url


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("s3://bucket/runs", "s3"),
        (str(Path("s3://bucket/runs")), "s3"),  # as pathlib leaves it
        (" GS://b", "gs"),
        ("file:/a", "file"),
        ("az+x://b", "az+x"),
        ("c:/windows", None),
        ("results", None),
        ("/a/b:c", None),
        ("a:b", None),
        ("a/s3://b", None),
        ("", None),
    ],
)
def test_a_url_is_not_a_path(text: str, scheme: str | None) -> None:
    assert scheme_of(text) == scheme


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a b/%20.jsonl", "a b/%20.jsonl"),
        ("~/x", "~/x"),
        ("file:///a%20b/%C3%A9%23%3F.jsonl", "/a b/é#?.jsonl"),
        ("file:/a%20b", "/a b"),
        ("file://localhost/a%25b", "/a%b"),
        ("FILE:///a#b", "/a#b"),
        ("file://rows/a.jsonl", "rows/a.jsonl"),
        ("local:///a", "/a"),
        ("s3://bucket/a", None),
        ("https://example.org/a", None),
    ],
)
def test_a_file_url_is_a_path(text: str, path: str | None) -> None:
    assert local_path(text) == path


def test_a_path_survives_its_way_through_a_url(tmp_path: Path) -> None:
    for name in ("a b", "100%", "%41", "é", "#?&", "+"):
        assert local_path((tmp_path / name).as_uri()) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("url", "wire"),
    [
        ("http://h/é.jsonl", "http://h/%C3%A9.jsonl"),
        ("http://h/a b/%20c?q=ä b&r=%2F", "http://h/a%20b/%20c?q=%C3%A4%20b&r=%2F"),
        ("http://h/100%/x%zz", "http://h/100%25/x%25zz"),
        ("http://h/(a)*'!;:@&=+$,/~-._", "http://h/(a)*'!;:@&=+$,/~-._"),
        (" https://münchen.example:8443/a#top ", "https://xn--mnchen-3ya.example:8443/a"),
        ("http://[::1]:8000/a", "http://[::1]:8000/a"),
        ("HTTP://h", "http://h"),
    ],
)
def test_what_goes_over_the_wire_is_ascii(url: str, wire: str) -> None:
    sent = wire_url(url)
    assert (sent.url, sent.headers) == (wire, {})
    assert wire_url(sent.url).url == wire, "a second time changes nothing"


def test_user_and_password_become_a_header_that_is_not_shown() -> None:
    sent = wire_url("https://user:p%40ss:wörd@h:1/a")
    assert sent.url == "https://h:1/a"
    token = sent.headers["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(token).decode() == "user:p@ss:wörd"
    assert token not in repr(sent)


@pytest.mark.parametrize("url", ["http://[::1", "http://h:port/", f"http://{'ä' * 300}/"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wire_url(url)


@pytest.mark.parametrize(
    ("text", "chained"),
    [
        ("simplecache::file:///etc/passwd", True),
        ("zip://x::http://h/a.zip", True),
        ("http://[::1]:8080/x", False),
        (" https://[2001:db8::1]/x", False),
        ("http://[::1]/x::file:///etc/passwd", True),
        ("file://[::1]::file:///x", True),
        ("[::1]", True),
        ("http://h/x", False),
    ],
)
def test_a_host_in_ipv6_makes_no_chain(text: str, chained: bool) -> None:
    assert is_chained(text) is chained


def test_the_ports_of_schemes_stand_in_one_place() -> None:
    files = Path(urls.__file__).parent.rglob("*.py")
    found = {f.name for f in files if re.search(r"(?<![\w.-])443(?![\w.-])", f.read_text(encoding="utf-8"))}
    assert found == {"urls.py"}
