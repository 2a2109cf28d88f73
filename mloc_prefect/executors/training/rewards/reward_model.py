"""`reward_model`: scores answers with a text classifier. Imports torch and transformers inside functions only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.load_errors import load_errors, load_whole
from mloc_prefect.executors.sources.models_source import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.training.rewards.scorers import Row

_GOOD = ("positive", "pos", "good", "helpful", "yes", "accept", "safe", "label_1")
_BATCH = 16
_USUAL_LENGTH = 512


@dataclass(slots=True)
class ModelReward:
    """A sequence classifier as reward.

    With one label, its output is the reward of prompt and answer together, as reward models are trained. With several
    labels only the answer is scored: the probability of the positive label, minus that of the negative one if it is
    named.

    Attributes:
        model: The classifier, in inference mode.
        tokenizer: Its own tokenizer, which may differ from that of the trained model.
        positive: Index of the positive label; None for a classifier with one label.
        negative: Index of the negative label, or None.
        scale: Factor.
        max_length: Largest number of tokens that are read.
    """

    model: Any
    tokenizer: Any
    positive: int | None
    negative: int | None
    scale: float
    max_length: int

    @classmethod
    def load(cls, fields: SpecReader, sources: SourceLookup, device: str, notes: list[str]) -> ModelReward:
        """Load `spec.reward_model`.

        Args:
            fields: The block.
            sources: Where models are looked up.
            device: Device of the model.
            notes: Deviations from the spec are added to it.

        Raises:
            UserError: The model does not exist, is not a classifier, or lacks the named labels.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        identifier = fields.text("identifier")
        if identifier is None:
            raise UserError("spec.reward_model.identifier is required")
        location = find_model(identifier, fields.text("revision"), sources)
        common = location.loading_arguments(trust_remote_code=fields.flag("trust_remote_code", default=False))
        with load_errors(location.path, "Failed to load reward model: {}"):
            tokenizer = AutoTokenizer.from_pretrained(location.path, **common)
            model = load_whole(AutoModelForSequenceClassification, location.path, **common)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        labels = {int(index): str(label) for index, label in model.config.id2label.items()}
        positive, negative = (None, None) if len(labels) == 1 else _labels(fields, labels)
        longest = _longest(fields, _window(model), notes)
        return cls(model.to(device).eval(), tokenizer, positive, negative, fields.number("scale", 1.0), longest)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return the reward of each answer."""
        del rows
        one = self.positive is None
        texts = [p + a for p, a in zip(prompts, answers, strict=True)] if one else list(answers)
        return [value for at in range(0, len(texts), _BATCH) for value in self._rate(texts[at : at + _BATCH])]

    def _rate(self, texts: list[str]) -> list[float]:
        import torch

        side = "left" if self.positive is None else "right"  # the end of prompt and answer counts most
        self.tokenizer.truncation_side = side
        inputs = self.tokenizer(
            texts, return_tensors="pt", padding=True, truncation=True, max_length=self.max_length, padding_side="right"
        )
        with torch.inference_mode():
            logits = self.model(**inputs.to(self.model.device)).logits.float()
        if self.positive is None:
            values = logits[:, 0]
        else:
            shares = logits.softmax(dim=-1)
            values = shares[:, self.positive]
            if self.negative is not None:
                values = values - shares[:, self.negative]
        return [self.scale * float(value) for value in values.tolist()]


def _longest(fields: SpecReader, window: int | None, notes: list[str]) -> int:
    """Return the largest number of tokens to read: a model with a table of positions fails beyond its end."""
    longest = fields.integer("max_length", min(_USUAL_LENGTH, window or _USUAL_LENGTH), minimum=1)
    if window is None or longest <= window:
        return longest
    notes.append(f"{fields.path}.max_length {longest} is more than the {window} tokens that the reward model reads")
    return window


def _window(model: Any) -> int | None:
    """Return the largest number of tokens that a classifier reads, None when unlimited."""
    config = model.config.get_text_config()
    if not getattr(config, "position_biased_input", True):  # DeBERTa has relative positions only
        return None
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return int(part.num_embeddings - part.padding_idx - 1)  # RoBERTa counts positions from after the padding
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _labels(fields: SpecReader, labels: Mapping[int, str]) -> tuple[int, int | None]:
    known = {label.lower(): index for index, label in labels.items()}
    named = fields.text("positive_label")
    wanted = [named.lower()] if named else [word for word in _GOOD if word in known][:1]
    if not wanted or wanted[0] not in known:
        raise UserError(
            f"spec.reward_model: which label is the positive one? Set positive_label to one of {list(labels.values())}"
        )
    negative = fields.text("negative_label")
    if negative is not None and negative.lower() not in known:
        raise fields.error("negative_label", negative, f"one of {list(labels.values())}")
    return known[wanted[0]], known[negative.lower()] if negative else None
