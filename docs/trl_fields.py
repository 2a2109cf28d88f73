"""Generates a table in `mloc_prefect/tasks/training/` from TRL: fields of its config classes, and choices.

`trl_fields_ppo.py` comes from a TRL that has PPO (environment `ppo`), `trl_fields.py` from a newer one (`train`).

Words come from enumerations, from the types and the metadata of the fields, and for `_COMPARED` from the comparisons in
the source of the trainers: their configs accept any word there, and the trainers fail at the first step.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import sys
import textwrap
import types
import typing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
HAS_PPO = importlib.util.find_spec("trl.experimental.ppo") is not None
TARGET = Path(__file__).parents[1] / f"mloc_prefect/tasks/training/{'trl_fields_ppo' if HAS_PPO else 'trl_fields'}.py"
_COMPARED = (
    "loss_type",
    "truncation_mode",
    "f_divergence_type",
    "importance_sampling_level",
    "multi_objective_aggregation",
    "scale_rewards",
)
_WORDS: dict[object, str] = {int: "int", float: "float", bool: "bool", str: "str", list: "list", dict: "dict"}
_HEAD = '''"""Fields of TRL's config classes, with types and words of their values. Made by docs/trl_fields.py."""

VERSIONS = {versions}

# Of transformers.TrainingArguments, which all of TRL's config classes have.
COMMON = {common}

'''


def text() -> str:
    """Return the module."""
    from transformers import TrainingArguments
    from trl import DPOConfig, GRPOConfig, SFTConfig

    common = _fields(TrainingArguments)
    versions = json.dumps({name: version(name) for name in ("trl", "transformers")})
    parts = [_HEAD.format(versions=versions, common=_table(common))]
    configs: dict[str, type] = {"SFT": SFTConfig, "DPO": DPOConfig, "GRPO": GRPOConfig}
    if HAS_PPO:
        from trl.experimental.ppo import PPOConfig

        configs["PPO"] = PPOConfig
    for name, config in configs.items():
        own = {field: word for field, word in _fields(config).items() if field not in common}
        parts.append(f"{name} = {_table(own)}\n\n")
    words = {"*": _choices()}
    for name, config in configs.items():
        fields = [field for field in dataclasses.fields(config) if field.name not in common]
        words[name] = {**_listed(fields), **({} if name == "PPO" else _compared(name.lower(), fields))}
    parts.append("# Words that a field takes, after the config class (* = all) and the field.\n")
    return "".join([*parts, f'WORDS = """\n{_lines(words)}"""\n'])


def _choices() -> dict[str, list[str]]:
    from transformers import TrainingArguments
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    enums = {
        "logging_strategy": IntervalStrategy,
        "lr_scheduler_type": SchedulerType,
        "optim": OptimizerNames,
        "save_strategy": SaveStrategy,
    }
    found = {name: [member.value for member in enum] for name, enum in enums.items()}
    return dict(sorted({**found, **_listed(dataclasses.fields(TrainingArguments))}.items()))


def _listed(fields: Iterable[dataclasses.Field[Any]]) -> dict[str, list[str]]:
    """Return the words that the definition of a field lists, in its metadata or as its type."""
    found = {}
    for field in fields:
        words = field.metadata.get("choices")
        for kind in (field.type, *typing.get_args(field.type)):
            if typing.get_origin(kind) is typing.Literal:
                words = typing.get_args(kind)
        if words and all(isinstance(word, str) for word in words):
            found[field.name] = list(words)
    return found


def _compared(trainer: str, fields: Iterable[dataclasses.Field[Any]]) -> dict[str, list[str]]:
    """Return the texts that the trainer compares each of `_COMPARED` with."""
    spec = importlib.util.find_spec(f"trl.trainer.{trainer}_trainer")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(trainer)
    names = {field.name for field in fields} & set(_COMPARED)
    found: dict[str, set[str]] = {name: set() for name in names}
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        name = ast.unparse(node.left).rpartition(".")[2] if isinstance(node, ast.Compare) else None
        if isinstance(node, ast.Compare) and name in names:
            found[name] |= {str(part.value) for part in ast.walk(node.comparators[0]) if isinstance(part, ast.Constant)}
    return {name: sorted(words) for name, words in found.items()}


def _fields(config: type) -> dict[str, str]:
    return {field.name: _word(field.type) for field in dataclasses.fields(config) if field.init}


def _word(kind: object) -> str:
    """Return one word for a type: that of its only choice beside None, or `any`."""
    if isinstance(kind, str):
        raise TypeError(f"unresolved annotation {kind}")
    if kind in _WORDS:
        return _WORDS[kind]
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "str"
    if origin in {list, dict}:
        return _WORDS[origin]
    if origin in {typing.Union, types.UnionType}:
        words = {_word(choice) for choice in choices if choice is not type(None)} - {"any"}
        return words.pop() if len(words) == 1 else "any"
    return "any"


def _table(fields: dict[str, str]) -> str:
    return (
        "{\n" + "".join(f"    {json.dumps(name)}: {json.dumps(word)},\n" for name, word in sorted(fields.items())) + "}"
    )


def _lines(words: dict[str, dict[str, list[str]]]) -> str:
    rows = []
    for config, fields in words.items():
        for name, listed in sorted(fields.items()):
            head = f"{config:6}{name:36}"
            rows += [f"{head}{part}\n" for part in textwrap.wrap(" ".join(listed), 76, break_on_hyphens=False)]
    return "".join(rows)


if __name__ == "__main__":
    TARGET.write_text(text())
    sys.stdout.write(f"wrote {TARGET}\n")
