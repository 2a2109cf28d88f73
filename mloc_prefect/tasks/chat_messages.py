"""Chat messages as rows: which values are messages, in the form that chat templates read. Standard library only.

Read are the form of OpenAI and Hugging Face (`role`, `content`) and that of ShareGPT (`from`, `value`), as values or as
JSON text, the form that tables of text (CSV) have them in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles of messages; `developer` is OpenAI's later name of `system`, the last two are earlier names of `tool`."""

SYSTEM_ROLES = ("system", "developer")

CHAT_COLUMNS = ("messages", "conversations")
"""Names of fields that hold the messages of a row."""

_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_YES, _NO = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0", ""})
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA = {
    "image": "an image",
    "image_url": "an image",
    "input_image": "an image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "a video",
    "video_url": "a video",
    "file": "a file",
    "input_file": "a file",
}
_MEDIA_COLUMNS = {"images": "image", "videos": "video", "audios": "audio"}
"""Columns beside messages that hold what their content stands for, with the name of one."""

_SAYS_MORE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Fields that make a message without content complete."""

_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
_PYTHON_TEXT = re.compile(r"\s*\[\s*\{\s*'(role|content|from|value)'\s*:")


class ChatFormError(ValueError):
    """A value that should be messages or tools is not; the text says what is wrong, without the place."""


def looks_like_messages(value: object) -> bool:
    """Return whether `value` is meant to be a list of messages, valid or not."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, Mapping) for message in value)
        and any("role" in message or {"from", "value"} <= message.keys() for message in value)
    )


def messages_of(value: object) -> list[Message]:
    """Return messages in the form that chat templates read.

    Names of ShareGPT are mapped, nulls are left out (tables write them into every field that another row has), and the
    content of each message is text or a list of `{"type": "text", "text": ...}`. Everything else stays as it is.

    Raises:
        ChatFormError: It is no list of messages.
    """
    if not isinstance(value, list) or not value:
        raise ChatFormError(f"must be a list of messages, found {kind_of(value)}")
    return [_message(index, message) for index, message in enumerate(value)]


def item_column(item: Mapping[Any, Any]) -> str:
    """Return which key of a mapping in `data.items` holds what it asks.

    Raises:
        ChatFormError: None does, or several do, or other keys are wrong.
    """
    asked = (*CHAT_COLUMNS, "prompt")
    names = [name for name in asked if item.get(name) is not None]
    if len(names) != 1:
        raise ChatFormError(f"needs one of {', '.join(asked)}, found {', '.join(map(str, item)) or 'nothing'}")
    unknown = [str(name) for name in item if name not in {*asked, "system_prompt", "tools"}]
    if unknown:
        raise ChatFormError(
            f"has the unknown key '{unknown[0]}'; known are {', '.join(asked)}, system_prompt and tools"
        )
    system = item.get("system_prompt")
    if system is not None and not isinstance(system, str):
        raise ChatFormError(f"has {kind_of(system)} as system_prompt, not text")
    return names[0]


def item_fault(item: object) -> str | None:
    """Return what is wrong with an entry of `data.items` that is no text, None when it is a chat.

    The text is "" when it was not meant to be one.
    """
    try:
        if looks_like_messages(item):
            messages_of(item)
        elif isinstance(item, Mapping) and not item.keys().isdisjoint((*CHAT_COLUMNS, "prompt")):
            value = item[item_column(item)]
            tools_of(item.get("tools"))
            messages = messages_of(value) if not isinstance(value, str) else [{"role": "user", "content": value}]
            system_first(item.get("system_prompt") or None, messages)
        else:
            return ""
    except ChatFormError as fault:
        return str(fault)
    return None


def tools_of(value: object) -> list[dict[str, Any]] | None:
    """Return the descriptions of tools, None when there are none.

    Raises:
        ChatFormError: It is no list of mappings.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except ValueError:
            raise ChatFormError("must be a list of tools, or JSON text of one, found text that is not JSON") from None
    if is_missing(value) or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise ChatFormError(f"must be a list of tools, each a mapping, found {kind_of(value)}")
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(value):
        if not (isinstance(tool.get("function"), Mapping) or isinstance(tool.get("name"), str)):
            raise ChatFormError(f"tool {index} has neither function nor name")
        tools.append(dict(tool))
    return tools


def shown_prompt(prompt: object) -> str | None:
    """Return what a preview shows of the prompt of a result: a text, or the text of the last message of a chat."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
        if isinstance(prompt, list):
            return " ".join(str(part.get("text", "")) for part in prompt if isinstance(part, Mapping))
    return prompt if isinstance(prompt, str) else None


def media_column(row: Mapping[str, Any], messages: Sequence[Message]) -> str | None:
    """Return the column beside messages that holds their images or the like, which are not read; None without one.

    `images` and its kin always mean that; `image` may be anything, unless a text has `<image>` where it belongs.
    """
    for several, one in _MEDIA_COLUMNS.items():
        if not _is_blank(row.get(several)):
            return several
        if not _is_blank(row.get(one)) and any(f"<{one}>" in str(message.get("content")) for message in messages):
            return one
    return None


def system_first(text: str | None, messages: list[Message]) -> list[Message]:
    """Return `messages` with a system message of `text` before them, unless they have the same one.

    Raises:
        ChatFormError: They begin with another system message.
    """
    if text is None:
        return messages
    own = messages[0] if messages and messages[0]["role"] in SYSTEM_ROLES else None
    if own is None:
        return [{"role": "system", "content": text}, *messages]
    if own["content"] != text:
        raise ChatFormError("has a system message of its own, and another system prompt")
    return messages


def messages_in_text(text: str) -> list[Any] | None:
    """Return the list of messages that `text` is the JSON of, None for any other text.

    Raises:
        ChatFormError: It is the way in which Python prints messages, which a data frame leaves in a CSV file.
    """
    if not text.lstrip().startswith("["):
        return None
    if _PYTHON_TEXT.match(text):
        raise ChatFormError("holds messages as Python prints them; write the column with json.dumps")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if looks_like_messages(found) else None


def without_padding(value: Any) -> Any:
    """Return messages or tools without the nulls that Arrow put into them; any other value unchanged.

    Arrow gives all mappings of a column the same fields, those of other rows as null.
    """
    if not (isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value)):
        return value
    names = {name for item in value for name in item}
    known = {"role", "from"} & names or ({"type", "function"} <= names) or {"name", "parameters"} <= names
    return [_without_nulls(item) for item in value] if known else value


def template_choice(value: object) -> tuple[bool, str | None]:
    """Return what `inference.chat_template` says: whether every row is a chat, and the template that it names."""
    if not isinstance(value, str):
        return bool(value), None
    word = value.strip().lower()
    if word in _NO:
        return False, None
    return True, None if word in _YES else value


def template_fault(text: str) -> str | None:
    """Return what is wrong with `inference.chat_template`, None if it may be a Jinja template or a path."""
    if not is_template(text):
        return "is a URL, not a template or the path of its file" if "://" in text else None
    from jinja2 import TemplateSyntaxError

    try:
        parsed_template(text)
    except TemplateSyntaxError as error:
        return f"line {error.lineno} is not valid Jinja: {error.message}"
    return None


def parsed_template(text: str) -> Any:
    """Return the syntax tree of a chat template, read as transformers reads it.

    Raises:
        TemplateSyntaxError: It is not valid Jinja.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    return environment.parse(_GENERATION.sub("", text))  # these marks are transformers' own


def is_template(text: str) -> bool:
    """Return whether `text` is a Jinja template; any other text is the path of one."""
    return "{{" in text or "{%" in text


def is_missing(value: object) -> bool:
    """Return whether `value` is no value: null, NaN, or NaT."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return type(value).__name__ in {"NaTType", "NAType"}


def _is_blank(value: object) -> bool:
    return is_missing(value) or (isinstance(value, (str, Sequence, Mapping)) and not value)


def kind_of(value: object) -> str:
    """Return what `value` is, in words for people."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return f"a list of {_kinds_in(value)}" if value else "an empty list"
    named = {str: "text", int: "a number", float: "a number", bytes: "bytes", bytearray: "bytes"}
    return named.get(type(value), f"a value of type {type(value).__name__}")


def _kinds_in(value: Sequence[object]) -> str:
    plural = {"a mapping": "mappings", "text": "texts", "a number": "numbers", "nothing": "nulls"}
    kinds = list(dict.fromkeys(plural.get(kind_of(item), "other values") for item in value[:100]))
    return " and ".join(kinds[:2]) if len(kinds) < 3 else "various values"


def _message(index: int, message: object) -> Message:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise ChatFormError(f"{where} is {kind_of(message)}, not a mapping with role and content")
    if "role" not in message and {"from", "value"} <= message.keys():
        return _of_sharegpt(where, message)
    found = {str(name): value for name, value in message.items() if value is not None}
    role = found.get("role")
    if not isinstance(role, str) or role not in ROLES:
        shown = f"the role {role!r}" if "role" in found else "no role"
        raise ChatFormError(f"{where} has {shown}; roles are {', '.join(ROLES)}")
    if "content" in found:
        found["content"] = _content(where, found["content"])
    elif any(found.get(name) for name in _SAYS_MORE):
        found["content"] = ""
    else:
        raise ChatFormError(f"{where} (of role {role}) has no content")
    calls = found.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise ChatFormError(f"{where}: tool_calls must be a list of mappings, found {kind_of(calls)}")
    return found


def _of_sharegpt(where: str, message: Mapping[str, Any]) -> Message:
    name = message["from"]
    role = _SHAREGPT.get(name) if isinstance(name, str) else None
    if role is None:
        raise ChatFormError(f"{where} is from {name!r}; known are {', '.join(_SHAREGPT)}")
    rest = {k: v for k, v in message.items() if k not in {"from", "value"} and v is not None}
    if name == "function_call":
        return {**rest, "role": role, "content": "", "tool_calls": [_call(where, message["value"])]}
    return _message(int(where.split()[1]), {**rest, "role": role, "content": message["value"]})


def _call(where: str, value: object) -> dict[str, Any]:
    try:
        call = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        call = None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise ChatFormError(f"{where} is a function_call, whose value must be JSON with name and arguments")
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}


def _content(where: str, content: object) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if isinstance(content, (int, float)) and not isinstance(content, bool) and math.isfinite(content):
        return str(content)
    if not isinstance(content, list):
        raise ChatFormError(f"{where} has {kind_of(content)} as content, not text or a list of parts")
    return [_part(f"{where}, part {number}", part) for number, part in enumerate(content)] or ""


def _part(where: str, part: object) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise ChatFormError(f"{where} is {kind_of(part)}, not a mapping with type and text")
    kind = part.get("type", "text" if "text" in part else None)
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(kind, str) and kind in _MEDIA:
        raise ChatFormError(f"{where} holds {_MEDIA[kind]} (type {kind}), and only parts of text are read so far")
    raise ChatFormError(f"{where} has the type {kind!r} without text; parts are {{type: text, text: ...}}")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(below) for name, below in value.items() if below is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
