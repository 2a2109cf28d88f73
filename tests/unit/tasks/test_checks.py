"""`check_spec` once references are filled in: a `${` that is left is plain text in every check."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.registry import task_type

DATA = {"type": "list", "items": ["a"]}


@pytest.mark.parametrize("text", ["${X}", "x${"])
@pytest.mark.parametrize(
    ("kind", "spec", "path"),
    [
        ("inference", {"data": DATA, "output": {"destination": {"type": ...}}}, "output.destination.type"),
        (
            "inference",
            {"data": DATA, "output": {"destination": {"type": "http", "url": ...}}},
            "output.destination.url",
        ),
        ("inference", {"data": DATA, "checkpoint": {"load": {"type": "http", "url": ...}}}, "checkpoint.load.url"),
        ("inference", {"data": DATA, "model": {"transformers": {"dtype": ...}}}, "model.transformers.dtype"),
        ("inference", {"data": {"type": ...}}, "data.type"),
        ("rag", {"qdrant": {"url": ..., "collection": "c"}, "data": DATA}, "qdrant.url"),
        ("sft", {"training": {"lr_scheduler_type": ...}}, "training.lr_scheduler_type"),
    ],
)
def test_text_that_looks_like_a_reference_is_checked_when_nothing_fills_it_in(
    kind: str, spec: dict[str, Any], path: str, text: str
) -> None:
    model, spec = task_type(kind).model, _with(spec, text)
    assert path not in {".".join(map(str, p.path)) for p in check_spec(model, spec).problems}
    assert path in {".".join(map(str, p.path)) for p in check_spec(model, spec, resolved=True).problems}
    assert path not in {".".join(map(str, p.path)) for p in check_spec(model, spec).problems}


def _with(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {key: _with(below, text) for key, below in value.items()}
    return text if value is ... else value
