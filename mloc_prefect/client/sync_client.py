"""`MlocClient`: calls an endpoint and waits for its answers."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from mloc_prefect.client import client_calls, saved_files
from mloc_prefect.client.client_steps import AskStep, GiveStep, PauseStep, SaveFileStep, SendFileStep, Step, StepWalk
from mloc_prefect.client.endpoint_address import ANSWER_SECONDS, UPLOAD_SECONDS, EndpointAddress, patience
from mloc_prefect.client.endpoint_replies import check_reply, failures_named
from mloc_prefect.client.stream_lines import EVENT_STREAM, SILENCE_SECONDS, ServerEventReader, log_lines_of, message_of
from mloc_prefect.client.task_lookup import find_task, find_tasks
from mloc_prefect.errors import MlocError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mloc_prefect.artifacts.task_result import TaskResult
    from mloc_prefect.client.client_steps import Steps
    from mloc_prefect.client.stream_lines import ChannelMessage
    from mloc_prefect.client.task_lookup import Record
    from mloc_prefect.settings import MlocSettings

T = TypeVar("T")


class MlocClient:
    """A client of one MLOC endpoint; `AsyncMlocClient` has the same methods for `await`.

        with MlocClient("http://127.0.0.1:8000") as client:
            submitted = client.submit(Path("task.yaml"))
            client.wait(submitted["submission_id"])
            rows = list(client.result(submitted["tasks"][0]["task_id"]).rows())

    Where a method takes the id of a task or submission, the first characters are enough if they are unambiguous.
    Records, workers and answers are the JSON objects that `docs/http.md` describes.

    Every method raises an `MlocError` with one line and a hint:

    * `UnreachableError`: no answer, or 503; `AccessError`: the token is wrong or missing.
    * `RefusedSpecError` (a `SpecError`) with `diagnostics`: the spec is invalid.
    * `RefusedRequestError`: other content is.
    * `NotFoundError`: there is no such task, result or file. `RefusedConflictError`: the state of the task forbids it.

    Args:
        url: URL of the endpoint.
        token: Bearer token, or None; never shown, neither in errors nor in `repr`.
        transport: Replaces the network in tests.
        sleep: Waits for a number of seconds between two looks at a task.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = EndpointAddress(url, token)
        self._sleep = sleep
        self._http = httpx.Client(transport=transport, **self._address.arguments())

    @classmethod
    def configured(cls, settings: MlocSettings | None = None) -> Self:
        """Return a client of `MLOC_URL`, otherwise of the `mloc up` of this `MLOC_HOME`, otherwise of the default URL.

        The token is `MLOC_TOKEN`, or the one that this `mloc up` created.

        Args:
            settings: The settings; default: those in force.
        """
        address = EndpointAddress.configured(settings)
        return cls(address.url, address.token)

    def __repr__(self) -> str:
        """Return class and URL, without token and password."""
        return f"{type(self).__name__}({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def url(self) -> str:
        """URL of the endpoint, without user and password."""
        return self._address.shown

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON answer to a GET of any route, such as `/metrics`; parameters that are None are left out."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._run(client_calls.ask(self._address, "GET", path, params=given or None))

    def submit(
        self,
        spec: str | Path | Mapping[str, Any],
        *,
        parameters: Mapping[str, str] | None = None,
        strict: bool = False,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Submit a spec; when this returns, the submission is durable.

        Args:
            spec: The YAML text, the path of a file, or the document as a mapping.
            parameters: Values of `${param.NAME}`.
            strict: Refuse specs with warnings.
            idempotency_key: A second call with this key and spec within a day returns the first submission.

        Returns:
            `submission_id`, `tasks` (each with `task_id` and `status`), `count`, and `warnings` if there are any.

        Raises:
            RefusedSpecError: The spec is invalid.
        """
        return self._run(
            client_calls.submit(self._address, spec, parameters=parameters, strict=strict, key=idempotency_key)
        )

    def validate(
        self,
        spec: str | Path | Mapping[str, Any],
        *,
        parameters: Mapping[str, str] | None = None,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Check a spec at the endpoint and store nothing; return `ok`, `errors`, `warnings` and `plan`."""
        steps = client_calls.submit(
            self._address, spec, parameters=parameters, strict=strict, key=None, check_only=True
        )
        return self._run(steps)

    def status(self, wanted: str) -> list[Record]:
        """Return the record of a task, or those of all tasks of a submission in order of creation."""
        return self._run(find_tasks(self._address, wanted))

    def task(self, wanted: str) -> Record:
        """Return the record of one task.

        Raises:
            UsageError: `wanted` means several.
        """
        return self._run(find_task(self._address, wanted))

    def list_tasks(
        self,
        *,
        status: str | None = None,
        task_type: str | None = None,
        submission_id: str | None = None,
        name: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Record]:
        """Return the records that match all given filters, in order of creation.

        Args:
            status: PENDING, WAITING, DISPATCHED, DONE, FAILED or CANCELLED.
            task_type: Value of `spec.taskType`.
            submission_id: Whole id of a submission.
            name: Name of a task, its stage or its submission.
            limit: Maximum number of records, 1 to 1000; None for all.
            newest_first: Reverse the order.
        """
        return self._run(
            client_calls.list_tasks(
                self._address,
                status=status,
                task_type=task_type,
                submission_id=submission_id,
                name=name,
                limit=limit,
                newest_first="true" if newest_first else None,
            )
        )

    def watch(
        self,
        wanted: str | Sequence[str],
        *,
        timeout: float | None = None,
        on_outage: Callable[[str], None] | None = None,
    ) -> Iterator[Record]:
        """Yield the record of each task at first and after each change, until all have ended.

        The endpoint may be away for two minutes meanwhile.

        Args:
            wanted: Task or submission, or several.
            timeout: Longest time in seconds; None for no limit.
            on_outage: Is called with one line when the endpoint stops answering.

        Raises:
            WaitTimeoutError: Some have not ended after `timeout`.
        """
        return self._each(client_calls.watch(self._address, wanted, timeout=timeout, on_outage=on_outage))

    def wait(self, wanted: str | Sequence[str], *, timeout: float | None = None) -> list[Record]:
        """Wait until tasks have ended, however they end; return their last records. Arguments and errors as `watch`."""
        return list({record["task_id"]: record for record in self.watch(wanted, timeout=timeout)}.values())

    def result(self, wanted: str) -> TaskResult:
        """Return the result of a task; it has no `files`, which `download` fetches.

        Raises:
            NotFoundError: The task has none; the message says its status and error.
        """
        return self._run(client_calls.result(self._address, wanted))

    def download(self, wanted: str, folder: Path) -> Iterator[Path]:
        """Save `responses.json` and the files of a task to `folder`; yield each path when it is complete and checked.

        Several tasks get a folder each. Files that were uploaded after the end of the task are not listed.

        Raises:
            UsageError: There is no result yet.
            ArtifactError: A file cannot be written, or does not match its size or SHA-256; it is not kept.
        """
        return self._each(saved_files.save_results(self._address, wanted, folder))

    def upload(self, wanted: str, file: Path, *, name: str | None = None) -> str:
        """Upload a file of a task, of any size; one of the same name is replaced when this one is complete.

        Args:
            wanted: The task.
            file: The file on this machine.
            name: Its name at the endpoint, one path component; default: the name of `file`.

        Returns:
            Path of the file at the endpoint.
        """
        return self._run(client_calls.upload(self._address, wanted, file, name))

    def cancel(self, wanted: str, *, submission: bool = False) -> dict[str, Any]:
        """Cancel a task and the tasks that depend on it; the id of a submission cancels all its tasks.

        Args:
            wanted: Task or submission.
            submission: Cancel everything that was submitted with the task.

        Returns:
            `cancelled` and `stopping`: ids of tasks that were cancelled at once, and of those that are being stopped.
        """
        return self._run(client_calls.cancel(self._address, wanted, submission=submission))

    def workers(self) -> list[dict[str, Any]]:
        """Return the registered workers with their hardware, leases, warm models and runs."""
        found: list[dict[str, Any]] = self.get("/workers")
        return found

    def logs(self, wanted: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """Yield the log of a task line by line.

        Args:
            wanted: The task.
            follow: Go on until the task has ended.
            tail: Begin with the last lines only; None for all.
        """
        task_id = self.task(wanted)["task_id"]
        path = client_calls.log_path(task_id, follow=follow, tail=tail)
        if not follow:
            with self._stream(path) as answer:
                yield from answer.iter_lines()
            return
        reader = ServerEventReader()
        with self._stream(path, headers=EVENT_STREAM, wait=SILENCE_SECONDS) as answer:
            for line in answer.iter_lines():
                yield from log_lines_of(reader.take(line))

    @contextmanager
    def events(
        self, *channels: str, task_id: str | None = None, last_id: str | None = None
    ) -> Iterator[Iterator[ChannelMessage]]:
        """Subscribe to messages: inside the block none is missed.

            with client.events(task_id=task_id) as messages:
                for message in messages: ...

        Args:
            channels: `tasks`, `tasks.events`, `workers.events`; none for all.
            task_id: Only messages about this task.
            last_id: Continue after the message with this `event_id`, at the same endpoint process.

        Yields:
            The messages, until the endpoint ends.

        Raises:
            DispatchError: While they are read: this client reads too slowly and has missed some.
        """
        path, headers = client_calls.event_request(channels, task_id, last_id)
        with self._stream(path, headers=headers, wait=SILENCE_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines, None)  # the endpoint says with it that it has subscribed
            reader = ServerEventReader()
            yield (message for line in lines if (message := message_of(reader.take(line))) is not None)

    def _run(self, steps: Steps[T]) -> T:
        walk = StepWalk(steps)
        for step in walk:
            self._take(walk, step)
        return walk.result

    def _each(self, steps: Steps[None]) -> Iterator[Any]:
        walk = StepWalk(steps)
        for step in walk:
            if isinstance(step, GiveStep):
                yield step.value
            else:
                self._take(walk, step)

    def _take(self, walk: StepWalk[Any], step: Step) -> None:
        try:
            walk.outcome = self._do(step)
        except MlocError as error:  # the method may know what to do
            walk.error = error

    def _do(self, step: Step) -> httpx.Response | None:
        if isinstance(step, AskStep):
            return self._send(step)
        if isinstance(step, SendFileStep):
            with saved_files.outgoing(step.file) as file:
                more = {"files": {"file": (step.name, file)}, "timeout": patience(UPLOAD_SECONDS)}
                return self._send(AskStep("POST", step.path, more))
        if isinstance(step, SaveFileStep):
            with self._stream(step.path) as answer, saved_files.incoming(step.target) as sink:
                for chunk in answer.iter_bytes(saved_files.CHUNK):
                    sink.take(chunk)
                sink.verify(answer.headers, step.sha256)
        elif isinstance(step, PauseStep):
            self._sleep(step.seconds)
        return None

    def _send(self, step: AskStep) -> httpx.Response:
        with failures_named(self._address):
            answer = self._http.request(step.method, step.path, **step.more)
        if answer.status_code not in step.accepted:
            check_reply(self._address, answer)
        return answer

    @contextmanager
    def _stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, wait: float = ANSWER_SECONDS
    ) -> Iterator[httpx.Response]:
        """Yield the response to a GET before its body is read; `wait` is the longest silence in seconds."""
        stream = self._http.stream("GET", path, headers=headers, timeout=patience(wait))
        with failures_named(self._address), stream as answer:
            if answer.is_error:
                answer.read()
            check_reply(self._address, answer)
            yield answer
