"""`Sampling`: `spec.inference` with the defaults of protocol 4.2 applied."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from mloc_prefect.executors.common.spec_reader import SpecReader

_GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: scores divided by them would be too large for float32."""

_EXTREME, _EXTREME_SMALL = 1e25, 1e-25
"""Temperatures and penalties count up to this factor, so that scores stay finite; larger ones change nothing."""

NO_NUMBERS = "the model gives no numbers (NaN or infinite): its weights are broken, or too large for its dtype"
"""Why a row fails whose scores are not finite."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Everything that determines which tokens follow a prompt.

    Attributes:
        max_new_tokens: Largest number of tokens of an answer.
        temperature: 0 = always the most likely token.
        top_p: Sample from the most likely tokens whose probabilities add up to this.
        top_k: Sample from this many most likely tokens; 0 = all.
        min_p: Sample from tokens at least this fraction as likely as the most likely one; 0 = all.
        sample: Whether to sample; False = always the most likely token.
        repetition_penalty: > 1 makes tokens that already occurred (prompt included) less likely.
        stop: The answer ends before the first of these texts.
        seed: Makes sampling repeatable; None = different in every attempt.
        first: Index of the first row in the whole task, of which this may be a shard.
    """

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    min_p: float = 0.0
    sample: bool = True
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    first: int = 0

    @classmethod
    def of(cls, inference: SpecReader) -> Sampling:
        """Read `spec.inference`.

        `max_new_tokens` wins over `max_tokens`. Without `do_sample`, tokens are sampled when temperature > 0 or
        top_p < 1 or top_k > 0; temperature 0 is always greedy, because dividing by it has no other meaning. Extreme
        temperatures and penalties give what their limit means. As in vLLM, seed -1 is no seed.

        Raises:
            UserError: A value is out of bounds.
        """
        limit = "max_tokens" if inference.get("max_new_tokens") is None else "max_new_tokens"
        temperature = _bounded(inference, "temperature", 0.7, low=0.0)
        top_p = _bounded(inference, "top_p", 0.95, low=0.0, high=1.0)
        top_k = inference.integer("top_k", 50, minimum=-1)
        penalty = _bounded(inference, "repetition_penalty", 1.0, low=math.ulp(0.0))
        inferred = temperature > 0 or top_p < 1 or top_k > 0
        return cls(
            max_new_tokens=inference.integer(limit, 512, minimum=1),
            temperature=min(temperature, _EXTREME),
            top_p=top_p,
            top_k=max(top_k, 0),
            min_p=_bounded(inference, "min_p", 0.0, low=0.0, high=1.0),
            sample=inference.flag("do_sample", inferred) and temperature >= _GREEDY_BELOW,
            repetition_penalty=min(max(penalty, _EXTREME_SMALL), _EXTREME),
            stop=_stop(inference),
            seed=_seed(inference),
        )

    def key(self) -> dict[str, Any]:
        """Return the values that determine the text of a row, for `row_key`; unused ones are left out."""
        common = {"max_new_tokens": self.max_new_tokens, "stop": list(self.stop), "repetition": self.repetition_penalty}
        if not self.sample:
            return common
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {**common, **drawn, "seed": self.seed}

    def row_seed(self, index: int) -> int:
        """Return the seed of row `index`, which depends on nothing else: neither on its batch nor on its shard."""
        if self.seed is None:
            return secrets.randbits(63)
        digest = hashlib.sha256(f"{self.seed}:{self.first + index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Return `text` up to the first stop text that occurs in it, and whether one occurred."""
    found = [index for index in (text.find(s) for s in stop) if index >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _seed(inference: SpecReader) -> int | None:
    """Return the seed; rows derive theirs from its digits, so any whole number is one."""
    if inference.get("seed") is None:
        return None
    number = inference.number("seed", 0)
    if number != int(number):
        raise inference.error("seed", inference.get("seed"), "a whole number")
    return None if number == -1 else int(number)


def _stop(inference: SpecReader) -> tuple[str, ...]:
    value = inference.get("stop")
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise inference.error("stop", value, "text or a list of texts")
    return tuple(text for text in texts if text)


def _bounded(inference: SpecReader, name: str, default: float, low: float, high: float = math.inf) -> float:
    value = inference.number(name, default)
    if not low <= value <= high:
        wanted = f">= {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UserError(f"{inference.path}.{name} must be {'> 0' if 0 < low < 1e-9 else wanted}, found {value:g}")
    return value
