"""Runs trainings in this process, and provides their data."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.executors.training.training_executor import TrainingExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

SUMS = [{"question": f"{a}+{b}=", "answer": f"{a + b}"} for a in range(8) for b in range(8)]
PAIRS = [{"prompt": f"{n}?", "chosen": f" {n} yes!", "rejected": f" {n} no."} for n in range(48)]


class TrainingBench:
    """Runs attempts of trainings in this process.

    Args:
        root: Directory of the tasks.
        model: Folder of the model to train.
    """

    def __init__(self, root: Path, model: Path) -> None:
        self.executor = TrainingExecutor({})
        self.root = root
        self.model = model
        self.attempts: dict[str, int] = {}
        self.events: list[ExecutionEvent] = []
        self.cancelled = threading.Event()
        self.on_event: Callable[[ExecutionEvent], None] = lambda _event: None
        self.settings: dict[str, Any] = {}

    def __call__(self, kind: str, data: Any, *, task: str = "task", **spec: Any) -> dict[str, Any]:
        """Run one attempt of a training of `kind`; without `model` it trains that of the bench."""
        model = {"source": {"identifier": str(self.model)}}
        return self.run(kind, {"model": model, "data": data, **spec}, task)

    def run(self, kind: str, spec: dict[str, Any], task: str = "task") -> dict[str, Any]:
        request = self.request(kind, spec, task)
        Path(request.attempt_dir).mkdir(parents=True)
        self.events.clear()
        context = ExecutionContext(request, self._emit, self.cancelled)
        return json.loads(json.dumps(dict(self.executor.run(request, context))))

    def request(self, kind: str, spec: dict[str, Any], task: str = "task") -> ExecutionRequest:
        self.attempts[task] = self.attempts.get(task, 0) + 1
        directory = self.root / task
        return ExecutionRequest(
            task_id=task,
            name=task,
            task_type=kind,
            executor="mloc_prefect.executors.training:TrainingExecutor",
            spec={"taskType": kind, **spec},
            task_dir=str(directory),
            attempt_dir=str(directory / "attempts" / f"1-{self.attempts[task]}"),
            attempt=self.attempts[task],
            settings={"home": str(self.root / "home"), "base_dir": str(self.root), **self.settings},
        )

    def texts(self, kind: str) -> list[str]:
        return [e.data.get("message") or e.data.get("text") or "" for e in self.events if e.kind == kind]

    def _emit(self, event: ExecutionEvent) -> None:
        self.events.append(event)
        self.on_event(event)


def losses(result: dict[str, Any], key: str = "loss") -> list[float]:
    """Return one metric of a finished training, by step."""
    rows = [json.loads(line) for line in Path(result["metrics_path"]).read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def answer_loss(model: Any, tokenizer: Any, rows: list[tuple[str, str]]) -> float:
    """Return the mean loss of answers, given their prompts, over all of their tokens."""
    total = count = 0.0
    for prompt, answer in rows:
        value, size = _log_likelihood(model, tokenizer, prompt, answer)
        total, count = total - value, count + size
    return total / count


def prefers_chosen(model: Any, tokenizer: Any, pairs: list[dict[str, str]]) -> float:
    """Return the fraction of pairs whose better answer the model finds more likely."""
    likely = [
        _log_likelihood(model, tokenizer, p["prompt"], p["chosen"])[0]
        > _log_likelihood(model, tokenizer, p["prompt"], p["rejected"])[0]
        for p in pairs
    ]
    return sum(likely) / len(likely)


def sampled(model: Any, tokenizer: Any, prompts: list[str], tokens: int, seed: int = 0) -> list[str]:
    """Return one sampled answer per prompt."""
    import torch

    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=tokenizer.pad_token_id
        )
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def loaded(folder: Path | str) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder, as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> tuple[float, int]:
    import torch

    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1)
    chosen = scores.gather(-1, ids[0, 1:, None])[start - 1 :, 0]
    return float(chosen.sum()), len(chosen)
