"""The tool `search`: passages of collections that a configuration of agents names, as a rag task finds them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import ModelRetry

from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.agent.agent_job import with_host

if TYPE_CHECKING:
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

_MOST = 20


class SearchTool:
    """Searches collections; each is opened once for a task, and closed with it.

    Args:
        collections: Blocks of a rag task (`qdrant`, `embedding`, `search`) by name, from the configuration.
        sources: Mirrors and allowed hosts. The paths and servers of a configuration are the operator's own.
    """

    def __init__(self, collections: Mapping[str, Mapping[str, Any]], sources: SourceLookup) -> None:
        self._collections = collections
        self._sources = sources
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()

    def open(self, check: Callable[[], None], phase: Callable[[str], None]) -> None:
        """Open all collections.

        Raises:
            UserError: One of them is not there, or does not fit its model.
            ArtifactError: A server cannot be reached now.
        """
        from mloc_prefect.executors.rag.rag_collection import RagCollection

        for name, blocks in self._collections.items():
            spec = {**blocks, "qdrant": _with_key(name, blocks.get("qdrant") or {})}
            url = spec["qdrant"].get("url")
            allowed = with_host(self._sources.allowed, url) if url else self._sources.allowed
            sources = replace(self._sources, inputs=None, allowed=allowed)
            self._open[name] = RagCollection.open(spec, sources, check=check, phase=phase)
            self._open[name].check()

    def close(self) -> None:
        """Close the collections."""
        while self._open:
            self._open.popitem()[1].close()

    async def search(self, query: str, collection: str = "", top_k: int = 5) -> str:
        """Search a collection of passages and return those that fit best, with their sources.

        Args:
            query: What to look for.
            collection: Name of the collection; may be left out if there is only one.
            top_k: How many passages to return.
        """
        name = collection or (next(iter(self._open)) if len(self._open) == 1 else "")
        if name not in self._open:
            raise ModelRetry(f"there is no collection {name!r}; there are: {', '.join(self._open)}")
        try:
            found = await asyncio.to_thread(self._find, name, query, max(1, min(top_k, _MOST)))
        except (UserError, ArtifactError) as error:
            raise ModelRetry(str(error)) from None
        parts = [f"[{p.payload.get('source', p.id)}] (score {p.score:.3f})\n{p.text or p.payload}" for p in found]
        return "\n\n".join(parts) or "nothing was found"

    def _find(self, name: str, query: str, top_k: int) -> Any:
        with self._lock:  # one embedding at a time
            return self._open[name].search(query, top_k)


def _with_key(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the block with the key that a variable of the worker holds."""
    found = {key: value for key, value in block.items() if key != "api_key_env"}
    variable = block.get("api_key_env")
    if variable:
        key = os.environ.get(str(variable))
        if not key:
            raise UserError(f"the variable {variable} with the key of collection {name!r} is not set for this worker")
        found["api_key"] = key
    return found
