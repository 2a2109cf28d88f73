"""`RagCollection`: search in one collection. The interface for other executors."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.rag.embedding_model import DEFAULT_MODEL, EmbeddingModels
from mloc_prefect.executors.rag.point_filters import point_filter
from mloc_prefect.executors.rag.qdrant_store import StoreAddress, open_client, store_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from qdrant_client import QdrantClient

    from mloc_prefect.executors.rag.embedding_model import EmbeddingModel, Reranker
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

OWN = "mloc"
"""Key of the payload where ingestion keeps its own notes; it is not part of results."""

_SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that was found.

    Attributes:
        id: Id of its point.
        score: How well it fits: the similarity, or the rating of the reranker.
        payload: What is stored with it, `text` and `source` for documents that a spec brought in. Data only: nothing
            in it is expanded, followed or run.
    """

    id: int | str
    score: float
    payload: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text of the passage; "" if the collection keeps it under another name than `text`."""
        text = self.payload.get("text")
        return text if isinstance(text, str) else ""

    def to_item(self) -> dict[str, Any]:
        """Return it in the form of results [protocol 5]."""
        return {"id": self.id, "score": self.score, "payload": self.payload}


class RagCollection:
    """One open collection.

    Args:
        address: Where it is.
        client: Its client.
        server_model: Name of the model with which the server embeds queries; None if this process does.
        embedding: The model with which this process embeds; None if the server does.
        reranker: Rates what was found, or None.
        candidates: Number of passages that the reranker rates.
        stack: Closed with the collection.
    """

    def __init__(
        self,
        address: StoreAddress,
        client: QdrantClient,
        *,
        server_model: str | None,
        embedding: EmbeddingModel | None,
        reranker: Reranker | None = None,
        candidates: int = 0,
        stack: ExitStack | None = None,
    ) -> None:
        self.address = address
        self.client = client
        self.server_model = server_model
        self.embedding = embedding
        self._reranker = reranker
        self._candidates = candidates
        self._stack = stack or ExitStack()

    @classmethod
    def open(
        cls,
        spec: Mapping[str, Any],
        sources: SourceLookup,
        models: EmbeddingModels | None = None,
        *,
        check: Callable[[], None] = lambda: None,
        phase: Callable[[str], None] = lambda _text: None,
    ) -> RagCollection:
        """Open the collection that `spec` names, with the models that its queries need.

        Args:
            spec: A mapping with the blocks `qdrant`, `embedding` and `search` of a rag task; resolved.
            sources: Mirrors, allowed hosts and local paths of the request.
            models: The models of this process, so that they stay loaded; default: new ones.
            check: Called while it waits; may raise to abort.
            phase: Called before what takes time.

        Raises:
            UserError: The spec, the model or the collection is at fault; one line.
            ArtifactError: The server cannot be reached now, or a model cannot be fetched.
        """
        reader, models = SpecReader(spec), models or EmbeddingModels()
        address = StoreAddress.of(reader.child("qdrant"), sources)
        embedding, rerank = reader.child("embedding"), reader.child("search").child("rerank")
        name = embedding.text("model") or DEFAULT_MODEL
        on_server = embedding.flag("server_side", default=address.url is not None)
        if on_server and address.url is None:
            raise UserError("spec.embedding.server_side: an embedded collection has no server that could embed")
        loaded = None if on_server else models.embedding(name, embedding.text("revision"), sources, phase)
        rater = rerank.text("model")
        reranker = models.reranker(rater, rerank.text("revision"), sources, phase) if rater else None
        with ExitStack() as stack:
            client = stack.enter_context(open_client(address, check, phase))
            return cls(
                address,
                client,
                server_model=name if on_server else None,
                embedding=loaded,
                reranker=reranker,
                candidates=rerank.integer("candidates", 50, minimum=1),
                stack=stack.pop_all(),
            )
        raise AssertionError  # the stack swallows nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, so that another process may open the folder of the collection."""
        self._stack.close()

    def check(self) -> None:
        """Return if queries can be answered.

        Raises:
            UserError: There is no such collection, or its vectors were made by another model.
            ArtifactError: The server cannot be reached now.
        """
        with store_errors(self.address):
            if not self.client.collection_exists(self.address.collection):
                names = sorted(c.name for c in self.client.get_collections().collections)
                shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
                there = f"it has: {shown}" if names else "it has no collections"
                raise UserError(f"there is no collection '{self.address.collection}' at {self.address.shown}; {there}")
            params = self.client.get_collection(self.address.collection).config.params.vectors
        self._check_dimensions(params)
        self._check_model()

    def search(
        self,
        text: str,
        top_k: int = 5,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
    ) -> list[Passage]:
        """Return the passages nearest to `text`, best first.

        Args:
            text: The query.
            top_k: Number of passages.
            filters: Conditions on fields of the payload, in the form of `search.filter`.
            score_threshold: Lowest score of a passage, of the reranker where there is one.

        Raises:
            UserError: The filter is wrong, or the server refuses.
            ArtifactError: The server cannot be reached now.
        """
        chosen = point_filter(filters)
        reranks = self._reranker is not None
        with store_errors(self.address):
            found = self.client.query_points(
                self.address.collection,
                query=self._query(text),
                using=self.address.vector,
                query_filter=chosen,
                limit=max(top_k, self._candidates) if reranks else top_k,
                score_threshold=None if reranks else score_threshold,
                with_payload=True,
            ).points
        passages = [Passage(_plain_id(p.id), float(p.score), _shown_payload(p.payload)) for p in found]
        if self._reranker is not None and passages:
            scores = self._reranker.rate(text, [p.text for p in passages])
            rated = [Passage(p.id, score, p.payload) for p, score in zip(passages, scores, strict=True)]
            rated.sort(key=lambda p: -p.score)
            passages = [p for p in rated if score_threshold is None or p.score >= score_threshold][:top_k]
        return passages

    def _query(self, text: str) -> Any:
        if self.embedding is not None:
            return self.embedding.embed_query(text)
        from qdrant_client import models

        return models.Document(text=text, model=str(self.server_model))

    def _check_dimensions(self, params: Any) -> None:
        vector, place = self.address.vector, f"collection '{self.address.collection}' at {self.address.shown}"
        if isinstance(params, dict):
            if vector is None or vector not in params:
                names = ", ".join(sorted(params)) or "none"
                raise UserError(f"{place} has named vectors ({names}); name one of them in spec.qdrant.vector")
            params = params[vector]
        elif vector is not None:
            raise UserError(f"{place} has no named vectors; remove spec.qdrant.vector")
        if self.embedding is None or params is None or params.size == self.embedding.dimensions:
            return
        raise UserError(
            f"{place} has vectors of {params.size} dimensions, but {self.embedding.location.identifier} makes "
            f"{self.embedding.dimensions}; use the model that filled it"
        )

    def _check_model(self) -> None:
        """Refuse a collection that our ingestion filled with another model of the same length."""
        if self.embedding is None:
            return
        from qdrant_client import models

        key, ours = f"{OWN}.fingerprint", self.embedding.location.fingerprint
        other = models.Filter(
            must_not=[
                models.IsEmptyCondition(is_empty=models.PayloadField(key=key)),
                models.FieldCondition(key=key, match=models.MatchValue(value=ours)),
            ]
        )
        with store_errors(self.address):
            points, _ = self.client.scroll(self.address.collection, scroll_filter=other, limit=1, with_payload=[OWN])
        notes = (points[0].payload or {}).get(OWN) if points else None
        if not isinstance(notes, dict):
            return
        raise UserError(
            f"collection '{self.address.collection}' at {self.address.shown} was filled with {notes.get('model')}, "
            f"not with {self.embedding.location.identifier}; use the model that filled it"
        )


def _plain_id(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def _shown_payload(payload: Any) -> dict[str, Any]:
    return {key: value for key, value in (payload or {}).items() if key != OWN}
