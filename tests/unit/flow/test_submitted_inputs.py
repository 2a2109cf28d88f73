"""The worker judges what is submitted again: before a run, once references are filled in, and where an attempt runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.errors import ExecutionError, PlanError
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.flow import run_workflow as deployed
from mloc_prefect.flow.dispatcher import StageJob
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.preflight import check_runnable
from mloc_prefect.flow.run_stage import confined
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.base import ExecutorRef
from mloc_prefect.trust.input_roots import InputRoots
from tests.support.flows import graph
from tests.support.stages import StageBench, echo

DATA = {"data": {"type": "dataset", "url": "/etc/rows.jsonl"}}
LITERALS = ["http://h/${X}", "http://h/${"]  # no stage is named: plain text, which no reference fills in
CODE = {"model": {"source": {"identifier": "m", "trust_remote_code": True}}}


def judge(home: Path, spec: dict[str, Any], *, submitted: bool, **settings: Any) -> None:
    options = RunOptions(settings=get_settings(home=home, **settings), submitted=submitted, base_dir=home)
    check_runnable(graph({"a": ([], spec)}), options, None, ignore_resources=False)


def test_a_run_of_a_submission_does_not_start_with_files_of_others(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"stage 'a': spec\.data\.url: '/etc/rows\.jsonl' is outside") as caught:
        judge(tmp_path, DATA, submitted=True)
    assert "MLOC_DATA_ROOTS" in (caught.value.hint or "")


def test_a_run_of_the_user_himself_reads_his_files(tmp_path: Path) -> None:
    judge(tmp_path, DATA, submitted=False)
    assert RunOptions().submitted is False
    assert RunOptions().rules.roots is None


@pytest.mark.parametrize("path", ["s3:/../../../x", "https:/x", "memory:/x"])
def test_the_url_of_another_place_is_no_folder_of_collections(tmp_path: Path, path: str) -> None:
    with pytest.raises(PlanError, match=r"spec\.qdrant\.path: .* is no folder of this machine"):
        judge(tmp_path, {"qdrant": {"path": path, "collection": "c"}}, submitted=True)


@pytest.mark.parametrize("submitted", [True, False])
def test_code_needs_consent_in_every_run(tmp_path: Path, submitted: bool) -> None:
    with pytest.raises(PlanError, match="trust_remote_code runs Python code that comes with 'm'") as caught:
        judge(tmp_path, CODE, submitted=submitted)
    assert "MLOC_ALLOW_REMOTE_CODE=m" in (caught.value.hint or "")
    judge(tmp_path, CODE, submitted=submitted, allow_remote_code="m")


def test_the_flow_of_deployments_takes_every_spec_for_submitted() -> None:
    source = Path(deployed.__file__).read_text(encoding="utf-8")
    assert "submitted=True" in source
    assert "submitted" not in deployed.run_workflow.parameters.properties  # type: ignore[attr-defined]  # a flow


async def test_what_a_reference_names_is_judged_before_an_attempt(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
    nodes = {
        "a": ([], {"place": "/etc/rows.jsonl"}),
        "b": (["a"], {"data": {"type": "dataset", "url": "${a.result.echo.place}"}}),
    }
    bench.options = replace(bench.options, submitted=True, base_dir=tmp_path)
    await bench(nodes, "a")
    with pytest.raises(ExecutionError, match=r"spec\.data\.url: '/etc/rows\.jsonl' is outside") as caught:
        await bench(nodes, "b")
    assert caught.value.retryable is False
    assert len(bench.dispatcher.requests) == 1
    bench.options = replace(bench.options, submitted=False)
    await bench(nodes, "b")
    assert bench.dispatcher.requests[-1].settings["inputs"] is None


async def test_the_executor_gets_the_roots_of_a_submission(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
    bench.options = replace(bench.options, submitted=True, base_dir=tmp_path / "work")
    await bench({"a": ([], {})})
    roots = InputRoots.from_wire(bench.dispatcher.requests[-1].settings["inputs"])
    assert (roots.results, roots.home, roots.working) == (tmp_path / "results", tmp_path / "home", tmp_path / "work")


def job(spec: dict[str, Any], base: Path) -> StageJob:
    settings = {"base_dir": str(base), "inputs": None}
    request = ExecutionRequest(
        "t", "n", "echo", "x:y", spec, "/results/t", "/results/t/attempts/1-1", settings=settings
    )
    return StageJob(request=request, executor=ExecutorRef("x:y"), resources=ResourceRequest())


def test_a_job_on_the_pool_is_trusted_no_more_than_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = get_settings(home=tmp_path / "home")
    for spec, words in ((DATA, "is outside"), (CODE, "runs Python code")):
        with pytest.raises(ExecutionError, match=f"refused by this worker: .*{words}") as caught:
            confined(job(spec, tmp_path), settings)
        assert caught.value.retryable is False
    own = confined(job({"data": {"url": "rows.jsonl"}}, tmp_path), settings).request.settings["inputs"]
    assert InputRoots.from_wire(own).working == tmp_path
    with pytest.raises(ExecutionError, match="is outside"):  # the base of the job is no root here
        confined(job({"data": {"url": "passwd"}}, Path("/etc")), settings)


@pytest.mark.parametrize("text", LITERALS)
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"model": {"vllm": {"otlp_traces_endpoint": ...}}}, "otlp_traces_endpoint"),
        ({"model": {"source": {"identifier": "m", "trust_remote_code": ...}}}, "trust_remote_code"),
        ({"data": {"type": "dataset", "url": ...}}, "host 'h'"),
        ({"qdrant": {"url": ...}}, "host 'h'"),
        ({"agent": {"base_url": ...}}, "host 'h'"),
        ({"output": {"destination": {"type": "http", "url": ...}}}, "host 'h'"),
        ({"training": {"deepspeed": {"offload": {"at": ...}}}}, "host 'h'"),
    ],
)
async def test_text_that_looks_like_a_reference_is_judged_where_references_are_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], words: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = with_text(spec, text)
    with pytest.raises(ExecutionError, match=f"refused by this worker: .*{words}"):
        confined(job(asked, tmp_path), get_settings(home=tmp_path / "home"))
    bench = StageBench(tmp_path, echo)
    bench.options = replace(bench.options, submitted=True, base_dir=tmp_path)
    with pytest.raises(ExecutionError, match=words):
        await bench({"a": ([], asked)})
    assert bench.dispatcher.requests == []


@pytest.mark.parametrize("text", ["/etc/${X}", "/etc/${"])
def test_a_file_whose_name_looks_like_a_reference_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in ({"data": {"url": text}}, {"qdrant": {"path": text}}, {"inference": {"chat_template": text}}):
        with pytest.raises(ExecutionError, match="is outside"):
            confined(job(spec, tmp_path), get_settings(home=tmp_path / "home"))


def with_text(value: Any, text: str) -> Any:
    """Return `value` with `text` for each `...`."""
    if isinstance(value, dict):
        return {key: with_text(below, text) for key, below in value.items()}
    return text if value is ... else value


def test_a_job_on_the_pool_cannot_bring_hosts_and_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = job({}, tmp_path)
    bold = {
        **asked.request.settings,
        "allowed_hosts": "inner.example",
        "loopback_ports": "1-65535",
        "allowed_rewards": "os",
    }
    asked = replace(asked, request=replace(asked.request, settings=bold))
    found = confined(asked, get_settings(home=tmp_path / "home", allowed_hosts="own.example")).request.settings
    assert (found["allowed_hosts"], found["loopback_ports"], found["allowed_rewards"]) == (
        "own.example",
        "1024-65535",
        "",
    )
    inner = replace(asked, request=replace(asked.request, spec={"data": {"url": "http://inner.example/x.json"}}))
    with pytest.raises(ExecutionError, match=r"refused by this worker: .*inner\.example"):
        confined(inner, get_settings(home=tmp_path / "home"))
