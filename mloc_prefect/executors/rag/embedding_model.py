"""Embedding models and rerankers of sentence-transformers. torch is imported inside functions."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.gpu_memory import free_memory, limit_memory
from mloc_prefect.executors.common.load_errors import load_errors
from mloc_prefect.executors.common.threads import usable_cores
from mloc_prefect.executors.sources.models_source import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.executors.sources.models_source import ModelLocation
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""The model of specs that name none [protocol 4.6]."""

_OWN_CLASS = re.compile(r"sentence_transformers(?:\.[a-z_]+)*\.[A-Z]\w*")


@dataclass(slots=True)
class EmbeddingModel:
    """An embedding model in memory.

    Attributes:
        location: Its origin.
        model: The `SentenceTransformer`.
        dimensions: Length of its vectors.
        window: Tokens of a text that it reads, without its special tokens; None when unlimited.
    """

    location: ModelLocation
    model: Any
    dimensions: int
    window: int | None

    @classmethod
    def load(cls, location: ModelLocation) -> EmbeddingModel:
        """Load a model on the GPU of this host, else on the CPU.

        Raises:
            UserError: The folder holds no embedding model.
        """
        _check_modules(location)
        with load_errors(location.path, "Failed to load the embedding model: {}"):
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(location.path, **_arguments(location))
            dimensions = model.get_embedding_dimension()
        if not dimensions:
            raise UserError(f"{location.identifier} does not say how long its vectors are")
        special = model.tokenizer.num_special_tokens_to_add() if hasattr(model, "tokenizer") else 0
        longest = model.max_seq_length
        window = None if longest is None or longest > 1 << 24 else max(1, longest - special)
        return cls(location, model, int(dimensions), window)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query, with the prompt for queries that some models have.

        Raises:
            UserError: The model makes values that are no numbers.
        """
        vector = [float(x) for x in self.model.encode_query(text, show_progress_bar=False)]
        self.check_values(vector, f"the query {one_line(text, 80)!r}")
        return vector

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of passages, with the prompt for passages that some models have."""
        found = self.model.encode_document(list(texts), batch_size=max(1, len(texts)), show_progress_bar=False)
        return [[float(x) for x in row] for row in found]

    def check_values(self, vector: Sequence[float], place: str) -> None:
        """Refuse a vector that cannot be compared with others.

        Args:
            vector: The vector.
            place: What it stands for.

        Raises:
            UserError: It has NaN or an infinite value.
        """
        _check_finite(vector, self.location, place)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return start and end of each token of `text`.

        Raises:
            UserError: The tokenizer of the model does not know positions.
        """
        tokenizer = self.model.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"the tokenizer of {self.location.identifier} cannot tell where its tokens are in a text")
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        return [(int(start), int(end)) for start, end in read["offset_mapping"] if end > start]


@dataclass(slots=True)
class Reranker:
    """A cross-encoder in memory, which rates passages for a query.

    Attributes:
        location: Its origin.
        model: The `CrossEncoder`.
    """

    location: ModelLocation
    model: Any

    @classmethod
    def load(cls, location: ModelLocation) -> Reranker:
        """Load a model on the GPU of this host, else on the CPU.

        Raises:
            UserError: The folder holds no model that rates pairs of texts.
        """
        _check_modules(location)
        with load_errors(location.path, "Failed to load the reranker: {}"):
            from sentence_transformers import CrossEncoder

            model = CrossEncoder(location.path, **_arguments(location))
        if getattr(model.config, "num_labels", 1) != 1:
            raise UserError(
                f"{location.identifier} gives {model.config.num_labels} values for a passage, not one score"
            )
        return cls(location, model)

    def rate(self, query: str, passages: Sequence[str]) -> list[float]:
        """Return how well each passage answers the query.

        Raises:
            UserError: A rating is no number.
        """
        found = self.model.predict([(query, text) for text in passages], show_progress_bar=False)
        ratings = [float(x) for x in found]
        _check_finite(ratings, self.location, f"the query {one_line(query, 80)!r}")
        return ratings


class EmbeddingModels:
    """The models of one process: one embedding model and one reranker stay loaded until others are asked for."""

    def __init__(self) -> None:
        self._embedding: EmbeddingModel | None = None
        self._reranker: Reranker | None = None

    @property
    def loaded(self) -> bool:
        """Whether a model is in memory."""
        return self._embedding is not None or self._reranker is not None

    def embedding(
        self, identifier: str, revision: str | None, sources: SourceLookup, phase: Callable[[str], None]
    ) -> EmbeddingModel:
        """Return the embedding model of a name: through mirrors, then local paths, then the hub.

        Args:
            identifier: What the spec has.
            revision: Of a model on the hub.
            sources: Mirrors and local paths.
            phase: Called before what takes time.

        Raises:
            UserError: There is no such model, or it is none.
            ArtifactError: It cannot be fetched now.
        """
        location = find_model(identifier, revision, sources)
        held = self._embedding
        if held is None or held.location.fingerprint != location.fingerprint:
            self._embedding = held = None
            _prepare(phase, "loading the embedding model")
            held = self._embedding = EmbeddingModel.load(location)
        held.location = location  # the same weights, perhaps under another name
        return held

    def reranker(
        self, identifier: str, revision: str | None, sources: SourceLookup, phase: Callable[[str], None]
    ) -> Reranker:
        """Return the reranker of a name; see `embedding`.

        Raises:
            UserError: There is no such model, or it is none.
            ArtifactError: It cannot be fetched now.
        """
        location = find_model(identifier, revision, sources)
        held = self._reranker
        if held is None or held.location.fingerprint != location.fingerprint:
            self._reranker = held = None
            _prepare(phase, "loading the reranker")
            held = self._reranker = Reranker.load(location)
        return held

    def close(self) -> None:
        """Drop the models and free the memory of the device."""
        if self.loaded:
            self._embedding = self._reranker = None
            free_memory()


def _check_finite(values: Sequence[float], location: ModelLocation, place: str) -> None:
    """Refuse values that no order has a place for: they would be stored, and found anywhere."""
    if not all(math.isfinite(value) for value in values):
        raise UserError(
            f"{location.identifier} makes values that are no numbers (NaN or infinity) for {place}; "
            "its weights are damaged, or made for another type of numbers"
        )


def _check_modules(location: ModelLocation) -> None:
    """Refuse a model whose description names anything but classes of sentence-transformers.

    The library itself refuses names outside of its own package; inside, it would also take a module for a class.
    """
    file = Path(location.path, "modules.json")
    if location.commit is not None or not file.is_file():
        return
    try:
        kinds = [str(module["type"]) for module in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{file} does not describe the modules of a model") from None
    for kind in kinds:
        if not _OWN_CLASS.fullmatch(kind):
            raise UserError(f"{file} names {kind[:80]!r}, which is no class of sentence-transformers and is not loaded")


def _prepare(phase: Callable[[str], None], text: str) -> None:
    import torch

    phase(text)
    limit_memory()
    torch.set_num_threads(usable_cores())


def _arguments(location: ModelLocation) -> dict[str, Any]:
    """Return the keyword arguments that both kinds of models are loaded with; code of a model never runs."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, **location.loading_arguments()}
