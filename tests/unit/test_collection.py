"""What Prefect finds of us: the entry point, the public names, the blocks."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points

from prefect.blocks.core import Block

import mloc_prefect


def test_entry_point_has_the_name_of_the_package():
    """Prefect drops a collection from the worker's metadata when the key is another name."""
    (entry,) = [e for e in entry_points(group="prefect.collections") if e.value.startswith("mloc_prefect")]
    assert entry.name == "mloc_prefect"
    assert entry.load() is importlib.import_module("mloc_prefect.collection")


def test_every_public_name_is_there():
    for name in mloc_prefect.__all__:
        assert getattr(mloc_prefect, name) is not None
    assert set(mloc_prefect.__all__) <= set(dir(mloc_prefect))


def test_registration_by_module_finds_the_block():
    """`prefect block register -m mloc_prefect` looks through the members of the package."""
    found = [member for _, member in inspect.getmembers(mloc_prefect) if Block.is_block_class(member)]
    assert mloc_prefect.MlocArtifactStore in found
