"""Folders of data as the tools of the field write them: which files are a split, and what their folders add."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_prefect.artifacts.data_files import open_binary, partition_columns, split_files
from mloc_prefect.errors import ArtifactError


def tree(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    return str(root)


def names(root: Path, split: str, config: str | None = None) -> list[str]:
    return [str(Path(file).relative_to(root)) for file in split_files(str(root), config, split)]


def test_shards_of_older_versions_of_push_to_hub(tmp_path: Path) -> None:
    ends = ("a09b74b3ef9c3b56", "b42a775f407cee45")
    shards = [f"data/train-0000{n}-of-00002-{end}.parquet" for n, end in enumerate(ends)]
    tree(tmp_path, *shards, "data/test-00000-of-00001.parquet", "README.md")
    assert names(tmp_path, "train") == shards
    assert names(tmp_path, "test") == ["data/test-00000-of-00001.parquet"]


def test_the_conversion_of_the_hub(tmp_path: Path) -> None:
    tree(tmp_path, "default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet")
    assert names(tmp_path, "train") == ["default/train/0000.parquet", "default/train/0001.parquet"]
    assert names(tmp_path, "test", "default") == ["default/test/0000.parquet"]


def test_a_folder_of_spark(tmp_path: Path) -> None:
    parts = [f"part-0000{n}-7c2e2b1c-0c6b-4b5a-9d8e-1d2c3b4a5f6e-c000.snappy.parquet" for n in (0, 1)]
    tree(tmp_path, *parts, "_SUCCESS", f".{parts[0]}.crc")
    assert names(tmp_path, "train") == parts
    with pytest.raises(ArtifactError, match=r"has no split 'test'\. Available: \['train'\]"):
        names(tmp_path, "test")


def test_folders_of_hive_are_train_and_their_values_are_columns(tmp_path: Path) -> None:
    files = ["lang=de/year=2024/part-0.parquet", "lang=de/year=2025/part-0.parquet", "lang=fr/year=2024/part-0.parquet"]
    tree(tmp_path, *files)
    assert names(tmp_path, "train") == files
    assert partition_columns(f"{tmp_path}/{files[1]}") == {"lang": "de", "year": "2025"}
    assert partition_columns("/a=1/b/c%20d=x%2Fy/e.parquet") == {}
    assert partition_columns("/d=x%2Fy/e=__HIVE_DEFAULT_PARTITION__/f.parquet") == {"d": "x/y", "e": None}


def test_a_folder_of_hive_may_name_the_split(tmp_path: Path) -> None:
    tree(tmp_path, "split=train/a.parquet", "split=test/lang=de/a.parquet")
    assert names(tmp_path, "train") == ["split=train/a.parquet"]
    assert names(tmp_path, "test") == ["split=test/lang=de/a.parquet"]
    assert partition_columns("/split=test/lang=de/a.parquet") == {"lang": "de"}


def test_what_file_managers_add_is_no_data(tmp_path: Path) -> None:
    tree(tmp_path, "train.jsonl", "._train.jsonl", "._test.jsonl", "train/._a.jsonl")
    assert names(tmp_path, "train") == ["train.jsonl"]
    with pytest.raises(ArtifactError, match=r"Available: \['train'\]"):
        names(tmp_path, "test")


@pytest.mark.parametrize("name", ["a::b.jsonl", "a*b?[c].jsonl", "100%.jsonl", "%41.jsonl", "a#b.jsonl", "a b.jsonl"])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("x")
    for form in (str(path), path.as_uri()):
        assert split_files(form, None, "train") == (form,)
        with open_binary(form) as stream:
            assert stream.read() == b"x"
