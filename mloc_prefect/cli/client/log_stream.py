"""Log lines of a task, also as they arrive (server-sent events)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.cli.client.endpoint_client import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.cli.client.endpoint_client import EndpointClient

_SILENCE = 60.0  # seconds; the endpoint sends a keep-alive comment every 15


def log_lines(endpoint: EndpointClient, task_id: str, *, follow: bool) -> Iterator[str]:
    """Yield the log lines of a task; with `follow`, continue until it has ended."""
    path = f"/api/v1/tasks/{quoted(task_id)}/logs"
    if not follow:
        with endpoint.stream(path) as answer:
            yield from answer.iter_lines()
        return
    with endpoint.stream(f"{path}?follow=true", headers={"Accept": "text/event-stream"}, wait=_SILENCE) as answer:
        yield from data_lines(answer.iter_lines())


def data_lines(lines: Iterator[str]) -> Iterator[str]:
    """Yield the data of server-sent events, line by line; comments and named events are skipped."""
    name = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if not name:
                yield from data
            name, data = "", []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif line.startswith("event:"):
            name = line.removeprefix("event:").strip()
