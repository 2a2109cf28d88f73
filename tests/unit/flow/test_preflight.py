"""What is refused before anything is started."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect import __version__
from mloc_prefect.errors import ArtifactError, MissingExtraError, PlanError
from mloc_prefect.flow import preflight
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.preflight import check_runnable
from mloc_prefect.hardware.inventory import Inventory
from mloc_prefect.settings import get_settings
from tests.support.flows import graph

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
SMALL = Inventory(2, 8 * GIB)
BIG = {"resources": {"replicas": 1, "hardware": {"cpu": "64", "memory": "1Ti", "gpu": {"count": 2, "type": "a100"}}}}


def judge(root: Path, nodes: dict[str, Any], *, ignore: bool = False, **settings: Any) -> None:
    options = RunOptions(settings=get_settings(home=root, results_dir=root / "results", **settings))
    check_runnable(graph(nodes), options, SMALL, ignore_resources=ignore)


def test_a_plan_that_fits_passes_and_leaves_nothing(tmp_path: Path) -> None:
    judge(tmp_path, {"a": ([], {})})
    assert list((tmp_path / "results").iterdir()) == []


def test_more_than_the_machine_has_is_refused_in_words_for_every_stage(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        judge(tmp_path, {"a": ([], BIG), "b": ([], BIG), "c": ([], {})})
    text = "needs 64 cpu and 1 TiB of memory and 2x a100, this machine has 2 cpu and 8 GiB of memory and no gpu"
    assert caught.value.message == f"stage 'a' {text}; stage 'b' {text}"
    assert "--ignore-resources" in (caught.value.hint or "")


def test_resources_can_be_ignored(tmp_path: Path) -> None:
    judge(tmp_path, {"a": ([], BIG)}, ignore=True)


def test_missing_libraries_name_stages_modules_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = preflight._there
    monkeypatch.setattr(preflight, "_there", lambda name: name not in {"torch", "datasets"} and there(name))
    chat = {"taskType": "inference", "model": {"source": {"identifier": "m"}}, "data": {"type": "list", "items": ["x"]}}
    with pytest.raises(MissingExtraError) as caught:
        judge(tmp_path, {"a": ([], chat), "b": ([], {}), "c": ([], chat)})
    assert caught.value.message == "stages 'a', 'c' cannot run: torch, datasets not installed"
    assert caught.value.hint == "pip install 'mloc-prefect[transformers]'"


def test_an_executor_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_there", lambda name: name != "mloc_prefect.executors.training")
    with pytest.raises(MissingExtraError) as caught:
        judge(tmp_path, {"a": ([], {"taskType": "ppo", "data": {"prompts": ["x"]}})})
    text = "plans such tasks but has no executor for them; it will need mloc-prefect[ppo]"
    assert caught.value.message == f"stage 'a' cannot run: this version ({__version__}) {text}"
    assert caught.value.hint is None, "no command brings an executor that does not exist"


def test_ppo_needs_the_trl_that_has_it_and_the_others_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = preflight._there
    monkeypatch.setattr(preflight, "_there", lambda name: not name.startswith("trl.experimental.ppo") and there(name))
    judge(tmp_path, {"a": ([], {"taskType": "sft", "data": {"prompts": ["x"]}})})
    with pytest.raises(MissingExtraError) as caught:
        judge(tmp_path, {"a": ([], {"taskType": "ppo", "data": {"prompts": ["x"]}})})
    assert caught.value.message == "stage 'a' cannot run: trl.experimental.ppo not installed"
    assert caught.value.hint == "pip install 'mloc-prefect[ppo]'"


def test_looking_for_a_module_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks" / "inner").mkdir(parents=True)
    for name in ("breaks/__init__.py", "breaks/inner/__init__.py", "breaks/inner/leaf.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["breaks.inner.leaf", "breaks.inner.none", "breaks.none.leaf", "none.leaf", "breaks"]
    assert [preflight._there(name) for name in names] == [True, False, False, False, True]
    command = [sys.executable, "-c", preflight._PROBE, str(tmp_path), *names]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout) == ["breaks.inner.none", "breaks.none.leaf", "none.leaf"]


def test_another_interpreter_is_asked_itself(tmp_path: Path) -> None:
    python = tmp_path / "python"  # stands in for an environment without torch
    python.write_text("""#!/bin/sh\necho noise\necho '["torch"]'\n""")
    python.chmod(0o755)
    chat = {"taskType": "inference", "model": {"source": {"identifier": "m"}}, "data": {"type": "list", "items": ["x"]}}
    with pytest.raises(MissingExtraError) as caught:
        judge(tmp_path, {"a": ([], chat)}, python={"transformers": python})
    assert caught.value.message == f"stage 'a' cannot run: torch not installed in {python}"
    assert caught.value.hint == f"{python} -m pip install 'mloc-prefect[transformers]'"


def test_an_interpreter_that_does_not_work_is_named(tmp_path: Path) -> None:
    chat = {"taskType": "inference", "model": {"source": {"identifier": "m"}}, "data": {"type": "list", "items": ["x"]}}
    with pytest.raises(MissingExtraError, match="the interpreter /nowhere/python of environment 'transformers'"):
        judge(tmp_path, {"a": ([], chat)}, python={"transformers": "/nowhere/python"})


def test_tasks_of_other_submissions_must_be_done(tmp_path: Path) -> None:
    other = "6f8b2a52-3df0-4d2b-8c61-0a6a0a3f3b11"
    with pytest.raises(PlanError, match=f"not done below .*: '{other}'") as caught:
        judge(tmp_path, {"a": ([other], {})})
    assert caught.value.hint
    directory = tmp_path / "results" / other
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text(
        '{"task_id": "x", "generated_at": "now", "entries": [], "spec_sha256": "0", "status": "DONE"}'
    )
    judge(tmp_path, {"a": ([other], {})})


def test_an_unwritable_results_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ArtifactError, match=r"the results directory \S*/results is not writable: [A-Z]") as caught:
        judge(tmp_path, {"a": ([], {})})
    assert "--results-dir" in (caught.value.hint or "")


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_mirrors_file_that_cannot_be_read_is_refused_before_anything_starts(
    tmp_path: Path, by_variable: bool
) -> None:
    file = tmp_path / ("own.yaml" if by_variable else "mirrors.yaml")
    file.write_text("models: [a]\n")
    with pytest.raises(ArtifactError, match=rf"{file}:1:9: `models:` must map names to paths"):
        judge(tmp_path, {"a": ([], {})}, mirrors=file if by_variable else None)
    if by_variable:
        with pytest.raises(ArtifactError, match="cannot be read"):
            judge(tmp_path, {"a": ([], {})}, mirrors=tmp_path / "absent.yaml")
    file.write_text("models: {a: b}\n")
    judge(tmp_path, {"a": ([], {})}, mirrors=file)


def test_a_destination_outside_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="leaves the results root"):
        judge(tmp_path, {"a": ([], {"output": {"destination": {"path": "/var/out"}}})})
    judge(tmp_path, {"a": ([], {"output": {"destination": {"path": "/var/out"}}})}, allow_outside_results=True)


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-this-name/x", "d/" + "n" * 300])
def test_a_destination_that_is_no_path_is_refused_before_anything_starts(tmp_path: Path, path: str) -> None:
    with pytest.raises(ArtifactError, match=r"output\.destination\.path '.*' is not a path") as caught:
        judge(tmp_path, {"a": ([], {"output": {"destination": {"path": path}}})})
    assert len(caught.value.message) < 200


def test_a_model_that_nobody_names_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_MODEL", raising=False)
    chat = {"taskType": "inference", "data": {"type": "list", "items": ["x"]}}
    with pytest.raises(PlanError) as caught:
        judge(tmp_path, {"a": ([], chat), "b": ([], {}), "c": ([], chat)})
    assert caught.value.message == "stages 'a', 'c': spec.model.source.identifier (or HF_MODEL) is required."
    assert caught.value.hint == "name a model in the spec, or set HF_MODEL"
    monkeypatch.setenv("HF_MODEL", "org/tiny")
    judge(tmp_path, {"a": ([], chat)})
    monkeypatch.delenv("VLLM_MODEL", raising=False)
    fast = {**chat, "model": {"vllm": {"max_model_len": 64}}}
    with pytest.raises(PlanError, match=r"stage 'a': .* \(or VLLM_MODEL\) is required"):
        judge(tmp_path, {"a": ([], fast)}, python={"vllm-cpu": tmp_path / "python"})


def test_what_only_vllm_does_is_refused_where_vllm_is_not(tmp_path: Path) -> None:
    model = {"source": {"identifier": "m"}}
    chat = {"taskType": "inference", "model": model, "data": {"type": "list", "items": ["x"]}}
    coded = {**chat, "inference": {"response_schema": ["yes", "no"], "n": 2}}
    with pytest.raises(PlanError) as caught:
        judge(tmp_path, {"a": ([], chat), "b": ([], coded)})
    assert caught.value.message == (
        "stage 'b', which transformers runs here (no GPU for vllm here; no environment vllm-cpu is built), cannot run: "
        "spec.inference.response_schema and spec.inference.n are read by vLLM only"
    )
    assert caught.value.hint == "mloc env create vllm-cpu"
    with pytest.raises(PlanError, match=r"spec\.inference\.n is read by vLLM only") as caught:
        judge(tmp_path, {"a": ([], {**chat, "enforce_cpu": True, "inference": {"n": 2}})})
    assert "enforce_cpu" in str(caught.value.hint)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '[]'\n")
    python.chmod(0o755)
    judge(tmp_path, {"b": ([], coded)}, python={"vllm-cpu": python})


def test_a_delivery_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path) -> None:
    def send(**destination: Any) -> None:
        nodes = {"a": ([], {"output": {"destination": {"type": "http", "url": "http://h/x", **destination}}})}
        judge(tmp_path, nodes, allowed_hosts="h")

    send()
    refused = r"stage 'a': spec\.output\.destination\.url: host '10\.0\.0\.1' of .* is not allowed"
    with pytest.raises(PlanError, match=refused) as caught:
        send(url="http://10.0.0.1/x")
    assert "MLOC_ALLOWED_HOSTS" in (caught.value.hint or "")
    with pytest.raises(ArtifactError, match="'Authorization' cannot be sent") as unsendable:
        send(headers={"Authorization": "Bearer S3CRET\nX: y"})
    assert "S3CRET" not in unsendable.value.message
