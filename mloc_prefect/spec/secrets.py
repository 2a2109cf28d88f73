"""Secrets in specs: found by the names of their fields, masked in the document and in the submitted text.

Records and answers of the endpoint show specs to everybody who may list tasks, while `output.destination.headers` and
the like hold tokens. [protocol 7, quirk 15]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from mloc_prefect.spec.report import Report
from mloc_prefect.spec.syntax import compose

if TYPE_CHECKING:
    from yaml.nodes import Node

MASK = "***"

# `eos_token`, `max_tokens` and the like are about text, so a token counts only with a word of access before it.
_SECRET = re.compile(
    r"(?:^|_)(?:authorization|api_?key|secret(?:_access)?(?:_key)?|password|passwd|pwd|passphrase|credentials?|cookie"
    r"|private_key|access_key|account_key|connection_string"
    r"|(?:access|auth|api|bearer|refresh|id|session|hf|hub|github|gitlab|private|security|sas|wandb)_token)$"
    r"|^token$|^auth$"
)
_HARMLESS_HEADERS = frozenset({"content_type", "accept", "accept_encoding", "accept_language", "user_agent"})
_WORD_EDGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_KEY_IN_TEXT = re.compile(r"([A-Za-z0-9_.\-]+)[\"']?\s*:")
_SCHEME = re.compile(r"(?i)(bearer|basic|token|digest|apikey)\s+")
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)+")  # anchor and tag, which stand before a value
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://[^/\s:@\"']*):[^/\s@\"']+@")
_QUERY = re.compile(
    r"([?&](?:[\w.\-]*(?:token|api_?key|password|secret|signature|credential)|sig|key)=)[^&\s#\"']+", re.IGNORECASE
)
_WORTH_SEARCHING = 8  # characters; shorter values could be part of any word


def mask_document(value: Any) -> Any:
    """Return a copy of a plain document in which the values of secret fields are `***`, wherever they stand."""
    found: set[str] = set()
    masked = _masked(value, found, secret=False, header=False)
    return _without(masked, _searched(found)) if found else masked


def has_secret(value: Any) -> bool:
    """Return whether `mask_document` would hide anything of a plain document."""
    return bool(mask_document(value) != value)


def mask_text(text: str) -> str:
    """Return the text of a valid spec in which the values of secret fields are `***`; all else stays as written."""
    text = _mask_urls(text)
    if not any(_is_secret(key) or key == "headers" for key in set(_KEY_IN_TEXT.findall(text))):
        return text
    node = compose(text, Report("<text>"))
    if node is None:
        return text
    finder = _Finder()
    finder.visit(node, secret=False, header=False)
    for start, end, value in sorted(finder.found, reverse=True):
        written = text[start:end]
        tail = written[len(written.rstrip()) :]  # a block scalar ends after its line break
        properties = _PROPERTIES.match(written)
        text = f"{text[:start]}{properties[0] if properties else ''}'{_mask(value)}'{tail}{text[end:]}"
    return _replaced(text, _searched({value for _, _, value in finder.found}))  # in comments and elsewhere


class _Finder:
    """Finds the places of secret values in a node tree."""

    def __init__(self) -> None:
        self.found: set[tuple[int, int, str]] = set()
        self._seen: set[tuple[int, bool, bool]] = set()

    def visit(self, node: Node, *, secret: bool, header: bool) -> None:
        if (id(node), secret, header) in self._seen:  # an alias
            return
        self._seen.add((id(node), secret, header))
        if isinstance(node, ScalarNode):
            if secret and _hideable(node.value) and node.start_mark and node.end_mark:
                self.found.add((node.start_mark.index, node.end_mark.index, node.value))
        elif isinstance(node, SequenceNode):
            for item in node.value:
                self.visit(item, secret=secret, header=header)
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                name = str(key.value) if isinstance(key, ScalarNode) else ""
                below = secret or _is_secret(name) or (header and _is_header(name))
                self.visit(value, secret=below, header=name == "headers")


def _masked(value: Any, found: set[str], *, secret: bool, header: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _masked(
                below,
                found,
                secret=secret or _is_secret(str(key)) or (header and _is_header(str(key))),
                header=key == "headers",
            )
            for key, below in value.items()
        }
    if isinstance(value, list):
        return [_masked(item, found, secret=secret, header=header) for item in value]
    if not secret:
        return _mask_urls(value) if isinstance(value, str) else value
    if value is None or not _hideable(str(value)):
        return value
    found.add(str(value))
    return _mask(str(value))


def _without(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(below, secrets) for key, below in value.items()}
    if isinstance(value, list):
        return [_without(item, secrets) for item in value]
    return _replaced(value, secrets) if isinstance(value, str) else value


def _searched(values: set[str]) -> tuple[str, ...]:
    """Return what to look for elsewhere: secrets without their scheme, the longest first, as one may hold another."""
    bare = {_SCHEME.sub("", value, count=1).strip() for value in values}
    return tuple(sorted((text for text in bare if len(text) >= _WORTH_SEARCHING), key=len, reverse=True))


def _replaced(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def _mask_urls(text: str) -> str:
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{MASK}", _LOGIN.sub(rf"\1:{MASK}@", text))


def _mask(value: str) -> str:
    scheme = _SCHEME.match(value)
    return f"{scheme[1]} {MASK}" if scheme else MASK


def _hideable(value: str) -> bool:
    """Whether a value can be a secret: not empty, no boolean or null, and not only the name of a variable."""
    bare = _SCHEME.sub("", value, count=1).strip()
    if bare.lower() in {"", "true", "false", "yes", "no", "null", "~", MASK}:
        return False
    return _PLACEHOLDER.fullmatch(bare) is None


@lru_cache(4096)
def _is_secret(name: str) -> bool:
    return _SECRET.search(_snake(name)) is not None


@lru_cache(4096)
def _is_header(name: str) -> bool:
    return _snake(name) not in _HARMLESS_HEADERS


def _snake(name: str) -> str:
    return _WORD_EDGE.sub("_", name.strip()).lower().replace("-", "_").replace(".", "_").replace(" ", "_")
