"""`spec.data`: prompts from lists, files and templates, and the words for what is wrong with it."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.prompt_data import Prompt, Prompts, _metadata_value, load_prompts
from mloc_prefect.executors.sources.source_lookup import SourceLookup

ROWS = [{"text": f"row {i}", "id": i} for i in range(6)]


@pytest.fixture
def places(tmp_path: Path) -> SourceLookup:
    return SourceLookup.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path)})


def prompts(places: SourceLookup, upstream: dict[str, Any] | None = None, **data: Any) -> Prompts:
    return load_prompts({"data": data}, upstream or {}, places)


def texts(places: SourceLookup, **data: Any) -> list[str]:
    return [p.text for p in prompts(places, type="dataset", **data)]


def write_rows(file: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return
    opener = gzip.open if file.name.endswith(".gz") else open
    with opener(file, "wt", encoding="utf-8", newline="") as out:
        if name.endswith(".csv"):
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        elif name.endswith(".jsonl"):
            out.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            json.dump(rows, out)


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz", "rows.csv", "rows.csv.gz", "rows.parquet"]
)
def test_every_kind_of_file(tmp_path: Path, places: SourceLookup, name: str) -> None:
    write_rows(tmp_path / name)
    assert texts(places, url=name) == [row["text"] for row in ROWS]
    assert texts(places, url=str(tmp_path / name), split="train[1:3]") == ["row 1", "row 2"]


@pytest.mark.parametrize("ending", ["bz2", "xz", "zst", "gz"])
@pytest.mark.parametrize("twice", [False, True])
def test_compressed_files_are_read_whole(tmp_path: Path, places: SourceLookup, ending: str, twice: bool) -> None:
    """Also of several parts, one after the other, as parallel tools write them."""
    packers: dict[str, Any] = {"bz2": bz2.compress, "xz": lzma.compress, "gz": gzip.compress, "zst": zstd}
    lines = [json.dumps({"text": f"row {number} " + "x" * 50}) + "\n" for number in range(3000)]
    parts = ["".join(lines[:1000]), "".join(lines[1000:])] if twice else ["".join(lines)]
    file = tmp_path / f"rows.jsonl.{ending}"
    file.write_bytes(b"".join(packers[ending](part.encode()) for part in parts))
    found = texts(places, url=file.name)
    assert (len(found), found[-1][:8]) == (3000, "row 2999")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"rows\.jsonl\.{ending} cannot be read"):
        texts(places, url=file.name)


def test_a_pointer_of_git_is_no_data(tmp_path: Path, places: SourceLookup) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 10\n")
        with pytest.raises(
            UserError, match=rf"{name} is a pointer of Git LFS, not the data; fetch it with: git lfs pull"
        ):
            texts(places, url=name)


def test_numbers_of_32_bits_are_read_as_they_were_written(tmp_path: Path, places: SourceLookup) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pa.array([0.1, None, float("nan"), -3.5e-7, 16777216], pa.float32())
    pq.write_table(
        pa.table({"text": column, "half": pa.array([1.5, 0, 0, 0, 0], pa.float16())}), tmp_path / "a.parquet"
    )
    found = prompts(places, type="dataset", url="a.parquet", metadata_columns=["text", "half"])
    assert [p.text for p in found] == ["0.1", "", "", "-3.5e-07", "16777216.0"]
    assert found[0].metadata == {"text": 0.1, "half": 1.5}


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def test_json_may_hold_columns_or_lines(tmp_path: Path, places: SourceLookup) -> None:
    (tmp_path / "columns.json").write_text(json.dumps({"text": ["a", "b"], "id": [1, 2]}))
    (tmp_path / "lines.json").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert texts(places, url="columns.json") == texts(places, url="lines.json") == ["a", "b"]


def test_csv_values_stay_text_and_utf8_marks_are_dropped(tmp_path: Path, places: SourceLookup) -> None:
    (tmp_path / "rows.csv").write_bytes(b'\xef\xbb\xbftext,n\n007,1\n"a\nb",2\n')
    assert texts(places, url="rows.csv") == ["007", "a\nb"]


def test_folders_mirrors_and_urls(tmp_path: Path, places: SourceLookup) -> None:
    write_rows(tmp_path / "set" / "main" / "test.jsonl")
    assert len(texts(places, url="set", name="main", split="test")) == 6
    assert len(texts(places, url=f"file://{tmp_path}/set", name="main", split="test")) == 6
    fsspec.filesystem("memory").pipe("/prompt-data/train.jsonl", b'{"text": "far"}\n')
    assert texts(places, url="memory://prompt-data") == ["far"]
    fsspec.filesystem("memory").pipe("/prompt-data/part#1.jsonl", b'{"text": "hash"}\n')
    assert texts(places, url="memory://prompt-data/part#1.jsonl") == ["hash"]
    fsspec.filesystem("memory").pipe("/prompt-data/part.csv?sig=1", b"text\nsigned\n")
    assert texts(places, url="memory://prompt-data/part.csv?sig=1") == ["signed"]
    (tmp_path / "mirrors.yaml").write_text("datasets: {openai/gsm8k: set}")
    mirrored = SourceLookup.of({"home": str(tmp_path), "base_dir": "/"})
    assert len(texts(mirrored, url="openai/gsm8k", name="main", split="test[:2]+test[4:]")) == 4


def test_shuffle_is_that_of_the_datasets_library(tmp_path: Path, places: SourceLookup) -> None:
    import numpy as np

    write_rows(tmp_path / "rows.jsonl")
    order = np.random.default_rng(42).permutation(6)
    assert texts(places, url="rows.jsonl", shuffle=True) == [f"row {i}" for i in order]
    assert texts(places, url="rows.jsonl", shuffle=True, seed=1, max_samples=2) != [f"row {i}" for i in order[:2]]


def test_values_become_text_and_empty_ones_are_faults_of_their_row(tmp_path: Path, places: SourceLookup) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": 5}, {"q": None}, {"other": 1}, {"q": 0.5}])
    found = prompts(places, type="dataset", url="rows.jsonl", column="q")
    assert [p.text for p in found] == ["5", "", "", "0.5"]
    assert [p.error for p in found] == [None, *["column 'q' has no value in this row"] * 2, None]


def test_metadata_travels_along(tmp_path: Path, places: SourceLookup) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    data = {"type": "dataset", "url": "rows.jsonl"}
    assert prompts(places, **data)[0].metadata == {}
    assert prompts(places, **data, metadata_columns=["id"])[0].metadata == {"id": 0}
    assert prompts(places, **data, metadata_columns={"id": "number"})[0].metadata == {"number": 0}
    assert prompts(places, **data, metadata_include_all=True)[0].metadata == {"text": "row 0", "id": 0}
    write_rows(tmp_path / "asked.jsonl", [{"text": "t", "prompt": "p"}])
    asked = prompts(places, type="dataset", url="asked.jsonl", metadata_include_all=True)
    assert asked.notes == (
        "column 'prompt' is not in the metadata of the rows, where 'prompt' is the prompt that the model read",
    )
    asked = prompts(places, type="dataset", url="asked.jsonl", column="prompt", metadata_include_all=True)
    assert asked.notes == ()
    listed = prompts(places, type="list", items=["a", "b"], metadata=[{"k": 1}, None])
    assert [p.metadata for p in listed] == [{"k": 1}, {}]


def test_values_that_json_does_not_know_are_met_before_any_row_is_computed(
    tmp_path: Path, places: SourceLookup
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    at = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    pq.write_table(pa.table({"text": ["a"], "at": [at], "price": [Decimal("1.10")]}), tmp_path / "rows.parquet")
    (row,) = prompts(places, type="dataset", url="rows.parquet", metadata_columns=["at", "price"])
    assert row.metadata == {"at": "2024-05-06T07:08:09+00:00", "price": "1.10"}
    with pytest.raises(UserError, match=r"^row 3, column 'image': object has no JSON form; leave it out of"):
        _metadata_value(object(), "image", 3)


def test_graph_template(places: SourceLookup) -> None:
    template = {"name": "mine", "text": "{col0_value}!", "columns": [{"label": "a", "expr": "first.result.x"}]}
    found = prompts(places, {"first": {"result": {"x": "hi"}}}, type="graph_template", template=template)
    assert found == [Prompt("hi!")]
    with pytest.raises(UserError, match="No upstream results available for graph template prompts"):
        prompts(places, type="graph_template", template=template)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "spec.data is required."),
        ({}, "spec.data is required."),
        ({"type": "list"}, "spec.data.items must be a list of strings for type == 'list'."),
        ({"type": "list", "items": ["a", 1]}, "spec.data.items must be a list of strings for type == 'list'."),
        ({"type": "list", "items": []}, "No prompts prepared. Check spec.data configuration."),
        ({"type": "dataset"}, "spec.data.url is required for type == 'dataset'."),
        ({"type": "csv"}, "Unsupported spec.data.type: 'csv'"),
        ({"items": ["a"]}, "Unsupported spec.data.type: None"),
        ({"type": "dataset", "url": "empty.jsonl"}, "No prompts prepared. Check spec.data configuration."),
        (
            {"type": "dataset", "url": "rows.jsonl", "column": "question"},
            "Column 'question' not found in dataset. Available: ['text', 'id']",
        ),
        (
            {"type": "dataset", "url": "rows.jsonl", "metadata_columns": ["x"]},
            "Column 'x' not found in dataset. Available: ['text', 'id']",
        ),
        ({"type": "list", "items": ["a"], "metadata": [1, 2]}, "as long as spec.data.items (1), found 2 entries"),
        ({"type": "dataset", "url": "bad.jsonl"}, "bad.jsonl:2:1: not valid JSON: Expecting value"),
        ({"type": "dataset", "url": "list.jsonl"}, "list.jsonl:1: each line must be a JSON object, found list"),
        ({"type": "dataset", "url": "ragged.csv"}, "ragged.csv:3: 3 values for 2 columns"),
        ({"type": "dataset", "url": "latin.jsonl"}, "latin.jsonl:1: not UTF-8 text"),
        ({"type": "dataset", "url": "broken.jsonl.gz"}, "broken.jsonl.gz:1:1: not valid JSON"),
        ({"type": "dataset", "url": "broken.parquet"}, "broken.parquet is not a parquet file"),
        ({"type": "dataset", "url": "notes.txt"}, "notes.txt is not a data file"),
        ({"type": "dataset", "url": "."}, "has no split 'train'. Available:"),
        (
            {"type": "dataset", "url": "http://inner.example/x.jsonl"},
            "host 'inner.example' of http://inner.example/x.jsonl",
        ),
        ({"type": "dataset", "url": "sftp://inner.example/x"}, "set MLOC_ALLOWED_HOSTS=inner.example (comma list)"),
        ({"type": "dataset", "url": "zip://a.csv::http://inner.example/x"}, "is a chained URL"),
        ({"type": "dataset", "url": "memory://nowhere"}, "memory://nowhere does not exist"),
        ({"type": "dataset", "url": "nosuch://x"}, "host 'x' of https://x is not allowed"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, places: SourceLookup, data: dict[str, Any] | None, problem: str) -> None:
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnope\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    (tmp_path / "broken.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        load_prompts({"data": data}, {}, places)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_found_nowhere_names_the_three_places(places: SourceLookup) -> None:
    from mloc_prefect.executors.sources.hub import not_found

    message = str(not_found("dataset", "org/set", places, "HF_HUB_OFFLINE is set"))
    assert "three places: mirrors (no mirrors file), local path" in message
    assert f"{places.base}/org/set does not exist), Hugging Face hub (HF_HUB_OFFLINE is set)" in message
    assert f"add to {places.home}/mirrors.yaml: `datasets: {{org/set: /path/to/copy}}`" in message


@pytest.mark.parametrize("url", ["http://head.example:8000/api/v1/results/t%201/files/rows.jsonl", "file://{file}"])
def test_an_export_of_an_earlier_stage_is_read_where_it_lies(tmp_path: Path, url: str) -> None:
    """With a token at the endpoint, or without a network, too."""
    facts = {"base_dir": str(tmp_path), "results_root": str(tmp_path / "results")}
    places = SourceLookup.of({**facts, "home": str(tmp_path / "home"), "base_url": "http://head.example:8000"})
    file = task_dir(tmp_path / "results", "t 1") / "rows.jsonl"
    write_rows(file)
    assert texts(places, url=url.format(file=file)) == [f"row {i}" for i in range(6)]
    with pytest.raises(UserError, match=r"'elsewhere\.example' of"):
        texts(places, url="http://elsewhere.example/api/v1/results/t%201/files/rows.jsonl")
