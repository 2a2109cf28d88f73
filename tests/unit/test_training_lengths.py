"""What a limit of tokens does to rows, with a tokenizer of one token a character."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training_lengths import cut_prompts, row_lengths, shorten_prompts


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
    found = row_lengths(Letters(), rows, 6, go_on)
    assert (found.total, found.longest, found.cut, found.lost) == (3, 10, 1, 0), "the end token counts"
    assert found.note("max_seq_length") == (
        "1 of 3 rows are longer than max_seq_length 6 tokens and are cut (the longest has 10)"
    )
    assert row_lengths(Letters(), rows, 10, go_on).note("max_seq_length") is None


def test_prompts_that_leave_nothing_of_the_answer() -> None:
    rows = [{"prompt": "p" * 6, "completion": "c"}, {"prompt": "p", "completion": "c"}]
    found = row_lengths(Letters(), rows, 6, go_on)
    assert (found.cut, found.lost) == (1, 1)
    assert "1 of them have a prompt of that length and are left out" in (found.note("x") or "")
    with pytest.raises(UserError, match=re.escape("all 1 prompts are 6 tokens or longer")):
        row_lengths(Letters(), rows[:1], 6, go_on)


def test_pairs_count_their_longer_answer() -> None:
    rows = [{"prompt": "pp", "chosen": "c", "rejected": "r" * 5}]
    assert row_lengths(Letters(), rows, 99, go_on).longest == 8


def test_prompts_keep_their_end() -> None:
    kept, found = cut_prompts(Letters(), [{"prompt": "abcdef"}, {"prompt": "ab"}], 3, go_on)
    assert kept == [[ord(c) for c in "def"], [ord(c) for c in "ab"]]
    assert (found.cut, found.longest) == (1, 6)
    rows = [{"prompt": "abcdef"}, {"prompt": "ab"}]
    assert shorten_prompts(Letters(), rows, 4, go_on) == 1
    assert rows[0]["prompt"] == "cdef"


def test_chat_needs_a_template() -> None:
    rows = [{"messages": [{"role": "user", "content": "four"}]}]
    with pytest.raises(UserError, match="has no chat template"):
        row_lengths(Letters(), rows, 9, go_on)
    tokenizer = Letters()
    tokenizer.chat_template = "x"
    assert row_lengths(tokenizer, rows, 9, go_on).longest == 4


def test_a_task_that_is_not_wanted_stops_counting() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        row_lengths(Letters(), [{"text": "a"}], 9, stop)
