"""The list of fields that name something to read: complete, and read as executors read them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mloc_prefect.tasks.keys import table_of
from mloc_prefect.tasks.registry import TASK_TYPES
from mloc_prefect.tasks.training.training_table import KINDS, REPLACED_FIELDS, config_fields, passed_on
from mloc_prefect.trust.spec_inputs import _FIELDS, TRAINING_FILES, VLLM_INPUTS, inputs_of, paths_in
from tests.support.field_paths import field_paths

NAMES_SOMETHING = re.compile(
    r"path|chat_template$|url|uri|identifier|_dir$|file|dataset|config_name|(^|_)model$|embedding", re.I
)
OPENS_NOTHING = {
    "output.destination.path": "written, below the results root",
    "output.destination.url": "called, if its host is allowed",
    "checkpoint.load.baseUrl": "called, if its host is allowed",
    "checkpoint.load.base_url": "called, if its host is allowed",
    "checkpoint.load.filename": "compared with names of archives; a plain name of a download",
    "checkpoint.load.resume_from_path": "not read",
    "postprocess.jsonl_export.path": "written, below the directory of the task",
    "data.template.columns.path": "a path in a result",
    "qdrant.url": "called, if its host is allowed",
    "rewards.path": "a function, by MLOC_ALLOWED_REWARDS",
    "training.save_model": "a flag",
    "training.sync_ref_model": "a flag",
    "training.metric_for_best_model": "the name of a metric",
    "config_name": "the name of a configuration of agents, which cannot leave their folder",
    "agent.baseUrl": "called, if its host is allowed",
    "agent.base_url": "called, if its host is allowed",
    "agent.model": "the name of a model at an endpoint",
    "model": "a block",
    "reward_model": "a block",
    "embedding": "a block",
    "documents.dataset": "a block",
}


@pytest.mark.parametrize("kind", TASK_TYPES, ids=lambda kind: kind.name)
def test_every_field_that_names_something_is_listed_or_explained(kind: Any) -> None:
    listed = {name.replace("*.", "").removesuffix(".*") for name in _FIELDS} | OPENS_NOTHING.keys()
    named = {path for path in field_paths(table_of(kind.model)) if NAMES_SOMETHING.search(path.rpartition(".")[2])}
    flags = {f"training.{name}" for name, word in config_fields("sft").items() if word in {"bool", "int", "float"}}
    unused = {f"training.{name}" for name in {*REPLACED_FIELDS, *config_fields("grpo"), *config_fields("dpo")}}
    passed = {f"training.{name}" for training in KINDS for name in passed_on(training)}
    assert named - listed - flags - (unused - passed) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_of_trl_that_name_files_are_listed(kind: Any) -> None:
    words = {name for name in passed_on(kind) if re.search(r"path|file|_dir$|url", name)}
    numbers = {"neftune_noise_alpha", "profile"}
    assert words - numbers <= {*TRAINING_FILES}


def test_values_are_found_as_executors_read_them() -> None:
    spec = {
        "model": {
            "source": {"identifier": " /etc/a "},
            "adapters": [{"path": "b"}, {"url": "file:///c"}, {"path": None}],
            "vllm": {"tokenizer": "d", "max_model_len": 5},
        },
        "data": {"url": 7, "name": "../e", "jsonl": {"path": "f"}},
        "qdrant": {"path": "i"},
        "documents": {"paths": ["j", "s3://k"]},
        "training": {"deepspeed": {"offload": {"nvme_path": "/g", "device": "cpu"}}, "resume_from_path": "h"},
    }
    found = {".".join(map(str, one.path)): (one.kind, one.text) for one in inputs_of(spec)}
    assert found == {
        "model.source.identifier": ("models", "/etc/a"),
        "model.adapters.0.path": ("weights", "b"),
        "model.adapters.1.url": ("weights", "file:///c"),
        "model.vllm.tokenizer": ("models", "d"),
        "data.url": ("datasets", "7"),
        "data.name": ("part", "../e"),
        "data.jsonl.path": ("datasets", "f"),
        "training.deepspeed.offload.nvme_path": ("path", "/g"),
        "training.resume_from_path": ("path", "h"),
        "qdrant.path": ("store", "i"),
        "documents.paths.0": ("path", "j"),
        "documents.paths.1": ("path", "s3://k"),
    }
    assert list(inputs_of({"qdrant": {"path": ":memory:"}})) == []


@pytest.mark.parametrize(
    "spec", [{}, {"model": "x"}, {"model": {"adapters": {"path": "x"}}}, {"data": [1]}, {"data": None}]
)
def test_other_shapes_name_nothing(spec: dict[str, Any]) -> None:
    assert list(inputs_of(spec)) == []


@pytest.mark.parametrize("value", [True, "yes", "off", "{{ messages }}", "{% if x %}a{% endif %}", "", None])
def test_a_chat_template_that_is_no_file(value: Any) -> None:
    assert list(inputs_of({"inference": {"chat_template": value}})) == []


def test_a_chat_template_may_be_a_file() -> None:
    (found,) = inputs_of({"inference": {"chat_template": " /etc/chat.jinja "}})
    assert (found.kind, found.text) == ("path", "/etc/chat.jinja")


def test_paths_in_the_configuration_of_a_library() -> None:
    assert [one.text for one in paths_in({"a": ["~/x", "cpu"], "b": {"c": "../y", "d": 1}})] == ["~/x", "../y"]
    assert "tokenizer" in VLLM_INPUTS
