"""What runs code needs the operator's consent; the names of the setting are those of the code's owner."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.trust.remote_code import CODE_FLAGS, VLLM_PLAIN, VLLM_WORDS, CodeConsent, adapter_fault
from mloc_prefect.trust.spec_inputs import VLLM_INPUTS

MODEL = {"source": {"identifier": "org/model", "trust_remote_code": True}}


def refused(spec: dict[str, Any], setting: str = "off") -> list[str]:
    return [".".join(map(str, p.path)) for p in CodeConsent.of(setting).problems(spec, VLLM_INPUTS)]


@pytest.mark.parametrize("flag", [True, "true", "yes", "on", 1, "1", "True"])
@pytest.mark.parametrize("block", CODE_FLAGS)
def test_trust_remote_code_is_refused_wherever_it_stands(block: str, flag: Any) -> None:
    value: dict[str, Any] = {"trust_remote_code": flag}
    for name in reversed(block.split(".")):
        value = {name: value}
    assert refused(value) == [f"{block}.trust_remote_code"]
    assert refused(value, "on") == []


@pytest.mark.parametrize("flag", [False, "false", "no", "off", 0, None, "", "${a.result.x}"])
def test_no_flag_no_question(flag: Any) -> None:
    assert refused({"model": {"source": {"identifier": "m", "trust_remote_code": flag}}}) == []


@pytest.mark.parametrize(
    ("setting", "source", "runs"),
    [
        ("off", {}, False),
        ("on", {}, True),
        ("org/model", {}, True),
        ("other, org/model", {}, True),
        ("org/*", {}, True),
        ("org/other", {}, False),
        ("org", {}, False),
        ("*", {}, False),
        ("org/model", {"revision": "refs/pr/1"}, False),
        ("org/*", {"revision": "refs/pr/1"}, False),
        ("org/model@v2", {"revision": "v2"}, True),
        ("org/*", {"identifier": "org/../../results/t/x"}, False),
        ("org/*", {"identifier": "org/a/b"}, False),
        ("on", {"identifier": None}, True),
        ("org/model", {"identifier": None}, False),
    ],
)
def test_consent_is_for_everything_or_for_names(setting: str, source: dict[str, Any], runs: bool) -> None:
    spec = {"model": {"source": {**MODEL["source"], **source}}}
    assert (refused(spec, setting) == []) is runs


@pytest.mark.parametrize("more", [{"checkpoint": {"load": {"path": "x"}}}, {"training": {"resume_from_path": "x"}}])
def test_consent_to_a_model_is_none_to_weights_from_elsewhere(more: dict[str, Any]) -> None:
    assert refused({"model": MODEL, **more}, "org/model") == ["model.source.trust_remote_code"]
    assert refused({"model": MODEL, **more}, "on") == []


def test_the_message_says_how_to_allow_it() -> None:
    (problem,) = CodeConsent.of("off").problems({"model": MODEL}, ())
    assert problem.message == "trust_remote_code runs Python code that comes with 'org/model'"
    assert problem.fix == "the operator can allow it with MLOC_ALLOW_REMOTE_CODE=org/model"


NO_PLAIN_VALUES = """
worker_cls worker_extension_cls hf_overrides logits_processors tool_parser_plugin reasoning_parser_plugin
io_processor_plugin scheduler_cls kv_transfer_config kv_events_config ec_transfer_config compilation_config
structured_outputs_config model_loader_extra_config additional_config speculative_config profiler_config
log_config_file model_class_overrides allowed_local_media_path otlp_traces_endpoint code_revision hf_token
an_argument_of_the_next_version
"""


@pytest.mark.parametrize("name", NO_PLAIN_VALUES.split())
def test_arguments_of_vllm_that_are_no_plain_values_need_consent(name: str) -> None:
    for value in ("a.module.Class", {"x": 1}, ["a.b"], True):
        assert refused({"model": {"vllm": {name: value}}}) == [f"model.vllm.{name}"]
    assert refused({"model": {"vllm": {name: "x"}}}, "org/model") == [f"model.vllm.{name}"]
    assert refused({"model": {"vllm": {name: "x"}}}, "on") == []
    assert refused({"model": {"vllm": {name: None}}}) == []


def test_a_misspelt_argument_gets_the_name_that_was_meant() -> None:
    (problem,) = CodeConsent.of("off").problems({"model": {"vllm": {"enable_prefix_cachin": True}}}, ())
    assert problem.fix.startswith("did you mean 'enable_prefix_caching'?")


def test_plain_arguments_of_vllm_pass() -> None:
    assert refused({"model": {"vllm": dict.fromkeys(VLLM_PLAIN, 1)}}) == []
    for name, words in VLLM_WORDS.items():
        assert all(refused({"model": {"vllm": {name: word}}}) == [] for word in words)
        assert refused({"model": {"vllm": {name: "a.module.Class"}}}) == [f"model.vllm.{name}"]
    assert not VLLM_PLAIN & ({*VLLM_INPUTS} | set(VLLM_WORDS))


@pytest.mark.parametrize("section", ["wandb", "comet", "tensorboard", "flops_profiler", "autotuning", "compile", "new"])
def test_sections_of_deepspeed_beside_the_training_need_consent(section: str) -> None:
    plain: dict[str, Any] = {
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW"},
        "train_batch_size": "auto",
    }
    spec = {"training": {"deepspeed": {**plain, section: {"enabled": True}}}}
    assert refused(spec) == [f"training.deepspeed.{section}"]
    assert refused(spec, "org/model") == [f"training.deepspeed.{section}"]
    assert refused(spec, "on") == refused({"training": {"deepspeed": plain}}) == []


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"peft_type": "LORA", "r": 8, "megatron_config": None, "megatron_core": "megatron.core"}, None),
        ({"r": 8}, None),
        ({"r": 8, "auto_mapping": {"parent_library": "transformers"}}, None),
        ({"r": 8, "megatron_config": {"x": 1}, "megatron_core": "os"}, "megatron_config names modules or files"),
        ({"r": 8, "corda_config": {"cache_file": "/etc/x"}}, "corda_config names modules or files"),
        ({"r": 8, "peft_type": "XLORA", "adapters": {"a": "/etc"}}, "its peft_type is 'XLORA'"),
    ],
)
def test_adapters_that_name_modules_or_files_are_refused(config: dict[str, Any], fault: str | None) -> None:
    found = adapter_fault(config)
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)


def test_text_that_looks_like_a_reference_is_judged_once_references_are_filled_in() -> None:
    spec = {"model": {"source": {"identifier": "m", "trust_remote_code": "${X}"}, "vllm": {"worker_cls": "x${"}}}
    assert list(CodeConsent.of("off").problems(spec, VLLM_INPUTS)) == []
    found = [p.path[-1] for p in CodeConsent.of("off").problems(spec, VLLM_INPUTS, filled=True)]
    assert found == ["trust_remote_code", "worker_cls"]
