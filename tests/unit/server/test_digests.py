"""Which file a digest that is kept belongs to."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from mloc_prefect.artifacts import atomic
from mloc_prefect.server.files import digests

if TYPE_CHECKING:
    from pathlib import Path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_a_file_of_the_same_size_and_time_is_another_one(tmp_path: Path) -> None:
    """Two uploads within one tick of the kernel's clock are; the one that came first may be noted last."""
    first, second = tmp_path / ".first", tmp_path / ".second"
    for path, data in ((first, b"1111"), (second, b"2222")):
        path.write_bytes(data)
        os.utime(path, ns=(10**18, 10**18))
    target, found = tmp_path / "x", first.stat()
    first.replace(target)
    assert await digests.etag(tmp_path, target, target.stat()) == f'"{sha(b"1111")}"'
    second.replace(target)
    digests.remember(tmp_path, target, found, sha(b"1111"))
    assert await digests.etag(tmp_path, target, target.stat()) == f'"{sha(b"2222")}"'


async def test_what_executors_note_counts(tmp_path: Path) -> None:
    target = tmp_path / "final_model.zip"
    target.write_bytes(b"weights")
    found = target.stat()
    atomic.write_json(tmp_path / ".sha256" / target.name, [found.st_size, found.st_mtime_ns, "0" * 64])
    assert await digests.etag(tmp_path, target, found) == f'"{"0" * 64}"'
