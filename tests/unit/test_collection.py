"""What Prefect finds of us: the entry point, the public names, the blocks."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prefect.blocks.core import Block

import mloc_prefect
from flows.run_workflow import run_workflow
from mloc_prefect.worker.in_loop_runs import own_flow


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


# --- prefect.yaml -----------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deployments() -> dict[str, dict]:
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert document["pull"] == []  # `null` would make Prefect add a step, and the worker start a process for it
    return {deployment["name"]: deployment for deployment in document["deployments"]}


def test_generic_deployment_has_the_fixed_names(deployments):
    generic = deployments["mloc"]
    assert generic["entrypoint"] == "mloc_prefect.orchestrate.entrypoint.run_workflow"
    assert generic["work_pool"] == {"name": "gpu", "work_queue_name": "coordinator"}


def test_every_deployment_runs_warm(deployments):
    for deployment in deployments.values():
        found = own_flow(SimpleNamespace(name="", entrypoint=deployment["entrypoint"], pull_steps=[]))
        assert found is mloc_prefect.run_workflow
        assert found.name == "run-workflow"


def test_example_deployment_is_the_template(deployments):
    parameters = deployments["echo-example"]["parameters"]
    assert parameters["spec"] == (ROOT / parameters["file"]).read_text()
    mloc_prefect.run_workflow.validate_parameters(parameters)


def test_entry_points_are_thin():
    for file in (ROOT / "flows").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 20
    assert run_workflow is mloc_prefect.run_workflow
