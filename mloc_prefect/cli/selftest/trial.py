"""`Trial`: runs specs for the checks in an `MLOC_HOME` of its own, and reads what they leave on the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.hardware.nvml import card_memory_used

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MLOC = (sys.executable, "-m", "mloc_prefect.cli")
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.3
_TAIL = 3

TOO_LATE = "did not end in the time of the self-test (--minutes)"


class CheckFailedError(Exception):
    """A check found something wrong; the message says what."""


class NotHereError(Exception):
    """This machine lacks what a check needs; the message says what."""


@dataclass(frozen=True, slots=True)
class TrialRun:
    """The end of one `mloc run`.

    Attributes:
        seconds: From its start to its end.
        result: Content of `responses.json` of its only task; {} if there is none.
        flow_run_id: Id of its workflow run, or None.
        folder: Folder of the task's results, or None.
    """

    seconds: float
    result: dict[str, Any]
    flow_run_id: str | None
    folder: Path | None

    @property
    def outputs(self) -> list[str]:
        """The answers of an inference, in the order of its prompts."""
        return [str(item.get("output")) for item in self.result.get("items", [])]

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that were generated in each second of the engine's work; None if the engine does not say."""
        usage = self.result.get("usage") or {}
        seconds, tokens = usage.get("latency_sec"), usage.get("completion_tokens")
        return round(tokens / seconds, 1) if tokens and seconds else None


@dataclass(slots=True)
class Trial:
    """A machine under test.

    Attributes:
        home: Its own, empty `MLOC_HOME`.
        model: Folder or identifier of the model.
        gpus: Number of GPUs that may be used.
        quick: Whether only short checks run.
        deadline: Monotonic time at which everything ends.
        environments: Names of the executor environments that are built.
        baseline: Bytes in use on all cards before the first check.
        facts: What one check leaves for a later one.
    """

    home: Path
    model: str
    gpus: int
    quick: bool
    deadline: float
    environments: frozenset[str] = frozenset()
    baseline: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    _count: int = 0
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """Root of the results of its runs."""
        return self.home / "results"

    @property
    def devices(self) -> int:
        """GPUs that most checks ask for: one where there is one."""
        return min(1, self.gpus)

    def run(self, spec: Mapping[str, Any], *options: str) -> TrialRun:
        """Run a spec with `mloc run` to its end.

        Raises:
            CheckFailedError: It is not DONE, or the time of the self-test is over.
        """
        began = time.monotonic()
        process = self.start(spec, *options)
        return self.finish(process, began)

    def start(self, spec: Mapping[str, Any], *options: str) -> subprocess.Popen[str]:
        """Start `mloc run --json` of a spec."""
        self._count += 1
        file = self.home / f"spec-{self._count}.yaml"
        file.write_text(json.dumps(spec), encoding="utf-8")  # JSON is YAML
        with file.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [*_MLOC, "run", "--json", str(file), *options],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                env=self._environment(),
            )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], began: float) -> TrialRun:
        """Wait for the end of a run that `start` began at monotonic time `began`.

        Raises:
            CheckFailedError: It is not DONE, or the time of the self-test is over.
            NotHereError: A library that it needs is not installed.
        """
        text = self.wait(process)
        answer = json.loads(text.splitlines()[-1]) if text.strip() else {}
        tasks = answer.get("tasks") or [{}]
        why = tasks[0].get("error") or self.log_tail()
        if process.returncode == MissingExtraError.exit_code:
            raise NotHereError(why)
        if process.returncode != 0:
            raise CheckFailedError(why)
        path = Path(tasks[0]["result_path"])
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return TrialRun(
            round(time.monotonic() - began, 2), result.get("result", result), answer.get("flow_run_id"), path.parent
        )

    def wait(self, process: subprocess.Popen[str]) -> str:
        """Wait until a run has ended; returns what it printed.

        Raises:
            CheckFailedError: The time of the self-test is over; the run is ended.
        """
        try:
            return process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            _end(process)
            raise CheckFailedError(f"the run {TOO_LATE}") from None

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
        """Wait until `condition` returns something true, and return that.

        Raises:
            CheckFailedError: It did not within `seconds`, or the time of the self-test is over.
        """
        deadline = min(self.deadline, time.monotonic() + seconds)
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise CheckFailedError(f"{what}: not seen in {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)
        return found

    def log_tail(self) -> str:
        """Return the last lines that the latest run wrote to its log."""
        log = self.home / f"spec-{self._count}.log"
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        return " / ".join([line for line in lines if line][-_TAIL:]) or "it ended without a message"

    def log_of_latest(self) -> str:
        """Return all that the latest run wrote to its log so far."""
        return (self.home / f"spec-{self._count}.log").read_text(encoding="utf-8", errors="replace")

    def run_id_of(self, text: str) -> str:
        """Return the id of the workflow run in what `mloc run --json` printed.

        Raises:
            CheckFailedError: There is none.
        """
        answer = json.loads(text.splitlines()[-1]) if text.strip() else {}
        if not answer.get("flow_run_id"):
            raise CheckFailedError("the run had not begun")
        return str(answer["flow_run_id"])

    def hosts(self) -> list[dict[str, Any]]:
        """Return the warm executors, as `mloc ps --json` shows them."""
        shown = self._command("ps", "--json")
        hosts: list[dict[str, Any]] = json.loads(shown).get("hosts") or []
        return hosts

    def down(self) -> None:
        """End the runtime, all warm executors, and runs that are under way as the self-test was interrupted."""
        for process in self._started:
            if process.poll() is None:
                _end(process)
        self._command("down")

    def card_memory(self) -> int:
        """Return the bytes in use on all cards."""
        return sum(card_memory_used().values())

    def _command(self, *words: str) -> str:
        done = subprocess.run(
            [*_MLOC, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=_STOP_SECONDS,
            env=self._environment(),
        )
        if done.returncode != 0:
            raise CheckFailedError(f"mloc {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        """Return the environment of commands: the user's, without servers and folders of the user."""
        apart = {"PREFECT_API_URL", "PREFECT_PROFILE", "REDIS_URL", "MLOC_REDIS_URL", "RESULTS_DIR", "MLOC_RESULTS_DIR"}
        kept = {name: value for name, value in os.environ.items() if name not in apart}
        own = {
            "MLOC_HOME": str(self.home),
            "PREFECT_HOME": str(self.home / "prefect-home"),
            "MLOC_RESULTS_DIR": str(self.results),
        }
        return {**kept, **own}


def _end(process: subprocess.Popen[str]) -> None:
    """End a run as Ctrl-C does, or by force."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_STOP_SECONDS)
    process.kill()
