"""Deployments of specs: form, version, entry point, and what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import _flow_parameters
from prefect.flows import load_flow_from_entrypoint

from mloc_prefect import workflow_flow
from mloc_prefect.errors import MlocError
from mloc_prefect.flow.deployed.deployed_flow import flow_named
from mloc_prefect.flow.deployed.spec_deployment import SpecDeployment, deployment_of
from mloc_prefect.flow.spec_parameters import submitted
from mloc_prefect.plan import check
from mloc_prefect.worker.in_loop_runs import own_flow
from tests.unit.spec.test_declared_parameters import SPEC, plan_of

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = """apiVersion: mloc/v1
kind: EchoTask
metadata: {name: plain}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  data: {message: "${param.topic} ${param.rows}"}
"""


def deployed(root: Path, text: str = SPEC, **values: Any) -> SpecDeployment:
    return deployment_of(plan_of(text, ("topic", "rows", "more") if text == PLAIN else ()), values, root)


def test_the_form_has_the_parameters_of_the_block(tmp_path: Path) -> None:
    schema = deployed(tmp_path, rows="3").schema
    assert list(schema["properties"]) == ["topic", "rows", "rate", "style", "shuffle", "names", "language"]
    assert schema["properties"]["topic"] == {
        "title": "topic",
        "type": "string",
        "position": 0,
        "default": "tides",
        "description": "What it is about",
    }
    rows = schema["properties"]["rows"]
    assert (rows["type"], rows["default"], rows["minimum"], rows["maximum"]) == ("integer", 3, 1, 100)
    assert schema["properties"]["style"]["enum"] == ["short", "long"]
    assert schema["required"] == ["rate", "language"]


def test_without_a_block_the_form_has_what_the_spec_reads(tmp_path: Path) -> None:
    made = deployed(tmp_path, PLAIN, rows="3")
    types = {name: one["type"] for name, one in made.schema["properties"].items()}
    assert types == {"rows": "integer", "topic": "string"}
    assert made.missing == ("topic",)
    assert made.parameters["rows"] == 3


def test_the_version_changes_with_spec_and_values_only(tmp_path: Path) -> None:
    first = deployed(tmp_path, rows="3")
    assert first.version == deployed(tmp_path, rows=3).version
    assert first.version != deployed(tmp_path, rows="4").version
    assert first.version != deployed(tmp_path, SPEC.replace("tides", "winds"), rows="3").version


def test_the_entry_point_is_ours_and_takes_the_parameters(tmp_path: Path) -> None:
    made = deployed(tmp_path).configured()
    assert made.entrypoint is not None
    assert (made.name, made.flow_name) == ("n", "run-workflow")
    assert made.entrypoint.startswith("mloc_prefect.orchestrate.deployed.run_spec(language,names,")

    class Deployment:
        name, entrypoint, pull_steps = "n", made.entrypoint, None

    assert own_flow(Deployment) is load_flow_from_entrypoint(made.entrypoint)  # type: ignore[arg-type]

    run = FlowRun(flow_id=uuid4(), parameters={**made.parameters, "rows": 5})
    given = _flow_parameters(load_flow_from_entrypoint(made.entrypoint), run, None)
    assert (given["rows"], given["topic"], given["mloc_spec"]) == (5, None, SPEC)


@pytest.mark.parametrize(
    "name",
    ["run_spec", "run_spec(a,a)", "run_spec(a.b)", "run_spec(class)", "run_spec(mloc_x)", "os", "run_spec( )"],
)
def test_nothing_else_is_an_entry_point(name: str) -> None:
    assert flow_named(name) is None


def test_a_spec_with_a_secret_travels_by_hash_and_its_value_is_not_shown(tmp_path: Path) -> None:
    text = SPEC.replace("  language:\n", "  language: en\n  api_key:\n") + "  token: hidden-value\n"
    made = deployed(tmp_path, text, api_key="other-hidden")
    shown = str([made.parameters, made.schema])
    assert "hidden" not in shown
    assert made.parameters["mloc_spec"].startswith("sha256:")
    assert made.schema["properties"]["api_key"]["format"] == "password"


def test_a_schedule_needs_a_value_for_each_parameter(tmp_path: Path) -> None:
    with pytest.raises(MlocError, match="'rate' has no value, so scheduled runs would fail"):
        deployed(tmp_path).configured(interval=60)
    assert deployed(tmp_path, rate="1", language="en").configured(interval=60).schedules


@pytest.mark.parametrize(("values", "why"), [({"rows": "many"}, "an integer"), ({"rows": 0}, "at least 1")])
def test_a_bad_value_is_refused(tmp_path: Path, values: dict[str, Any], why: str) -> None:
    with pytest.raises(MlocError, match=f"parameter 'rows' must be {why}"):
        deployed(tmp_path, **values)


def test_values_beside_the_text_cannot_be_deployed(tmp_path: Path) -> None:
    plan, _ = check(SPEC, overrides=["spec.data.message=x"])
    assert plan is not None
    with pytest.raises(MlocError, match="values were set beside its text"):
        deployment_of(plan, {}, tmp_path)


def test_a_run_is_read_as_what_it_was_given(tmp_path: Path) -> None:
    made = deployed(tmp_path, rows="3")
    assert submitted({**made.parameters, "topic": None}) == (SPEC, "<text>", {"rows": 3})
    assert submitted({"spec": "a", "parameters": {"x": "1"}}) == ("a", "<submitted>", {"x": "1"})


def test_flows_of_specs_can_be_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path))
    made = workflow_flow(SPEC, params={"rate": 1, "language": "en"}).to_deployment("daily", cron="0 7 * * *")
    assert (made.full_name, made.parameters["rate"]) == ("run-workflow/daily", 1)
    assert made.schedules is not None
    assert made.tags == ["mloc"]


async def test_in_a_loop_the_deployment_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path))
    flow = workflow_flow(SPEC)
    assert (await flow.to_deployment("a")).name == "a"
    assert (await flow.ato_deployment()).name == "n"
