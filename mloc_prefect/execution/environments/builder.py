"""Building executor environments with pip, or with uv when asked for."""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from mloc_prefect.errors import MlocError
from mloc_prefect.execution.environments.catalog import MARKER, directory, marker_of, python_of
from mloc_prefect.execution.environments.torch_source import torch_options
from mloc_prefect.process.atomic_file import write_whole
from mloc_prefect.process.log_tail import log_tail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.execution.environments.catalog import ExecutorEnvironment

_SHOWN_LINES = 12
_PIP_SOURCES = {"index-url": "--index-url", "extra-index-url": "--extra-index-url", "find-links": "--find-links"}


def create(
    environment: ExecutorEnvironment, home: Path, *, uv: bool = False, force: bool = False, tell: Callable[[str], None]
) -> Path:
    """Build `environment` below `home` and return its interpreter; one that is there and up to date is kept.

    Args:
        environment: The recipe.
        home: State directory.
        uv: Install with uv instead of pip.
        force: Build it anew even if it is up to date.
        tell: Takes one line for each step.

    Raises:
        MlocError: A step failed; its last lines are in the message, all of them in the log.
    """
    target = directory(home, environment.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):  # a second builder waits, and finds the work done
        marker = marker_of(home, environment.name)
        if marker and marker.get("digest") == environment.digest and not force:
            return python_of(home, environment.name)
        _build(environment, target, home / "envs" / f"{environment.name}.log", uv=uv, tell=tell)
    return python_of(home, environment.name)


def _build(environment: ExecutorEnvironment, target: Path, log: Path, *, uv: bool, tell: Callable[[str], None]) -> None:
    if target.exists() or target.is_symlink():
        tell("removing what is there")
        if target.is_symlink():  # what it leads to belongs to somebody else
            target.unlink()
        else:
            (target / MARKER).unlink(missing_ok=True)
            shutil.rmtree(target)
    log.write_bytes(b"")
    tool = _Uv(target, log) if uv else _Pip(target, log)
    tell(f"making {target}")
    tool.make()
    options, brings = tool.torch(environment)
    tell(f"installing {', '.join(environment.requires)} with {tool.name}; the log is {log}")
    tell(f"this brings {brings}; the environment takes about {environment.size or 'as much'}")
    tool.install(environment, options)
    if environment.drop:
        tell(f"removing {', '.join(environment.drop)}")
        tool.remove(environment.drop)
    facts = {
        "name": environment.name,
        "digest": environment.digest,
        "tool": tool.name,
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
    }
    write_whole(target / MARKER, json.dumps(facts).encode(), mode=0o666)


class _Pip:
    """venv and pip: the user's own pip configuration is in force by itself."""

    name = "pip"

    def __init__(self, target: Path, log: Path) -> None:
        self._target = target
        self._log = log
        self._python = str(target / "bin" / "python")

    def make(self) -> None:
        self._run([sys.executable, "-m", "venv", str(self._target)])

    def torch(self, environment: ExecutorEnvironment) -> tuple[list[str], str]:
        """Return options that lead to the right build of torch, and what they bring."""
        return self._torch(environment, self._python)

    def install(self, environment: ExecutorEnvironment, options: Sequence[str]) -> None:
        constraint = ["--constraint", str(environment.constraints_file)]
        self._run([self._python, "-m", "pip", "install", *options, *constraint, *environment.requires])

    def remove(self, names: Sequence[str]) -> None:
        self._run([self._python, "-m", "pip", "uninstall", "--yes", *names])

    def _torch(self, environment: ExecutorEnvironment, asked: str) -> tuple[list[str], str]:
        build = os.environ.get("MLOC_TORCH", "")
        return torch_options(asked, environment.constraints_file, build, only=environment.torch, into=self._python)

    def _run(self, command: Sequence[str]) -> None:
        env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
        with self._log.open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env, check=False)
        if done.returncode:
            raise MlocError(
                f"{' '.join(command[:5])} ... failed with exit code {done.returncode}:\n"
                + log_tail(self._log, lines=_SHOWN_LINES).rstrip(),
                hint=f"the whole log is {self._log}; MLOC_TORCH=cpu or cuda chooses the build of torch",
            )


class _Uv(_Pip):
    """uv; it does not read pip's configuration, so the sources in it are handed over."""

    name = "uv"

    def __init__(self, target: Path, log: Path) -> None:
        super().__init__(target, log)
        beside = Path(sys.executable).with_name("uv")  # there when it was installed into the environment of mloc
        found = shutil.which(beside) or shutil.which("uv")
        if found is None:
            raise MlocError("uv is not installed", hint="pip install uv, or leave --uv out")
        self._uv = found

    def make(self) -> None:
        self._run([self._uv, "venv", "--python", sys.executable, str(self._target)])

    def torch(self, environment: ExecutorEnvironment) -> tuple[list[str], str]:
        return self._torch(environment, sys.executable)  # the environment itself has no pip

    def install(self, environment: ExecutorEnvironment, options: Sequence[str]) -> None:
        constraint = ["--constraint", str(environment.constraints_file)]
        sources = [*pip_sources(pip_configuration()), *options]
        if any(source in {"--extra-index-url", "--index-url"} for source in sources):
            sources += ["--index-strategy", "unsafe-best-match"]  # as pip looks at indexes
        command = [self._uv, "pip", "install", "--compile-bytecode", "--python", self._python]
        self._run([*command, *sources, *constraint, *environment.requires])

    def remove(self, names: Sequence[str]) -> None:
        self._run([self._uv, "pip", "uninstall", "--python", self._python, *names])


def pip_sources(configuration: str) -> list[str]:
    """Return uv's arguments for the package sources in the output of `pip config list`.

    Later lines win, as the order of pip's own configuration has it: files first, then the environment.
    """
    chosen: dict[str, list[str]] = {}
    for line in configuration.splitlines():
        key, separator, value = line.partition("=")
        name = key.strip().rpartition(".")[2]
        if separator and name in _PIP_SOURCES:
            chosen[name] = str(ast.literal_eval(value.strip())).split()
    return [part for name, values in chosen.items() for value in values for part in (_PIP_SOURCES[name], value)]


def pip_configuration() -> str:
    """Return the output of `pip config list` of this interpreter, files first, then the environment."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rank = {"global": 0, "user": 1, "site": 2, "install": 3, ":env:": 4}
    lines = [line for line in done.stdout.splitlines() if "=" in line]
    return "\n".join(sorted(lines, key=lambda line: rank.get(line.partition(".")[0], 0)))
