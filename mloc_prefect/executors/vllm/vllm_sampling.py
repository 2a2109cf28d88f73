"""`VllmSampling`: `spec.inference` for vLLM [protocol 4.2]."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.common.sampling import Sampling

if TYPE_CHECKING:
    from mloc_prefect.executors.common.spec_reader import SpecReader

_SCHEMA_KEYS = frozenset({"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "$defs", "items"})
_FORMS = "a JSON Schema (with type, properties, ...), {regex: ...}, {choices: [...]} or a list of choices"


@dataclass(frozen=True, slots=True)
class VllmSampling:
    """Everything that determines which tokens follow a prompt, in addition to `Sampling`.

    Attributes:
        common: Length, temperature, top_p, stop texts, seed: as in the other engine.
        top_k: Sample from this many most likely tokens; -1 = all, the default of MLOC's vLLM.
        min_p: Drop tokens less likely than this fraction of the most likely one.
        presence_penalty: > 0 makes tokens that the answer already contains less likely.
        frequency_penalty: The same, for each time that it contains them.
        n: Answers per prompt.
        logprobs: Number of tokens at each position whose log probabilities are returned, or None.
        ignore_eos: Continue after the end token; for measurements.
        structure: A pair of kind (`json`, `regex`, `choice`) and rule as JSON text, or None.
    """

    common: Sampling
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False
    structure: tuple[str, str] | None = None

    @classmethod
    def of(cls, inference: SpecReader) -> VllmSampling:
        """Read `spec.inference`.

        Raises:
            UserError: A value is out of bounds.
        """
        top_k = inference.integer("top_k", -1, minimum=-1)
        return cls(
            common=Sampling.of(inference),
            top_k=top_k or -1,
            min_p=inference.number("min_p", 0.0),
            presence_penalty=inference.number("presence_penalty", 0.0),
            frequency_penalty=inference.number("frequency_penalty", 0.0),
            n=inference.integer("n", 1, minimum=1),
            logprobs=None if inference.get("logprobs") is None else inference.integer("logprobs", 0),
            ignore_eos=inference.flag("ignore_eos", default=False),
            structure=_structure(inference),
        )

    @property
    def temperature(self) -> float:
        """Effective temperature: 0 when the most likely token is always used."""
        return self.common.temperature if self.common.sample else 0.0

    def key(self) -> dict[str, Any]:
        """Return the values that determine a row, for `row_key`."""
        own = {k: v for k, v in asdict(self).items() if k != "common"}
        return {"engine": "vllm", **own, **self.common.key(), "temperature": self.temperature}

    def arguments(self, index: int, limit: int) -> dict[str, Any]:
        """Return the keyword arguments of `SamplingParams` for row `index`, without the structure.

        Args:
            index: Index of the row; with a seed, its random numbers depend on nothing else.
            limit: Largest number of tokens that it may generate.
        """
        common = self.common
        return {
            "n": self.n,
            "temperature": self.temperature,
            "top_p": common.top_p or 1e-6,  # 0 means only the most likely token, but vLLM requires more than 0
            "top_k": self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": common.repetition_penalty,
            "stop": list(common.stop) or None,
            "seed": common.row_seed(index) if common.seed is not None and self.temperature else None,
            "max_tokens": limit,
            "logprobs": self.logprobs,
            "ignore_eos": self.ignore_eos,
        }


def _structure(inference: SpecReader) -> tuple[str, str] | None:
    """Return the rule in `response_schema`: a JSON Schema, `{regex: ...}`, `{choices: [...]}`, or a list of choices."""
    value = inference.get("response_schema")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return "regex", json.dumps(value)
    if value is None:
        return None
    if isinstance(value, list):
        return "choice", _choices(inference, value)
    if isinstance(value, dict):
        return _ruled(inference, value)
    raise inference.error("response_schema", value, _FORMS)


def _ruled(inference: SpecReader, value: dict[str, Any]) -> tuple[str, str]:
    kind, rule = next(iter(value.items())) if len(value) == 1 else ("", None)
    if kind == "regex" and isinstance(rule, str):
        return "regex", json.dumps(rule)
    if kind in {"choices", "choice"}:
        return "choice", _choices(inference, rule)
    if kind in {"json_schema", "schema"} and isinstance(rule, dict):
        value = rule
    if not _SCHEMA_KEYS & set(value):
        raise inference.error("response_schema", value, _FORMS)
    return "json", json.dumps(value)


def _choices(inference: SpecReader, value: object) -> str:
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) for choice in value):
        raise inference.error("response_schema", value, "a list of texts to choose from")
    return json.dumps(value)
