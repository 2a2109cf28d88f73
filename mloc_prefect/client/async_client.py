"""`AsyncMlocClient`: the methods of `MlocClient` for `await`, `async for` and `async with`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
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
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from mloc_prefect.artifacts.task_result import TaskResult
    from mloc_prefect.client.client_steps import Steps
    from mloc_prefect.client.stream_lines import ChannelMessage
    from mloc_prefect.client.task_lookup import Record
    from mloc_prefect.settings import MlocSettings

T = TypeVar("T")


class AsyncMlocClient:
    """A client of one MLOC endpoint for an event loop; arguments, results and errors are those of `MlocClient`.

        async with AsyncMlocClient("http://127.0.0.1:8000") as client:
            submitted = await client.submit(Path("task.yaml"))
            await client.wait(submitted["submission_id"])
            rows = list((await client.result(submitted["tasks"][0]["task_id"])).rows())

    Files are written in threads, so that the loop goes on.

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
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._address = EndpointAddress(url, token)
        self._sleep = sleep
        self._http = httpx.AsyncClient(transport=transport, **self._address.arguments())

    @classmethod
    def configured(cls, settings: MlocSettings | None = None) -> Self:
        """Return a client of the endpoint that `MlocClient.configured` means."""
        address = EndpointAddress.configured(settings)
        return cls(address.url, address.token)

    def __repr__(self) -> str:
        """Return class and URL, without token and password."""
        return f"{type(self).__name__}({self.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def url(self) -> str:
        """URL of the endpoint, without user and password."""
        return self._address.shown

    async def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON answer to a GET of any route; see `MlocClient.get`."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return await self._run(client_calls.ask(self._address, "GET", path, params=given or None))

    async def submit(
        self,
        spec: str | Path | Mapping[str, Any],
        *,
        parameters: Mapping[str, str] | None = None,
        strict: bool = False,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Submit a spec; see `MlocClient.submit`."""
        return await self._run(
            client_calls.submit(self._address, spec, parameters=parameters, strict=strict, key=idempotency_key)
        )

    async def validate(
        self,
        spec: str | Path | Mapping[str, Any],
        *,
        parameters: Mapping[str, str] | None = None,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Check a spec at the endpoint and store nothing; see `MlocClient.validate`."""
        steps = client_calls.submit(
            self._address, spec, parameters=parameters, strict=strict, key=None, check_only=True
        )
        return await self._run(steps)

    async def status(self, wanted: str) -> list[Record]:
        """Return the record of a task, or those of all tasks of a submission in order of creation."""
        return await self._run(find_tasks(self._address, wanted))

    async def task(self, wanted: str) -> Record:
        """Return the record of one task; see `MlocClient.task`."""
        return await self._run(find_task(self._address, wanted))

    async def list_tasks(
        self,
        *,
        status: str | None = None,
        task_type: str | None = None,
        submission_id: str | None = None,
        name: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Record]:
        """Return the records that match all given filters; see `MlocClient.list_tasks`."""
        return await self._run(
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
    ) -> AsyncIterator[Record]:
        """Yield the record of each task at first and after each change, until all have ended (`MlocClient.watch`)."""
        return self._each(client_calls.watch(self._address, wanted, timeout=timeout, on_outage=on_outage))

    async def wait(self, wanted: str | Sequence[str], *, timeout: float | None = None) -> list[Record]:
        """Wait until tasks have ended; return their last records; see `MlocClient.wait`."""
        return list({record["task_id"]: record async for record in self.watch(wanted, timeout=timeout)}.values())

    async def result(self, wanted: str) -> TaskResult:
        """Return the result of a task; see `MlocClient.result`."""
        return await self._run(client_calls.result(self._address, wanted))

    def download(self, wanted: str, folder: Path) -> AsyncIterator[Path]:
        """Save the result and the files of a task to `folder`; see `MlocClient.download`."""
        return self._each(saved_files.save_results(self._address, wanted, folder))

    async def upload(self, wanted: str, file: Path, *, name: str | None = None) -> str:
        """Upload a file of a task; see `MlocClient.upload`."""
        return await self._run(client_calls.upload(self._address, wanted, file, name))

    async def cancel(self, wanted: str, *, submission: bool = False) -> dict[str, Any]:
        """Cancel a task and the tasks that depend on it, or a submission; see `MlocClient.cancel`."""
        return await self._run(client_calls.cancel(self._address, wanted, submission=submission))

    async def workers(self) -> list[dict[str, Any]]:
        """Return the registered workers with their hardware, leases, warm models and runs."""
        found: list[dict[str, Any]] = await self.get("/workers")
        return found

    async def logs(self, wanted: str, *, follow: bool = False, tail: int | None = None) -> AsyncIterator[str]:
        """Yield the log of a task line by line; see `MlocClient.logs`."""
        task_id = (await self.task(wanted))["task_id"]
        path = client_calls.log_path(task_id, follow=follow, tail=tail)
        if not follow:
            async with self._stream(path) as answer:
                async for line in answer.aiter_lines():
                    yield line
            return
        reader = ServerEventReader()
        async with self._stream(path, headers=EVENT_STREAM, wait=SILENCE_SECONDS) as answer:
            async for line in answer.aiter_lines():
                for shown in log_lines_of(reader.take(line)):
                    yield shown

    @asynccontextmanager
    async def events(
        self, *channels: str, task_id: str | None = None, last_id: str | None = None
    ) -> AsyncIterator[AsyncIterator[ChannelMessage]]:
        """Subscribe to messages: inside the block none is missed; see `MlocClient.events`."""
        path, headers = client_calls.event_request(channels, task_id, last_id)
        async with self._stream(path, headers=headers, wait=SILENCE_SECONDS) as answer:
            lines = answer.aiter_lines()
            await anext(lines, None)  # the endpoint says with it that it has subscribed
            reader = ServerEventReader()
            yield (message async for line in lines if (message := message_of(reader.take(line))) is not None)

    async def _run(self, steps: Steps[T]) -> T:
        walk = StepWalk(steps)
        for step in walk:
            await self._take(walk, step)
        return walk.result

    async def _each(self, steps: Steps[None]) -> AsyncIterator[Any]:
        walk = StepWalk(steps)
        for step in walk:
            if isinstance(step, GiveStep):
                yield step.value
            else:
                await self._take(walk, step)

    async def _take(self, walk: StepWalk[Any], step: Step) -> None:
        try:
            walk.outcome = await self._do(step)
        except MlocError as error:  # the method may know what to do
            walk.error = error

    async def _do(self, step: Step) -> httpx.Response | None:
        if isinstance(step, AskStep):
            return await self._send(step)
        if isinstance(step, SendFileStep):
            with saved_files.outgoing(step.file) as file:
                more = {"files": {"file": (step.name, file)}, "timeout": patience(UPLOAD_SECONDS)}
                return await self._send(AskStep("POST", step.path, more))
        if isinstance(step, SaveFileStep):
            async with self._stream(step.path) as answer:
                with saved_files.incoming(step.target) as sink:
                    async for chunk in answer.aiter_bytes(saved_files.CHUNK):
                        await asyncio.to_thread(sink.take, chunk)
                    sink.verify(answer.headers, step.sha256)
        elif isinstance(step, PauseStep):
            await self._sleep(step.seconds)
        return None

    async def _send(self, step: AskStep) -> httpx.Response:
        with failures_named(self._address):
            answer = await self._http.request(step.method, step.path, **step.more)
        if answer.status_code not in step.accepted:
            check_reply(self._address, answer)
        return answer

    @asynccontextmanager
    async def _stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, wait: float = ANSWER_SECONDS
    ) -> AsyncIterator[httpx.Response]:
        """Yield the response to a GET before its body is read; `wait` is the longest silence in seconds."""
        with failures_named(self._address):
            async with self._http.stream("GET", path, headers=headers, timeout=patience(wait)) as answer:
                if answer.is_error:
                    await answer.aread()
                check_reply(self._address, answer)
                yield answer
