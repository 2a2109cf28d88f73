"""The one masking of secrets: by the names of fields, in URLs, and of known values wherever they occur.

Everything that shows a spec or a text about it uses this module: answers of the endpoint, messages, result files, logs,
run parameters and diagnostics. Standard library only, as executors use it too. [protocol 7, quirk 15]
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MASK = "***"

# `eos_token`, `max_tokens` and similar fields are about text, so "token" counts only after a word about access.
_SECRET = re.compile(
    r"(?:^|_)(?:authorization|api_?key|secret(?:_access)?(?:_key)?|password|passwd|pwd|passphrase|credentials?|cookie"
    r"|private_key|access_key|account_key|connection_string"
    r"|(?:access|auth|api|bearer|refresh|id|session|hf|hub|github|gitlab|private|security|sas|wandb)_token)$"
    r"|^token$|^auth$"
)
_HARMLESS_HEADERS = frozenset({"content_type", "accept", "accept_encoding", "accept_language", "user_agent"})
_WORD_EDGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SCHEME = re.compile(r"(?i)(bearer|basic|token|digest|apikey)\s+")
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")
_LOGIN = re.compile(r"((?<![A-Za-z0-9+.\-])[A-Za-z0-9+.\-]++://[^/\s:@\"']*+):([^/\s@\"']++)@")
_QUERY = re.compile(
    r"([?&](?:[\w.\-]*(?:token|api_?key|password|secret|signature|credential)|sig|key)=)([^&\s#\"']+)", re.IGNORECASE
)
_PATH_PART = re.compile(r"[^.\[\]]+")
_SHORTEST_SEARCHED = 8  # characters; shorter secrets could be part of any word
_MOST_SEARCHED = 200  # secrets that are searched for outside their own fields: each costs a pass over the text
_LONGEST_NAME = 100  # characters of a field name that are compared, from its end
_SHORTENED = "..."  # how messages end what they show in part
_SHORTEST_START, _LONGEST_START = 4, 64  # characters of a secret before such an end that are masked


@dataclass(frozen=True)
class KnownSecrets:
    """Secret values that are replaced wherever they occur.

    Attributes:
        terms: What is searched for, longest first, as one may contain another.
    """

    terms: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Iterable[str]) -> KnownSecrets:
        """Return what is searched for these values: without a scheme such as `Bearer`, and not if very short."""
        bare = {_SCHEME.sub("", value, count=1).strip() for value in values}
        long = (text for text in bare if len(text) >= _SHORTEST_SEARCHED)
        return cls(tuple(sorted(long, key=len, reverse=True)[:_MOST_SEARCHED]))

    @classmethod
    def in_document(cls, value: Any) -> KnownSecrets:
        """Return the secrets of a plain document: values of secret fields, and those in its URLs."""
        found: set[str] = set()
        _masked(value, found, secret=False, header=False)
        return cls.of(found)

    def mask(self, text: str) -> str:
        """Return `text` without these secrets and without those of any URL."""
        return mask_urls(self.replaced(text))

    def mask_short(self, text: str) -> str:
        """Return a text that may hold a secret only in part, or with escapes, without it."""
        for form in self._forms:
            text = text.replace(form, MASK)
            if len(form) > _LONGEST_START and (at := text.find(form[:_LONGEST_START])) >= 0:
                end = text.find(_SHORTENED, at)
                text = text[:at] + MASK + (text[end:] if end >= 0 else "")
        return mask_urls(self._without_starts(text))

    @cached_property
    def _forms(self) -> tuple[str, ...]:
        """The terms, as they are and as JSON writes them."""
        written = ((term, json.dumps(term, ensure_ascii=False)[1:-1]) for term in self.terms)
        return tuple(dict.fromkeys(form for both in written for form in both))

    @cached_property
    def _starts(self) -> frozenset[str]:
        """The starts of the terms: a set, so that the time does not depend on how many there are."""
        lengths = range(_SHORTEST_START, _LONGEST_START + 1)
        return frozenset(form[:length] for form in self._forms for length in lengths if length < len(form))

    def _without_starts(self, text: str) -> str:
        """Return a text without the start of a secret that was cut off where the text was shortened."""
        at = text.find(_SHORTENED)
        while at >= 0:
            for length in range(min(_LONGEST_START, at), _SHORTEST_START - 1, -1):
                if text[at - length : at] in self._starts:
                    text = text[: at - length] + MASK + text[at:]
                    at += len(MASK) - length
                    break
            at = text.find(_SHORTENED, at + 1)
        return text

    def replaced(self, text: str) -> str:
        """Return `text` without these secrets."""
        for term in self.terms:
            text = text.replace(term, MASK)
        return text

    def without(self, value: Any) -> Any:
        """Return a copy of a plain document without these secrets."""
        text = "\0".join(_texts(value))  # one search in all texts is much faster than one in each
        present = tuple(term for term in self.terms if term in text)
        return _replaced(value, present, len(present[-1])) if present else value


def mask_document(value: Any) -> Any:
    """Return a copy of a plain document in which the values of secret fields, at any depth, are `***`."""
    found: set[str] = set()
    masked = _masked(value, found, secret=False, header=False)
    return KnownSecrets.of(found).without(masked) if found else masked


def has_secret(value: Any) -> bool:
    """Return whether `mask_document` would mask anything in a plain document."""
    return bool(mask_document(value) != value)


def mask_urls(text: str) -> str:
    """Return `text` with the passwords, tokens and signatures in its URLs as `***`."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{MASK}", _LOGIN.sub(rf"\1:{MASK}@", text))


def secrets_in_urls(text: str) -> set[str]:
    """Return the passwords, tokens and signatures in the URLs of a text."""
    if "://" not in text:
        return set()
    found = {match[2] for pattern in (_LOGIN, _QUERY) for match in pattern.finditer(text)}
    return {value for value in found if can_be_secret(value)}


def mask_value(value: str) -> str:
    """Return what is shown for the value of a secret field: `***`, after its scheme if it has one."""
    scheme = _SCHEME.match(value)
    return f"{scheme[1]} {MASK}" if scheme else MASK


def can_be_secret(value: str) -> bool:
    """Return whether a value can be a secret: not empty, not a boolean or null, not only a placeholder."""
    bare = _SCHEME.sub("", value, count=1).strip()
    if bare.lower() in {"", "true", "false", "yes", "no", "null", "~", MASK}:
        return False
    return _PLACEHOLDER.fullmatch(bare) is None


def is_secret_name(name: str) -> bool:
    """Return whether a field of this name holds a secret."""
    return _ends_like_a_secret(name[-_LONGEST_NAME:])


def is_secret_header(name: str) -> bool:
    """Return whether a header of this name may hold a secret: all but a few may."""
    return len(name) > _LONGEST_NAME or _snake(name) not in _HARMLESS_HEADERS


def is_secret_path(path: str) -> bool:
    """Return whether a path such as `spec.output.destination.headers.X` leads to a secret."""
    parts = _PATH_PART.findall(path)
    below_headers = any(name == "headers" and is_secret_header(header) for name, header in pairwise(parts))
    return below_headers or parts[-1:] == ["headers"] or any(is_secret_name(part) for part in parts)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for below in value.values():
            yield from _texts(below)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _replaced(value: Any, terms: tuple[str, ...], shortest: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(below, terms, shortest) for key, below in value.items()}
    if isinstance(value, list):
        return [_replaced(item, terms, shortest) for item in value]
    if not isinstance(value, str) or len(value) < shortest:
        return value
    for term in terms:
        value = value.replace(term, MASK)
    return value


def _masked(value: Any, found: set[str], *, secret: bool, header: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _masked(
                below,
                found,
                secret=secret or is_secret_name(str(key)) or (header and is_secret_header(str(key))),
                header=key == "headers",
            )
            for key, below in value.items()
        }
    if isinstance(value, list):
        return [_masked(item, found, secret=secret, header=header and isinstance(item, Mapping)) for item in value]
    if not secret and not header:
        if not isinstance(value, str) or "://" not in value:
            return value
        found |= secrets_in_urls(value)
        return mask_urls(value)
    if value is None or not can_be_secret(str(value)):
        return value
    found.add(str(value))
    return mask_value(str(value))


@lru_cache(4096)
def _ends_like_a_secret(name: str) -> bool:
    return _SECRET.search(_snake(name)) is not None


def _snake(name: str) -> str:
    return _WORD_EDGE.sub("_", name.strip()).lower().replace("-", "_").replace(".", "_").replace(" ", "_")
