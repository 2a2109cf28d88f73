"""PDF files are read in a child: what they may take, and that a bad one is one line and harms no other."""

from __future__ import annotations

import os
import signal
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from mloc_prefect.execution.protocol import Cancelled
from mloc_prefect.executors.rag import pdf_reader
from mloc_prefect.executors.rag.document_text import UnreadableError
from mloc_prefect.executors.rag.pdf_reader import PdfReaderProcess
from tests.support.documents import pdf_of, pdf_with

GOOD = pdf_of(["Hello."])
MEMORY = 512 << 20


def bomb(size: int, text: bytes = b"BT /F1 12 Tf (x) Tj ET ") -> bytes:
    """Return a small PDF whose page unpacks to `size` bytes of instructions."""
    return pdf_with([zlib.compress(text * (size // len(text)), 9)], "/Filter /FlateDecode")


def fault(reader: PdfReaderProcess, content: bytes) -> str:
    with pytest.raises(UnreadableError) as caught:
        reader.pages(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def child_of(reader: PdfReaderProcess) -> int:
    assert reader._child is not None
    return reader._child.pid


def test_one_child_reads_all_that_can_be_read() -> None:
    with closing(PdfReaderProcess(60, lambda: None)) as reader:
        assert reader.pages(GOOD) == ["Hello."]
        first = child_of(reader)
        assert reader.pages(pdf_of(["a", "", "c"])) == ["a", "", "c"]
        assert child_of(reader) == first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_bomb_ends_with_its_memory_or_its_time_and_the_next_document_is_read() -> None:
    small = bomb(60 << 20)
    assert len(small) < 1 << 18
    with closing(PdfReaderProcess(60, lambda: None, memory=MEMORY)) as reader:
        reader.pages(GOOD)
        reader._seconds = 1.5
        text = fault(reader, small)
        assert "more than 1.5 s (spec.documents.timeoutSec)" in text or "more than 512 MiB of memory" in text
        reader._seconds = 60
        assert reader.pages(GOOD) == ["Hello."]


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(pdf_reader, "_CHILD", slow)
    with closing(PdfReaderProcess(0.3, lambda: None)) as reader:
        assert fault(reader, GOOD) == "reading its PDF took more than 0.3 s (spec.documents.timeoutSec)"


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    greedy = tmp_path / "pypdf.py"
    greedy.write_text("def PdfReader(stream):\n    return bytearray(900 << 20)\n")
    child = tmp_path / "child.py"
    child.write_text(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{pdf_reader._CHILD.read_text()}")
    child.write_text(child.read_text().replace("from __future__ import annotations", ""))
    monkeypatch.setattr(pdf_reader, "_CHILD", child)
    with closing(PdfReaderProcess(60, lambda: None, memory=MEMORY)) as reader:
        assert fault(reader, GOOD) == "its PDF needs more than 512 MiB of memory"


def test_text_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_reader, "LARGEST_TEXT", 4)
    with closing(PdfReaderProcess(60, lambda: None)) as reader:
        assert fault(reader, GOOD) == "it has more than 4 characters of text"


def test_a_child_that_is_killed_is_one_line() -> None:
    with closing(PdfReaderProcess(60, lambda: None)) as reader:
        reader.pages(GOOD)
        os.kill(child_of(reader), signal.SIGKILL)
        assert fault(reader, GOOD) == "the process that read its PDF ended (SIGKILL)"
        assert reader.pages(GOOD) == ["Hello."]


def test_a_cancelled_task_does_not_wait_and_leaves_no_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(pdf_reader, "_CHILD", slow)
    seen: list[int] = []

    def check() -> None:
        seen.append(child_of(reader))
        raise Cancelled

    reader = PdfReaderProcess(60, check)
    with pytest.raises(Cancelled):
        reader.pages(GOOD)
    assert not Path(f"/proc/{seen[0]}").exists()


def test_a_child_gets_no_keys_of_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cret")
    with closing(PdfReaderProcess(60, lambda: None)) as reader:
        reader.pages(GOOD)
        assert b"s3cret" not in Path(f"/proc/{child_of(reader)}/environ").read_bytes()
