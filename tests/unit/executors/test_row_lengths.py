"""What a limit of tokens does to rows, with a tokenizer of one token a character."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jinja2 import TemplateError

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training.row_lengths import CutRule, cut_prompts, row_lengths, shorten_prompts


class Letters:
    chat_template: str | None = None

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> dict[str, Any]:
        return self(["".join(m["content"] for m in messages)]) | {
            "input_ids": [1] * sum(len(m["content"]) for m in messages)
        }


def go_on() -> None:
    return


def test_texts() -> None:
    rows = [{"text": "a" * n} for n in (2, 5, 9)]
    found = row_lengths(Letters(), rows, CutRule(6), go_on)
    assert (found.total, found.longest, found.cut, found.lost) == (3, 10, 1, 0), "the end token counts"
    assert found.note("max_seq_length") == (
        "1 of 3 rows are longer than max_seq_length 6 tokens and are cut (the longest has 10)"
    )
    assert row_lengths(Letters(), rows, CutRule(10), go_on).note("max_seq_length") is None


def test_prompts_that_leave_nothing_of_the_answer() -> None:
    rows = [{"prompt": "p" * 6, "completion": "c"}, {"prompt": "p", "completion": "c"}]
    found = row_lengths(Letters(), rows, CutRule(6), go_on)
    assert (found.cut, found.lost) == (1, 1)
    assert "1 of them have a prompt of that length and are left out" in (found.note("x") or "")
    with pytest.raises(UserError, match=re.escape("all 1 prompts are 6 tokens or longer")):
        row_lengths(Letters(), rows[:1], CutRule(6), go_on)


def test_pairs_count_their_longer_answer() -> None:
    rows = [{"prompt": "pp", "chosen": "c", "rejected": "r" * 5}]
    assert row_lengths(Letters(), rows, CutRule(99), go_on).longest == 8


def test_prompts_keep_their_end() -> None:
    kept, found = cut_prompts(Letters(), [{"prompt": "abcdef"}, {"prompt": "ab"}], 3, go_on)
    assert kept == [[ord(c) for c in "def"], [ord(c) for c in "ab"]]
    assert (found.cut, found.longest, found.over) == (1, 6, (0,))
    rows = [{"prompt": "abcdef"}, {"prompt": "ab"}]
    assert shorten_prompts(Letters(), rows, 4, go_on) == 1
    assert rows[0]["prompt"] == "cdef"


def test_chat_needs_a_template() -> None:
    rows = [{"messages": [{"role": "user", "content": "four"}]}]
    with pytest.raises(UserError, match="has no chat template"):
        row_lengths(Letters(), rows, CutRule(9), go_on)
    tokenizer = Letters()
    tokenizer.chat_template = "x"
    assert row_lengths(tokenizer, rows, CutRule(9), go_on).longest == 4


def test_a_task_that_is_not_wanted_stops_counting() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        row_lengths(Letters(), [{"text": "a"}], CutRule(9), stop)


class Chats(Letters):
    """One token a character of each message, and two for the start of an answer."""

    chat_template = "x"

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        add_generation_prompt: bool = False,
        tools: list[str] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        if messages[0]["role"] == "system":
            raise TemplateError("System role not supported")
        ids = [ord(c) for text in (*(tools or ()), *(m["content"] for m in messages)) for c in text]
        return {"input_ids": [*ids, 1, 2] if add_generation_prompt else ids}


def turns(*texts: str, first: str = "user") -> list[dict[str, str]]:
    roles = (first, "assistant", "user", "assistant")
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def test_a_row_that_the_chat_template_refuses_is_named_by_its_number_in_the_data() -> None:
    rows = [{"messages": turns("a", "b")}, {"messages": turns("be brief", "b", first="system")}]
    message = "the chat template of this model refuses row 7: System role not supported"
    with pytest.raises(UserError, match=re.escape(message)):
        row_lengths(Chats(), rows, CutRule(9), go_on, [2, 7])
    with pytest.raises(UserError, match=re.escape(message)):
        cut_prompts(Chats(), [{"prompt": row["messages"]} for row in rows], 9, go_on, [2, 7])


def test_answers_behind_the_limit_are_lost_where_only_answers_count() -> None:
    rows = [{"messages": turns("q" * 8, "a")}, {"messages": turns("q", "a")}]
    assert row_lengths(Chats(), rows, CutRule(6), go_on).lost == 0
    assert row_lengths(Chats(), rows, CutRule(6, answers_only=True), go_on).lost == 1
    assert row_lengths(Chats(), rows, CutRule(6, answers_only=True, keep_end=True), go_on).lost == 0
    with pytest.raises(UserError, match=re.escape("all 1 prompts are 6 tokens or longer, so no answer is left")):
        row_lengths(Chats(), rows[:1], CutRule(6, answers_only=True), go_on)


def test_prompts_are_not_lost_where_the_loss_counts_them() -> None:
    rows = [{"prompt": "p" * 8, "completion": "c"}]
    found = row_lengths(Letters(), rows, CutRule(6, whole=True), go_on)
    assert (found.cut, found.lost) == (1, 0)


def test_completions_of_chats_are_measured() -> None:
    rows = [{"prompt": turns("qqq"), "completion": [{"role": "assistant", "content": "aa"}]}]
    assert row_lengths(Chats(), rows, CutRule(9), go_on).longest == 5


@pytest.mark.parametrize("chat", [False, True])
def test_pairs_that_are_the_same_after_the_cut_are_counted(chat: bool) -> None:
    def pair(better: str, worse: str) -> dict[str, Any]:
        if not chat:
            return {"prompt": "q", "chosen": better, "rejected": worse}
        answers = {"chosen": better, "rejected": worse}
        return {
            "prompt": turns("q"),
            **{name: [{"role": "assistant", "content": text}] for name, text in answers.items()},
        }

    tokenizer, rows = Chats() if chat else Letters(), [pair("xxxx good", "xxxx bad"), pair("yes", "no")]
    found = row_lengths(tokenizer, rows, CutRule(5), go_on)
    assert (found.cut, found.same) == (1, 1)
    assert "1 of 2 pairs are the same after the cut and teach nothing" in (found.note("x") or "")
    with pytest.raises(UserError, match=re.escape("after the cut to 5 tokens chosen and rejected are the same")):
        row_lengths(tokenizer, rows[:1], CutRule(5, field="max_length"), go_on)


def test_tools_count_as_part_of_the_prompt() -> None:
    tools = '["abc"]'
    answer = [{"role": "assistant", "content": "a"}]
    for row in (
        {"messages": turns("q", "a")},
        {"prompt": turns("q"), "completion": answer},
        {"prompt": turns("q"), "chosen": answer, "rejected": [{"role": "assistant", "content": "b"}]},
    ):
        for tool, longest in ((None, 2), (tools, 5)):
            rows = [{**row, "tools": tool}]
            assert row_lengths(Chats(), rows, CutRule(9, answers_only=True), go_on).longest == longest
