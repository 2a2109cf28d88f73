"""Shows a finished training on the page of its run: the curves as a picture, and the last metrics."""

from __future__ import annotations

import asyncio
import base64
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import ArtifactCreate

from mloc_prefect.flow.reports.run_artifacts import SHOW_ERRORS, publish
from mloc_prefect.prefect_ext.waiting_requests import requests_fail

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

_log = logging.getLogger(__name__)
TRAINING_KEY, CURVE_KEY = "mloc-training", "mloc-training-curve"
_LARGEST = 1 << 20  # bytes of a picture; usual ones have some ten thousand
_FACTS = ("trainer", "model", "device", "world_size", "rows", "steps", "resumed_from_step")


async def publish_training(client: PrefectClient, flow_run_id: UUID, name: str, summary: Mapping[str, Any]) -> None:
    """Create the artifacts of one training on its run; nothing for other tasks.

    The picture is a data URL, as the Prefect server does not see the results. A failure is logged: a display must not
    fail the run.

    Args:
        client: Open client.
        flow_run_id: Run of the stage.
        name: Name of the stage.
        summary: Facts of the executor about the result.
    """
    if "trainer" not in summary:
        return
    await publish(client, flow_run_id, TRAINING_KEY, training_markdown(name, summary), f"training {name}")
    picture = await asyncio.to_thread(_picture, summary.get("curve"))
    if picture is None:
        return
    create = ArtifactCreate(
        key=CURVE_KEY, type="image", description=f"curves of {name}", data=picture, flow_run_id=flow_run_id
    )
    try:
        with requests_fail():
            await client.create_artifact(create)
    except SHOW_ERRORS as error:
        _log.warning("the curve of %s could not be shown: %s", name, error)


def training_markdown(name: str, summary: Mapping[str, Any]) -> str:
    """Return the facts and the last metrics of a training as a table."""
    facts = [(fact.replace("_", " "), summary[fact]) for fact in _FACTS if summary.get(fact) is not None]
    metrics = summary.get("metrics") or {}
    rows = [*facts, *((key, f"{value:.5g}") for key, value in metrics.items())]
    return "\n".join([f"# {name}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _picture(path: Any) -> str | None:
    file = Path(str(path)) if path else None
    try:
        data = file.read_bytes() if file is not None and file.stat().st_size <= _LARGEST else None
    except OSError:
        return None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data else None
