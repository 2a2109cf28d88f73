"""Retrieval from a server over HTTP, and every mistake as one line: server, collection, model, documents, roots."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from qdrant_client.models import PointStruct

from mloc_prefect.artifacts.transfer.outgoing import TransferError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.rag.rag_collection import RagCollection
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.trust.input_roots import InputRoots
from tests.support.documents import FACTS, pdf_of
from tests.support.qdrant_stub import QdrantStub
from tests.support.rag_bench import RagBench, found
from tests.support.site import free_ports
from tests.support.smollm import embedding_mirrors
from tests.support.tiny_encoder import save_tiny_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEMS = [fact.text for fact in FACTS[:3]]
ONE_LINE = 600


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> RagBench:
    return RagBench(tmp_path_factory.mktemp("rag"), embedding_mirrors())


@pytest.fixture
def bench(shared: RagBench, tmp_path: Path) -> RagBench:
    shared.root = tmp_path
    shared.settings = {**shared.settings, "base_dir": str(tmp_path), "home": str(tmp_path / "home"), "inputs": None}
    shared.cancelled, shared.on_event = threading.Event(), lambda _event: None
    return shared


@pytest.fixture
def server() -> Iterator[QdrantStub]:
    with QdrantStub(key="s3cret-key") as stub:
        yield stub


def remote(server: QdrantStub, **more: str) -> dict[str, str]:
    return {"url": server.url, "collection": "facts", "api_key": "s3cret-key", **more}


def fault(bench: RagBench, kind: type[Exception] = UserError, **spec: Any) -> str:
    with pytest.raises(kind) as caught:
        bench(**spec)
    text = getattr(caught.value, "message", None) or str(caught.value)
    assert "\n" not in text
    assert len(text) < ONE_LINE
    assert "s3cret" not in text
    return text


def test_a_server_is_filled_and_asked_with_vectors_from_here(bench: RagBench, server: QdrantStub) -> None:
    spec: dict[str, Any] = {
        "qdrant": remote(server),
        "embedding": {"server_side": False},
        "documents": {"items": ITEMS},
        "query": FACTS[1].question,
        "search": {"top_k": 1, "filter": {"chunk": 0}},
    }
    assert found(bench(**spec), "text") == [[FACTS[1].text]]
    assert "PUT /collections/facts/index" in server.calls
    server.calls.clear()
    result = bench(**{**spec, "documents": {"items": ITEMS[1:]}})
    assert result["documents"]["removed"] == 3, "items have moved, so their names are those of other texts"
    assert result["qdrant"] == {"collection": "facts", "url": server.url}


def test_a_server_that_embeds_gets_texts_as_in_mloc(bench: RagBench) -> None:
    asked: list[str] = []

    def embed(texts: Any) -> list[list[float]]:
        asked.extend(texts)
        return [[float("capital" in text), float("energy" in text), 0.1] for text in texts]

    with QdrantStub(embed=embed) as server:
        qdrant = {"url": server.url, "collection": "c"}
        spec: dict[str, Any] = {"qdrant": qdrant, "documents": {"items": ITEMS}, "search": {"top_k": 1}}
        text = fault(bench, **spec, query="energy?")
        assert "spec.embedding.dimensions" in text
        result = bench(**spec, query="energy?", embedding={"dimensions": 3, "model": "some/model"})
    assert found(result, "text") == [[ITEMS[1]]]
    assert asked == [*ITEMS, "energy?"]
    assert result["embedding"] == {"model": "some/model"}


def test_what_a_server_refuses_is_one_line(bench: RagBench, server: QdrantStub) -> None:
    here = {"server_side": False}
    assert "answered 403: forbidden; check spec.qdrant.api_key" in fault(
        bench, qdrant=remote(server, api_key="wrong"), embedding=here, query="x"
    )
    text = fault(bench, qdrant=remote(server), embedding=here, query="x")
    assert f"there is no collection 'facts' at {server.url}; it has no collections" in text
    bench(qdrant=remote(server), embedding=here, documents={"items": ITEMS})
    text = fault(bench, qdrant=remote(server, collection="fakts"), embedding=here, query="x")
    assert "there is no collection 'fakts'" in text
    assert "it has: facts" in text
    text = fault(bench, qdrant=remote(server), query="x")
    assert "answered 400: Wrong input: InferenceService is not initialized" in text
    small = str(save_tiny_encoder(bench.root / "small", hidden=32))
    text = fault(bench, qdrant=remote(server), embedding={**here, "model": small}, query="x")
    assert f"at {server.url} has vectors of 384 dimensions, but {small} makes 32" in text
    server.fail = [500]
    assert "answered 500: asked to fail" in fault(
        bench, TransferError, qdrant=remote(server), embedding=here, query="x"
    )


def test_a_server_that_is_not_there_is_tried_again_and_named(bench: RagBench) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(TransferError) as caught:
        bench(qdrant={"url": url, "collection": "c"}, query="x")
    assert caught.value.retryable
    assert f"Qdrant at {url} cannot be reached: " in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://10.1.2.3:6333", "host '10.1.2.3' of http://10.1.2.3:6333 is not allowed"),
        ("https://cluster.example", "host 'cluster.example' of https://cluster.example:6333 is not allowed"),
        ("http://127.0.0.1:80", "port 80"),
        ("http://user:s3cret@127.0.0.1:6333", "has a login"),
        ("http://[::1", "is not a URL"),
    ],
)
def test_only_allowed_hosts_are_called(bench: RagBench, url: str, words: str) -> None:
    assert words in fault(bench, qdrant={"url": url, "collection": "c"}, query="x")


def test_another_model_is_one_line(bench: RagBench) -> None:
    qdrant = {"path": "store", "collection": "c"}
    bench(qdrant=qdrant, documents={"items": ITEMS})
    small, same = (save_tiny_encoder(bench.root / name, hidden=size) for name, size in (("small", 32), ("same", 384)))
    text = fault(bench, qdrant=qdrant, embedding={"model": str(small)}, query="x")
    assert f"has vectors of 384 dimensions, but {small} makes 32; use the model that filled it" in text
    text = fault(bench, qdrant=qdrant, embedding={"model": str(same)}, query="x")
    assert "was filled with sentence-transformers/all-MiniLM-L6-v2" in text
    with RagCollection.open({"qdrant": qdrant}, SourceLookup.of(bench.settings), bench.executor._models) as collection:
        collection.client.upsert("c", [PointStruct(id=0, vector=[1.0] * 384, payload={"by": "another program"})])
    text = fault(bench, qdrant=qdrant, embedding={"model": str(same)}, query="x")
    assert "was filled with sentence-transformers/all-MiniLM-L6-v2" in text, (
        "a point of others hides ours from no check"
    )
    (same / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "os.path"}]')
    text = fault(bench, qdrant=qdrant, embedding={"model": str(same)}, query="x")
    assert "names 'os.path', which is no class of sentence-transformers" in text
    text = fault(bench, qdrant={**qdrant, "collection": "d"}, query="x")
    assert f"there is no collection 'd' at {bench.root / 'store'}; it has: c" in text
    text = fault(bench, qdrant=qdrant, embedding={"model": "no/such-model"}, query="x")
    assert "model 'no/such-model' was not found in any of three places" in text


def test_a_reranker_orders_what_was_found(bench: RagBench) -> None:
    model = save_tiny_encoder(bench.root / "rater", hidden=32, labels=1)
    spec: dict[str, Any] = {"qdrant": {"path": ":memory:", "collection": "c"}, "documents": {"items": ITEMS}}
    result = bench(**spec, query="capital", search={"top_k": 2, "rerank": {"model": str(model), "candidates": 3}})
    scores = [item["score"] for item in result["queries"][0]["items"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    two = save_tiny_encoder(bench.root / "two", hidden=32, labels=2)
    assert "gives 2 values for a passage" in fault(bench, **spec, query="x", search={"rerank": {"model": str(two)}})


def test_documents_that_cannot_be_read_are_named_or_left_out(bench: RagBench) -> None:
    (bench.root / "docs").mkdir()
    (bench.root / "docs/bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    (bench.root / "docs/good.pdf").write_bytes(pdf_of(["A good page."]))
    spec: dict[str, Any] = {"qdrant": {"path": ":memory:", "collection": "c"}, "query": "x"}
    text = fault(bench, **spec, documents={"paths": ["docs"], "skip_unreadable": False})
    assert "1 documents cannot be used: docs/bad.pdf: its PDF cannot be read" in text
    result = bench(**spec, documents={"paths": ["docs"]})
    assert found(result) == [["docs/good.pdf"]]
    assert result["documents"] == {
        "documents": 1,
        "unchanged": 0,
        "empty": 0,
        "left_out": 1,
        "embedded": 1,
        "removed": 0,
    }
    assert any("docs/bad.pdf" in line for line in bench.texts("log"))
    assert "paths: none does not exist" in fault(bench, **spec, documents={"paths": ["none"]})
    text = fault(bench, **spec, documents={"items": ITEMS, "chunk": {"tokens": 300}})
    assert "reads only 254 tokens of a passage" in text


def test_a_folder_with_other_files_is_no_store(bench: RagBench) -> None:
    (bench.root / "mine").mkdir()
    (bench.root / "mine/letter.txt").write_text("keep me")
    text = fault(bench, qdrant={"path": "mine", "collection": "c"}, documents={"items": ITEMS})
    assert "holds other files, so it is no folder of collections" in text
    (bench.root / "mine/meta.json").write_text("{}")
    text = fault(bench, qdrant={"path": "mine", "collection": "c"}, documents={"items": ITEMS})
    assert "cannot be opened" in text


def test_submitted_specs_stay_inside_their_roots(bench: RagBench, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    work = tmp_path / "work"
    (work / "docs").mkdir(parents=True)
    (work / "docs/link.txt").symlink_to(outside / "secret.txt")
    roots = InputRoots(results=tmp_path / "results", home=tmp_path / "home", working=work)
    bench.settings |= {"inputs": roots.to_wire(), "base_dir": str(work)}
    memory = {"path": ":memory:", "collection": "c"}
    for path in (str(outside / "secret.txt"), "../secret.txt", "docs", f"file://{outside}/secret.txt", "/etc/passwd"):
        text = fault(bench, qdrant=memory, documents={"paths": [path]}, query="x")
        assert "outside the folders that submitted specs may read" in text
    text = fault(bench, qdrant=memory, documents={"paths": ["zip://x.txt::/etc/a.zip"]}, query="x")
    assert "no kind of URL for submitted specs" in text
    for path in (str(outside / "store"), "../store", str(tmp_path / "results/t1/store"), ".hidden"):
        text = fault(bench, qdrant={"path": path, "collection": "c"}, documents={"items": ITEMS})
        assert "spec" in text or "outside" in text
    assert not (outside / "store").exists()
    assert bench(qdrant={"path": "store", "collection": "c"}, documents={"items": ITEMS})["documents"]["embedded"] == 3


def test_values_that_are_no_numbers_are_refused_by_name_and_not_stored(
    bench: RagBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    qdrant, model = {"path": "store", "collection": "c"}, "sentence-transformers/all-MiniLM-L6-v2"
    bench(qdrant=qdrant, documents={"items": ITEMS[:1]}, query="x")
    loaded = bench.executor._models._embedding
    assert loaded is not None
    plain = loaded.model.encode_document

    def broken(texts: Any, **more: Any) -> Any:
        rows = plain(texts, **more)
        rows[[ITEMS[1] in text for text in texts]] = float("inf")
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(loaded.model, "encode_document", broken)
        text = fault(bench, qdrant=qdrant, documents={"items": ITEMS}, query="x")
    assert f"{model} makes values that are no numbers (NaN or infinity) for passage 0 of items[1]" in text
    with monkeypatch.context() as patch:
        patch.setattr(loaded.model, "encode_query", lambda *_args, **_more: [float("nan")] * 384)
        text = fault(bench, qdrant=qdrant, query="which?")
    assert f"{model} makes values that are no numbers (NaN or infinity) for the query 'which?'" in text
    assert found(bench(qdrant=qdrant, query="x")) == [["items[0]"]]


def test_an_address_that_cannot_be_used_ends_a_task_before_it_loads_a_model(bench: RagBench) -> None:
    phases = bench.texts("phase")
    for more, words in (
        ({"api_key": "s3cret\nkey"}, "spec.qdrant.api_key cannot be sent"),
        ({"url": "http://user:s3cret@127.0.0.1:6333"}, "spec.qdrant.url has a login"),
        ({"url": "http://127.0.0.1:6333?api_key=s3cret"}, "spec.qdrant.url has a query"),
    ):
        qdrant = {"url": "http://127.0.0.1:6333", "collection": "c", **more}
        assert words in fault(bench, qdrant=qdrant, embedding={"server_side": False, "model": "no/such"}, query="x")
        phases = bench.texts("phase")
        assert phases == []
