"""Errors of TRL, transformers and torch that another attempt would meet again: mistakes of the user, with the field."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mloc_prefect.execution.failures import breaks_host, looks_out_of_memory, one_line
from mloc_prefect.execution.protocol import Cancelled, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LASTING = (ValueError, TypeError, LookupError, AttributeError, NameError, AssertionError, NotImplementedError)
"""Errors of Python that depend on the input only. A `RuntimeError` may come from a device, an `OSError` from a disk."""

_WORD = re.compile(r"\w{6,}")
_SHORTEST = 6  # letters of a name that is looked for in a sentence


def named_options(text: str, options: Iterable[str]) -> list[str]:
    """Return the options that the sentence of a library names, also with a prefix or a suffix less.

    Args:
        text: The sentence.
        options: Names under `training` that the spec sets.
    """
    words = {word.lower() for word in _WORD.findall(text)}
    return sorted(
        name for name in options if len(name) >= _SHORTEST and any(word in name or name in word for word in words)
    )


@contextmanager
def refused_as_mistake(subject: str, options: Iterable[str], *, building: bool = False) -> Iterator[None]:
    """Raise errors that every attempt would meet as mistakes of the user, with the library's sentence.

    Args:
        subject: Begin of the message.
        options: Names under `training` that the spec sets; those that the sentence names are part of the message.
        building: Whether nothing is computed yet, so that a `RuntimeError` is one of these, too.

    Raises:
        UserError: The library refuses the options, the model or the data.
    """
    kinds = (*_LASTING, RuntimeError) if building else _LASTING
    try:
        yield
    except (UserError, Cancelled):
        raise
    except kinds as error:
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            passing = type(error) is not RuntimeError or breaks_host(error) or looks_out_of_memory(str(error))
            if passing:
                raise
        named = named_options(str(error), options)
        fields = f" (see {', '.join(f'spec.training.{name}' for name in named)})" if named else ""
        kind = "" if isinstance(error, (ValueError, AssertionError, RuntimeError)) else type(error).__name__
        text = ": ".join(part for part in (subject, kind, one_line(error, 500)) if part)
        raise UserError(f"{text}{fields}") from error
