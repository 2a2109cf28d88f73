"""`rag`: brings a collection up to date, and asks it each query [protocol 4.6, 5]."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mloc_prefect.artifacts.transfer.outgoing import shown_url
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.row_journal import row_key
from mloc_prefect.executors.common.prompt_data import Prompts, load_prompts
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.common.threads import wait_passively
from mloc_prefect.executors.rag.collection_sync import ready_collection
from mloc_prefect.executors.rag.embedding_model import DEFAULT_MODEL, EmbeddingModels
from mloc_prefect.executors.rag.qdrant_store import StoreAddress
from mloc_prefect.executors.sources.models_source import find_model
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.tasks.prompts import DATA_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.execution.row_journal import RowJournal
    from mloc_prefect.executors.rag.rag_collection import RagCollection

_PART = re.compile(r"\{(query|passages)\}")


class RagExecutor:
    """Retrieves the passages of each query.

    The models stay loaded between tasks; a collection is open for one task only, so that others may open its folder.
    Queries that an earlier attempt answered are not asked again.

    Args:
        options: Engine options of the host; unused, because every task brings its own.
    """

    concurrency: ClassVar[int] = 1

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options
        wait_passively()
        self._models = EmbeddingModels()

    @property
    def loaded(self) -> bool:
        """Whether a model is in memory."""
        return self._models.loaded

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Run one task.

        Raises:
            UserError: The spec, a document, a model or the collection is at fault.
            ArtifactError: Something cannot be reached now; another attempt may succeed.
            Cancelled: The task was cancelled.
        """
        started = time.monotonic()
        spec, sources = SpecReader(request.spec), SourceLookup.of(request.settings)
        StoreAddress.of(spec.child("qdrant"), sources)  # before queries are read and models fetched
        context.phase("reading queries")
        queries = load_queries(request, sources)
        keys = _keys(spec, [q.text for q in queries], sources)
        finished = set(context.rows.completed(keys)) if keys else set()
        search = spec.child("search")
        if not queries and spec.get("documents") is None:
            raise UserError("Missing input queries: provide spec.query or spec.data")
        synced: dict[str, int] = {}
        if len(finished) < len(queries) or not queries:
            collection, report = ready_collection(request.spec, sources, self._models, context)
            synced = report.to_wire() if report else {}
            with collection:
                _ask(collection, queries, keys, finished, search, context)
        return _result(spec, request, queries, context.rows, synced, time.monotonic() - started)

    def close(self) -> None:
        """Drop the models and free the memory of the device."""
        self._models.close()


def load_queries(request: ExecutionRequest, sources: SourceLookup) -> Prompts:
    """Return the queries of a task: from `data`, else `query`; an unknown `data.type` counts as none, as in MLOC.

    Raises:
        UserError: The data is at fault, or a query is not text.
    """
    spec = SpecReader(request.spec)
    if spec.child("data").get("type") not in DATA_TYPES:
        only = spec.text("query")
        return load_prompts({"data": {"type": "list", "items": [only]}}, {}, sources) if only else Prompts()
    queries = load_prompts(request.spec, request.upstream, sources)
    for number, query in enumerate(queries):
        fault = query.error or ("a query is text, no chat" if query.messages is not None else None)
        if fault or not query.text.strip():
            raise UserError(f"query {queries.first + number}: {fault or 'it is empty'}")
    return queries


def _keys(spec: SpecReader, queries: Sequence[str], sources: SourceLookup) -> list[str]:
    """Return the identity of each query: what its answer depends on, apart from the content of the collection."""
    qdrant, embedding, search = spec.child("qdrant"), spec.child("embedding"), spec.child("search")
    name, rerank = embedding.text("model") or DEFAULT_MODEL, search.child("rerank")
    on_server = embedding.flag("server_side", default=qdrant.text("url") is not None)
    revision = "server" if on_server else find_model(name, embedding.text("revision"), sources).fingerprint
    settings = {
        **{key: qdrant.get(key) for key in ("url", "path", "collection", "vector")},
        **{key: search.get(key) for key in ("top_k", "score_threshold", "filter")},
        "rerank": dict(rerank.data),
    }
    return [row_key(prompt=query, model=name, revision=revision, sampling=settings) for query in queries]


def _ask(
    collection: RagCollection,
    queries: Prompts,
    keys: Sequence[str],
    finished: set[int],
    search: SpecReader,
    context: ExecutionContext,
) -> None:
    """Ask each query that has no answer yet."""
    top_k, threshold = search.integer("top_k", 5, minimum=1), search.get("score_threshold")
    least = None if threshold is None else search.number("score_threshold", 0.0)
    filters = search.child("filter").data
    if queries:
        context.phase("searching")
    for index, query in enumerate(queries):
        if index in finished:
            continue
        context.check()
        started = time.monotonic()
        found = collection.search(query.text, top_k, filters, least)
        context.rows.append(
            index,
            keys[index],
            output=[passage.to_item() for passage in found],
            finish_reason="stop",
            usage={"results": len(found), "latency_sec": round(time.monotonic() - started, 6)},
        )
        context.progress(len(context.rows), len(queries))


def _result(
    spec: SpecReader,
    request: ExecutionRequest,
    queries: Prompts,
    rows: RowJournal,
    synced: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Return the result object."""
    qdrant, search = spec.child("qdrant"), spec.child("search")
    usage, total = rows.usage(len(queries)), len(queries)
    prompt = search.get("prompt")
    url = qdrant.text("url")
    place = {"url": shown_url(url)} if url else {"url": None, "path": qdrant.text("path")}
    results = int(usage.get("results", 0))
    more = {}
    if isinstance(prompt, str):
        more = {"prompts": _prompts(prompt, queries, rows), "sources": _sources(queries, rows)}
    return {
        "ok": True,
        "executor": "rag",
        "qdrant": {"collection": qdrant.text("collection"), **place},
        "embedding": {"model": spec.child("embedding").text("model") or DEFAULT_MODEL},
        "search": {"top_k": search.integer("top_k", 5, minimum=1)},
        **({"documents": dict(synced)} if synced else {}),
        "queries": _answers(queries, rows),
        **more,
        "usage": {"latency_sec": round(seconds, 4), "num_queries": total, "total_results": results},
        "_summary": {
            "engine": "rag",
            "rows": total,
            "reused_rows": rows.reused if total else 0,
            "results": results,
            **({"embedded": synced["embedded"]} if synced else {}),
        },
    }


def _answers(queries: Prompts, rows: RowJournal) -> Iterator[dict[str, Any]]:
    for row in rows.items(len(queries)):
        query = queries[row["index"]]
        more = {"metadata": query.metadata} if query.metadata else {}
        yield {"index": queries.first + row["index"], "query": query.text, "items": row["output"], **more}


def _prompts(template: str, queries: Prompts, rows: RowJournal) -> Iterator[str]:
    """Yield `search.prompt` for each query. Braces and placeholders in what was retrieved are only text."""
    for row in rows.items(len(queries)):
        passages = [
            f"[{number}] {_source(item['payload'])}\n{item['payload'].get('text', '')}"
            for number, item in enumerate(row["output"], 1)
        ]
        values = {"query": queries[row["index"]].text, "passages": "\n\n".join(passages) or "(nothing was found)"}
        yield _PART.sub(lambda match, known=values: known[match[1]], template)  # type: ignore[misc]


def _sources(queries: Prompts, rows: RowJournal) -> Iterator[dict[str, Any]]:
    """Yield what each prompt was made from, as metadata of a later stage."""
    for row in rows.items(len(queries)):
        named = [
            {"number": n, "source": _source(i["payload"]), "score": i["score"]} for n, i in enumerate(row["output"], 1)
        ]
        yield {"query": queries[row["index"]].text, "sources": named}


def _source(payload: Mapping[str, Any]) -> str:
    source, page = payload.get("source"), payload.get("page")
    return f"{source}, page {page}" if page is not None else str(source or "unnamed")
