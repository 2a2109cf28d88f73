"""The documents that a spec names: none is lost silently, and each has a name of its own."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.rag import document_sources
from mloc_prefect.executors.rag.document_sources import DocumentSources, RagDocument
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from tests.support.turning_names import called_server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def sources(tmp_path: Path) -> SourceLookup:
    return SourceLookup.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path), "loopback": True})


def read(sources: SourceLookup, log: list[str] | None = None, **wanted: Any) -> list[RagDocument]:
    told = log if log is not None else []
    return list(DocumentSources(SpecReader(wanted, "spec.documents"), sources, told.append).documents())


def texts(documents: list[RagDocument]) -> dict[str, list[str]]:
    return {d.source: [s.text for s in d.sections] for d in documents}


def refused(sources: SourceLookup, **wanted: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(sources, **wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_document_that_is_named_twice_comes_once_and_another_one_of_its_name_is_a_fault(
    sources: SourceLookup, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert texts(read(sources, paths=["a.txt", "a.txt"])) == {"a.txt": ["one"]}
    items = [{"text": "x", "source": "a"}, {"text": "x", "source": "a"}, {"text": "y", "source": "a"}]
    assert texts(read(sources, items=items[:2])) == {"a": ["x"]}
    assert "1 documents cannot be used: a: another document has this name" in refused(
        sources, items=items, skip_unreadable=False
    )
    log: list[str] = []
    assert texts(read(sources, log, items=items)) == {"a": ["x"]}
    assert "another document has this name" in log[0]


def test_rows_need_names_that_differ(sources: SourceLookup, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x"}, {"id": None, "text": "y"}, {"id": "a", "text": "z"}, {"id": 7, "text": "w"}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    wanted: dict[str, Any] = {"dataset": {"url": "rows.jsonl", "id_column": "id"}}
    text = refused(sources, **wanted, skip_unreadable=False)
    assert "2 documents cannot be used" in text
    assert "row 1: column 'id' is empty, so the document has no name" in text
    assert "rows.jsonl#a: another document has this name" in text
    found = texts(read(sources, **wanted))
    assert found == {"rows.jsonl#a": ["x"], "rows.jsonl#7": ["w"]}


def test_urls_that_differ_in_their_query_are_two_documents(sources: SourceLookup, tmp_path: Path) -> None:
    with called_server(body=b"page") as served:
        url = f"http://127.0.0.1:{served.port}/a.txt"
        found = list(texts(read(sources, paths=[url, f"{url}?page=1", f"{url}?token=s3cret"])))
    assert found[0] == url
    assert len(set(found)) == 3
    assert all(name.startswith(f"{url}?") for name in found[1:])
    assert "s3cret" not in str(found)
    assert list((tmp_path / "home/cache/documents").iterdir()) == []


def test_tasks_that_fetch_one_url_do_not_share_a_copy(sources: SourceLookup, tmp_path: Path) -> None:
    forgotten = tmp_path / "home/cache/documents/tmpdead"
    forgotten.mkdir(parents=True)
    os.utime(forgotten, (time.time() - 1e6,) * 2)
    with called_server(body=b"page") as served:
        url = f"http://127.0.0.1:{served.port}/a.txt"
        held = DocumentSources(SpecReader({"paths": [url]}, "spec.documents"), sources, print).documents()
        assert next(held).source == url
        (copies,) = (tmp_path / "home/cache/documents").iterdir()
        assert texts(read(sources, paths=[url])) == {url: ["page"]}
        assert list(copies.iterdir()), "the other task removes its own copy only"
        held.close()  # type: ignore[attr-defined]  # a generator


def test_an_answer_that_is_compressed_is_unpacked(sources: SourceLookup) -> None:
    whole = gzip.compress(b"<html><p>Hello.</p></html>" * 50)
    with called_server(body=whole) as served:
        served.headers = {"Content-Encoding": "gzip"}
        url = f"http://127.0.0.1:{served.port}/page"
        assert texts(read(sources, paths=[url]))[url][0].startswith("Hello.")
        served.body = whole[:-30]
        assert "it is compressed, and incomplete or damaged" in refused(sources, paths=[url])


def test_what_cannot_be_encoded_is_a_fault(sources: SourceLookup, tmp_path: Path) -> None:
    for item in ("a\ud800b", {"text": "x", "source": "\ud800"}, {"text": "x", "metadata": {"k": "\udfff"}}):
        assert "lone surrogates" in refused(sources, items=[item])
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    text = refused(sources, paths=["docs"])
    assert "docs/\\udcff.txt: it has halves of characters" in text
    text.encode()


def test_metadata_of_items_is_that_of_json(sources: SourceLookup) -> None:
    metadata = {"day": datetime.date(2024, 1, 31), "weight": float("nan"), 3: [1]}
    (found,) = read(sources, items=[{"text": "x", "metadata": metadata}])
    assert found.metadata == {"day": "2024-01-31", "weight": None, "3": [1]}
    assert "spec.documents.items[0].metadata: object has no JSON form" in refused(
        sources, items=[{"text": "x", "metadata": {"a": object()}}]
    )


def test_one_bad_document_is_left_out_and_counted_and_all_bad_ones_are_a_fault(
    sources: SourceLookup, tmp_path: Path
) -> None:
    folder, log = tmp_path / "docs", list[str]()
    folder.mkdir()
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "binary.txt").write_bytes(b"\xff\x00")
    os.mkfifo(folder / "pipe.txt")
    (folder / "good.txt").write_text("good")
    reader = DocumentSources(SpecReader({"paths": ["docs"]}, "spec.documents"), sources, log.append)
    assert texts(list(reader.documents())) == {"docs/good.txt": ["good"]}
    assert reader.left_out == 3
    bad, binary, pipe, total = log
    assert bad.startswith("left out: docs/bad.pdf: its PDF cannot be read: ")
    assert binary == "left out: docs/binary.txt: it is not utf-8 text (byte 0)"
    assert pipe.startswith("left out: docs/pipe.txt: it cannot be read: [Errno 22] not a regular file")
    assert total == "3 documents are left out, for they cannot be used"
    (folder / "good.txt").unlink()
    assert "none of the documents can be used: docs/bad.pdf" in refused(sources, paths=["docs"])


def test_a_document_has_an_end(sources: SourceLookup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_sources, "LARGEST_TEXT", 4)
    log: list[str] = []
    assert texts(read(sources, log, items=["four", "fiver"])) == {"items[0]": ["four"]}
    assert "items[1]: it has more than 4 characters of text" in log[0]
