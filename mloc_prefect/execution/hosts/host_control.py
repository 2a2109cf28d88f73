"""Questions to hosts over their sockets: whether one can leave, sleep, or give up a device."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.wire import decode, encode
from mloc_prefect.process.proc import is_alive

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
"""How long a host may take to answer whether it is idle."""

END_SECONDS = 25.0
"""How long a host that leaves may take to give back what it holds."""

_POLL_SECONDS = 0.05


async def ask(socket_path: str, question: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
    """Ask a host something; None when it is busy in C code with the interpreter locked, `ok` when it is leaving."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path)
    except OSError:  # it is leaving already
        return {"ok": True}
    try:
        writer.write(encode(question))
        answer = await asyncio.wait_for(reader.readline(), seconds)
    except (OSError, TimeoutError):
        return None
    finally:
        writer.close()
    return decode(answer) if answer else {"ok": True}


async def clear_devices(run_dir: Path, gpus: Collection[str], *, spare: Collection[str]) -> int:
    """Let idle hosts of other owners leave the GPUs that were leased to us; return how many left.

    Owners of one state directory (a worker, the local runtime) share its lease book, but each keeps hosts of its own
    warm. Hosts of a dead owner do not answer, and are not waited for.

    Args:
        run_dir: Where all of them have their sockets.
        gpus: Names as CUDA has them, e.g. `0`.
        spare: Paths of our own sockets.
    """
    question = {"op": "stop", "if_idle": True, "devices": sorted(gpus)}
    others = [path for path in run_dir.glob("*.sock") if str(path) not in spare]
    answers = await asyncio.gather(*(ask(str(path), question, ANSWER_SECONDS) for path in others))
    leaving = [answer["pid"] for answer in answers if answer and answer.get("ok") and "pid" in answer]
    if leaving:
        logger.info("idle hosts of other owners leave GPUs %s: processes %s", ", ".join(gpus), leaving)
    await asyncio.gather(*(_wait_ended(pid) for pid in leaving))
    return len(leaving)


async def _wait_ended(pid: int) -> None:
    end = asyncio.get_running_loop().time() + END_SECONDS
    while is_alive(pid) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(_POLL_SECONDS)
