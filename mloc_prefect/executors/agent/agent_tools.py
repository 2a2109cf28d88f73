"""The tools of agents: reading files of the task, fetching pages of allowed hosts, Python in a sandbox.

Each takes what a model wrote, and a page or a file may have talked it into that. So each checks by itself what it is
asked for, against rules that are made before the first request.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from pydantic_ai.exceptions import ModelRetry

from mloc_prefect.errors import ArtifactError
from mloc_prefect.executors.agent.guarded_http import guarded_client, refusal_of
from mloc_prefect.executors.agent.sandbox.code_sandbox import SandboxLimits, run_code
from mloc_prefect.executors.sources.page_text import page_text
from mloc_prefect.process.regular_file import open_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
    from mloc_prefect.trust.agent_configurations import AgentConfiguration

_HIDDEN = frozenset({"attempts", "logs"})
"""Folders of a task that hold its spec, which may have secrets in it, and files of our own."""

_LISTED = 500
_NOTE_BYTES = 100  # of a file that goes on
_PAGE_BYTES = 5 << 20
_FETCH_SECONDS = 20.0

_WESTERN = {"utf-8", "utf8", "us-ascii", "iso-8859-1", "iso-8859-2", "iso-8859-15", "windows-1250", "windows-1252"}
_EASTERN = {"windows-1251", "koi8-r", "gbk", "gb2312", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr", "utf-16"}
_CHARSETS = frozenset(_WESTERN | _EASTERN)
"""Those that pages have; Python knows others, some of which are none (`zlib`). All else is read as UTF-8."""


@dataclass(frozen=True, slots=True)
class FileTools:
    """Reads files below the directory of the task.

    Attributes:
        root: That directory.
        most_bytes: Bytes that one call returns.
    """

    root: Path
    most_bytes: int

    def list_files(self, folder: str = ".") -> str:
        """List the files of the task, with their sizes in bytes.

        Args:
            folder: A folder of the task; '.' is all of them.
        """
        top = self._inside(folder)
        found: list[str] = []
        for path in self._files(top):
            if len(found) == _LISTED:
                found.append(f"... and more than {_LISTED} others")
                break
            found.append(f"{path.relative_to(self.root.resolve())} ({path.lstat().st_size})")
        return "\n".join(found) or "there are no files"

    def read_file(self, path: str, offset: int = 0) -> str:
        """Read a text file of the task.

        Args:
            path: The file, as list_files shows it.
            offset: Bytes to skip, to read on in a long file.
        """
        file = self._inside(path)
        try:
            opened = open_inside(self.root, file)
        except OSError as error:
            raise ModelRetry(f"{path} cannot be read: {error.strerror}") from None
        if opened is None:
            raise ModelRetry(f"there is no file {path} among the files of the task")
        with opened:
            size = os.fstat(opened.fileno()).st_size
            start = min(max(0, offset), size)  # a number of the model may be larger than any offset
            opened.seek(start)
            data = opened.read(self.most_bytes) or b""
        end = start + len(data)
        note = f"\n... {size - end} more bytes; read on with offset {end}" if size > end else ""
        return data.decode("utf-8", "replace") + note

    def _inside(self, name: str) -> Path:
        root = self.root.resolve()
        try:
            path = (root / name).resolve()
        except (OSError, ValueError, RuntimeError):
            raise ModelRetry(f"{name!r} is not a path") from None
        parts = path.relative_to(root).parts if path.is_relative_to(root) else None
        if parts is None or (parts and (parts[0] in _HIDDEN or any(part.startswith(".") for part in parts))):
            raise ModelRetry(f"{name} is not among the files of the task")
        return path

    def _files(self, top: Path) -> Iterator[Path]:
        root = self.root.resolve()
        for folder, names, files in os.walk(top):
            hidden = _HIDDEN if Path(folder) == root else frozenset[str]()
            names[:] = sorted(name for name in names if name not in hidden and not name.startswith("."))
            yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


@dataclass(frozen=True, slots=True)
class PageTool:
    """Fetches pages.

    Attributes:
        allowed: Hosts that may be called.
        hosts: Those of them that the configuration names, which can only take hosts away; None = all.
    """

    allowed: AllowedHosts
    hosts: tuple[str, ...] | None = None

    async def fetch(self, url: str) -> str:
        """Fetch a page by its URL and return its text.

        Args:
            url: An http or https URL.
        """
        rules = [self.allowed]
        if self.hosts is not None:
            rules.append(replace(self.allowed, hosts=frozenset(self.hosts), loopback=False))
        try:
            async with guarded_client(*rules, most_bytes=_PAGE_BYTES, timeout=_FETCH_SECONDS, redirects=True) as client:
                response = await client.get(url, headers={"Accept": "text/*, application/json;q=0.9, */*;q=0.1"})
        except (ArtifactError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ModelRetry(
                f"the page cannot be fetched: {refusal_of(error) or error or type(error).__name__}"
            ) from None
        shown = await asyncio.to_thread(_shown, response)
        return shown if response.is_success else f"status {response.status_code}\n{shown}"


@dataclass(frozen=True, slots=True)
class CodeTool:
    """Runs Python that the model wrote.

    Attributes:
        limits: What it may use.
    """

    limits: SandboxLimits

    async def python(self, code: str) -> str:
        """Run a Python program and return what it prints. It has the standard library, no network, and no files but
        those that it writes to its working directory, which is empty at the start of each call.

        Args:
            code: The whole program.
        """  # noqa: D205 - the model reads it as one text
        run = await run_code(code, self.limits)
        parts = [run.stdout.rstrip()]
        if run.stderr.strip():
            parts.append(f"[stderr]\n{run.stderr.rstrip()}")
        if run.ended_by:
            parts.append(f"[ended: {run.ended_by}]")
        elif run.status:
            parts.append(f"[exit status {run.status}]")
        return "\n".join(part for part in parts if part) or "(it printed nothing)"


def tools_of(configuration: AgentConfiguration, task_dir: Path, allowed: AllowedHosts) -> list[Callable[..., Any]]:
    """Return the tools that a configuration names, ready to be called.

    Args:
        configuration: The configuration.
        task_dir: Directory of the task.
        allowed: Hosts that the operator allows.
    """
    limits = configuration.limits
    files = FileTools(task_dir, max(1, limits.tool_output_bytes - _NOTE_BYTES))
    code = CodeTool(
        SandboxLimits(
            seconds=limits.tool_seconds,
            memory_mb=limits.memory_mb,
            disk_mb=limits.disk_mb,
            processes=limits.processes,
            output_bytes=limits.tool_output_bytes,
        )
    )
    known: dict[str, Callable[..., Any]] = {
        "list_files": files.list_files,
        "read_file": files.read_file,
        "fetch": PageTool(allowed, configuration.hosts).fetch,
        "python": code.python,
    }
    return [known[name] for name in configuration.tools if name in known]


def _shown(response: httpx.Response) -> str:
    """Return what a model sees of an answer."""
    kind = response.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()
    if not _is_text(kind):
        return f"(not text: {kind}, {len(response.content)} bytes)"
    charset = (response.charset_encoding or "").strip().lower()
    text = response.content.decode(charset if charset in _CHARSETS else "utf-8", "replace")
    return page_text(text) if kind in {"text/html", "application/xhtml+xml"} else text


def _is_text(kind: str) -> bool:
    return kind.startswith("text/") or kind.endswith(("json", "xml", "yaml", "javascript"))
