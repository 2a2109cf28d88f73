"""Finds secrets in the text of a spec, and masks them there and in diagnostics about it.

What counts as a secret is decided in `diagnostics.masking`. Records and responses of the endpoint show specs to
everyone who may list tasks, while fields such as `output.destination.headers` hold tokens. [protocol 7, quirk 15]
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from mloc_prefect.diagnostics.masking import (
    MASK,
    KnownSecrets,
    can_be_secret,
    has_secret,
    is_secret_header,
    is_secret_name,
    is_secret_path,
    mask_document,
    mask_urls,
    mask_value,
    secrets_in_urls,
)
from mloc_prefect.spec.diagnostic_report import DiagnosticReport
from mloc_prefect.spec.syntax import compose

if TYPE_CHECKING:
    from collections.abc import Iterable

    from yaml.nodes import Node

    from mloc_prefect.diagnostics.diagnostic import Diagnostic

__all__ = ["MASK", "has_secret", "mask_diagnostics", "mask_document", "mask_text", "secrets_in_text"]

_WORD = r"[A-Za-z0-9_.\-]++"
_KEY_IN_TEXT = re.compile(rf"(?<![A-Za-z0-9_.\-])({_WORD}(?: {_WORD}){{0,3}}+)[\"']?\s*+:")
_PAIR_IN_TEXT = re.compile(rf"(?<![A-Za-z0-9_.\-])({_WORD}(?: {_WORD}){{0,3}}+)[\"']?[ \t]*+:[ \t]*+([^\r\n]++)")
_ALIAS_AS_KEY = re.compile(r"\*[^\s:*,\[\]{}]++\s*+:")
_ESCAPED_KEY = re.compile(r'\\[^"\r\n]{0,100}+"\s*+:')
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)+")  # anchor and tag before a value
_WORDS = ("auth", "key", "secret", "pass", "pwd", "credential", "cookie", "token", "connection", "headers")
"""Each name of a secret field has one of these."""
_HARMLESS_WORDS = ("max_tokens", "max_new_tokens", "eos_token", "pad_token", "tokenizer")
_QUOTES = " \t\"',}]"
_SHOWN_VALUE = '"-0123456789'  # how texts and numbers begin in `found`; the other forms say what kind of value it is


def mask_text(text: str) -> str:
    """Return the text of a valid spec in which the values of secret fields are `***`; the rest is unchanged."""
    in_urls = secrets_in_urls(text)
    text = mask_urls(text)
    if not _may_hold_secrets(text):
        return KnownSecrets.of(in_urls).replaced(text)
    node = compose(text, DiagnosticReport("<text>"))
    if node is None:
        return KnownSecrets.of(in_urls).replaced(text)
    finder = _SecretFinder()
    finder.visit(node, secret=False, header=False)
    parts, done = list[str](), 0
    for start, end, value in sorted(finder.found):
        written = text[start:end]
        tail = written[len(written.rstrip()) :]  # a block scalar ends after its line break
        properties = _PROPERTIES.match(written)
        parts += [text[done:start], properties[0] if properties else "", f"'{mask_value(value)}'", tail]
        done = end
    parts.append(text[done:])
    # The same secret may also occur in comments and in other fields.
    return KnownSecrets.of({value for _, _, value in finder.found} | in_urls).replaced("".join(parts))


def secrets_in_text(text: str) -> KnownSecrets:
    """Return the secrets in the text of a spec, which need not be valid."""
    values = secrets_in_urls(text)
    if _may_hold_secrets(text):
        node = compose(text, DiagnosticReport("<text>"))
        if node is None:
            values |= _secrets_in_lines(text)
        else:
            finder = _SecretFinder()
            finder.visit(node, secret=False, header=False)
            values |= {value for _, _, value in finder.found}
    return KnownSecrets.of(values)


def mask_diagnostics(diagnostics: Iterable[Diagnostic], text: str) -> tuple[Diagnostic, ...]:
    """Return diagnostics about a text without its secrets."""
    found = tuple(diagnostics)
    if not found:
        return found
    known = secrets_in_text(text)
    return tuple(_mask_diagnostic(one, known) for one in found)


def _mask_diagnostic(one: Diagnostic, known: KnownSecrets) -> Diagnostic:
    value = one.found
    if value is not None and value[:1] in _SHOWN_VALUE and is_secret_path(one.path):
        value = MASK
    return replace(
        one,
        message=known.mask_short(one.message),
        found=None if value is None else known.mask_short(value),
        suggestion=None if one.suggestion is None else known.mask_short(one.suggestion),
    )


class _SecretFinder:
    """Finds the positions of secret values in a node tree."""

    def __init__(self) -> None:
        self.found: set[tuple[int, int, str]] = set()
        self._seen: set[tuple[int, bool, bool]] = set()

    def visit(self, node: Node, *, secret: bool, header: bool) -> None:
        if (id(node), secret, header) in self._seen:  # an alias
            return
        self._seen.add((id(node), secret, header))
        if isinstance(node, ScalarNode):
            if (secret or header) and can_be_secret(node.value) and node.start_mark and node.end_mark:
                self.found.add((node.start_mark.index, node.end_mark.index, node.value))
        elif isinstance(node, SequenceNode):
            for item in node.value:
                self.visit(item, secret=secret, header=header and isinstance(item, MappingNode))
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                name = str(key.value) if isinstance(key, ScalarNode) else ""
                below = secret or is_secret_name(name) or (header and is_secret_header(name))
                self.visit(value, secret=below, header=name == "headers" or (header and name == "<<"))


def _may_hold_secrets(text: str) -> bool:
    """Return whether a key of the text may be that of a secret, without parsing it."""
    if _ESCAPED_KEY.search(text) or _ALIAS_AS_KEY.search(text):  # keys that are written in another way than they read
        return True
    lower = text.lower()
    for harmless in _HARMLESS_WORDS:
        lower = lower.replace(harmless, "")
    if not any(word in lower for word in _WORDS):  # most specs; this is much faster than the search for keys
        return False
    return any(is_secret_name(key) or key == "headers" for key in set(_KEY_IN_TEXT.findall(text)))


def _secrets_in_lines(text: str) -> set[str]:
    """Return the values of secret fields in a text that is not YAML: the rest of their lines."""
    pairs = (match for match in _PAIR_IN_TEXT.finditer(text) if is_secret_name(match[1]))
    values = (match[2].strip(_QUOTES) for match in pairs)
    return {value for value in values if can_be_secret(value)}
