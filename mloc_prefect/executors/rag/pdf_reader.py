"""The text of PDF files within limits of time and memory: a small file may need hours, or all memory of its reader."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.executors.rag.document_text import LARGEST_TEXT, UnreadableError
from mloc_prefect.process.child import exit_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEMORY = 2 << 30
"""Bytes of address space in which a PDF is read."""

_CHILD = Path(__file__).with_name("pdf_child.py")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "MLOC_HOST_ID")
"""Variables of the child: no keys for a process that reads files of unknown origin."""

_POLL = 0.2
_STEP = 1 << 20


class PdfReaderProcess:
    """Reads one PDF after the other in a child, which starts with the first one and again after each bad one.

    Args:
        seconds: That one document may take.
        check: Called while waiting; may raise to abort.
        memory: Bytes of address space of the child.
    """

    def __init__(self, seconds: float, check: Callable[[], None], *, memory: int = MEMORY) -> None:
        self._seconds = seconds
        self._check = check
        self._memory = memory
        self._child: subprocess.Popen[bytes] | None = None

    def pages(self, content: bytes) -> Sequence[str]:
        """Return the text of each page.

        Raises:
            UnreadableError: It is no PDF, has a password, or needs more time, memory or text than it may.
            OSError: The child cannot be started.
        """
        answer: dict[str, Any] = {}
        try:
            child = self._child = self._child or self._start()
            answer = self._answer(child, content)
        finally:
            if "pages" not in answer:
                self.close()
        if "pages" not in answer:
            raise UnreadableError(str(answer["fault"]))
        return list(answer["pages"])

    def close(self) -> None:
        """End the child; a second time nothing happens."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):  # the rest of a document that the child did not want
                    pipe.close()
        child.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), str(self._memory), str(LARGEST_TEXT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
        )

    def _answer(self, child: subprocess.Popen[bytes], content: bytes) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = time.monotonic() + self._seconds
        try:
            child.stdin.write(len(content).to_bytes(8, "big") + content)
            child.stdin.flush()
        except BrokenPipeError:  # it has ended, and may have said why
            pass
        try:
            size = int.from_bytes(self._read(child.stdout, 8, deadline), "big")
            found = json.loads(self._read(child.stdout, size, deadline))
        except EOFError:
            return {"fault": f"the process that read its PDF ended ({exit_text(child.wait())})"}
        except TimeoutError:
            return {"fault": f"reading its PDF took more than {self._seconds:g} s (spec.documents.timeoutSec)"}
        return dict(found)

    def _read(self, pipe: IO[bytes], size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size:
            self._check()
            if time.monotonic() > deadline:
                raise TimeoutError
            if not select.select([pipe], [], [], _POLL)[0]:
                continue
            part = os.read(pipe.fileno(), min(size, _STEP))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
