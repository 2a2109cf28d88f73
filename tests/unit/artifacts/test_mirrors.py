"""Mirrors: which line decides, what its target becomes, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import yaml

from mloc_prefect.artifacts.mirrors import Mirrors
from mloc_prefect.artifacts.mirrors_file import add_models
from mloc_prefect.errors import ArtifactError


def mirrors(folder: Path, text: str, name: str = "mirrors.yaml") -> Mirrors:
    file = folder / name
    file.write_text(text)
    return Mirrors.load(file)


def test_no_file_means_no_mirror() -> None:
    assert Mirrors.load(None).model("a/b") is None


@pytest.mark.parametrize(
    ("line", "identifier", "target"),
    [
        ("a/b: /models/ab", "a/b", "/models/ab"),
        ("a/b: s3://bucket/ab", "a/b", "s3://bucket/ab"),
        ("a/b: local/ab", "a/b", "{here}/local/ab"),
        ("meta-llama/*: /models/*-hf", "meta-llama/Llama-3.2-1B", "/models/Llama-3.2-1B-hf"),
        ("meta-llama/*: /models/llama", "meta-llama/Llama-3.2-1B", "/models/llama/Llama-3.2-1B"),
        ('"*": /models', "meta-llama/Llama-3.2-1B", "/models/meta-llama/Llama-3.2-1B"),
        ('"*/*-base": s3://m/*/v1/*', "org/x-base", "s3://m/org/v1/x"),
        ("meta-llama/*: /models", "mistralai/Mistral-7B", None),
        ("a.b: /models", "axb", None),
    ],
)
def test_target(tmp_path: Path, line: str, identifier: str, target: str | None) -> None:
    found = mirrors(tmp_path, f"models:\n  {line}\n").model(identifier)
    assert found == (target.format(here=tmp_path) if target else None)


def test_exact_names_come_before_patterns_and_earlier_files_before_later(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("models: {'a/*': /one/pattern}")
    (tmp_path / "two.yaml").write_text("models: {a/b: /two/exact, 'a/*': /two/pattern}")
    both = Mirrors.load(tmp_path / "one.yaml", None, tmp_path / "two.yaml")
    assert both.model("a/b") == "/two/exact"
    assert both.model("a/c") == "/one/pattern/c"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert mirrors(tmp_path, "models: {x: ~/models/x}").model("x") == "/home/someone/models/x"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("- a\n", "1:1", "must hold `models:` and `datasets:` maps"),
        ("models: [a]\n", "1:9", "must map names to paths"),
        ("model:\n  a: /b\n", "1:1", "unknown key 'model'"),
        ("models:\n  a: [1]\n", "2:6", "must be one path or URL"),
        ("models:\n  a:\n", "2:5", "must be one path or URL"),
        ("models:\n  'a/*': /x/*/*\n", "2:10", "as many stars as the name"),
        ("models:\n  a: /b\n bad\n", "3:2", "not valid YAML"),
        ("models: {a: /b\n", "2:1", "not valid YAML"),
    ],
)
def test_wrong_file_is_one_line_with_its_place(tmp_path: Path, text: str, place: str, problem: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        mirrors(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'mirrors.yaml'}:{place}: ")
    assert problem in message
    assert "\n" not in message


def test_missing_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: No such file") as caught:
        Mirrors.load(tmp_path / "none.yaml")
    assert caught.value.hint == "check MLOC_MIRRORS"


def test_empty_maps_are_fine(tmp_path: Path) -> None:
    assert mirrors(tmp_path, "models:\ndatasets: {}\n").entries == ()


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    return root


def found_names(root: Path, config: str | None, split: str) -> list[str]:
    files = mirrors(root, f"datasets: {{x: {root}}}").dataset("x", config, split)
    assert files is not None
    return [str(Path(f).relative_to(root)) for f in files]


def test_dataset_folder_is_searched_config_first(tmp_path: Path) -> None:
    root = tree(tmp_path, "main/train.jsonl", "train.json", "test.csv", "data/dev.parquet", "README.md")
    assert found_names(root, "main", "train") == ["main/train.jsonl"]
    assert found_names(root, None, "train") == ["train.json"]
    assert found_names(root, "main", "test") == ["test.csv"]
    assert found_names(root, None, "dev") == ["data/dev.parquet"]


def test_dataset_split_may_have_parts_or_a_folder(tmp_path: Path) -> None:
    root = tree(
        tmp_path, "train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "dev/b.jsonl.gz", "dev/a.jsonl"
    )
    assert found_names(root, None, "train") == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert found_names(root, None, "dev") == ["dev/a.jsonl", "dev/b.jsonl.gz"]


def test_dataset_file_serves_every_split(tmp_path: Path) -> None:
    file = tree(tmp_path, "rows.jsonl") / "rows.jsonl"
    both = mirrors(tmp_path, f"datasets: {{x: {file}}}")
    assert both.dataset("x", None, "test") == (str(file),)
    assert both.dataset("y", None, "test") is None


def test_missing_split_lists_what_is_there(tmp_path: Path) -> None:
    tree(tmp_path, "train.jsonl", "test.jsonl")
    with pytest.raises(ArtifactError) as caught:
        found_names(tmp_path, None, "validation")
    assert "has no split 'validation'. Available: ['test', 'train']" in caught.value.message
    assert f"mirror of 'x' ({tmp_path / 'mirrors.yaml'}:1)" in caught.value.message


def test_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="/none does not exist"):
        mirrors(tmp_path, "datasets: {x: none}").dataset("x")


def test_dataset_behind_a_url(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/mirror-test/sets/gsm8k/main/train.jsonl", b'{"text": "a"}\n')
    found = mirrors(tmp_path, "datasets: {openai/*: 'memory://mirror-test/sets'}").dataset("openai/gsm8k", "main")
    assert found == ("memory:///mirror-test/sets/gsm8k/main/train.jsonl",)


@pytest.mark.parametrize(
    "before",
    [
        None,
        "",
        "# mine\nmodels:\n    # the big one\n    a/b: /models/ab  # kept\n\ndatasets:\n  c: /d\n",
        "models: {a/b: /models/ab}\n",
        "models:\ndatasets: {c: /d}\n",
        "datasets:\n  c: /d",
    ],
)
def test_adding_models_keeps_the_rest(tmp_path: Path, before: str | None) -> None:
    file = tmp_path / "mirrors.yaml"
    if before is not None:
        file.write_text(before)
    add_models(file, {"org/new": "models/new", "new": "models/new"})
    after = file.read_text()
    data = yaml.safe_load(before or "") or {}
    wanted = {**(data.get("models") or {}), "org/new": "models/new", "new": "models/new"}
    assert yaml.safe_load(after) == {**data, "models": wanted}
    if before and before.startswith("# mine"):
        assert [line for line in after.splitlines() if "new" not in line] == before.splitlines()
    add_models(file, {"new": "models/new"})
    assert file.read_text() == after


def test_adding_models_leaves_a_choice_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mirrors.yaml"
    file.write_text("models:\n  new: /my/own\n")
    add_models(file, {"new": "models/new"})
    assert file.read_text() == "models:\n  new: /my/own\n"
