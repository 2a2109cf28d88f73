"""Retrieval with `mloc run`: templates, an original spec of MLOC, and keys from the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from qdrant_client.models import Distance, VectorParams

from tests.support.documents import FACTS
from tests.support.mloc_specs import SPECS
from tests.support.qdrant_stub import QdrantStub
from tests.support.server import prepare_home
from tests.support.smollm import prepared_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., subprocess.CompletedProcess[str]]

MLOC = str(Path(sys.executable).parent / "mloc")
ROOT = Path(__file__).parents[2]
KEY = "k3y-of-the-test-server"
SECRET = """\
apiVersion: mloc/v1
kind: RetrievalTask
metadata: {name: keyed}
spec:
  taskType: rag
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  qdrant: {url: "URL", collection: facts, api_key: "${env.TEST_QDRANT_KEY}"}
  query: energy
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rag") / "home"


@pytest.fixture(scope="module")
def run(home: Path) -> Iterator[Run]:
    prepare_home(home)
    foreign = ("MLOC_", "PREFECT_", "RESULTS_DIR", "ORCHESTRATOR_", "FORCE_COLOR", "NO_COLOR")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env |= {
        "MLOC_HOME": str(home),
        "MLOC_MIRRORS": str(prepared_home(embeddings=True) / "mirrors.yaml"),
        "MLOC_SERVER_PORT": "24760",
        "HF_HUB_OFFLINE": "1",
    }

    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MLOC, *arguments],
            capture_output=True,
            text=True,
            env={**env, **more},
            cwd=ROOT,
            timeout=240,
            check=False,
        )

    yield call
    assert call("down").returncode == 0


def results(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    tasks = json.loads(done.stdout.splitlines()[-1])["tasks"]
    assert {task["status"] for task in tasks} == {"DONE"}
    return {task["node"]: json.loads(Path(task["result_path"]).read_text()) for task in tasks}


def test_answers_say_where_they_come_from(run: Run) -> None:
    found = results(run("run", "templates/rag_answers.yaml", "--json", "--set", "spec.inference.max_tokens=8"))
    search, answer = found["search"], found["answer"]
    assert [query["items"][0]["payload"]["source"].rpartition("#")[2] for query in search["queries"]] == [
        "leave",
        "purchases",
    ]
    assert [item["prompt"] for item in answer["items"]] == search["prompts"]
    assert [item["metadata"]["sources"] for item in answer["items"]] == [s["sources"] for s in search["sources"]]
    assert all(
        query["items"][0]["payload"]["text"] in p for query, p in zip(search["queries"], search["prompts"], strict=True)
    )


@pytest.mark.skipif(not SPECS.is_dir(), reason="the recorded specs of MLOC are not there")
def test_the_original_spec_runs_on_an_embedded_collection(run: Run) -> None:
    places = ("qdrant.url=null", "qdrant.api_key=null", "qdrant.path=':memory:'")
    documents = json.dumps({"items": ["Qdrant is a vector database.", *(fact.text for fact in FACTS[:5])]})
    sets = [part for place in (*places, f"documents={documents}") for part in ("--set", f"spec.{place}")]
    (result,) = results(run("run", str(SPECS / "rag_query_qdrant.yaml"), "--json", *sets)).values()
    assert result["queries"][0]["query"] == "What is Qdrant?"
    assert result["queries"][0]["items"][0]["payload"]["text"] == "Qdrant is a vector database."
    assert len(result["queries"][0]["items"]) == 5


def test_a_key_is_read_where_the_stage_runs_and_shown_nowhere(run: Run, home: Path, tmp_path: Path) -> None:
    def embed(texts: Any) -> list[list[float]]:
        return [[1.0, float("energy" in text)] for text in texts]

    with QdrantStub(key=KEY, embed=embed) as server:
        server.client.create_collection("facts", VectorParams(size=2, distance=Distance.COSINE))
        spec = tmp_path / "keyed.yaml"
        spec.write_text(SECRET.replace("URL", server.url))
        refused = run("run", str(spec), "--json", TEST_QDRANT_KEY=KEY)
        assert refused.returncode == 2
        assert "keyed.yaml:7:" in refused.stderr
        assert "[env-not-allowed]" in refused.stderr
        assert "MLOC_ALLOWED_ENV=TEST_QDRANT_KEY" in refused.stderr
        done = run("run", str(spec), "--json", TEST_QDRANT_KEY=KEY, MLOC_ALLOWED_ENV="TEST_QDRANT_KEY")
    (result,) = results(done).values()
    assert result["qdrant"] == {"collection": "facts", "url": server.url}
    assert KEY not in done.stdout + done.stderr
    shown = [path for path in home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert [path.name for path in shown if path.name != "job.json"] == []


def test_a_plain_name_stays_as_it_is_and_says_what_to_write(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "keyed.yaml"
    spec.write_text(SECRET.replace("${env.TEST_QDRANT_KEY}", "${TEST_QDRANT_KEY}"))
    done = run("validate", str(spec))
    assert "warning[literal-placeholder]" in done.stdout + done.stderr
    assert "write ${env.TEST_QDRANT_KEY}" in done.stdout + done.stderr
