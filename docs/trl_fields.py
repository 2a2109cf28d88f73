"""Rewrite `mloc_prefect/tasks/trl_fields.py` from the installed TRL: which fields its config classes have.

And which words some of them take. Losses are read off the comparisons in the source of the trainers: their configs take
any word, and the trainers stumble over it at the first step.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import sys
import types
import typing
from importlib.metadata import version
from pathlib import Path

TARGET = Path(__file__).parents[1] / "mloc_prefect" / "tasks" / "trl_fields.py"
_WORDS: dict[object, str] = {int: "int", float: "float", bool: "bool", str: "str", list: "list", dict: "dict"}
_HEAD = '''"""Fields of TRL's config classes, with types and words of their values. Made by docs/trl_fields.py."""

VERSIONS = {versions}

# Of transformers.TrainingArguments, which all of TRL's config classes have.
COMMON = {common}

'''


def text() -> str:
    """Return the module."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from transformers import TrainingArguments
    from trl import DPOConfig, GRPOConfig, SFTConfig
    from trl.experimental.ppo import PPOConfig

    common = _fields(TrainingArguments)
    versions = json.dumps({name: version(name) for name in ("trl", "transformers")})
    parts = [_HEAD.format(versions=versions, common=_table(common))]
    for name, config in (("SFT", SFTConfig), ("DPO", DPOConfig), ("PPO", PPOConfig), ("GRPO", GRPOConfig)):
        own = {field: word for field, word in _fields(config).items() if field not in common}
        parts.append(f"{name} = {_table(own)}\n\n")
    parts.append(f"# Words that fields of transformers.TrainingArguments take.\nCHOICES = {_words(_choices())}\n\n")
    losses = {name: _losses(name.lower()) for name in ("SFT", "DPO", "GRPO")}
    parts.append(f"# Words of `loss_type`.\nLOSSES = {_words(losses)}\n")
    return "".join(parts)


def _choices() -> dict[str, list[str]]:
    from transformers.trainer_utils import SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    enums = {"lr_scheduler_type": SchedulerType, "optim": OptimizerNames, "save_strategy": SaveStrategy}
    return {name: [member.value for member in enum] for name, enum in enums.items()}


def _losses(trainer: str) -> list[str]:
    """Return the texts that the trainer compares `loss_type` with."""
    spec = importlib.util.find_spec(f"trl.trainer.{trainer}_trainer")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(trainer)
    found: set[str] = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.Compare) and ast.unparse(node.left).rpartition(".")[2] == "loss_type":
            found |= {str(part.value) for part in ast.walk(node.comparators[0]) if isinstance(part, ast.Constant)}
    return sorted(found)


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


def _words(words: dict[str, list[str]]) -> str:
    rows = [f"    {json.dumps(name)}: (\n" + "".join(f"        {json.dumps(word)},\n" for word in listed) + "    ),\n"
            for name, listed in words.items()]  # fmt: skip
    return "{\n" + "".join(rows) + "}"


if __name__ == "__main__":
    TARGET.write_text(text())
    sys.stdout.write(f"wrote {TARGET}\n")
