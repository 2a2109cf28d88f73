"""The order of the files: those that take longest come first, so that no test process is left with one at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

LONGEST = (
    "test_pool_faults",
    "test_training_hosts",
    "test_training",
    "test_up",
    "test_training_up",
    "test_bridge_alone",
    "test_pool",
    "test_migration",
    "test_up_dashboards",
    "test_transcript",
    "test_endpoint_fuzz",
    "test_bridge",
    "test_training_resume",
    "test_training_faults",
    "test_cli",
    "test_training_models",
    "test_transformers",
    "test_transformers_hosts",
    "test_cancel",
    "test_worker",
    "test_runtime",
    "test_flow",
)
_RANK = {name: rank for rank, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file; `--no-loadscope-reorder` hands them out in this order."""
    items.sort(key=lambda item: _RANK.get(item.path.stem, len(_RANK)))
