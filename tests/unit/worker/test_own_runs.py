"""Which runs a worker starts: our own entry points, and others only if the operator allows it."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import pytest

from mloc_prefect.worker.own_runs import OwnRuns

OWN = "mloc_prefect.orchestrate.entrypoint.run_workflow"


class Deployment:
    def __init__(self, entrypoint: str = OWN, **more: Any) -> None:
        self.name, self.entrypoint = "d", entrypoint
        self.pull_steps, self.job_variables = more.pop("pull_steps", None), more


class Run:
    def __init__(self, *, deployment: bool = True, **variables: Any) -> None:
        self.id, self.name, self.job_variables = uuid4(), "run", variables
        self.deployment_id = uuid4() if deployment else None


class Pool:
    def __init__(self, **defaults: Any) -> None:
        properties = {name: {"default": value} for name, value in defaults.items()}
        self.base_job_template = {"variables": {"properties": properties}}


class FixedPool:
    """A pool whose template has values where others have variables."""

    def __init__(self, **configuration: Any) -> None:
        self.base_job_template = {"job_configuration": configuration, "variables": {"properties": {}}}


class Client:
    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.reads = deployment, 0

    async def read_deployment(self, _: Any) -> Deployment:
        self.reads += 1
        return self.deployment


async def may(
    deployment: Deployment, run: Run, pool: Pool | FixedPool | None = None, *, user_flows: bool = False
) -> bool:
    return await OwnRuns(user_flows=user_flows).may_start(Client(deployment), pool, run)  # type: ignore[arg-type]


@pytest.mark.parametrize("entrypoint", [OWN, "mloc_prefect.orchestrate.stage_entry.run_stage_attempt"])
async def test_our_own_entry_points_start(entrypoint: str) -> None:
    assert await may(Deployment(entrypoint, gpu_count=1), Run(gpu_type="A100"), Pool(env={}, command=None))


async def test_a_template_that_only_names_its_variables_starts() -> None:
    pool = FixedPool(command="{{ command }}", env="{{env}}", working_dir=None, name="{{ name }}", stream_output=True)
    assert await may(Deployment(), Run(), pool)


@pytest.mark.parametrize(
    ("deployment", "run", "pool"),
    [
        (Deployment("x.py:f"), Run(), None),
        (Deployment("mloc_prefect/evil.py:f"), Run(), None),
        (Deployment("mloc_prefectx.evil.f"), Run(), None),
        (Deployment("mloc_prefect.no_such.module"), Run(), None),
        (Deployment("os.system"), Run(), None),
        (Deployment(""), Run(), None),
        (Deployment(pull_steps=[{"prefect.deployments.steps.run_shell_script": {"script": "x"}}]), Run(), None),
        (Deployment(command="touch x"), Run(), None),
        (Deployment(env={"LD_PRELOAD": "x"}), Run(), None),
        (Deployment(working_dir="/x"), Run(), None),
        (Deployment(), Run(command="touch x"), None),
        (Deployment(), Run(), Pool(command="touch x")),
        (Deployment(), Run(deployment=False), None),
        (Deployment(), Run(), FixedPool(command="touch x")),
        (Deployment(), Run(), FixedPool(env={"LD_PRELOAD": "{{ x }}"})),
        (Deployment(), Run(), FixedPool(working_dir="{{ elsewhere }}")),
    ],
)
async def test_what_could_run_anything_does_not_start(
    deployment: Deployment, run: Run, pool: Pool | FixedPool | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "prefect.mloc.worker"):
        assert not await may(deployment, run, pool)
    assert "this worker runs MLOC's own flows only; MLOC_USER_FLOWS=true" in caplog.text
    assert await may(deployment, run, pool, user_flows=True)


async def test_a_run_that_waits_is_logged_and_its_deployment_read_once(caplog: pytest.LogCaptureFixture) -> None:
    client, runs, run = Client(Deployment("x.py:f")), OwnRuns(user_flows=False), Run()
    for _ in range(3):
        assert not await runs.may_start(client, None, run)  # type: ignore[arg-type]
    assert client.reads == 1
    assert caplog.text.count("is not started") == 1


class Claim:
    def __init__(self, run: Run) -> None:
        self.entry = self
        self.flow_run = run


@pytest.mark.parametrize("fails", [False, True])
async def test_leases_of_claims_that_do_not_start_are_given_back(fails: bool) -> None:
    own, foreign, back = Claim(Run()), Claim(Run(command="touch x")), list[Claim]()

    async def give_back(claims: Any) -> None:
        back.extend(claims)

    client = Client(Deployment())
    if fails:
        client.deployment = None  # type: ignore[assignment]
    work = OwnRuns(user_flows=False).keep_own(client, None, [own, foreign], give_back)  # type: ignore[arg-type,list-item]
    if fails:
        with pytest.raises(AttributeError):
            await work
        assert back == [own, foreign]
    else:
        assert await work == [own]
        assert back == [foreign]
