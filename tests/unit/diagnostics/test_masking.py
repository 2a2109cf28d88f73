"""The one masking: names of fields, URLs, and known values wherever they occur."""

from __future__ import annotations

import pytest

from mloc_prefect.diagnostics.masking import KnownSecrets, has_secret, is_secret_path, mask_document, secrets_in_urls


@pytest.mark.parametrize(
    "path",
    [
        "spec.api_key",
        "spec.output.destination.headers.X-Any",
        "spec.output.destination.headers",
        "spec.stages[1].spec.password.deeper[0]",
        "headers.Authorization",
    ],
)
def test_paths_of_secrets(path: str) -> None:
    assert is_secret_path(path)


@pytest.mark.parametrize("path", ["", "spec.max_tokens", "spec.headers.Content-Type", "spec.data[3]"])
def test_other_paths(path: str) -> None:
    assert not is_secret_path(path)


def test_secrets_of_urls_are_known() -> None:
    assert secrets_in_urls("x http://u:pass-word@h/p?token=abc&a=1#f") == {"pass-word", "abc"}
    document = {"url": "http://u:hidden-word@h/", "note": "it is hidden-word", "n": 1}
    assert mask_document(document) == {"url": "http://u:***@h/", "note": "it is ***", "n": 1}
    assert has_secret(document)


def test_known_secrets_are_replaced_in_any_text() -> None:
    known = KnownSecrets.in_document({"token": "Bearer long-secret", "list": [{"password": "short"}]})
    assert known.terms == ("long-secret",)
    assert known.mask("got long-secret at http://u:pw@h") == "got *** at http://u:***@h"
    assert known.without({"a": ["long-secret", 1]}) == {"a": ["***", 1]}


def test_a_shortened_text_may_hold_the_start_of_a_secret() -> None:
    known = KnownSecrets.of(["abcdefghijklmnop", 'with "quotes" in it'])
    assert known.mask_short('found "abcdefghij..., more') == 'found "***..., more'
    assert known.mask_short("found abc...") == "found abc..."
    long = KnownSecrets.of([f"{'s' * 70}{n}{'t' * 70}" for n in range(3)])
    assert long.mask_short(f"found {'s' * 70}1{'t' * 20}...") == "found ***..."
    assert known.mask_short('found "with \\"quotes\\" in it"') == 'found "***"'


def test_names_of_columns_are_no_headers() -> None:
    assert mask_document({"headers": ["question", "answer"]}) == {"headers": ["question", "answer"]}
    assert mask_document({"headers": "Bearer abcdefgh"}) == {"headers": "Bearer ***"}


def test_many_secrets_and_many_texts_cost_no_more_than_their_product() -> None:
    """Starts are looked up in a set: hostile secrets that begin alike cost no search for each of their lengths."""
    known = KnownSecrets.of([f"{'a' * 2000}{n}" for n in range(200)])
    text = f"{'a' * 60}... " * 30
    assert "aaaa" not in known.mask_short(text)
    assert known.mask_short(text).count("***") == 30
