"""Prompts of ppo and grpo: what is cut, left out or refused before a model is loaded; one token a character."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.rollouts import RolloutRecipe, plain_text
from mloc_prefect.executors.training.trainer_arguments import TrainerOptions
from mloc_prefect.executors.training.training_rows import prompt_rows


class Letters:
    chat_template = "x"

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: list[dict[str, str]], tools: Any = None, **_: Any) -> dict[str, Any]:
        named = [ord(tool["name"]) for tool in tools or []]
        return {"input_ids": [*named, *(ord(c) for message in messages for c in message["content"])]}


class OwnTokens(RolloutRecipe):
    kind = "ppo"


class OwnPrompts(RolloutRecipe):
    kind = "grpo"
    cuts_chats = False


def fitted(recipe: RolloutRecipe, rows: list[dict[str, Any]], rewards: Any = None) -> Any:
    """Return a job whose rows are fitted to a model of ten tokens, two of which are the answer's."""
    spec = SpecReader({"data": {"rows": rows}, "generation": {"max_new_tokens": 2}, "rewards": rewards})
    sources = SourceLookup.of({"home": "/nowhere"})
    job: Any = SimpleNamespace(
        spec=spec,
        sources=sources,
        rows=prompt_rows(spec, sources),
        options=TrainerOptions.of(recipe.kind, spec),
        tokenizer=Letters(),
        window=10,
        context=SimpleNamespace(check=lambda: None),
        request=SimpleNamespace(settings={}),
        prompts=[],
        lengths=None,
    )
    recipe.fit(job)
    return job


def chats(*texts: str) -> list[dict[str, Any]]:
    return [{"prompt": [{"role": "user", "content": text}], "id": text} for text in texts]


def test_texts_lose_their_beginning() -> None:
    job = fitted(OwnPrompts(), [{"prompt": "0123456789"}, {"prompt": "01234567"}])
    assert [row["prompt"] for row in job.rows.rows] == ["23456789", "01234567"]
    assert job.rows.notes == [
        "1 of 2 rows are longer than the room for prompts, 8 tokens and are cut (the longest has 10)"
    ]


def test_chats_lose_their_beginning_where_the_trainer_gets_tokens() -> None:
    job = fitted(OwnTokens(), chats("0123456789", "01"))
    assert [len(ids) for ids in job.prompts] == [8, 2]
    assert len(job.rows.rows) == 2


def test_chats_are_left_out_where_the_trainer_reads_them_itself() -> None:
    job = fitted(OwnPrompts(), chats("01", "0123456789", "23"))
    assert [row["id"] for row in job.rows.rows] == ["01", "23"]
    assert (job.rows.numbers, [len(ids) for ids in job.prompts], job.lengths.cut) == ([0, 2], [2, 2], 0)
    assert job.rows.notes == ["1 of 3 rows are left out: chats of more than 8 tokens, the room for prompts"]
    with pytest.raises(UserError, match=re.escape("all 1 prompts are chats of more than 8 tokens")):
        fitted(OwnPrompts(), chats("0123456789"))


def test_tools_of_chats_are_rendered_or_noted() -> None:
    rows = [{**row, "tools": tools} for row, tools in zip(chats("a", "b"), ['[{"name": "T"}]', None], strict=True)]
    job = fitted(OwnTokens(), rows)
    assert ([bytes(ids) for ids in job.prompts], job.rows.notes) == ([b"Ta", b"b"], [])
    job = fitted(OwnPrompts(), rows)
    assert [bytes(ids) for ids in job.prompts] == [b"a", b"b"]
    assert job.rows.notes == ["1 of 2 rows have tools, which TRL's GRPO does not give to the chat template (ppo does)"]
    assert fitted(OwnPrompts(), [{"prompt": "a", "tools": "hammer"}]).rows.notes == [], (
        "a text has a column of any kind"
    )
    with pytest.raises(UserError, match="row 0, column 'tools' must be a list of tools"):
        fitted(OwnTokens(), [{**chats("a")[0], "tools": "hammer"}])


def test_rows_without_an_answer_are_left_out_before_prompts_are_counted() -> None:
    rows = [{"prompt": "a", "answer": None}, {"prompt": "b", "answer": "2"}]
    job = fitted(OwnTokens(), rows, [{"name": "exact"}])
    assert (job.rows.rows, job.rows.numbers, len(job.prompts)) == ([rows[1]], [1], 1)
    assert "(row 0)" in job.rows.notes[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "b"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "assistant", "content": None}], ""),
    ],
)
def test_texts_of_chats(value: Any, text: str) -> None:
    assert plain_text(value) == text
