"""Examples of the OpenAPI document."""

from __future__ import annotations

from typing import Any

SPEC = """\
apiVersion: mloc/v1
kind: EchoTask
metadata:
  name: hello
spec:
  taskType: echo
  resources:
    replicas: 1
    hardware: {cpu: "1", memory: 1Gi}
"""
TASK_ID = "8f14e45f-ceea-567d-9a3c-2b5c7d1e0f42"
SUBMISSION_ID = "3f0c1f0e-6f0b-4a57-9d6c-0d8f8f1f5a11"

SUBMITTED: dict[str, Any] = {
    "ok": True,
    "count": 1,
    "tasks": [
        {
            "task_id": TASK_ID,
            "status": "PENDING",
            "assigned_worker": None,
            "topic": None,
            "waiting_on": [],
            "retries": 0,
            "max_retries": 3,
            "depends_on": [],
            "attempts": 0,
            "max_attempts": 4,
            "load": 0,
        }
    ],
    "submission_id": SUBMISSION_ID,
}
RECORD: dict[str, Any] = {
    "task_id": TASK_ID,
    "raw_yaml": SPEC,
    "parsed": {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "hello"},
        "spec": {"taskType": "echo"},
    },
    "status": "DONE",
    "assigned_worker": "lab-1-4f2a9c",
    "topic": "tasks",
    "submitted_at": "2026-01-01T10:00:00.123456+00:00",
    "error": None,
    "retries": 0,
    "max_retries": 3,
    "graph_node_name": None,
    "submission_id": SUBMISSION_ID,
    "task_type": "echo",
}
WORKER: dict[str, Any] = {
    "worker_id": "lab-1-4f2a9c",
    "status": "IDLE",
    "started_at": "2026-01-01T09:00:00.123456+00:00",
    "pid": 4242,
    "env": {},
    "hardware": {
        "cpu": {"logical_cores": 8, "model": "x86_64"},
        "memory": {"total_bytes": 34359738368},
        "gpu": {"driver_version": None, "cuda_version": None, "gpus": []},
        "network": {"ip": "127.0.0.1"},
    },
    "tags": ["cpu"],
    "last_seen": "2026-01-01T10:00:30.123456+00:00",
    "stale": False,
}
RESULT: dict[str, Any] = {
    "task_id": TASK_ID,
    "worker_id": "lab-1-4f2a9c",
    "metadata": None,
    "received_at": "2026-01-01T10:00:31.123456+00:00",
    "result": {"ok": True, "items": [{"index": 0, "output": "hello", "finish_reason": "stop"}]},
}
EVENT = (
    'id: 5c1d-17\nevent: tasks.events\ndata: {"type": "TASK_SUCCEEDED", "worker_id": "lab-1-4f2a9c", '
    f'"task_id": "{TASK_ID}", "result": {{}}, "ts": "2026-01-01T10:00:31.123456+00:00"}}\n\n'
)


def body(media: dict[str, Any]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that parses its body itself: examples by media type."""
    return {
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": {"type": _type(value)}, "example": value} for kind, value in media.items()},
        }
    }


def answers(success: Any, *problems: int, media: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: an example of success, and its possible errors."""
    schema = {"type": _type(success)}
    found: dict[int | str, dict[str, Any]] = {200: {"content": {media: {"schema": schema, "example": success}}}}
    for status in problems:
        found[status] = {
            "description": _PROBLEMS[status],
            "content": {"application/json": {"example": {"detail": _DETAILS[status]}}},
        }
    return found


_PROBLEMS = {
    400: "The request is invalid; `detail` says why",
    401: "No bearer token",
    403: "Wrong bearer token",
    404: "Not found",
    409: "The request conflicts with the current state",
    413: "Too large",
    416: "The range is outside the file",
    422: "The body or a parameter has the wrong format",
    503: "The store cannot be reached",
    507: "The disk is full",
}
_DETAILS: dict[int, Any] = {
    400: "Missing required field: spec.taskType",
    401: "Missing bearer token",
    403: "Invalid token",
    404: "task not found",
    409: f"Dependency {TASK_ID} failed",
    413: "a spec may have 1048576 bytes at most",
    416: "Range Not Satisfiable",
    422: [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}],
    503: "Redis at 127.0.0.1:6379 cannot be reached",
    507: "no space is left for the results",
}


def _type(value: Any) -> str:
    return {dict: "object", list: "array", str: "string", bool: "boolean"}[type(value)]
