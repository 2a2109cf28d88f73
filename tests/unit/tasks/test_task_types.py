"""Typed reading of `spec` for every task type: spellings, numbers as text, bounds, and MLOC's own error texts."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.tasks.agent import AgentSpec
from mloc_prefect.tasks.base import SpecProblem
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.dpo import DpoSpec
from mloc_prefect.tasks.inference import InferenceSpec
from mloc_prefect.tasks.keys import table_of, unknown_keys
from mloc_prefect.tasks.lora_sft import LoraSftSpec
from mloc_prefect.tasks.ppo import PpoSpec
from mloc_prefect.tasks.rag import RagSpec
from mloc_prefect.tasks.registry import TASK_TYPES, is_known, task_type, validate_resolved
from mloc_prefect.tasks.sft import SftSpec

LIST = {"type": "list", "items": ["a"]}
QDRANT = {"url": "http://q:6333", "collection": "c"}


def problems(name: str, spec: dict[str, Any]) -> list[tuple[str, str, str]]:
    found: tuple[SpecProblem, ...] = check_spec(task_type(name).model, spec).problems
    return [(p.severity[0], ".".join(map(str, p.path)), p.message) for p in found]


def test_registry_knows_every_name_of_the_protocol() -> None:
    names = {"inference", "sft", "lora_sft", "dpo", "ppo", "rag", "agent", "echo", "default", "vllm"}
    assert names <= {kind.name for kind in TASK_TYPES}
    assert len({kind.name for kind in TASK_TYPES}) == len(TASK_TYPES)
    assert not is_known("Inference")
    unknown = task_type("made-up")
    assert unknown.name == "made-up"
    assert unknown.executor(unknown.model()).path.endswith("transformers:TransformersExecutor")


@pytest.mark.parametrize("kind", TASK_TYPES, ids=lambda kind: kind.name)
def test_every_type_names_its_executor_and_reads_an_empty_spec(kind: Any) -> None:
    spec = check_spec(kind.model, {}).spec
    ref = kind.executor(spec)
    assert ref.path.startswith("mloc_prefect.executors.")
    assert ":" in ref.path
    assert (ref.extra is None) == (kind.name == "echo")
    assert isinstance(kind.engine_options(spec), dict)
    assert kind.model_identifier(spec) is None or isinstance(kind.model_identifier(spec), str)


def test_numbers_and_truth_values_written_as_text_are_read() -> None:
    training = {"learning_rate": "5e-7", "batch_size": " 16 ", "num_train_epochs": "2", "fp16": "yes", "seed": 7.0}
    spec = check_spec(SftSpec, {"training": training, "data": {"prompts": ["x"]}}).spec
    assert isinstance(spec, SftSpec)
    read = spec.training
    assert (read.learning_rate, read.batch_size, read.num_train_epochs, read.fp16, read.seed) == (
        5e-7,
        16,
        2.0,
        True,
        7,
    )
    assert isinstance(read.batch_size, int)
    assert isinstance(read.seed, int)


def test_both_spellings_of_a_field_are_read() -> None:
    for spec in ({"timeoutSec": 5, "configName": "c"}, {"timeout_sec": 5, "config_name": "c"}):
        read = AgentSpec.model_validate({**spec, "task": "x"})
        assert (read.timeout_sec, read.config_name) == (5, "c")
    for key in ("systemPrompt", "system_prompt"):
        assert InferenceSpec.model_validate({"inference": {key: "s"}}).inference.system_prompt == "s"


def test_null_means_not_given() -> None:
    spec = {"inference": {"temperature": None, "max_tokens": None}, "model": None, "output": {"destination": None}}
    read = InferenceSpec.model_validate({**spec, "data": LIST})
    assert (read.inference.temperature, read.inference.max_tokens) == (0.7, 512)
    assert read.model.source.identifier is None
    assert read.output.destination.type == "local"


PLACEHOLDERS = {
    "enforce_cpu": "${a.result.x}",
    "parallel": {"max_shards": "${a.result.x}", "enabled": "${a.result.x}"},
    "inference": {"temperature": "${a.result.t}", "max_tokens": "n ${a.result.n}", "stop": "${a.result.s}"},
    "data": {"type": "list", "items": "${a.result.items}"},
    "output": {"destination": "${a.result.d}", "artifacts": ["${a.result.f}"]},
    "model": {"adapters": ["${a.result.adapter}"]},
    "postprocess": "${a.result.p}",
}


def test_placeholders_pass_anywhere_until_they_are_resolved() -> None:
    found = problems("inference", PLACEHOLDERS)
    assert [p for p in found if p[0] == "e"] == []
    resolved = dict(validate_resolved("inference", PLACEHOLDERS))
    assert resolved["spec.inference.temperature"] == "temperature must be a number, at least 0"
    assert resolved["spec.enforce_cpu"] == "enforce_cpu must be true or false"
    assert resolved["spec.data.items"] == "spec.data.items must be a list of strings for type == 'list'."
    assert resolved["spec.output.destination"] == "destination must be a mapping"
    assert "spec.output.artifacts[0]" not in resolved


def test_a_whole_block_may_come_from_upstream() -> None:
    for spec in ({"data": "${a.result.data}"}, {"data": {"type": "${a.result.type}"}}):
        assert problems("inference", spec) == []
    assert validate_resolved("inference", {"data": LIST}) == []
    assert validate_resolved("inference", {"data": ""}) == [("spec.data", "data must be a mapping")]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": "hot"}, "temperature must be a number, at least 0"),
        ({"temperature": True}, "temperature must be a number, at least 0"),
        ({"temperature": "nan"}, "temperature must be a number, at least 0"),
        ({"max_tokens": -5}, "max_tokens must be a whole number, at least 1"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, at least 1"),
        ({"max_tokens": "0"}, "max_tokens must be a whole number, at least 1"),
        ({"top_p": 2}, "top_p must be a number from 0 to 1"),
        ({"top_k": -2}, "top_k must be a whole number, at least -1"),
        ({"do_sample": "perhaps"}, "do_sample must be true or false"),
        ({"system_prompt": False}, "system_prompt must be text"),
        ({"system_prompt": ["a"]}, "system_prompt must be text"),
        ({"stop": [1]}, "stop must be text or a list of texts"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number, more than 0"),
        ({"max_failed_rows": -1}, "max_failed_rows must be a whole number, at least 0"),
    ],
)
def test_wrong_values_of_inference(options: dict[str, Any], message: str) -> None:
    (name,) = options
    assert problems("inference", {"data": LIST, "inference": options}) == [("e", f"inference.{name}", message)]


ITEMS = "spec.data.items must be a list of strings for type == 'list'."
COLUMNS = "graph_template.template.columns must be a non-empty list."


@pytest.mark.parametrize(
    "data, path, message",
    [
        (None, "data", "spec.data is required."),
        ({}, "data", "spec.data is required."),
        ({"items": ["a"]}, "data.type", "Unsupported spec.data.type: None"),
        ({"type": "lists"}, "data.type", "Unsupported spec.data.type: 'lists'"),
        ({"type": "dataset"}, "data.url", "spec.data.url is required for type == 'dataset'."),
        ({"type": "dataset", "url": "x", "split": 5}, "data.split", "split must be text"),
        ({"type": "list"}, "data.items", ITEMS),
        ({"type": "list", "items": "a"}, "data.items", ITEMS),
        ({"type": "list", "items": ["a", 2]}, "data.items.1", ITEMS),
        ({"type": "list", "items": ["a", None]}, "data.items.1", ITEMS),
        ({"type": "list", "items": []}, "data.items", "No prompts prepared. Check spec.data configuration."),
        ({"type": "list", "items": ["a"], "metadata": [1, 2]}, "data.metadata", "metadata has 2 entries for 1 items"),
        ({"type": "graph_template"}, "data.template", "data.template must be a mapping"),
        ({"type": "graph_template", "template": {}}, "data.template.columns", COLUMNS),
        ({"type": "graph_template", "template": {"columns": "x"}}, "data.template.columns", COLUMNS),
        (
            {"type": "graph_template", "template": {"name": "n", "text": "t", "columns": ["x"]}},
            "data.template.columns.0",
            "Each column definition must be a mapping.",
        ),
        (
            {"type": "graph_template", "template": {"columns": [{"expr": "a.result"}, {"node": "b"}]}},
            "data.template.columns.1",
            "Column 'Column 2' is missing an expr/node+path definition.",
        ),
        (
            {"type": "graph_template", "template": {"columns": [{"expr": "a.result"}]}},
            "data.template.columns",
            "two_column_briefing template expects at least two columns.",
        ),
        (
            {"type": "graph_template", "template": {"name": "brief", "columns": [{"expr": "a.result"}]}},
            "data.template.name",
            "Unknown graph template 'brief'.",
        ),
    ],
)
def test_data_of_inference(data: Any, path: str, message: str) -> None:
    assert ("e", path, message) in problems("inference", {} if data is None else {"data": data})


@pytest.mark.parametrize(
    "name, spec, expected",
    [
        ("inference", {"model": {"transformers": {"dtype": "int4"}}, "data": LIST}, "Unsupported dtype: int4"),
        (
            "inference",
            {"model": "gpt2", "data": LIST},
            "model must be a mapping; the name goes into model.source.identifier",
        ),
        ("sft", {}, "spec.data must define dataset_name or prompts for SFT tasks"),
        ("sft", {"data": {"prompts": []}}, "spec.data.prompts must be a non-empty list of strings"),
        ("sft", {"data": {"prompts": ["a", 1]}}, "spec.data.prompts must be a non-empty list of strings"),
        ("sft", {"data": {"jsonl": {"text_field": "t"}}}, "data.jsonl.path is required"),
        ("lora_sft", {}, "spec.data must define dataset_name or prompts for LoRA SFT tasks"),
        ("lora_sft", {"lora": {"target_modules": "q"}}, "lora.target_modules must be a list of module names"),
        ("lora_sft", {"lora": {"task_type": "CAUSAL"}}, "Unsupported LoRA task_type 'CAUSAL'"),
        ("lora_sft", {"lora": {"dropout": 1}}, "dropout must be a number, at least 0 and less than 1"),
        ("dpo", {"data": {"preferences": [{"prompt": "a", "chosen": "b"}]}}, "Preference 1 has no 'rejected'"),
        ("dpo", {"data": {"preferences": ["a"]}}, "preferences[0] must be a mapping with prompt, chosen and rejected"),
        ("ppo", {"reward_model": "x"}, "reward_model must be a mapping"),
        ("ppo", {"training": {"learning_rate": 0}}, "learning_rate must be a number, more than 0"),
        ("rag", {}, "Missing spec.qdrant.url"),
        ("rag", {}, "Missing spec.qdrant.collection"),
        ("rag", {"qdrant": QDRANT}, "Missing input queries: provide spec.query or spec.data"),
        ("rag", {"qdrant": QDRANT, "data": {"type": "x"}}, "Missing input queries: provide spec.query or spec.data"),
        ("rag", {"qdrant": {**QDRANT, "url": "q:6333"}, "query": "q"}, "url must start with http:// or https://"),
        ("agent", {}, "Either spec.data or spec.task is required"),
        ("agent", {"data": {"type": "static"}}, "spec.data.task is required for type == 'static'"),
        ("agent", {"data": {"type": "statc"}}, "Unsupported spec.data.type: 'statc'"),
        (
            "echo",
            {"output": {"destination": {"type": "HTTP"}}},
            "spec.output.destination.url is required when type is 'http'",
        ),
        (
            "echo",
            {"output": {"destination": {"type": "http", "url": "ftp://x"}}},
            "url must start with http:// or https://",
        ),
        ("sft", {"checkpoint": {"load": {}}}, "checkpoint.load.path is required for local checkpoints"),
        (
            "sft",
            {"checkpoint": {"load": {"type": "http"}}},
            "checkpoint.load.url is required for HTTP checkpoints (set base_url or ORCHESTRATOR_BASE_URL)",
        ),
        ("sft", {"checkpoint": {"load": {"type": "s3"}}}, "Unsupported checkpoint load type 's3'"),
    ],
)
def test_texts_of_the_original_workers(name: str, spec: dict[str, Any], expected: str) -> None:
    assert expected in [message for severity, _, message in problems(name, spec) if severity == "e"]


@pytest.mark.parametrize(
    "name, spec",
    [
        ("inference", {"data": {"type": "dataset", "url": "openai/gsm8k", "name": 2024, "split": "train[:1%]"}}),
        (
            "inference",
            {"data": {"type": "graph_template", "template": {"name": "own", "text": "x", "columns": [{"expr": "a"}]}}},
        ),
        (
            "sft",
            {
                "data": {"jsonl_path": "f.jsonl"},
                "checkpoint": {"load": {"type": "http", "task_id": "t", "filename": "f"}},
            },
        ),
        (
            "sft",
            {
                "data": {"dataset_name": "d", "type": "anything"},
                "training": {"fsdp": "full_shard", "deepspeed": {"a": 1}},
            },
        ),
        ("lora_sft", {"data": {"prompts": ["a"]}, "lora": {"target_modules": ["${a.b}"], "r": "8"}}),
        ("dpo", {"data": {"jsonl": {"path": "p", "chosen_field": "c"}}, "training": {"learning_rate": "5e-7"}}),
        (
            "ppo",
            {
                "data": {"prompts": ["a"]},
                "generation": {"stop": ["x"]},
                "reward_model": {"type": "sentiment", "identifier": "m"},
            },
        ),
        ("rag", {"qdrant": {**QDRANT, "api_key": "${QDRANT_API_KEY}"}, "data": {"type": "unknown"}, "query": "q"}),
        ("rag", {"qdrant": {"url": "${a.result.url}", "collection": "${a.result.c}"}, "data": LIST}),
        ("agent", {"task": "x", "agent": {"timeout": 3}}),
        ("agent", {"data": {"type": "static", "task": "x"}}),
        ("echo", {"anything": [1, {"x": None}], "data": 5}),
    ],
)
def test_valid_specs_have_no_problems(name: str, spec: dict[str, Any]) -> None:
    assert problems(name, spec) == []


@pytest.mark.parametrize(
    "name, spec, path",
    [
        ("dpo", {}, "data"),
        ("ppo", {"rewards": [{"name": "json"}]}, "data"),
        ("grpo", {"data": {"prompts": ["a"]}}, "reward_model"),
        ("sft", {"data": {"dataset_name": "d", "prompt_column": "p"}}, "data.prompt_column"),
        ("echo", {"output": {"destination": {"type": "s3"}}}, "output.destination.type"),
        ("inference", {"data": LIST, "enforce_cpu": True, "inference": {"n": 2}}, "inference.n"),
        ("echo", {"parallel": {"max_shards": "many"}}, "parallel.max_shards"),
    ],
)
def test_what_is_legal_but_unlikely_is_a_warning(name: str, spec: dict[str, Any], path: str) -> None:
    assert [(severity, where) for severity, where, _ in problems(name, spec)] == [("w", path)]


def test_faulty_fields_keep_their_defaults_and_do_not_hide_other_problems() -> None:
    result = check_spec(
        RagSpec, {"search": {"top_k": "many"}, "query": "q", "qdrant": {"url": "http://x", "collection": []}}
    )
    assert [p.message for p in result.problems] == [
        "collection must be text",
        "top_k must be a whole number, at least 1",
    ]
    assert isinstance(result.spec, RagSpec)
    assert result.spec.search.top_k == 5
    assert result.spec.qdrant.url == "http://x"


def test_a_fault_names_the_spelling_that_was_used() -> None:
    for key in ("timeoutSec", "timeout_sec"):
        (found,) = check_spec(CommonSpec, {"output": {"destination": {key: "soon"}}}).problems
        assert found.path == ("output", "destination", key)
        assert found.message == f"{key} must be a number, more than 0"


def test_engine_options_hold_what_loads_a_model_and_no_sampling() -> None:
    spec: dict[str, Any] = {
        "data": LIST,
        "enforce_cpu": "true",
        "model": {"source": {"identifier": "m", "revision": "r"}, "transformers": {"dtype": "float32", "new": 1}},
    }
    kind = task_type("inference")
    options = kind.engine_options(InferenceSpec.model_validate(spec))
    assert options == {
        "model": "m",
        "revision": "r",
        "trust_remote_code": False,
        "enforce_cpu": True,
        "transformers": {"dtype": "float32", "new": 1},
        "vllm": {},
        "checkpoint": None,
    }
    warmer = InferenceSpec.model_validate({**spec, "inference": {"temperature": 0}, "output": {"artifacts": ["x"]}})
    assert kind.engine_options(warmer) == options
    other = InferenceSpec.model_validate({**spec, "model": {"source": {"identifier": "m"}}})
    assert kind.engine_options(other) != options


def test_default_models() -> None:
    assert task_type("sft").model_identifier(SftSpec()) == "gpt2"
    assert task_type("dpo").model_identifier(DpoSpec()) == "microsoft/DialoGPT-small"
    named = PpoSpec.model_validate({"model": {"source": {"identifier": "x"}}})
    assert task_type("ppo").model_identifier(named) == "x"
    assert task_type("rag").model_identifier(RagSpec()) == "sentence-transformers/all-MiniLM-L6-v2"


def test_models_are_frozen_and_keep_unknown_fields() -> None:
    spec = LoraSftSpec.model_validate({"lora": {"r": 4, "modules_to_save": ["x"]}})
    assert spec.lora.model_extra == {"modules_to_save": ["x"]}
    with pytest.raises(ValueError, match="frozen"):
        spec.lora.r = 5  # type: ignore[misc]


def test_unknown_keys_walk_lists_and_leave_free_maps_alone() -> None:
    value = {
        "model": {"adapters": [{"name": "a"}, {"nme": "b"}], "config": {"x": {"y": 1}}},
        "output": {"destination": {"headers": {"any": 1}}},
        "zzz": 1,
    }
    assert [path for path, _ in unknown_keys(value, table_of(InferenceSpec))] == [
        ("model", "adapters", 1, "nme"),
        ("zzz",),
    ]


@pytest.mark.parametrize(
    ("name", "category", "shardable", "reads_enforce_cpu"),
    [
        ("inference", "inference", True, True),
        ("Inference", "inference", True, True),
        ("inference-cpu", "inference", False, True),
        ("inference-of-my-own", "inference", False, True),
        ("vllm", "other", False, False),
        ("echo", "other", True, False),
        ("LoRA_SFT", "training", False, False),
        ("rag", "other", False, False),
        ("nothing known", "other", False, False),
    ],
)
def test_what_others_ask_of_a_task_type(name: str, category: str, shardable: bool, reads_enforce_cpu: bool) -> None:
    """MLOC goes by the name in small letters here, though it chooses the executor by the exact name."""
    kind = task_type(name)
    assert (kind.category, kind.shardable, kind.reads_enforce_cpu) == (category, shardable, reads_enforce_cpu)


def test_every_training_is_counted_as_one() -> None:
    trained = {kind.name for kind in TASK_TYPES if kind.category == "training"}
    assert trained == {"sft", "lora_sft", "dpo", "ppo", "grpo"}
