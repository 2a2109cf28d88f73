"""`mloc results`: printed, saved, and checked against their digests."""

from __future__ import annotations

import json

import httpx
import pytest

from mloc_prefect.client.sync_client import MlocClient
from tests.support.client_endpoint import ONE, SUBMISSION, answering, digest, mloc


def test_results_are_printed_or_saved_with_their_files(fake, tmp_path):
    answer = b'{"result": {"ok": true}}'
    weights = bytes(range(256)) * 5000
    entries = [
        {"path": "responses.json", "status": "present", "sha256": digest(answer)},
        {"path": "final.zip", "status": "present", "sha256": digest(weights)},
        {"path": "artifacts/curve.png", "status": "present", "sha256": digest(b"png")},
        {"path": "logs", "status": "present", "file_count": 1},
        {"path": "../evil", "status": "present", "sha256": digest(b"")},
        {"path": "gone.txt", "status": "missing"},
    ]
    fake.files = {
        ONE: answer,
        f"{ONE}/files/manifest.json": json.dumps({"entries": entries}).encode(),
        f"{ONE}/files/final.zip": weights,
        f"{ONE}/files/curve.png": b"png",
    }
    assert json.loads(mloc("results", ONE).stdout) == {"result": {"ok": True}}
    saved = mloc("results", ONE, "-o", str(tmp_path / "out"))
    assert saved.exit_code == 0, saved.stderr
    assert (tmp_path / "out" / "final.zip").read_bytes() == weights
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curve.png", "final.zip", "responses.json"]
    both = mloc("results", SUBMISSION, "-o", str(tmp_path / "both"))
    assert both.exit_code == 0
    assert (tmp_path / "both" / "first" / "responses.json").read_bytes() == answer
    assert not (tmp_path / "both" / "second").exists()


def test_a_file_that_is_not_what_the_endpoint_says_is_not_kept(fake, tmp_path):
    fake.files = {ONE: b"{}"}
    fake.etags = {f"/api/v1/results/{ONE}": "0" * 64}
    result = mloc("results", ONE, "-o", str(tmp_path))
    assert result.exit_code == 6
    assert "SHA-256" in result.stderr
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize(("tag", "code"), [('"{}"', 0), ('W/"{}"', 6), ("", 6)])
def test_a_file_that_was_uploaded_again_is_checked_by_the_tag_of_its_answer(fake, tmp_path, monkeypatch, tag, code):
    """Only where that tells no digest, the manifest counts, which is of the time before."""
    entries = [{"path": "final.zip", "status": "present", "sha256": digest(b"before")}]
    fake.files = {
        ONE: b"{}",
        f"{ONE}/files/manifest.json": json.dumps({"entries": entries}).encode(),
        f"{ONE}/files/final.zip": b"again",
    }

    def handle(request: httpx.Request) -> httpx.Response:
        answer = fake(request)
        if request.url.path.endswith("/final.zip"):
            answer.headers["ETag"] = tag.format(digest(b"again"))
        return answer

    monkeypatch.setattr(MlocClient, "configured", classmethod(lambda *_: answering(handle)))
    result = mloc("results", ONE, "-o", str(tmp_path))
    assert result.exit_code == code, result.stderr
    assert (tmp_path / "final.zip").exists() == (code == 0)


def test_no_result_yet_is_one_line(fake, tmp_path):
    fake.records[ONE] |= {"status": "FAILED", "error": "boom"}
    result = mloc("results", ONE)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        2,
        "error: task first has no result: it is FAILED: boom",
    )
    assert mloc("results", ONE, "-o", str(tmp_path)).exit_code == 2
