"""Brings a collection up to date with documents: embeds what is new or changed, and removes what is gone."""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.rag.chunking import passages_of, word_spans
from mloc_prefect.executors.rag.document_sources import DocumentSources
from mloc_prefect.executors.rag.qdrant_store import store_errors
from mloc_prefect.executors.rag.rag_collection import OWN, RagCollection
from mloc_prefect.tasks.rag import CHUNK_OVERLAP, CHUNK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.rag.document_sources import RagDocument
    from mloc_prefect.executors.rag.embedding_model import EmbeddingModels
    from mloc_prefect.executors.sources.source_lookup import SourceLookup

_PAGE = 1000  # points that one request reads or removes
_NAMES = uuid.UUID("6f0d5b7a-54f4-5c58-9d0b-3a0f3f1f6a55")
"""Name space of the ids of points, so that the same passage has the same id."""


@dataclass(slots=True)
class SyncReport:
    """What a pass has done.

    Attributes:
        documents: Documents that were named.
        unchanged: Of those, how many were there already.
        empty: Of those, how many have no text.
        left_out: Further documents that cannot be used.
        embedded: Passages that were embedded.
        removed: Passages that were removed.
    """

    documents: int = 0
    unchanged: int = 0
    empty: int = 0
    left_out: int = 0
    embedded: int = 0
    removed: int = 0

    def to_wire(self) -> dict[str, int]:
        """Return it in the form of results."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How documents become passages.

    Attributes:
        name: Of the set: the passages that a pass may remove.
        tokens: Most tokens of a passage.
        overlap: Tokens that a passage shares with the one before it.
        batch: Passages that are embedded at once.
        dimensions: Of a new collection whose server embeds, or None.
    """

    name: str
    tokens: int
    overlap: int
    batch: int
    dimensions: int | None

    @classmethod
    def of(cls, spec: SpecReader) -> SyncOptions:
        """Read the blocks `documents` and `embedding` of a task."""
        documents, embedding = spec.child("documents"), spec.child("embedding")
        chunk = documents.child("chunk")
        tokens = chunk.integer("tokens", CHUNK_TOKENS, minimum=1)
        overlap = chunk.integer("overlap", min(CHUNK_OVERLAP, tokens - 1))
        if overlap >= tokens:
            raise UserError(f"{chunk.path}.overlap must be less than tokens ({tokens}), found {overlap}")
        dimensions = embedding.integer("dimensions", 0)
        batch = embedding.integer("batch_size", 32, minimum=1)
        return cls(documents.text("set") or "documents", tokens, overlap, batch, dimensions or None)


def ready_collection(
    spec: Mapping[str, Any], sources: SourceLookup, models: EmbeddingModels, context: ExecutionContext
) -> tuple[RagCollection, SyncReport | None]:
    """Open the collection of `spec`, bring it up to date with its documents if it has some, and check it.

    Args:
        spec: A mapping with the blocks `qdrant`, `embedding`, `search` and `documents` of a rag task; resolved.
        sources: Mirrors, allowed hosts and local paths of the request.
        models: The models of this process, which stay loaded.
        context: Receives events, and tells of a cancellation.

    Returns:
        The collection, which the caller closes, and what was done with the documents.

    Raises:
        UserError: The spec, a document, a model or the collection is at fault; one line.
        ArtifactError: Something cannot be reached now.
        Cancelled: The task was cancelled.
    """
    collection, report = RagCollection.open(spec, sources, models, check=context.check, phase=context.phase), None
    reader = SpecReader(spec)
    try:
        if reader.get("documents") is not None:
            wanted = reader.child("documents")
            found = DocumentSources(wanted, sources, lambda text: context.log(text, "warning"), context.check)
            report = CollectionSync(collection, SyncOptions.of(reader), context).run(found.documents())
            report.left_out = found.left_out
            context.log("documents: " + ", ".join(f"{count} {name}" for name, count in report.to_wire().items()))
        collection.check()
    except BaseException:
        collection.close()
        raise
    return collection, report


class CollectionSync:
    """One pass over the documents of a task.

    The passages of a document are written before those that they replace are removed, and a document counts as there
    only with all its passages: a pass that was cut off is completed by the next one.

    Args:
        collection: The open collection.
        options: How documents become passages.
        context: Receives events.
    """

    def __init__(self, collection: RagCollection, options: SyncOptions, context: ExecutionContext) -> None:
        self._collection = collection
        self._client = collection.client
        self._name = collection.address.collection
        self._options = options
        self._context = context
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self.report = SyncReport()

    def run(self, documents: Iterable[RagDocument]) -> SyncReport:
        """Make the collection hold exactly the passages of `documents`, apart from those of other sets.

        Raises:
            UserError: A document, the model or the collection is at fault.
            ArtifactError: Something cannot be reached now.
            Cancelled: The task was cancelled; the next pass goes on from here.
        """
        self._check_window()
        with store_errors(self._collection.address):
            self._create()
        self._collection.check()
        with store_errors(self._collection.address):
            self._update(documents)
        return self.report

    def _update(self, documents: Iterable[RagDocument]) -> None:
        self._context.phase("reading the collection")
        there = self._existing()
        replaced: list[str] = []
        named: set[str] = set()
        for document in documents:
            self._context.check()
            named.add(document.source)
            self.report.documents += 1
            digest = self._digest(document)
            held = there.get(document.source, {})
            replaced += [id_ for other, ids in held.items() if other != digest for id_ in ids]
            self._add(document, digest, held.get(digest, {}))
            self._context.phase(f"documents: {self.report.documents} read, {self.report.embedded} passages embedded")
        self._flush(0)
        gone = [id_ for source, held in there.items() if source not in named for ids in held.values() for id_ in ids]
        self._remove([*replaced, *gone])

    def _add(self, document: RagDocument, digest: str, held: dict[str, int]) -> None:
        """Add the passages of a document that are not there yet; `held` has ids, and how many there should be."""
        if held and set(held.values()) == {len(held)}:
            self.report.unchanged += 1
            return
        passages = list(self._passages(document))
        self.report.empty += not passages
        for number, (text, page) in enumerate(passages):
            id_ = str(uuid.uuid5(_NAMES, "\0".join((self._options.name, document.source, digest, str(number)))))
            if id_ in held:
                continue
            payload = {
                **document.metadata,
                "text": text,
                "source": document.source,
                "chunk": number,
                **({"page": page} if page is not None else {}),
                OWN: {"set": self._options.name, "sha256": digest, "chunks": len(passages), **self._model()},
            }
            self._waiting.append((id_, payload))
            self._flush(self._options.batch)

    def _flush(self, least: int) -> None:
        """Embed and write what waits, if it is at least so much."""
        from qdrant_client import models

        while self._waiting and len(self._waiting) >= least:
            self._context.check()
            batch, self._waiting = self._waiting[: self._options.batch], self._waiting[self._options.batch :]
            vectors = self._vectors([payload for _, payload in batch])
            name = self._collection.address.vector
            points = [
                models.PointStruct(id=id_, vector={name: vector} if name else vector, payload=payload)
                for (id_, payload), vector in zip(batch, vectors, strict=True)
            ]
            self._client.upsert(self._name, points, wait=True)
            self.report.embedded += len(batch)

    def _vectors(self, payloads: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        """Return the vectors of passages.

        Raises:
            UserError: The model makes values for one of them that are no numbers.
        """
        texts = [str(payload["text"]) for payload in payloads]
        embedding = self._collection.embedding
        if embedding is not None:
            vectors = embedding.embed_passages(texts)
            for payload, vector in zip(payloads, vectors, strict=True):
                embedding.check_values(vector, f"passage {payload['chunk']} of {payload['source']}")
            return vectors
        from qdrant_client import models

        return [models.Document(text=text, model=str(self._collection.server_model)) for text in texts]

    def _passages(self, document: RagDocument) -> Iterator[tuple[str, int | None]]:
        embedding = self._collection.embedding
        spans_of = word_spans if embedding is None else embedding.token_spans
        for section in document.sections:
            for text in passages_of(section.text, spans_of, self._options.tokens, self._options.overlap):
                yield text, section.page

    def _existing(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return the passages of this set: source -> digest -> id -> how many the document had."""
        from qdrant_client import models

        condition = models.FieldCondition(key=f"{OWN}.set", match=models.MatchValue(value=self._options.name))
        found: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
        offset: Any = None
        while True:
            self._context.check()
            points, offset = self._client.scroll(
                self._name,
                scroll_filter=models.Filter(must=[condition]),
                limit=_PAGE,
                offset=offset,
                with_payload=["source", OWN],
            )
            for point in points:
                payload = point.payload or {}
                notes = payload.get(OWN) or {}
                source, digest = str(payload.get("source")), str(notes.get("sha256"))
                found[source][digest][str(point.id)] = int(notes.get("chunks") or 0)
            if offset is None:
                return found

    def _remove(self, ids: Sequence[str]) -> None:
        from qdrant_client import models

        for start in range(0, len(ids), _PAGE):
            self._context.check()
            part = list(ids[start : start + _PAGE])
            self._client.delete(self._name, models.PointIdsList(points=list(part)), wait=True)
            self.report.removed += len(part)

    def _create(self) -> None:
        """Create the collection if it is not there."""
        from qdrant_client import models

        if self._client.collection_exists(self._name):
            return
        embedding, address = self._collection.embedding, self._collection.address
        size = embedding.dimensions if embedding is not None else self._options.dimensions
        if size is None:
            raise UserError(
                f"there is no collection '{self._name}' at {address.shown}, and only the server knows its model: "
                "create it, or name the length of its vectors in spec.embedding.dimensions"
            )
        params = models.VectorParams(size=size, distance=models.Distance.COSINE)
        config = {address.vector: params} if address.vector else params
        self._client.create_collection(self._name, vectors_config=config)
        if address.url is not None:  # embedded collections have no indexes
            self._client.create_payload_index(self._name, f"{OWN}.set", models.PayloadSchemaType.KEYWORD)

    def _check_window(self) -> None:
        embedding = self._collection.embedding
        if embedding is None or embedding.window is None or self._options.tokens <= embedding.window:
            return
        raise UserError(
            f"spec.documents.chunk.tokens is {self._options.tokens}, but {embedding.location.identifier} reads only "
            f"{embedding.window} tokens of a passage; the rest could not be found"
        )

    def _digest(self, document: RagDocument) -> str:
        return document.digest(self._options.tokens, self._options.overlap, self._model().get("fingerprint"))

    def _model(self) -> dict[str, str]:
        embedding = self._collection.embedding
        if embedding is None:
            name = str(self._collection.server_model)
            return {"model": name, "fingerprint": f"server:{name}"}
        return {"model": embedding.location.identifier, "fingerprint": embedding.location.fingerprint}
