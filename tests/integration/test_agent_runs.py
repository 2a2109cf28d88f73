"""Agents through `mloc run`: recorded templates of MLOC and ours, changed by `--set` only, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.chat_stub import Answer, ChatStub, results_of, task_of
from tests.support.mloc_specs import SPECS
from tests.support.server import prepare_home

if TYPE_CHECKING:
    from collections.abc import Iterator

MLOC = str(Path(sys.executable).parent / "mloc")
ROOT = Path(__file__).parents[2]
RECORDED = {
    "agent_dataset_batch": 5,
    "agent_paper_collector": 1,
    "agent_query_search": 1,
    "agent_simple_test": 1,
    "agent_static_list": 4,
}


def script(body: dict[str, Any]) -> Answer:
    """Use a tool, then answer."""
    results = results_of(body)
    return f"about {task_of(body).split()[0]}: {results[0]}" if results else {"list_files": {}}


@dataclass(frozen=True)
class AgentSite:
    """`mloc run` with a state directory of its own, and the endpoint."""

    home: Path
    stub: ChatStub

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        foreign = ("MLOC_", "PREFECT_", "RESULTS_DIR", "ORCHESTRATOR_", "UTU_", "FORCE_COLOR", "NO_COLOR")
        env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        env |= {"MLOC_HOME": str(self.home), "MLOC_SERVER_PORT": "24750", "HF_HUB_OFFLINE": "1"}
        command = [MLOC, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=240, check=False)

    def run(self, spec: Path, *sets: str) -> dict[str, Any]:
        """Run a spec against the endpoint and return its result."""
        given = [f"spec.agent.base_url={self.stub.url}", "spec.agent.model=scripted", *sets]
        done = self("run", str(spec), "--json", *(word for text in given for word in ("--set", text)))
        assert done.returncode == 0, done.stderr
        task = json.loads(done.stdout)["tasks"][0]
        assert task["status"] == "DONE"
        result: dict[str, Any] = json.loads(Path(task["result_path"]).read_text())
        return {**result.get("result", result), "folder": Path(task["result_path"]).parent}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentSite]:
    home = tmp_path_factory.mktemp("agents") / "home"
    prepare_home(home)
    with ChatStub(script) as stub:
        found = AgentSite(home, stub)
        yield found
        assert found("down").returncode == 0


@pytest.mark.skipif(not SPECS.is_dir(), reason="the recorded specs of MLOC are not beside this checkout")
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_template_runs_with_sets_only(site: AgentSite, tmp_path: Path, name: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"what is {n}?"}) + "\n" for n in range(9)))
    sets = [f"spec.data.url={rows}"] if name == "agent_dataset_batch" else []
    small = ("spec.resources.hardware.cpu=1", "spec.resources.hardware.memory=1Gi")
    result = site.run(SPECS / f"{name}.yaml", *small, *sets)
    assert len(result["items"]) == RECORDED[name]
    assert {item["finish_reason"] for item in result["items"]} == {"completed"}
    files = {"agent_output.txt"} if RECORDED[name] == 1 else {"batch_summary.json", "batch_logs"}
    assert files <= {path.name for path in result["folder"].iterdir()}


def test_our_template_runs(site: AgentSite) -> None:
    result = site.run(ROOT / "templates" / "agent.yaml")
    assert [item["output"].split(":")[0] for item in result["items"]] == ["about Compare", "about Plan"]


@pytest.mark.parametrize(
    ("sets", "said", "code"),
    [
        ((), "neither the spec nor the operator names a language model", 3),
        (("spec.configName=defualt",), "there is no configuration 'defualt'", 3),
        (('spec.agent.tools=["python"]', "spec.agent.base_url=http://127.0.0.1:9999/v1"), "does not allow 'python'", 3),
        (("spec.configName=../x",), "is not the name of a configuration", 2),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    site: AgentSite, sets: tuple[str, ...], said: str, code: int
) -> None:
    done = site("run", "templates/agent.yaml", *(word for text in sets for word in ("--set", text)))
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
