"""`rag`: passages from Qdrant for each query [protocol 4.6]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mloc_prefect.tasks.base import ExecutorRef, Problem, SpecModel, TaskType
from mloc_prefect.tasks.common import CommonSpec, url_problems
from mloc_prefect.tasks.fields import Count, Text, block
from mloc_prefect.tasks.prompts import DATA_TYPES, PromptData

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.tasks.base import TaskSpec


class Qdrant(SpecModel):
    """`qdrant`."""

    url: Text | None = None
    collection: Text | None = None
    api_key: Text | None = None


class Embedding(SpecModel):
    """`embedding`."""

    model: Text = "sentence-transformers/all-MiniLM-L6-v2"


class Search(SpecModel):
    """`search`."""

    top_k: Count = 5


class RagSpec(CommonSpec):
    """`spec` of a rag task."""

    qdrant: Annotated[Qdrant, block()] = Qdrant()
    embedding: Annotated[Embedding, block()] = Embedding()
    search: Annotated[Search, block()] = Search()
    data: Annotated[PromptData | None, block()] = None
    query: Text | None = None

    def problems(self) -> Iterator[Problem]:
        """Yield what MLOC's worker would refuse."""
        yield from super().problems()
        if not self.qdrant.url:
            yield Problem(
                ("qdrant", "url"), "missing-value", "Missing spec.qdrant.url", "add the URL of the Qdrant server"
            )
        else:
            yield from url_problems(("qdrant", "url"), self.qdrant.url)
        if not self.qdrant.collection:
            message = "Missing spec.qdrant.collection"
            yield Problem(("qdrant", "collection"), "missing-value", message, "name the collection to search")
        kind = self.data.type if self.data else None
        if self.data is not None and kind in DATA_TYPES:
            yield from self.data.problems()
        elif not self.query:
            message = "Missing input queries: provide spec.query or spec.data"
            yield Problem(
                ("data", "type"),
                "missing-data",
                message,
                "add query, or data: with type list, dataset or graph_template",
            )


def _executor(_spec: TaskSpec) -> ExecutorRef:
    return ExecutorRef(
        "mloc_prefect.executors.rag:RagExecutor",
        extra="rag",
        environment="rag",
        imports=("qdrant_client", "sentence_transformers"),
    )


def _model(spec: TaskSpec) -> str | None:
    return spec.embedding.model if isinstance(spec, RagSpec) else None


RAG = TaskType("rag", RagSpec, _executor, "passages from Qdrant for each query", model_identifier=_model)
