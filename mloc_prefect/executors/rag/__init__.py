"""Retrieval: passages of a Qdrant collection for each query, and the documents that fill a collection.

Text that was retrieved is data: it is never searched for `${...}`, and names no host, file or tool that anything here
would use. These modules know nothing of prompts for language models and of agents; an agent that retrieves opens a
`RagCollection`. Requests name the executor as `mloc_prefect.executors.rag:RagExecutor`.

* `chunking`: text to passages.
* `collection_sync`: brings a collection up to date with documents.
* `document_sources`: the documents that a spec names.
* `document_text`: text of HTML and other files.
* `embedding_model`: texts to vectors with sentence-transformers.
* `pdf_child`: reads PDF files in a process with limits.
* `pdf_reader`: text of PDF files, through that process.
* `point_filters`: `search.filter` as a filter of Qdrant.
* `qdrant_store`: where a collection is, opening it, and its errors as one line.
* `rag_collection`: search in one collection; the interface for other executors.
* `rag_executor`: the executor class.
"""

from mloc_prefect.executors.rag.rag_executor import RagExecutor

__all__ = ["RagExecutor"]
