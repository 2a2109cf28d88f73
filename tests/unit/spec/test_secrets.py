"""Secrets are found by the names of their fields; text and document stay what they are otherwise."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mloc_prefect.plan import check
from mloc_prefect.spec.secrets import mask_document, mask_text, secrets_in_text

SECRET = "abcdefgh123"


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        (f"token: {SECRET}", "token: '***'"),
        (f"Authorization: Bearer {SECRET}", "Authorization: 'Bearer ***'"),
        (f'"Authorization": "Bearer {SECRET}"', "\"Authorization\": 'Bearer ***'"),
        (f"{{api_key: {SECRET}, n: 1}}", "{api_key: '***', n: 1}"),
        (f"apiKey: {SECRET}", "apiKey: '***'"),
        (f"X-Api-Key: {SECRET}", "X-Api-Key: '***'"),
        (f"UTU_LLM_API_KEY: {SECRET}", "UTU_LLM_API_KEY: '***'"),
        (f"hf_token: {SECRET}", "hf_token: '***'"),
        (f"accessToken: !!str {SECRET}", "accessToken: !!str '***'"),
        ("password: 12345", "password: '***'"),
        ("credentials: [a, {b: c}]", "credentials: ['***', {b: '***'}]"),
        ("headers: {PRIVATE-TOKEN: a, X-Anything: b, Content-Type: c}",) * 2,
        ("api_key: ${QDRANT_API_KEY}", "api_key: ${QDRANT_API_KEY}"),
        ("Authorization: Bearer ${TOKEN}", "Authorization: Bearer ${TOKEN}"),
        ("eos_token: <eos>", "eos_token: <eos>"),
        ("max_tokens: 8", "max_tokens: 8"),
        ("token: null", "token: null"),
        ("password: ''", "password: ''"),
        ("url: http://me:pw@host/x", "url: http://me:***@host/x"),
        ("url: http://host/x?a=1&access_token=abc&b=2", "url: http://host/x?a=1&access_token=***&b=2"),
        ("url: https://host/x?X-Amz-Signature=abc", "url: https://host/x?X-Amz-Signature=***"),
        ("url: http://host/a@b?page=1", "url: http://host/a@b?page=1"),
    ],
)
def test_fields(line, masked):
    if line.startswith("headers"):
        masked = "headers: {PRIVATE-TOKEN: '***', X-Anything: '***', Content-Type: c}"
    assert mask_text(line) == masked
    assert mask_document(yaml.safe_load(line)) == yaml.safe_load(masked)


def test_blocks_anchors_and_comments():
    text = f"""\
# the token is {SECRET} 😀
base: &auth "Bearer {SECRET}"
headers: {{Authorization: *auth}}
secret: |
  first line
  second line
password: >-
  folded
  text
last: 1
"""
    assert (
        mask_text(text)
        == """\
# the token is *** 😀
base: &auth 'Bearer ***'
headers: {Authorization: *auth}
secret: '***'
password: '***'
last: 1
"""
    )


@pytest.mark.parametrize(
    "text",
    [
        f'"\\x61pi_key": {SECRET}',
        f"a: &k api_key\n*k : {SECRET}",
        f"API key: {SECRET}",
        f"? api_key\n: {SECRET}",
        f"base: &h {{X-Anything: {SECRET}}}\nheaders: {{<<: *h}}",
    ],
)
def test_odd_ways_to_write_a_key(text):
    assert SECRET not in mask_text(text)
    assert SECRET not in str(mask_document(yaml.safe_load(mask_text(text))))


HEAD = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: n}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: "1", memory: 64Mi}}
"""


@pytest.mark.parametrize(
    "lines",
    [
        f"  output: {{destination: {{type: http, url: 'http://h/x', headers: Bearer {SECRET}}}}}\n",
        f"  output: {{destination: {{type: http, url: 'ftp://u:{SECRET}@h/x?sig={SECRET}'}}}}\n",
        f"  output: {{destination: {{type: http, url: 'http://h', timeoutSec: {SECRET}}}}}\n  api_key: {SECRET}\n",
        f"  output: {{destination: {{type: http, url: 'http://h', headers: {{A: 'x\\ny'}}}}}}\n  priority: {SECRET}\n"
        f"  token: {SECRET}\n",
        f"  dependsOn: ['Bearer {SECRET}', 5]\n  password: {SECRET}\n",
        f"  priority: '{SECRET * 9}'\n  token: {SECRET * 9}\n",
    ],
)
def test_diagnostics_show_no_secrets(lines):
    plan, found = check(HEAD + lines, strict=True)
    assert found or plan
    assert SECRET not in "".join(f"{one} {one.to_dict()}" for one in found)


def test_a_value_of_a_secret_field_is_not_shown_however_short():
    _, found = check(HEAD.replace("spec:", "spec:\n  priority: {token: 1234}"))
    _, given = check(HEAD, overrides=("spec.output.destination.headers.X-Key=[1]",))
    assert "1234" not in "".join(map(str, (*found, *given)))


def test_diagnostics_of_texts_that_are_no_yaml():
    text = f"api_key: {SECRET}\n{SECRET}: [\n"
    assert secrets_in_text(text).terms == (SECRET,)
    _, found = check(text)
    assert found
    assert SECRET not in "".join(map(str, found))


def test_a_value_is_masked_wherever_it_stands():
    document = {"headers": {"Authorization": f"Bearer {SECRET}"}, "note": [f"use {SECRET}!"], "token": "ab"}
    assert mask_document(document) == {
        "headers": {"Authorization": "Bearer ***"},
        "note": ["use ***!"],
        "token": "***",
    }
    assert document["note"] == [f"use {SECRET}!"], "the original stays as it is"


_WORDS = st.text(alphabet="abcXYZ019 #:'\"\\é😀\n-{}[]&*!|>%@`,", min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(value=_WORDS, other=_WORDS, style=st.sampled_from([None, "'", '"', "|", ">"]), flow=st.booleans())
def test_any_way_of_writing_a_secret(value, other, style, flow):
    """The masked text is still YAML, holds the mask where the secret was, and leaves all else alone."""
    long = f"s3cret-{value}-s3cret"
    document = {"before": 1, "spec": {"password": long, "list": [{"api_key": long}]}, "after": "x" + other}
    text = yaml.dump(document, default_style=style, default_flow_style=flow, allow_unicode=True)
    masked = mask_text(text)
    assert "s3cret" not in masked
    read = yaml.safe_load(masked)
    assert (read["spec"]["password"], read["spec"]["list"][0]["api_key"]) == ("***", "***")
    assert read["after"] == document["after"]
