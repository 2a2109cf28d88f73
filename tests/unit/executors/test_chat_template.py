"""Chats as text: what transformers makes of them, the options of vLLM, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.chat.chat_template import ChatOptions, ChatRenderer, RowError
from mloc_prefect.executors.common.prompt_data import Prompt
from mloc_prefect.executors.common.rendering import RenderStyle
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from tests.support.chats import NO_SYSTEM, TEMPLATE, chats, wanted
from tests.support.tiny_model import CHAT_TEMPLATE, save_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


def style(folder: Path | None = None, **inference: Any) -> RenderStyle:
    sources = SourceLookup.of({"home": str(folder), "base_dir": str(folder)}) if folder else None
    return RenderStyle.of(SpecReader({"inference": inference}), sources)


def text(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None, **inference: Any) -> str:
    chosen = style(**inference)
    renderer = ChatRenderer(tokenizer, "m", chosen.options)
    return chosen.text(Prompt("", messages=messages, tools=tools), renderer)


def test_twenty_chats_are_what_transformers_makes_of_them(tokenizer: Any) -> None:
    found = [text(tokenizer, c["messages"], c.get("tools"), chat_template=TEMPLATE) for c in chats()]
    assert found == wanted(tokenizer)
    assert len(set(found)) == 20


def test_the_template_of_the_model_is_used_without_being_asked_for(tokenizer: Any) -> None:
    assert text(tokenizer, HI) == tokenizer.apply_chat_template(HI, tokenize=False, add_generation_prompt=True)
    assert text(tokenizer, HI, system_prompt="S") == "[system]S\n[user]hi\n[assistant]"
    own = [{"role": "system", "content": "T"}, *HI]
    assert text(tokenizer, own, system_prompt="S") == "[system]T\n[user]hi\n[assistant]"


def test_parts_are_joined_where_the_template_prints_content_as_it_is(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for role in ("system", "user", "assistant", "tool"):
        said = [{"role": role, "content": parts}]
        assert text(tokenizer, said) == f"[{role}]a\nb\n[assistant]"
        assert text(tokenizer, said, chat_template=TEMPLATE) == f"[{role}]ab\n[assistant]"
    concatenates = CHAT_TEMPLATE.replace("{{ message.content }}", "{{ message.content + '' }}")
    assert (
        text(tokenizer, [{"role": "user", "content": parts}], chat_template=concatenates) == "[user]a\nb\n[assistant]"
    )


def test_the_options_of_vllm(tokenizer: Any) -> None:
    assert text(tokenizer, HI, add_generation_prompt=False) == "[user]hi\n"
    begun = [*HI, {"role": "assistant", "content": "I am"}]
    assert text(tokenizer, begun, continue_final_message=True) == "[user]hi\n[assistant]I am"
    asked = {"chat_template": TEMPLATE, "chat_template_kwargs": {"quiet": True}}
    assert text(tokenizer, HI, **asked) == "[user]hi\n[assistant]<quiet>"
    with pytest.raises(UserError, match="exclude each other"):
        style(continue_final_message=True, add_generation_prompt=True)


def test_arguments_that_the_template_does_not_read_are_named(tokenizer: Any) -> None:
    def unread(**inference: Any) -> list[str]:
        return ChatRenderer(tokenizer, "m", style(**inference).options).unread_arguments()

    assert unread(chat_template=TEMPLATE, chat_template_kwargs={"quiet": 1, "loud": 2}) == ["loud"]
    assert unread(chat_template_kwargs={"quiet": 1}) == ["quiet"]
    marked = "{% generation %}{{ quiet }}{% endgeneration %}"
    assert unread(chat_template=marked, chat_template_kwargs={"quiet": 1}) == []


def test_a_template_may_be_a_file(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}!")
    assert style(tmp_path, chat_template="mine.jinja").options.template == "{{ messages[0].content }}!"
    assert style(tmp_path, chat_template="mine.jinja").chat
    assert text(tokenizer, HI, chat_template="{{ messages[0].content }}!") == "hi!"
    (tmp_path / "empty.jinja").write_text("no marks")
    for named, problem in {
        "none.jinja": r"spec\.inference\.chat_template: none\.jinja cannot be read",
        "empty.jinja": r"empty\.jinja: holds no Jinja template",
        "https://x.example/t.jinja": "is a URL",
        "{% for %}": "line 1 is not valid Jinja",
    }.items():
        with pytest.raises(UserError, match=problem):
            style(tmp_path, chat_template=named)


@pytest.mark.parametrize(("word", "chat"), [("yes", True), ("false", False), (True, True), (None, False)])
def test_words_switch_it_on_and_off(word: Any, chat: bool) -> None:
    assert (style(chat_template=word).chat, style(chat_template=word).options) == (chat, ChatOptions())


def test_a_template_may_refuse_rows(tokenizer: Any) -> None:
    assert text(tokenizer, HI, chat_template=NO_SYSTEM) == "<user>hi<assistant>"
    with pytest.raises(RowError, match="the chat template of 'm' refuses the prompt: no system role"):
        text(tokenizer, [{"role": "system", "content": "S"}, *HI], chat_template=NO_SYSTEM)
    with pytest.raises(RowError, match="refuses the prompt"):
        text(tokenizer, HI, chat_template="{{ 1 / 0 }}")
    with pytest.raises(RowError, match="refuses the prompt"):
        text(tokenizer, HI, chat_template="{{ messages[5].content.x }}")


def test_a_chat_needs_a_template(tokenizer: Any) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(UserError, match=r"'m' has no chat template; set inference\.chat_template to a template"):
        text(Bare(), HI)
    assert style().text(Prompt("hi"), ChatRenderer(Bare(), "m", ChatOptions())) == "hi"


def test_rows_differ_by_their_messages_and_their_tools() -> None:
    chosen = style()
    one, other = Prompt("", messages=HI), Prompt("", messages=HI, tools=[{"name": "f"}])
    assert len({chosen.render(one), chosen.render(other), chosen.render(Prompt("hi"))}) == 3
    assert style(chat_template=TEMPLATE).options.key() != style(chat_template=NO_SYSTEM).options.key()
    assert style(chat_template=True).options.key() == {}
