"""The plain arm of `submit.py`: loads YAML, publishes it, stores nothing. `submit_plain.py PORT REDIS_URL`."""

from __future__ import annotations

import json
import sys
import uuid
from typing import Annotated

import uvicorn
import yaml
from fastapi import Body, FastAPI
from redis.asyncio import Redis

app = FastAPI()
redis = Redis.from_url(sys.argv[2])
tasks: dict[str, dict] = {}


@app.post("/api/v1/tasks")
async def submit(text: Annotated[str, Body(media_type="text/yaml")]) -> dict:
    document = yaml.safe_load(text)
    task_id = str(uuid.uuid4())
    tasks[task_id] = document
    await redis.publish("tasks", json.dumps({"task_id": task_id, "task": document}))
    return {"ok": True, "count": 1, "tasks": [{"task_id": task_id, "status": "DISPATCHED"}]}


if __name__ == "__main__":
    print("listening soon", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
