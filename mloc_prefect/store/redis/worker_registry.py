"""The worker registry in Redis, in the keys and fields of protocol 3.1 (both generations)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from mloc_prefect.store.records import WorkerRecord
from mloc_prefect.store.redis import scripts
from mloc_prefect.store.redis.codec import counted, pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.store.interfaces import Message
    from mloc_prefect.store.redis.redis_client import RedisClient

IDS = "workers:ids"
ELASTIC_DISABLED = "workers:elastic_disabled"
AT_WORK = "mloc_at_work_json"
_N = TypeVar("_N", int, float)


class RedisWorkerRegistry:
    """A `WorkerRegistry` in Redis; also reads what MLOC workers write."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def register(self, record: WorkerRecord, *, ttl: float, messages: Sequence[Message] = ()) -> None:
        """Add or replace a worker, which becomes stale after `ttl` seconds without a heartbeat."""
        now = _now()
        worker = worker_key(record.worker_id)
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=True) as pipe:
                pipe.sadd(IDS, record.worker_id)
                pipe.delete(worker)
                pipe.hset(worker, mapping=dict(_encode(record, now)))
                pipe.set(heartbeat_key(record.worker_id), now, px=_milliseconds(ttl))
                for channel, message in messages:
                    pipe.publish(channel, _json(message))
                await pipe.execute()

    async def heartbeat(
        self,
        worker_id: str,
        *,
        ttl: float,
        at_work: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Renew a worker, and what it holds and runs if given; False when it is not registered."""
        now = _now()
        fields = {"last_seen": now}
        if at_work is not None:
            models = _json(list(at_work["models"]))
            fields |= {AT_WORK: _json(dict(at_work)), "cache_models_json": models, "cache_updated_ts": now}
        return await self._touch(worker_id, now, str(_milliseconds(ttl)), fields, messages)

    async def set_status(
        self,
        worker_id: str,
        status: str,
        *,
        extra: Mapping[str, str] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Set `status` and the fields `extra_<key>`; False when the worker is not registered."""
        fields = {"status": status} | {f"extra_{key}": value for key, value in (extra or {}).items()}
        return await self._touch(worker_id, "", "", fields, messages)

    async def get(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker, `stale` as of now, or None; also one that is missing in the set of ids."""
        return (await self._fetch([worker_id], fill=False))[0]

    async def list(self) -> Sequence[WorkerRecord]:
        """Return all workers, `stale` as of now, in order of their ids."""
        with self._client.guard():
            ids = sorted(_text(worker_id) for worker_id in await self._client.redis.smembers(IDS))
        return [record for record in await self._fetch(ids, fill=True) if record is not None]

    async def set_elastic(self, worker_id: str, *, enabled: bool) -> bool:
        """Set whether a worker gets new work; False when it is not registered."""
        with self._client.guard():
            if not await self._client.redis.exists(worker_key(worker_id)):
                return False
            change = self._client.redis.srem if enabled else self._client.redis.sadd
            await change(ELASTIC_DISABLED, worker_id)
        return True

    async def remove(self, worker_id: str, *, only_stale: bool = False, messages: Sequence[Message] = ()) -> bool:
        """Remove a worker; return whether it was registered (and stale, with `only_stale`)."""
        keys = [IDS, worker_key(worker_id), heartbeat_key(worker_id), ELASTIC_DISABLED]
        args = [worker_id, "1" if only_stale else "", *_flat_messages(messages)]
        return bool(await self._client.script(scripts.REMOVE_WORKER, keys, args))

    async def _touch(
        self, worker_id: str, now: str, ttl: str, fields: Mapping[str, str], messages: Sequence[Message]
    ) -> bool:
        keys = [worker_key(worker_id), heartbeat_key(worker_id)]
        args = [now, ttl, *counted(pairs(fields)), *_flat_messages(messages)]
        return bool(await self._client.script(scripts.TOUCH_WORKER, keys, args))

    async def _fetch(self, ids: Sequence[str], *, fill: bool) -> Sequence[WorkerRecord | None]:
        """Return the worker of each id, or None; with `fill` a missing `last_seen` is taken from the heartbeat."""
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=False) as pipe:
                for worker_id in ids:
                    pipe.hgetall(worker_key(worker_id))
                    pipe.get(heartbeat_key(worker_id))
                    pipe.pttl(heartbeat_key(worker_id))
                    pipe.sismember(ELASTIC_DISABLED, worker_id)
                rows = await pipe.execute()
        found = [rows[at : at + 4] for at in range(0, len(rows), 4)]
        return [
            _decode(worker_id, row, heartbeat if fill else None, ttl, bool(disabled))
            for worker_id, (row, heartbeat, ttl, disabled) in zip(ids, found, strict=True)
        ]


def worker_key(worker_id: str) -> str:
    """Return the key of a worker's hash."""
    return f"worker:{worker_id}"


def heartbeat_key(worker_id: str) -> str:
    """Return the key of a worker's heartbeat."""
    return f"worker:{worker_id}:hb"


def _encode(record: WorkerRecord, now: str) -> Mapping[str, str]:
    fields = {
        "worker_id": record.worker_id,
        "status": record.status,
        "started_at": record.started_at or now,
        "pid": str(record.pid or 0),
        "env_json": _json(record.env),
        "hardware_json": _json(record.hardware),
        "tags_json": _json(list(record.tags)),
        "last_seen": now,
        "cache_models_json": _json(list(record.cached_models)),
        "cache_datasets_json": _json(list(record.cached_datasets)),
        "cache_updated_ts": now,
    }
    known = {
        "cost_per_hour": None if record.cost_per_hour is None else repr(record.cost_per_hour),
        AT_WORK: None if record.at_work is None else _json(record.at_work),
        "mloc_protocol": None if record.protocol == "original" else record.protocol,
        "extra_task_id": record.running,
        "extra_last_task": record.last_task,
    }
    return fields | {name: value for name, value in known.items() if value is not None}


def _decode(
    worker_id: str, row: Mapping[bytes, bytes], heartbeat: bytes | None, ttl: int, disabled: bool
) -> WorkerRecord | None:
    if not row:
        return None
    fields = {_text(name): _text(value) for name, value in row.items()}
    env, hardware, tags = _declared(fields)
    return WorkerRecord(
        worker_id=fields.get("worker_id") or worker_id,
        status=fields.get("status") or "UNKNOWN",
        started_at=fields.get("started_at"),
        pid=_number(fields.get("pid"), int) or None,
        env=env,
        hardware=hardware,
        tags=tags,
        last_seen=fields.get("last_seen") or (_text(heartbeat) if heartbeat else None),
        stale=ttl < 0,  # no key, or a key without a lifetime
        cost_per_hour=_number(fields.get("cost_per_hour"), float),
        cached_models=_words(fields.get("cache_models_json")),
        cached_datasets=_words(fields.get("cache_datasets_json")),
        elastic_disabled=disabled,
        at_work=_object(fields.get(AT_WORK)),
        protocol=fields.get("mloc_protocol") or "original",
        running=fields.get("extra_task_id"),
        last_task=fields.get("extra_last_task"),
    )


def _declared(fields: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Return env, hardware and tags; all three are empty when one is malformed. [protocol 1.2]."""
    try:
        env, hardware = (json.loads(fields.get(name, "{}")) for name in ("env_json", "hardware_json"))
        tags = json.loads(fields.get("tags_json", "[]"))
    except ValueError:
        return {}, {}, ()
    if not (isinstance(env, dict) and isinstance(hardware, dict) and isinstance(tags, list)):
        return {}, {}, ()
    return env, hardware, tuple(map(str, tags))


def _words(text: str | None) -> tuple[str, ...]:
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return ()
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _number(text: str | None, kind: type[_N]) -> _N | None:
    try:
        return kind(text) if text else None
    except ValueError:
        return None


def _flat_messages(messages: Sequence[Message]) -> list[str]:
    return [part for channel, message in messages for part in (channel, _json(message))]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _milliseconds(seconds: float) -> int:
    return max(1, int(1000 * seconds))


def _now() -> str:
    return datetime.now(UTC).isoformat()
