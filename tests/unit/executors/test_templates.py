"""Every template plans without a word, as frozen; `make golden` rewrites the frozen files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.datasets_source import load_table
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.tasks.registry import TASK_TYPES, task_type
from tests.golden.update import GOLDEN, HASHES, ROOT, TEMPLATES, canonical_sha256, hashes_of, plan_of

FILES = sorted(TEMPLATES.glob("*.yaml"))
FROZEN = json.loads(HASHES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("template", FILES, ids=lambda file: file.stem)
def test_plan_is_the_golden_one(template: Path) -> None:
    assert f"{plan_of(template)}\n" == (GOLDEN / f"{template.stem}.plan.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("template", FILES, ids=lambda file: file.stem)
def test_effective_documents_are_frozen(template: Path) -> None:
    assert hashes_of(plan_of(template)) == FROZEN[template.name]


@pytest.mark.parametrize(
    "template",
    [file for file in FILES if "stages" not in file.read_text() and "nodes" not in file.read_text()],
    ids=lambda file: file.stem,
)
def test_a_single_document_is_what_yaml_reads(template: Path) -> None:
    (stage,) = plan_of(template).stages
    assert stage.effective == yaml.safe_load(template.read_text(encoding="utf-8"))


def test_the_hash_is_that_of_the_canonical_json() -> None:
    assert canonical_sha256({"b": [1, "ä"], "a": None}) == canonical_sha256({"a": None, "b": [1, "ä"]})
    # sha256 of {"a":null,"b":[1,"ä"]} in UTF-8, by sha256sum
    assert (
        canonical_sha256({"b": [1, "ä"], "a": None})
        == "5d4c789751acdad9ba305072d1a6ccdc5864fd7c7a1bcc0f38a794e5a4417e02"
    )


def test_nothing_frozen_is_left_over() -> None:
    assert set(FROZEN) == {file.name for file in FILES}
    assert {file.name for file in GOLDEN.glob("*.plan.txt")} == {f"{file.stem}.plan.txt" for file in FILES}


def test_every_kind_of_task_has_a_template() -> None:
    shown = {task_type(stage.task_type).model for file in FILES for stage in plan_of(file).stages}
    assert shown == {kind.model for kind in TASK_TYPES}


@pytest.mark.parametrize("template", FILES, ids=lambda file: file.stem)
def test_templates_teach_and_fit_a_small_machine(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.split("\napiVersion")[0].split()) > 20
    for stage in plan_of(template).stages:
        assert (stage.resources.cpus or 0) <= 2
        assert (stage.resources.memory_bytes or 0) <= 8 << 30
        assert stage.resources.gpu_count == 0


def test_local_data_of_templates_is_there() -> None:
    rows = [
        json.loads(line) for line in (ROOT / "templates/data/questions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 8
    assert all(set(row) == {"id", "topic", "question"} for row in rows)
    urls = [
        str(stage.effective["spec"].get("data", {}).get("url", "")) for file in FILES for stage in plan_of(file).stages
    ]
    local = [url for url in urls if url.startswith("templates/")]
    assert local
    assert all((ROOT / url).is_file() for url in local)


def test_the_rows_of_a_template_are_found_from_anywhere_and_own_files_come_first(tmp_path: Path) -> None:
    (stage,) = plan_of(TEMPLATES / "dataset_inference.yaml").stages
    data = SpecReader(stage.effective["spec"]["data"])
    places = SourceLookup.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path)})
    assert len(load_table(data, places).rows) == 6
    own = tmp_path / "templates/data/questions.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text('{"question": "mine"}\n')
    assert load_table(data, places).rows == [{"question": "mine"}]
    assert places.local("templates/data/none.jsonl") == tmp_path / "templates/data/none.jsonl"
