"""The transformers executor in this process, on a tiny random model: rows, stops, seeds, failures, reuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mloc_prefect.execution.protocol import Cancelled, ExecutionEvent, UserError
from mloc_prefect.executors.common.rendering import PendingRow
from mloc_prefect.executors.common.sampling import Sampling
from mloc_prefect.executors.transformers import decoding
from tests.support.bench import Bench, outputs
from tests.support.tiny_model import cut_short, reshaped, save_tiny_model, with_nan

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ["one", "two words", "a somewhat longer prompt", "x", "yy", "zzz"]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # barriers between threads cost more than this model's arithmetic
    return Bench(tmp_path, tiny)


def test_the_result_has_the_shape_of_the_protocol(bench: Bench) -> None:
    result = bench(WORDS, system_prompt="Be brief.", seed=5, max_tokens=4)
    assert result["ok"] is True
    assert result["model"] == str(bench.model)
    assert [item["index"] for item in result["items"]] == list(range(6))
    first = result["items"][0]
    assert first["prompt"] == "one"
    assert first["metadata"] == {"prompt": "one", "rendered_prompt": "Be brief.\none"}
    assert {item["finish_reason"] for item in result["items"]} <= {"stop", "length"}
    read = sum(len(f"Be brief.\n{word}") for word in WORDS)  # one token a byte; padding would make it 6 x the longest
    written = sum(row["usage"]["completion_tokens"] for row in bench.journal())
    assert result["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "num_requests": 6,
    }
    summary = result["_summary"]
    assert (summary["engine"], summary["device"], summary["dtype"], summary["rows"]) == (
        "transformers",
        "cpu",
        "float32",
        6,
    )
    last = [e.data for e in bench.events if e.kind == "progress"][-1]
    assert last == {"done": 6, "total": 6, "tokens_in": read, "tokens_out": written}
    assert {"reading data", "importing torch", "loading weights", "generating"} <= set(bench.texts("phase"))


def test_greedy_text_is_that_of_plain_transformers(bench: Bench, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    wanted = []
    for word in WORDS:
        ids = tokenizer(word, return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.3)
        wanted.append(tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    assert outputs(bench(WORDS, **GREEDY, repetition_penalty=1.3, batch_size=1)) == wanted
    assert len(set(wanted)) == len(WORDS)


def test_padding_does_not_change_what_the_repetition_penalty_sees() -> None:
    penalty = decoding._Repetition(2.0, torch.tensor([[0, 0, 1], [1, 1, 1]]))
    ids, scores = torch.tensor([[5, 5, 3, 4], [1, 2, 3, 4]]), torch.ones(2, 6)
    assert penalty(ids, scores).tolist() == [[1, 1, 1, 0.5, 0.5, 1], [1, 0.5, 0.5, 0.5, 0.5, 1]]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.7, "seed": 1}])
def test_a_model_that_gives_no_numbers_fails_its_rows(tmp_path: Path, options: dict[str, Any]) -> None:
    broken = Bench(tmp_path, with_nan(save_tiny_model(tmp_path / "broken")))
    with pytest.raises(UserError, match=r"2 of 2 rows failed .* row 0: the model gives no numbers .*\(at token 1\)"):
        broken(["one", "two"], max_tokens=6, **options)


def test_extreme_options_give_what_their_limit_means(bench: Bench) -> None:
    greedy = outputs(bench(WORDS, **GREEDY, task="greedy"))
    for number, temperature in enumerate((1e-40, 1e-30, 1e-6)):
        assert outputs(bench(WORDS, temperature=temperature, seed=1, max_tokens=12, task=f"cold{number}")) == greedy
    wild = {"temperature": 1e300, "repetition_penalty": 1e-300, "top_p": 1e-300, "seed": 1}
    assert len(outputs(bench(WORDS, **wild, max_tokens=4, task="wild"))) == len(WORDS)


def test_scores_that_are_not_finite_are_found_by_row() -> None:
    check = decoding._ScoreCheck()
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[0.0, -inf], [nan, 0.0], [-inf, -inf], [inf, 0.0]])
    assert check(torch.zeros(4, 1), scores) is scores
    assert check.broken_rows() == [False, True, True, True]


def test_draws_of_a_row_do_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 50)
    rows, sampling = [PendingRow(i, (1,), 3) for i in range(4)], Sampling(seed=7)

    def drawn(chosen: list[int]) -> list[int]:
        batch = [rows[i] for i in chosen]
        processors = decoding._processors(batch, sampling, torch.ones(len(batch), 1), 3)
        return processors(torch.ones(len(batch), 2, dtype=torch.long), logits[chosen]).argmax(-1).tolist()

    together = drawn([0, 1, 2, 3])
    assert [drawn([i])[0] for i in range(4)] == together
    assert drawn([3, 1]) == [together[3], together[1]]


def test_draws_follow_the_probabilities() -> None:
    batch = [PendingRow(i, (1,), 1) for i in range(4000)]
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)
    processors = decoding._processors(batch, Sampling(temperature=1.0, top_p=0.9, seed=1), torch.ones(4000, 1), 1)
    counts = torch.bincount(processors(torch.ones(4000, 1, dtype=torch.long), logits).argmax(-1), minlength=4)
    shares = [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95]
    assert counts[3] == 0  # outside of top_p
    for count, share in zip(counts.tolist(), shares, strict=False):
        assert abs(count / 4000 - share) < 0.03


def test_a_seed_repeats_and_another_one_does_not(bench: Bench) -> None:
    one_by_one = {"max_tokens": 12, "batch_size": 1, "temperature": 1.5}
    first = outputs(bench(WORDS, task="a", seed=1, **one_by_one))
    assert outputs(bench(WORDS, task="b", seed=1, **one_by_one)) == first
    assert outputs(bench(WORDS, task="c", seed=2, **one_by_one)) != first
    assert outputs(bench(["one", "one"], task="d", seed=1, **one_by_one))[0] == first[0]
    twice = outputs(bench(["one", "one"], task="e", seed=1, **one_by_one))
    assert twice[0] != twice[1]


def test_stop_texts_end_the_row_and_are_cut(bench: Bench) -> None:
    free = bench(["two words"], task="free", **GREEDY)
    text = outputs(free)[0]
    stop = text[4:6]
    stopped = bench(["two words"], task="stopped", **GREEDY, stop=["never there", stop])
    assert outputs(stopped)[0] == text[: text.index(stop)]
    assert stopped["items"][0]["finish_reason"] == "stop"
    assert free["items"][0]["finish_reason"] == "length"
    assert stopped["usage"]["completion_tokens"] < free["usage"]["completion_tokens"]


def test_a_special_token_may_be_a_stop_text(bench: Bench) -> None:
    bench(["a"], **GREEDY)
    engine = bench.executor._engine
    assert engine is not None
    finite = decoding._ScoreCheck()
    finite(torch.tensor([[5]]), torch.zeros(1, 4))
    watch = decoding._RowEnds(
        engine,
        [PendingRow(0, (5,), 9)],
        Sampling(stop=("<pad>",)),
        finite,
        lambda _rows: None,
        lambda _answer: None,
    )
    assert watch(torch.tensor([[5, 9]]), None).tolist() == [False]
    assert watch(torch.tensor([[5, 9, 0]]), None).tolist() == [True]


def test_chat_template_is_off_unless_asked_for(bench: Bench, tmp_path: Path) -> None:
    chat = bench(["hi"], task="chat", **GREEDY, chat_template=True, system_prompt="S")
    assert chat["items"][0]["metadata"]["rendered_prompt"] == "[system]S\n[user]hi\n[assistant]"
    assert chat["usage"]["prompt_tokens"] == len("[system]S\n[user]hi\n[assistant]")
    again = bench(["hi"], task="chat", **GREEDY, chat_template=True, system_prompt="S")
    assert again["items"] == chat["items"]
    bare = save_tiny_model(tmp_path / "bare", chat=False)
    with pytest.raises(UserError, match="has no chat template"):
        bench(["hi"], task="bare", model=bare, **GREEDY, chat_template=True)


def test_finished_rows_are_not_computed_again(bench: Bench) -> None:
    first = bench(WORDS, **GREEDY)
    assert bench.journal()
    again = bench(WORDS, **GREEDY)
    assert (bench.journal(), again["items"], again["usage"]) == ([], first["items"], first["usage"])
    assert again["_summary"]["reused_rows"] == 6
    assert "generating" not in bench.texts("phase")
    bench([*WORDS[:5], "changed"], **GREEDY)
    assert [row["index"] for row in bench.journal()] == [5]
    bench(WORDS, **{**GREEDY, "max_tokens": 6})
    assert len(bench.journal()) == 6


def test_all_rows_finished_means_that_no_model_is_loaded(bench: Bench) -> None:
    bench(WORDS, **GREEDY)
    bench.executor.close()
    assert len(bench(WORDS, **GREEDY)["items"]) == 6
    assert "loading weights" not in bench.texts("phase")


def test_the_model_is_the_one_that_the_task_names(bench: Bench, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    one = bench(WORDS, task="one", **GREEDY)
    two = bench(WORDS, task="two", model=other, **GREEDY)
    assert "loading weights" in bench.texts("phase")
    assert (one["model"], two["model"]) == (str(bench.model), str(other))
    assert outputs(one) != outputs(two)
    assert outputs(bench(WORDS, task="three", model=other, **GREEDY)) == outputs(two)
    assert "loading weights" not in bench.texts("phase")
    save_tiny_model(other, seed=2)  # same path, other weights
    assert outputs(bench(WORDS, task="two", model=other, **GREEDY)) != outputs(two)
    assert len(bench.journal("two")) == 6


def test_bad_rows_fail_alone(bench: Bench) -> None:
    items = ["good", "y" * 80, "half a pair \ud83d", "", "also good"]
    with pytest.raises(UserError) as caught:
        bench(items, **GREEDY)
    message = str(caught.value)
    assert message.startswith("3 of 5 rows failed (inference.max_failed_rows is 0): row 1: the prompt has 80 tokens, ")
    assert "row 2: the prompt is not valid Unicode text; row 3: the prompt is empty" in message
    good = [row["index"] for row in bench.journal() if row["error"] is None]
    assert sorted(good) == [0, 4]
    result = bench(items, **GREEDY, max_failed_rows=3)
    assert [row["index"] for row in bench.journal()] == [1, 2, 3]
    assert result["items"][1]["error"] == "the prompt has 80 tokens, but the model reads at most 64"
    assert (result["items"][1]["output"], result["items"][1]["finish_reason"]) == ("", None)
    assert (result["_summary"]["failed_rows"], result["_summary"]["reused_rows"]) == (3, 2)


def test_answers_end_at_the_window_of_the_model(bench: Bench) -> None:
    result = bench(["y" * 60, "short"], temperature=0, max_tokens=512)
    assert result["items"][0]["finish_reason"] in {"length", "stop"}
    assert all(row["usage"]["prompt_tokens"] + row["usage"]["completion_tokens"] <= 64 for row in bench.journal())


def failing(monkeypatch: pytest.MonkeyPatch, fault: Callable[[list[int]], Exception | None]) -> list[list[int]]:
    """Let `generate` fail where `fault` says so; return the list of batches that it was asked for."""
    real, asked = decoding.generate, []

    def generate(engine: Any, batch: Any, *rest: Any, **named: Any) -> None:
        asked.append([work.index for work in batch])
        if error := fault(asked[-1]):
            raise error
        real(engine, batch, *rest, **named)

    monkeypatch.setattr(decoding, "generate", generate)
    return asked


def test_out_of_memory_halves_the_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch, lambda rows: torch.OutOfMemoryError("CUDA out of memory") if len(rows) > 2 else None)
    result = bench(WORDS, **GREEDY)
    assert [item["index"] for item in result["items"]] == list(range(6))
    assert [len(rows) for rows in asked] == [6, 3, 1, 1, 1, 1, 1, 1]
    assert bench.texts("log")[0] == "out of memory with 6 rows at once; continuing with 3"


def test_a_row_too_large_for_the_memory_may_go_better_next_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    full = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    failing(monkeypatch, lambda rows: full if 2 in rows else None)
    with pytest.raises(RuntimeError, match=r"1 of 6 rows failed .*row 2: out of memory"):
        bench(WORDS, **GREEDY)
    assert sorted(row["index"] for row in bench.journal() if row["error"] is None) == [0, 1, 3, 4, 5]


def test_a_row_that_breaks_its_batch_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda rows: IndexError("index out of range") if 3 in rows else None)
    result = bench(WORDS, **GREEDY, max_failed_rows=1)
    assert result["items"][3]["error"] == "IndexError: index out of range"
    assert [item["index"] for item in result["items"] if not item.get("error")] == [0, 1, 2, 4, 5]


def test_a_broken_device_ends_the_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch, lambda _rows: torch.AcceleratorError("CUDA error: illegal memory access"))
    with pytest.raises(torch.AcceleratorError):
        bench(WORDS, **GREEDY)
    assert len(asked) == 1


def test_cancelling_ends_between_tokens_and_keeps_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mloc_prefect.execution.context.PROGRESS_PERIOD", 0.0)

    def cancel_after_first_row(event: ExecutionEvent) -> None:
        if event.kind == "progress" and event.data["done"]:
            bench.cancelled.set()

    bench.on_event = cancel_after_first_row
    with pytest.raises(Cancelled):
        bench(WORDS, **GREEDY, batch_size=1)
    assert len(bench.journal()) == 1


def test_ignored_penalties_are_said(bench: Bench) -> None:
    bench(["a"], **GREEDY, presence_penalty=0.5)
    assert "spec.inference.presence_penalty has no effect in the transformers engine" in bench.texts("log")


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({}, "spec.model.source.identifier (or HF_MODEL) is required."),
        ({"source": {"identifier": "org/none"}}, "model 'org/none' was not found in any of three places"),
        ({"source": {"identifier": "empty"}}, "Failed to load model/tokenizer: {root}/empty holds no config.json"),
        ({"source": {"identifier": "broken"}}, "Failed to load model/tokenizer: "),
        (
            {"source": {"identifier": "torn"}},
            "Failed to load model/tokenizer: {root}/torn/model.safetensors is damaged or cut short: ",
        ),
        (
            {"source": {"identifier": "other"}},
            "Failed to load model/tokenizer: {root}/other: its weights have other shapes than its config.json says",
        ),
        (
            {"source": {"identifier": "mirrored"}},
            "mirror of 'mirrored' ({root}/home/mirrors.yaml:1) names /none, which",
        ),
        ({"transformers": {"dtype": "int3"}}, "Unsupported dtype: int3"),
        ({"transformers": {"device_map": "cuda"}}, "Requested CUDA but no GPU is available."),
        ({"transformers": {"load_in_4bit": True}}, "load_in_4bit needs a package that is not installed"),
        ({"adapters": [{"path": "x"}]}, "spec.model.adapters[0]: Checkpoint path x not found"),
    ],
)
def test_faults_of_the_model_are_one_line(
    bench: Bench, tiny: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], problem: str
) -> None:
    monkeypatch.delenv("HF_MODEL", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (bench.root / "empty").mkdir()
    (bench.root / "broken").mkdir()
    (bench.root / "broken" / "config.json").write_text("{}")
    cut_short(tiny, bench.root / "torn")
    reshaped(tiny, bench.root / "other")
    (bench.root / "home").mkdir()
    (bench.root / "home" / "mirrors.yaml").write_text("models: {mirrored: /none}")
    named = {"source": {"identifier": str(tiny)}, **model} if model else {}
    with pytest.raises(UserError) as caught:
        bench.run({"model": named, "data": {"type": "list", "items": ["a"]}})
    assert problem.format(root=bench.root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_model_may_come_from_a_mirror_or_the_environment(
    bench: Bench, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.root / "home").mkdir()
    (bench.root / "home" / "mirrors.yaml").write_text(f"models: {{'org/*': {tiny.parent}}}")
    assert bench(["a"], model="org/tiny", **GREEDY)["model"] == "org/tiny"
    monkeypatch.setenv("HF_MODEL", "org/tiny")
    assert bench.run({"data": {"type": "list", "items": ["a"]}, "inference": GREEDY}, "env")["model"] == "org/tiny"


def test_a_remote_model_is_fetched_once(bench: Bench, tiny: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for file in tiny.iterdir():
        store.pipe(f"/transformers-test/tiny/{file.name}", file.read_bytes())
    remote = "memory://transformers-test/tiny"
    fetched = outputs(bench(WORDS, task="far", model=remote, **GREEDY))
    assert fetched == outputs(bench(WORDS, task="near", **GREEDY))
    store.rm("/transformers-test", recursive=True)
    assert outputs(bench(WORDS, task="again", model=remote, **GREEDY)) == fetched
    assert [p.name for p in (bench.root / "home/cache/models").iterdir() if p.name.startswith(".")] == []


def test_rows_of_a_dataset(bench: Bench) -> None:
    rows = bench.root / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"number {i}", "id": i}) + "\n" for i in range(9)))
    data = {"type": "dataset", "url": "rows.jsonl", "column": "q", "split": "train[2:4]", "metadata_columns": ["id"]}
    result = bench(data, **GREEDY)
    assert [item["prompt"] for item in result["items"]] == ["number 2", "number 3"]
    assert result["items"][0]["metadata"]["id"] == 2


def test_a_folder_saved_by_datasets(bench: Bench) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a", "b", "c"]}).save_to_disk(str(bench.root / "saved"))
    result = bench({"type": "dataset", "url": "saved", "split": "train[1:]"}, **GREEDY)
    assert [item["prompt"] for item in result["items"]] == ["b", "c"]


def test_a_dataset_that_only_the_hub_has(bench: Bench) -> None:
    with pytest.raises(
        UserError, match=r"dataset 'org/none' was not found in any of three places.*HF_HUB_OFFLINE is set"
    ):
        bench({"type": "dataset", "url": "org/none"}, **GREEDY)
