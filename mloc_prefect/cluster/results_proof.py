"""Proof that a worker sees the results root of its site: a file there holds a token that Prefect knows, too.

A worker with another `RESULTS_DIR`, or one whose NFS is not mounted, would otherwise finish tasks whose results nobody
finds. The bridge, which stands beside the endpoint, says which token is right; without a bridge the first worker does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from mloc_prefect.errors import reason
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.process.atomic_file import create_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.cluster.cluster_view import ClusterView
    from mloc_prefect.settings import MlocSettings

logger = logging.getLogger("prefect.mloc.worker")

TOKEN_FILE = ".mloc-results-root"  # noqa: S105  # a name; the token opens nothing
VARIABLE = "mloc_results_root"
BRIDGE = "bridge"

_BYTES = 8
_EVERY_SECONDS, _BLIND_SECONDS = 10.0, 2.0


@dataclass(frozen=True, slots=True)
class RootToken:
    """The token that Prefect knows.

    Attributes:
        token: Content of the token file.
        by: The bridge, or the worker that published it.
        root: The results root as that one names it, for people.
    """

    token: str
    by: str
    root: str

    def to_json(self) -> str:
        """Return the value of the Prefect variable."""
        return json.dumps({"token": self.token, "by": self.by, "root": self.root})

    @classmethod
    def from_json(cls, text: str) -> RootToken | None:
        """Return what `to_json` made, or None for anything else."""
        try:
            data: dict[str, Any] = json.loads(text)
            return cls(str(data["token"]), str(data["by"]), str(data["root"]))
        except (ValueError, KeyError, TypeError):
            return None


def read_token(root: Path) -> str | None:
    """Return the token in a results root, or None if there is none or it cannot be read."""
    try:
        return (root / TOKEN_FILE).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def make_token(root: Path) -> str:
    """Return the token of a results root; it is made if there is none, once for all who see the root.

    Raises:
        OSError: The root cannot be written.
    """
    if (found := read_token(root)) is not None:
        return found
    root.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(_BYTES)
    return token if create_once(root / TOKEN_FILE, f"{token}\n".encode(), mode=0o644) else read_token(root) or token


async def published(client: PrefectClient) -> RootToken | None:
    """Return the token that Prefect knows, or None.

    Raises:
        httpx.HTTPError: The server does not answer.
    """
    variable = await ask(client, "GET", f"/variables/name/{VARIABLE}")
    return None if variable is None else RootToken.from_json(str(variable["value"]))


async def publish(client: PrefectClient, root: Path, by: str) -> None:
    """Make the token of `root` the right one.

    Raises:
        OSError: The root cannot be written.
        httpx.HTTPError: The server does not answer.
    """
    value = RootToken(await asyncio.to_thread(make_token, root), by, str(root)).to_json()
    if await ask(client, "PATCH", f"/variables/name/{VARIABLE}", {"value": value}) is None:
        await ask(client, "POST", "/variables/", {"name": VARIABLE, "value": value, "tags": ["mloc"]})


def problem_of(root: Path, right: RootToken) -> str | None:
    """Return why a process that uses `root` does not see the results root of its site, or None if it does."""
    own = read_token(root)
    if own == right.token:
        return None
    here = f"{root} here has no {TOKEN_FILE}" if own is None else f"{root} here is another directory"
    return f"does not see the results root: {here}, {right.by} uses {right.root}; mount it, or correct RESULTS_DIR"


class ResultsProof:
    """What a worker can prove; `check` before it takes work.

    Args:
        client: Open client.
        root: Its results root.
        name: Its id.
        others: Returns whether other workers are alive.
        wanted: Whether the proof is wanted (setting `shared_results`).

    Attributes:
        problem: Why it takes no work, as text; empty when it does.
    """

    def __init__(
        self, client: PrefectClient, root: Path, name: str, others: Callable[[], bool], *, wanted: bool = True
    ) -> None:
        self._client, self._root, self._name, self._others, self._wanted = client, root, name, others, wanted
        self.problem = ""

    @classmethod
    async def started(cls, settings: MlocSettings, client: PrefectClient, name: str, view: ClusterView) -> Self:
        """Return the proof of the worker `name`, checked once.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        await view.refresh()
        proof = cls(client, settings.results_root, name, lambda: bool(view.others), wanted=settings.shared_results)
        await proof.check()
        return proof

    async def watch(self, again: Callable[[], None]) -> None:
        """Check now and then; call `again` when the root is seen again."""
        while self._wanted:
            await asyncio.sleep(_BLIND_SECONDS if self.problem else _EVERY_SECONDS)
            before = self.problem
            try:
                await self.check()
            except httpx.HTTPError as error:
                logger.info("the token of the results root cannot be read: %s", reason(error))
            if before and not self.problem:
                again()

    async def check(self) -> None:
        """Compare the token file with what Prefect knows; publish ours if no one vouches for another.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        if not self._wanted:
            return
        right = await published(self._client)
        problem = None if right is None else await asyncio.to_thread(problem_of, self._root, right)
        stale = right is not None and right.by != BRIDGE and not self._others()
        if right is None or (problem and stale):
            try:
                await publish(self._client, self._root, self._name)
                problem = None
            except OSError as error:
                problem = f"cannot write its results root {self._root}: {error.strerror}"
        if (problem or "") != self.problem:
            self.problem = problem or ""
            if problem:
                logger.error("this worker %s; it takes no work until then", problem)
            else:
                logger.warning("this worker sees the results root again")
