"""What the executors of a submission open: the end of every path is judged where the file is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.artifacts.mirrors import Mirrors
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.adapters import find_adapter
from mloc_prefect.executors.common.checkpoint_source import find_weights
from mloc_prefect.executors.common.prompt_data import load_prompts
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.models_source import find_model
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.trainer_arguments import with_files
from mloc_prefect.settings import get_settings
from mloc_prefect.trust.input_roots import InputRoots

ROW = '{"text": "secret"}\n'
ELSEWHERE = "{}/rows.jsonl file://{}/rows.jsonl local://{}/rows.jsonl ../outside/rows.jsonl {}/data link folder"
REFUSED = "outside the folders|no kind of URL|leaves|names files of another folder|cannot have a config|not a name on"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceLookup:
    """The lookup of a submission whose service works in `work`, with a secret `outside`."""
    for name in ("work", "outside/data", "results/t1", "host"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outside" / "rows.jsonl").write_text(ROW)
    (tmp_path / "outside" / "data" / "train.jsonl").write_text(ROW)
    (tmp_path / "outside" / "config.json").write_text("{}")
    (tmp_path / "work" / "own.jsonl").write_text('{"text": "own"}\n')
    monkeypatch.chdir(tmp_path / "host")  # hosts run elsewhere
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    roots = InputRoots.of(get_settings(home=tmp_path / "home"), results=tmp_path / "results", working=tmp_path / "work")
    named = {"home": "home", "base_dir": "work", "results_root": "results"}
    wire = {key: str(tmp_path / name) for key, name in named.items()}
    return SourceLookup.of({**wire, "loopback": True, "inputs": roots.to_wire()})


def texts(sources: SourceLookup, url: str, **more: Any) -> list[str]:
    return [p.text for p in load_prompts({"data": {"type": "dataset", "url": url, **more}}, {}, sources)]


@pytest.mark.parametrize("url", ELSEWHERE.split())
def test_rows_outside_are_not_read(tmp_path: Path, sources: SourceLookup, url: str) -> None:
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside" / "rows.jsonl")
    (tmp_path / "work" / "folder").mkdir()
    (tmp_path / "work" / "folder" / "train.jsonl").symlink_to(tmp_path / "outside" / "rows.jsonl")
    assert texts(sources, "own.jsonl") == ["own"]
    with pytest.raises(UserError, match=REFUSED):
        texts(sources, url.format(tmp_path / "outside"))


@pytest.mark.parametrize("name", ["../../outside/data", "{}/outside/data"])
def test_a_config_does_not_lead_out_of_a_folder(tmp_path: Path, sources: SourceLookup, name: str) -> None:
    (tmp_path / "work" / "set").mkdir()
    (tmp_path / "work" / "set" / "test.jsonl").write_text(ROW)
    with pytest.raises(UserError, match=REFUSED):
        texts(sources, "set", name=name.format(tmp_path))


def test_a_name_on_the_hub_is_no_folder_of_the_host(tmp_path: Path, sources: SourceLookup) -> None:
    (tmp_path / "host" / "org" / "data").mkdir(parents=True)
    (tmp_path / "host" / "org" / "data" / "train.jsonl").write_text(ROW)
    (tmp_path / "host" / "org" / "data" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="it is not a name on the hub"):
        texts(sources, "org/data")
    with pytest.raises(UserError, match="it is not a name on the hub"):
        find_model("org/data", None, sources)


def test_a_pipe_is_not_waited_for(tmp_path: Path, sources: SourceLookup) -> None:
    os.mkfifo(tmp_path / "work" / "pipe.jsonl")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        texts(sources, "pipe.jsonl")


def test_a_saved_data_set_does_not_name_files_of_others(tmp_path: Path, sources: SourceLookup) -> None:
    folder = tmp_path / "results" / "t1"
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../outside/rows.arrow"}]}))
    with pytest.raises(UserError, match="names files of another folder"):
        texts(sources, str(folder))
    (folder / "state.json").unlink()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../../outside"]}))
    with pytest.raises(UserError, match="names files of another folder"):
        texts(sources, str(folder))


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_models_outside_and_links_in_models_are_not_read(tmp_path: Path, sources: SourceLookup) -> None:
    inside = model_folder(tmp_path / "work" / "model")
    assert find_model("model", None, sources).path == str(inside)
    for text in (str(tmp_path / "outside"), f"file://{tmp_path}/outside", "../outside", "~", "/proc/self/root/etc"):
        with pytest.raises(UserError, match=REFUSED):
            find_model(text, None, sources)
    (inside / "vocab.txt").symlink_to(tmp_path / "outside" / "rows.jsonl")
    with pytest.raises(UserError, match="outside the folders"):
        find_model("model", None, sources)


def test_mirrors_lead_where_the_operator_says_and_no_further(tmp_path: Path, sources: SourceLookup) -> None:
    model_folder(tmp_path / "mirror" / "ok")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mirrors.yaml").write_text(f"models: {{org/*: {tmp_path}/mirror}}\n")
    mirrors = Mirrors.load(tmp_path / "home" / "mirrors.yaml")
    assert mirrors.model("org/ok") == f"{tmp_path}/mirror/ok"
    for text in ("org/../outside", "org//etc", "org/.."):
        assert mirrors.model(text) is None


@pytest.mark.parametrize("path", ["{}/outside", "file://{}/outside", "../outside", "{}/outside/rows.jsonl"])
def test_checkpoints_and_adapters_outside_are_not_read(tmp_path: Path, sources: SourceLookup, path: str) -> None:
    text = path.format(tmp_path)
    task = tmp_path / "results" / "t1"
    with pytest.raises(UserError, match="outside the folders"):
        find_weights(SpecReader({"checkpoint": {"load": {"path": text}}}), "m", sources, task)
    for field in ("path", "url"):
        with pytest.raises(UserError, match="outside the folders"):
            find_adapter(SpecReader({"model": {"adapters": [{field: text}]}}), sources, task, task / "attempts" / "1-1")


def test_a_checkpoint_inside_is_used(tmp_path: Path, sources: SourceLookup) -> None:
    folder = model_folder(tmp_path / "work" / "model")
    spec = SpecReader({"checkpoint": {"load": {"path": "model"}}})
    found = find_weights(spec, "m", sources, tmp_path / "results" / "t1")
    assert (found.path, found.identifier) == (str(folder), "m")


@pytest.mark.parametrize(
    "arguments",
    [
        {"deepspeed": "{}/outside/config.json"},
        {"deepspeed": {"zero": {"nvme_path": "/etc"}}},
        {"chat_template_path": "{}/outside/config.json"},
        {"accelerator_config": "../outside/config.json"},
        {"deepspeed": "inner.json"},
    ],
)
def test_files_of_trainers_outside_are_not_read(
    tmp_path: Path, sources: SourceLookup, arguments: dict[str, Any]
) -> None:
    (tmp_path / "work" / "inner.json").write_text(json.dumps({"aio": {"nvme_path": str(tmp_path / "outside")}}))
    (tmp_path / "work" / "good.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    good = str(tmp_path / "work" / "good.json")
    assert with_files({"deepspeed": "good.json"}, sources) == {"deepspeed": good}
    given = {name: v.format(tmp_path) if isinstance(v, str) else v for name, v in arguments.items()}
    with pytest.raises(UserError, match="outside the folders"):
        with_files(given, sources)


@pytest.mark.parametrize("text", ['{"wandb": {"enabled": true}}', "{", "[" * 100_000])
def test_a_file_of_deepspeed_says_how_to_train_and_nothing_else(
    tmp_path: Path, sources: SourceLookup, text: str
) -> None:
    (tmp_path / "work" / "ds.json").write_text(text)
    with pytest.raises(UserError, match=r"spec\.training\.deepspeed") as caught:
        with_files({"deepspeed": "ds.json"}, sources)
    assert "\n" not in str(caught.value)


def test_arguments_of_vllm_that_name_models_are_judged(tmp_path: Path, sources: SourceLookup) -> None:
    folder = model_folder(tmp_path / "work" / "tokenizer")
    assert sources.named("tokenizer") == str(folder)
    assert sources.named("org/tokenizer") == "org/tokenizer"
    with pytest.raises(UserError, match="outside the folders"):
        sources.named(str(tmp_path / "outside"))
