"""The artifact-store block: Prefect's own standard suite, and what it promises as storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prefect.filesystems import RemoteFileSystem
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from mloc_prefect.blocks import MlocArtifactStore
from mloc_prefect.errors import ArtifactError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path


class TestStandard(BlockStandardTestSuite):
    @pytest.fixture
    def block(self):
        return MlocArtifactStore

    def test_has_a_valid_image(self, block):
        """The suite would download the logo; it is the one of Prefect's own file-system block."""
        assert block._logo_url == RemoteFileSystem._logo_url


async def test_keeps_bytes(tmp_path: Path):
    store = MlocArtifactStore(url=str(tmp_path))
    await store.write_path("a/b.bin", b"\x00\xff")
    assert await store.read_path("a/b.bin") == b"\x00\xff"
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"


async def test_what_is_not_there_is_an_error_with_a_name(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"has no 'missing\.json'"):
        await MlocArtifactStore(url=str(tmp_path)).read_path("missing.json")


async def test_keys_stay_inside(tmp_path: Path):
    with pytest.raises(ArtifactError, match="invalid artifact key"):
        await MlocArtifactStore(url=str(tmp_path / "in")).write_path("../out", b"")


@pytest.mark.parametrize("prefix", ["", "deep/down"])
async def test_directories_go_there_and_back(tmp_path: Path, prefix: str):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "one.txt").write_text("1")
    (source / "sub" / "two.txt").write_text("2")
    (source / "sub" / "skip.log").write_text("3")
    (tmp_path / "ignore").write_text("*.log\n")
    store = MlocArtifactStore(url="memory://blocks-" + (prefix.replace("/", "-") or "top"))
    await store.put_directory(str(source), prefix or None, str(tmp_path / "ignore"))
    await store.get_directory(prefix or None, str(tmp_path / "target"))
    found = {str(f.relative_to(tmp_path / "target")): f.read_text() for f in (tmp_path / "target").rglob("*.txt")}
    assert found == {"one.txt": "1", "sub/two.txt": "2"}
    assert not list((tmp_path / "target").rglob("*.log"))


def test_secrets_are_not_shown():
    store = MlocArtifactStore(url="memory://x", options={"shown": "yes"}, secrets={"key": "hidden-value"})
    assert "hidden-value" not in f"{store!r} {store.model_dump_json()}"
    assert store.secrets.get_secret_value() == {"key": "hidden-value"}


def test_missing_library_names_the_extra():
    with pytest.raises(MissingExtraError, match="s3") as caught:
        MlocArtifactStore(url="s3://bucket/x").store()
    assert caught.value.hint == "pip install 'mloc-prefect[s3]'"
