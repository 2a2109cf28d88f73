"""Reads PDF files in a process of its own, which has limits and may be killed. Run by path; standard library and pypdf.

It reads documents from its standard input and answers each on its standard output, both with the length before them (8
bytes, big-endian). An answer is a JSON object: `pages`, the text of each, or `fault`, one line that says why there are
none. It ends with its input, after a document that needed too much memory, and with the process that started it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_FAULT_LENGTH = 200


def main() -> None:
    """Answer documents until the input ends; arguments: bytes of memory, characters of a document."""
    memory, most = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    documents = sys.stdin.buffer
    while header := documents.read(8):
        try:
            answer = _answer(documents.read(int.from_bytes(header, "big")), most)
        except MemoryError:
            answer = {"fault": f"its PDF needs more than {memory >> 20} MiB of memory"}
        whole = json.dumps(answer).encode()
        answers.write(len(whole).to_bytes(8, "big") + whole)
        answers.flush()
        if "pages" not in answer:  # what the document has left in memory is not kept for the next one
            return


def _answer(content: bytes, most: int) -> dict[str, Any]:
    """Return the answer to a document. pypdf raises all kinds of errors for broken files, so all are about the file."""
    from pypdf import PdfReader

    try:
        reader: Any = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"fault": "it is a PDF with a password"}
        pages, size = list[str](), 0
        for page in reader.pages:
            text = page.extract_text() or ""
            size += len(text)
            if size > most:
                return {"fault": f"it has more than {most} characters of text"}
            pages.append(text)
    except MemoryError:
        raise
    except Exception as error:  # boundary: a file of unknown origin
        said = " ".join(str(error).split())[:_FAULT_LENGTH] or type(error).__name__
        return {"fault": f"its PDF cannot be read: {said}"}
    return {"pages": pages}


if __name__ == "__main__":
    main()
