"""The Prefect blocks of this collection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.filesystems import WritableDeploymentStorage, WritableFileSystem
from prefect.types import SecretDict
from prefect.utilities.filesystem import filter_files
from pydantic import Field

if TYPE_CHECKING:
    from mloc_prefect.artifacts.transfer.artifact_store import FsspecArtifactStore


class MlocArtifactStore(WritableFileSystem, WritableDeploymentStorage):
    """
    Storage for results, checkpoints and archives on any file system that fsspec supports.

    Use it as result storage of flows, as code storage of deployments, or as the artifact store of MLOC stages. The URL
    is a directory, `s3://bucket/prefix`, `sftp://host/path` or `memory://`.

    Example:
        Load a saved store and write to it:
        ```python
        from mloc_prefect import MlocArtifactStore

        store = MlocArtifactStore.load("BLOCK_NAME")
        store.store().write("note.txt", b"hello")
        ```
    """  # noqa: D212  # Prefect shows this text in its UI and reads the example out of it

    _block_type_name = "MLOC Artifact Store"
    _block_type_slug = "mloc-artifact-store"
    _logo_url = "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/filesystem.png"  # type: ignore[assignment] # Prefect's own file-system logo
    _documentation_url = "https://filesystem-spec.readthedocs.io/en/latest/api.html#built-in-implementations"  # type: ignore[assignment]

    url: str = Field(
        default=...,
        title="URL",
        description="Root of the store: an fsspec URL or a local directory.",
        examples=["s3://my-bucket/mloc", "/srv/mloc/artifacts", "memory://mloc"],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Public options of the fsspec file system, such as an endpoint."
    )
    secrets: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="Secret options of the fsspec file system, such as a key; stored encrypted and never shown.",
    )

    def store(self) -> FsspecArtifactStore:
        """Return the store that stages use.

        Raises:
            MissingExtraError: The library for this kind of URL is not installed.
            ArtifactError: The store cannot be reached.
        """
        from mloc_prefect.artifacts.transfer.artifact_store import FsspecArtifactStore

        return FsspecArtifactStore(self.url, {**self.options, **self.secrets.get_secret_value()})

    async def read_path(self, path: str) -> bytes:
        """Return the bytes of a key."""
        return await asyncio.to_thread(lambda: self.store().read(path))

    async def write_path(self, path: str, content: bytes) -> None:
        """Store bytes under a key, atomically."""
        await asyncio.to_thread(lambda: self.store().write(path, content))

    async def get_directory(self, from_path: str | None = None, local_path: str | None = None) -> None:
        """Download everything below a key prefix (default: all) into a local directory (default: the current one)."""
        await asyncio.to_thread(self._fetch, from_path or "", Path(local_path or "."))

    async def put_directory(
        self, local_path: str | None = None, to_path: str | None = None, ignore_file: str | None = None
    ) -> None:
        """Upload a local directory (default: the current one) below a key prefix (default: the root).

        Args:
            local_path: The directory.
            to_path: The prefix.
            ignore_file: File with patterns, in the form of `.gitignore`, of files to leave out.
        """
        await asyncio.to_thread(self._send, Path(local_path or "."), to_path or "", ignore_file)

    def _fetch(self, prefix: str, target: Path) -> None:
        store = self.store()
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        for key in store.keys(prefix):
            file = target / key.removeprefix(start)
            file.parent.mkdir(parents=True, exist_ok=True)
            store.get(key, file)

    def _send(self, source: Path, prefix: str, ignore_file: str | None) -> None:
        store = self.store()
        patterns = Path(ignore_file).read_text().splitlines() if ignore_file else []
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        for name in sorted(filter_files(str(source), patterns, include_dirs=False)):
            if (source / name).is_file():
                store.put(source / name, start + Path(name).as_posix())
