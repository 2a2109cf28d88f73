"""`rag`: retrieves passages from Qdrant for each query [protocol 4.6].

Not in MLOC: embedded collections (`qdrant.path`), documents that the spec itself brings in, embedding in this process,
filters, thresholds, rerankers and prompts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from mloc_prefect.tasks.base import ExecutorRef, SpecModel, SpecProblem, TaskType
from mloc_prefect.tasks.common import CommonSpec, url_problems
from mloc_prefect.tasks.fields import (
    Count,
    ExactText,
    Flag,
    Free,
    ItemText,
    NotNegative,
    Positive,
    Text,
    block,
    is_deferred,
    number,
    rows,
)
from mloc_prefect.tasks.passage_filters import filter_fault
from mloc_prefect.tasks.prompts import DATA_TYPES, PromptData
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.tasks.base import TaskSpec

CHUNK_TOKENS, CHUNK_OVERLAP = 200, 40
"""Tokens of a passage, and of those how many it shares with the one before it, for documents that name neither."""

READING_SECONDS = 120.0
"""Time that reading one document may take, for documents that name none."""

FOLDER_SECONDS = 3600.0
"""Time to wait for a folder of collections that another task uses, for specs that name none."""

PASSAGE_FIELDS = ("text", "source", "chunk", "page", "mloc")
"""Names that ingestion gives to fields of a passage; metadata cannot have them."""

_MEMORY = ":memory:"
_PARTS = re.compile(r"\{(\w*)\}")


class Qdrant(SpecModel):
    """`qdrant`: a server, or an embedded collection."""

    url: Text | None = None
    path: Text | None = None
    collection: Text | None = None
    api_key: Text | None = None
    vector: Text | None = None
    timeout_sec: Positive | None = Field(None, alias="timeoutSec")
    wait_sec: Positive | None = Field(None, alias="waitSec")

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what makes it no place of a collection."""
        if self.url and self.path:
            message = "qdrant has both url and path"
            yield SpecProblem(("qdrant", "path"), "conflicting-values", message, "keep the server or the folder")
        elif self.url:
            yield from url_problems(("qdrant", "url"), self.url)
            if not is_deferred(self.url) and (fault := address_fault(self.url)):
                yield SpecProblem(("qdrant", "url"), "invalid-url", *fault)
        elif not self.path:
            fix = "add the URL of the Qdrant server, or path: a folder, or ':memory:'"
            yield SpecProblem(("qdrant", "url"), "missing-value", "Missing spec.qdrant.url", fix)
        elif ("://" in self.path or local_path(self.path) is None) and not is_deferred(self.path):
            message = "path is a folder of this machine, not a URL"
            yield SpecProblem(("qdrant", "path"), "invalid-url", message, "write url: for a Qdrant server")
        if not self.collection:
            message = "Missing spec.qdrant.collection"
            yield SpecProblem(("qdrant", "collection"), "missing-value", message, "name the collection to search")
        if self.path and self.api_key:
            message = "an embedded collection has no key"
            yield SpecProblem(("qdrant", "api_key"), "ignored-value", message, "remove it", "warning")
        elif self.api_key and not is_deferred(self.api_key) and not can_be_sent(self.api_key):
            message = "api_key has a line break or other characters that cannot be sent"
            yield SpecProblem(("qdrant", "api_key"), "invalid-type", message, "a key is one line of ASCII text")


def address_fault(url: str) -> tuple[str, str] | None:
    """Return what is wrong with the URL of a server, and a fix; neither shows it, for it may hold a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "url is not a URL", "write it as https://host:port"
    if "@" in parts.netloc:
        return "url has a login, which Qdrant does not read", "write the key into qdrant.api_key"
    if parts.query or parts.fragment:
        return "url has a query, which Qdrant does not read", "write the key into qdrant.api_key"
    return None


def can_be_sent(key: str) -> bool:
    """Return whether a key can be the value of a header: one line of ASCII text; white space at its ends is dropped."""
    return key.isascii() and key.strip().isprintable()


class Embedding(SpecModel):
    """`embedding`."""

    model: Text = "sentence-transformers/all-MiniLM-L6-v2"
    revision: Text | None = None
    server_side: Flag | None = None
    dimensions: Count | None = None
    batch_size: Count = 32


class Rerank(SpecModel):
    """`search.rerank`: a cross-encoder that rates what was found."""

    model: Text | None = None
    revision: Text | None = None
    candidates: Count = 50


class Search(SpecModel):
    """`search`."""

    top_k: Count = 5
    score_threshold: Annotated[float | None, number()] = None
    filter: Free = Field(default_factory=dict)
    rerank: Annotated[Rerank, block()] = Rerank()
    prompt: Text | None = None

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what is wrong between its fields."""
        if found := filter_fault(self.filter):
            path = ("search", "filter", *found[0])
            yield SpecProblem(path, "bad-filter", f"{found[0][-1] if found[0] else 'filter'} {found[1]}")
        if "rerank" in self.model_fields_set and self.rerank.model_fields_set and not self.rerank.model:
            message = "search.rerank names no model"
            yield SpecProblem(("search", "rerank", "model"), "missing-value", message, "add a cross-encoder")
        if self.rerank.model and self.rerank.candidates < self.top_k:
            message = f"rerank.candidates is {self.rerank.candidates}, fewer than top_k ({self.top_k})"
            fix = "rate at least as many passages as are wanted"
            yield SpecProblem(("search", "rerank", "candidates"), "out-of-range", message, fix)
        if self.prompt is not None and not is_deferred(self.prompt):
            yield from self._prompt_problems(self.prompt)

    @staticmethod
    def _prompt_problems(prompt: str) -> Iterator[SpecProblem]:
        named = _PARTS.findall(prompt)
        for name in ("passages", "query"):
            if name not in named:
                message = f"search.prompt has no {{{name}}}"
                yield SpecProblem(("search", "prompt"), "bad-template", message, f"write {{{name}}} where it goes")


class DocumentDataset(SpecModel):
    """`documents.dataset`: one document for each row."""

    url: Text | None = None
    name: Text | None = None
    split: ExactText = "train"
    column: Text = "text"
    id_column: Text | None = None
    metadata_columns: Annotated[list[ItemText], rows()] = Field(default_factory=list)
    max_samples: Count | None = None
    revision: Text | None = None


class Chunking(SpecModel):
    """`documents.chunk`: how documents are cut into passages."""

    tokens: Count = CHUNK_TOKENS
    overlap: NotNegative | None = None


class Documents(SpecModel):
    """`documents`: what the collection holds; it is brought up to date before the queries are asked."""

    paths: Annotated[list[ItemText], rows()] = Field(default_factory=list)
    pattern: Text | None = None
    dataset: Annotated[DocumentDataset | None, block()] = None
    items: Annotated[list[Any], rows()] = Field(default_factory=list)
    chunk: Annotated[Chunking, block()] = Chunking()
    set: Text = "documents"
    skip_unreadable: Flag = True
    timeout_sec: Positive | None = Field(None, alias="timeoutSec")

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what is wrong between its fields."""
        named = {"paths", "dataset", "items"} & self.model_fields_set
        if not named:
            message = "documents names none"
            yield SpecProblem(("documents",), "missing-data", message, "add paths, dataset or items")
        if self.dataset is not None and not self.dataset.url:
            message = "documents.dataset names no data set"
            yield SpecProblem(("documents", "dataset", "url"), "missing-value", message, "add its name, path or URL")
        overlap = min(CHUNK_OVERLAP, self.chunk.tokens - 1) if self.chunk.overlap is None else self.chunk.overlap
        if overlap >= self.chunk.tokens:
            message = f"overlap must be less than tokens ({self.chunk.tokens})"
            yield SpecProblem(("documents", "chunk", "overlap"), "out-of-range", message)
        for index, value in enumerate(self.items):
            if not is_deferred(value) and (fault := item_problem(value)):
                yield SpecProblem(("documents", "items", index), "invalid-type", f"items[{index}] {fault}")
        for name in self.dataset.metadata_columns if self.dataset else ():
            if name in PASSAGE_FIELDS:
                message = f"metadata '{name}' has the name of a field that every passage has"
                path = ("documents", "dataset", "metadata_columns")
                yield SpecProblem(path, "invalid-type", message, "rename the column")


def item_problem(value: Any) -> str | None:
    """Return what is wrong with one of `documents.items`, None for text and for a mapping with text."""
    if isinstance(value, str):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return "must be text, or a mapping with text"
    if not isinstance(value.get("source", ""), str):
        return "must have text as its source"
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict) or any(name in PASSAGE_FIELDS for name in metadata):
        return f"must have a mapping as metadata, without {', '.join(PASSAGE_FIELDS)}"
    unknown = sorted(str(name) for name in value.keys() - {"text", "source", "metadata"})
    return f"has an unknown field '{unknown[0]}'; known: text, source, metadata" if unknown else None


class RagSpec(CommonSpec):
    """`spec` of a rag task."""

    qdrant: Annotated[Qdrant, block()] = Qdrant()
    embedding: Annotated[Embedding, block()] = Embedding()
    search: Annotated[Search, block()] = Search()
    documents: Annotated[Documents | None, block()] = None
    data: Annotated[PromptData | None, block()] = None
    query: Text | None = None

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what MLOC's worker would refuse, and what ours would."""
        yield from super().problems()
        yield from self.qdrant.problems()
        yield from self.search.problems()
        if self.documents is not None:
            yield from self.documents.problems()
        yield from self._query_problems()
        yield from self._place_problems()

    def _query_problems(self) -> Iterator[SpecProblem]:
        kind = self.data.type if self.data else None
        if self.data is not None and kind in DATA_TYPES:
            yield from self.data.problems()
            items = self.data.items if kind == "list" else None
            for index, value in enumerate(items or ()):
                if not isinstance(value, str):
                    message = f"items[{index}] must be text: a query is no chat"
                    yield SpecProblem(("data", "items", index), "invalid-type", message)
        elif not self.query and self.documents is None:
            message = "Missing input queries: provide spec.query or spec.data"
            yield SpecProblem(
                ("data", "type"),
                "missing-data",
                message,
                "add query, or data: with type list, dataset or graph_template",
            )

    def _place_problems(self) -> Iterator[SpecProblem]:
        """Yield what the place of the collection rules out."""
        if self.qdrant.path and self.embedding.server_side:
            message = "an embedded collection has no server that could embed"
            yield SpecProblem(("embedding", "server_side"), "conflicting-values", message, "remove server_side")
        if self.qdrant.path == _MEMORY and self.documents is None:
            message = "a collection in memory is empty without documents"
            yield SpecProblem(("qdrant", "path"), "missing-data", message, "add documents, or name a folder")

    @property
    def embeds_here(self) -> bool:
        """Whether queries are embedded by us: always for embedded collections, on request for a server's."""
        asked = self.embedding.server_side
        return not self.qdrant.url if asked is None else not asked


def _executor(spec: TaskSpec) -> ExecutorRef:
    local = not isinstance(spec, RagSpec) or spec.embeds_here or bool(spec.search.rerank.model)
    return ExecutorRef(
        "mloc_prefect.executors.rag:RagExecutor",
        extra="rag",
        environment="rag",
        imports=("qdrant_client", "torch", "sentence_transformers") if local else ("qdrant_client",),
        engine=local,
    )


def _model(spec: TaskSpec) -> str | None:
    return spec.embedding.model if isinstance(spec, RagSpec) else None


def _engine_options(spec: TaskSpec) -> dict[str, Any]:
    """Return the models that the host keeps loaded; collections and queries may differ on a warm host."""
    if not isinstance(spec, RagSpec):
        return {}
    embedding, rerank = spec.embedding, spec.search.rerank
    return {
        "model": embedding.model if spec.embeds_here else None,
        "revision": embedding.revision,
        "rerank": rerank.model,
    }


RAG = TaskType(
    "rag",
    RagSpec,
    _executor,
    "passages from Qdrant for each query",
    engine_options=_engine_options,
    model_identifier=_model,
)
