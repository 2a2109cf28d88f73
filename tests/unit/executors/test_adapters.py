"""Which adapter a task gets, how it is scaled, and several of them as one."""

from __future__ import annotations

import json
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts.archive import pack
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.adapters import find_adapter
from mloc_prefect.executors.common.checkpoint_source import checkpoint_of
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def places(tmp_path: Path) -> SourceLookup:
    return SourceLookup.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path)})


def adapter_in(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16, **config}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def find(spec: dict[str, Any], places: SourceLookup, tmp_path: Path) -> Any:
    return find_adapter(
        SpecReader(spec), places, tmp_path / "results" / "t", tmp_path / "results" / "t" / "attempts" / "1"
    )


def test_adapters_by_path_and_by_task(places: SourceLookup, tmp_path: Path) -> None:
    adapter_in(tmp_path / "a")
    adapter_in(tmp_path / "results" / "before" / "final_lora", r=4)
    by_path = find({"model": {"adapters": [{"path": "a", "name": "mine"}]}}, places, tmp_path)
    assert (by_path.name, by_path.rank, by_path.path) == ("mine", 8, str(tmp_path / "a"))
    by_task = find({"model": {"adapters": [{"taskId": "before"}]}}, places, tmp_path)
    assert by_task.rank == 4
    loaded = find({"checkpoint": {"load": {"path": str(tmp_path / "a")}}}, places, tmp_path)
    assert loaded.fingerprint == by_path.fingerprint
    assert find({}, places, tmp_path) is None


def test_a_scaled_adapter_is_another_one(places: SourceLookup, tmp_path: Path) -> None:
    adapter_in(tmp_path / "a")
    plain = find({"model": {"adapters": [{"path": "a"}]}}, places, tmp_path)
    scaled = find({"model": {"adapters": [{"path": "a", "scale": 0.5}]}}, places, tmp_path)
    assert scaled.fingerprint != plain.fingerprint
    assert json.loads((Path(scaled.path) / "adapter_config.json").read_text())["lora_alpha"] == 8
    assert (Path(scaled.path) / "adapter_model.safetensors").read_bytes() == b"weights"


def lora(folder: Path, seed: int, rank: int, layers: tuple[str, ...], **config: Any) -> dict[str, Any]:
    """Save an adapter of 6 x 4 layers; return what it adds to each."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    adapter_in(folder, r=rank, lora_alpha=3 * rank, **config)
    stems = [f"base_model.model.model.{layer}" for layer in layers]
    downs, ups = [torch.randn(rank, 4) for _ in stems], [torch.randn(6, rank) for _ in stems]
    tensors = {f"{stem}.lora_A.weight": down for stem, down in zip(stems, downs, strict=True)}
    tensors |= {f"{stem}.lora_B.weight": up for stem, up in zip(stems, ups, strict=True)}
    save_file(tensors, folder / "adapter_model.safetensors")
    scaling = 3 * rank / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return {stem: scaling * up @ down for stem, down, up in zip(stems, downs, ups, strict=True)}


def test_several_adapters_change_the_model_as_all_of_them_do(places: SourceLookup, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    first = lora(tmp_path / "a", 1, 2, ("0.q_proj", "1.q_proj"))
    second = lora(tmp_path / "b", 2, 3, ("1.q_proj", "1.v_proj"), use_rslora=True)
    listed = [{"path": "a", "name": "one"}, {"path": "b", "name": "two", "scale": -0.5}]
    found = find({"model": {"adapters": listed}}, places, tmp_path)
    assert (found.name, found.rank) == ("one+two", 5)
    config = json.loads((Path(found.path) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (5, 5, ["q_proj", "v_proj"])
    tensors = load_file(Path(found.path) / "adapter_model.safetensors")
    stems = {name.rpartition(".lora_")[0] for name in tensors}
    assert stems == {*first, *second}
    for stem in stems:
        wanted = first.get(stem, torch.zeros(6, 4)) - 0.5 * second.get(stem, torch.zeros(6, 4))
        given = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
        assert torch.allclose(given, wanted, atol=1e-5), stem
    from_checkpoint = {"checkpoint": {"load": {"path": str(tmp_path / "a")}}, "model": {"adapters": listed[1:]}}
    assert find(from_checkpoint, places, tmp_path).fingerprint == found.fingerprint
    assert find({"model": {"adapters": listed[:1] * 2}}, places, tmp_path).fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("config", "problem"),
    [({"use_dora": True}, "it uses use_dora"), ({"bias": "all"}, "it uses bias"), ({"wide": 1}, "different sizes")],
)
def test_adapters_that_cannot_be_combined(places: SourceLookup, tmp_path: Path, config: Any, problem: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    lora(tmp_path / "a", 1, 2, ("0.q_proj",))
    lora(tmp_path / "b", 2, 2, ("0.q_proj",), **config)
    if "wide" in config:
        tensors = {k: torch.randn(v.shape[0] + 1, v.shape[1]) for k, v in load_file(tmp_path / "b" / WEIGHTS).items()}
        save_file(tensors, tmp_path / "b" / WEIGHTS)
    with pytest.raises(UserError, match=problem):
        find({"model": {"adapters": [{"path": "a"}, {"path": "b"}]}}, places, tmp_path)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"model": {"adapters": [{"path": "x"}]}}, r"^spec\.model\.adapters\[0\]: Checkpoint path x not found"),
        ({"model": {"adapters": [{"path": "."}]}}, "holds no adapter_config.json"),
        ({"model": {"adapters": [{"path": "https://x/y.zip"}]}}, "host 'x' of https://x/y.zip is not allowed"),
        ({"model": {"adapters": [{"path": "sftp://x/y"}]}}, "host 'x' of"),
        ({"model": {"adapters": [{"path": "plain.bin"}]}}, "is a file, but no zip or tar archive"),
        ({"model": {"adapters": [{"url": "https://x/y"}]}}, "host 'x' of https://x/y is not allowed"),
        ({"model": {"adapters": [{"name": "n"}]}}, "needs path, task_id, or url"),
        ({"model": {"adapters": [{"type": "ia3", "path": "x"}]}}, "must be lora"),
        ({"checkpoint": {"load": {"type": "http", "url": "https://x/y"}}}, "host 'x' of https://x/y is not allowed"),
        ({"checkpoint": {"load": {"path": "nowhere"}}}, "Checkpoint path nowhere not found"),
    ],
)
def test_adapters_that_cannot_be(places: SourceLookup, tmp_path: Path, spec: dict[str, Any], problem: str) -> None:
    (tmp_path / "plain.bin").write_bytes(b"0" * 99)
    with pytest.raises(UserError, match=problem):
        find(spec, places, tmp_path)


@pytest.mark.parametrize("field", ["path", "url"])
@pytest.mark.parametrize(
    "place", ["mine.zip", "{base}/mine.zip", "file://{base}/mine.zip", "file://{base}/mine", "mine"]
)
def test_adapters_by_archive_and_by_url(field: str, place: str, places: SourceLookup, tmp_path: Path) -> None:
    plain = pack(adapter_in(tmp_path / "mine", r=4), tmp_path / "mine.zip")
    entry = {field: place.format(base=tmp_path)}
    found = find({"model": {"adapters": [entry]}}, places, tmp_path)
    assert (found.name, found.rank) == ("mine", 4)
    scaled = find({"model": {"adapters": [{**entry, "scale": 2}]}}, places, tmp_path)
    assert json.loads((Path(scaled.path) / "adapter_config.json").read_text())["lora_alpha"] == 32
    with pytest.raises(UserError, match=r"^spec\.model\.adapters\[0\]: .* sha256 is"):
        find({"model": {"adapters": [{**entry, "sha256": "0" * 64}]}}, places, tmp_path)
    if not place.startswith("file://") or place.endswith(".zip"):
        assert find({"model": {"adapters": [{**entry, "sha256": plain.sha256}]}}, places, tmp_path).rank == 4


def test_the_digest_of_the_adapter_of_a_task(places: SourceLookup, tmp_path: Path) -> None:
    folder = adapter_in(tmp_path / "results" / "before" / "final_lora", r=4)
    sha = pack(folder, folder.with_name("final_lora.zip")).sha256
    assert find({"model": {"adapters": [{"taskId": "before", "sha256": sha}]}}, places, tmp_path).rank == 4
    with pytest.raises(UserError, match=rf"another file: its sha256 is {sha}"):
        find({"model": {"adapters": [{"taskId": "before", "sha256": "0" * 64}]}}, places, tmp_path)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("[]", r"adapter_config\.json is not a mapping"),
        ('{"r": 4, "lora_alpha": "much"}', r"adapter_config\.json\.lora_alpha must be a"),
    ],
)
def test_configurations_that_are_none(config: str, problem: str, places: SourceLookup, tmp_path: Path) -> None:
    (adapter_in(tmp_path / "a") / "adapter_config.json").write_text(config)
    with pytest.raises(UserError, match=problem):
        find({"model": {"adapters": [{"path": "a", "scale": 2}]}}, places, tmp_path)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """An endpoint that has the adapter of the task `far`, whose results are not on this file system."""
    folder = tmp_path / "remote" / "api" / "v1" / "results" / "far" / "files"
    folder.mkdir(parents=True)
    pack(adapter_in(tmp_path / "made", r=6), folder / "final_lora.zip")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "remote"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_adapter_of_a_task_on_another_machine_is_fetched(endpoint: str, tmp_path: Path) -> None:
    settings = {"home": str(tmp_path / "home"), "base_dir": str(tmp_path), "loopback": True}
    known, unknown = SourceLookup.of({**settings, "base_url": endpoint}), SourceLookup.of(settings)
    by_task = {"model": {"adapters": [{"taskId": "far"}]}}
    assert find(by_task, known, tmp_path).rank == 6
    with pytest.raises(UserError, match=r"model\.adapters\[0\]: far holds no adapter_config\.json"):
        find(by_task, unknown, tmp_path)
    url = f"{endpoint}/api/v1/results/far/files/final_lora.zip"
    assert find({"model": {"adapters": [{"taskId": "far", "url": url}]}}, unknown, tmp_path).rank == 6
    by_path = find({"model": {"adapters": [{"path": url}]}}, unknown, tmp_path)
    assert (by_path.name, by_path.rank) == ("final_lora", 6)
    for wrong in ({"taskId": "far", "url": url}, {"path": url}):
        with pytest.raises(UserError, match="its sha256 is"):
            find({"model": {"adapters": [{**wrong, "sha256": "0" * 64}]}}, unknown, tmp_path)


def test_checkpoint_of_another_task(places: SourceLookup, tmp_path: Path) -> None:
    (tmp_path / "results" / "before" / "final_model" / "sub").mkdir(parents=True)
    spec = SpecReader({"checkpoint": {"load": {"task_id": "before", "subdir": "sub"}}})
    found = checkpoint_of(spec, places, tmp_path / "results" / "t")
    assert found == tmp_path / "results" / "before" / "final_model" / "sub"
