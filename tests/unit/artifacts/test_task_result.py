"""Results for Python: rows, tables, metrics and files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect import StageOutcome, TaskResult
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, survey
from mloc_prefect.errors import ArtifactError, ExecutionError, MissingExtraError

ROWS = [{"index": 0, "output": "a"}, {"index": 1, "output": {"b": 1}}, {"index": 2, "error": "boom"}]


@pytest.mark.parametrize(
    "document",
    [
        {"ok": True, "items": ROWS},
        {"task_id": "t", "result": {"ok": True, "items": ROWS}},
        {"task_id": "t", "result": {"shards": [], "merged": {"items": ROWS}}},
        {"result": {"queries": ROWS}},
    ],
)
def test_rows_with_and_without_envelope_of_one_task_and_of_shards(document: Any) -> None:
    result = TaskResult(document)
    assert list(result.rows()) == ROWS
    assert (len(result), result.files, repr(result)) == (3, {}, "<TaskResult with 3 rows>")


@pytest.mark.parametrize("document", [{}, [], None, {"raw": "x"}, {"items": "x"}, {"result": None}])
def test_what_has_no_rows_has_none(document: Any) -> None:
    assert (list(TaskResult(document).rows()), TaskResult(document).metrics) == ([], {})


def test_rows_as_tables() -> None:
    result = TaskResult({"items": ROWS})
    frame = result.to_pandas()
    assert list(frame.columns) == ["index", "output", "error"]
    assert list(frame["index"]) == [0, 1, 2]
    assert math.isnan(frame["error"][0])
    table = result.to_arrow()
    assert table.column("output").to_pylist() == ['"a"', '{"b": 1}', None]
    assert table.column("error").to_pylist() == [None, None, "boom"]
    assert TaskResult({"items": []}).to_arrow().num_rows == 0


@pytest.mark.parametrize(("library", "method"), [("pandas", "to_pandas"), ("pyarrow", "to_arrow")])
def test_a_missing_library_is_one_line(library: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    result = TaskResult({"items": ROWS})
    assert len(list(result.rows())) == 3
    with pytest.raises(MissingExtraError) as caught:
        getattr(result, method)()
    assert str(caught.value) == f"{library} is not installed\n  help: pip install {library}"


def test_files_and_metrics_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n\n{"step": 2, "loss": 2.0}\n')
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "note.txt").write_text("x")
    (tmp_path / "responses.json").write_text(json.dumps({"result": {"metrics": {"loss": 2.0}, "usage": {"n": 1}}}))
    result = TaskResult.read(tmp_path / "responses.json")
    assert sorted(result.files) == ["artifacts", "metrics.jsonl"], "without a manifest what lies there"
    entries = survey(tmp_path, result=(1, "0" * 64))
    assert commit_manifest(tmp_path, Manifest(task_id="t", generated_at="", entries=entries, spec_sha256=""))
    result = TaskResult.read(tmp_path / "responses.json")
    assert result.files["note.txt"] == tmp_path / "artifacts" / "note.txt"
    assert result.files["metrics.jsonl"] == tmp_path / "metrics.jsonl"
    assert result.metrics == {"n": 1, "loss": 2.0}
    assert [row["loss"] for row in result.metric_rows()] == [2.5, 2.0]


def outcome(path: Path | None, status: Any = "DONE", error: str | None = None) -> StageOutcome:
    return StageOutcome(key="a", node="a", task_id="t", status=status, result_path=path and str(path), error=error)


def test_the_result_of_a_stage(tmp_path: Path) -> None:
    path = tmp_path / "responses.json"
    with pytest.raises(ArtifactError, match="is not on this machine"):
        _ = outcome(path).result
    path.write_text("{")
    with pytest.raises(ArtifactError, match="cannot read"):
        _ = outcome(path).result
    path.write_text(json.dumps({"items": ROWS}))
    assert list(outcome(path).result.rows()) == ROWS
    with pytest.raises(ExecutionError, match="stage 'a' has no result: it is FAILED: boom"):
        _ = outcome(None, "FAILED", "boom\nmore").result
