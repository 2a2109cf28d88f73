"""Answers of a run: read from its results and shown."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

from rich.console import Console

from mloc_prefect.cli.display.answers import read_items, shortened, show_answers
from mloc_prefect.cli.display.run_progress import RunProgress


def test_answers_are_read_with_and_without_the_envelope(tmp_path):
    path = tmp_path / "responses.json"
    for content in ({"items": [1]}, {"result": {"items": [1]}}, {"result": {"shards": [], "merged": {"items": [1]}}}):
        path.write_text(json.dumps(content))
        assert read_items(path) == [1]
    for content in ("[]", "no json", '{"items": 3}', '{"result": "x"}'):
        path.write_text(content)
        assert read_items(path) == []
    assert read_items(tmp_path / "absent") == []


def test_long_answers_are_cut():
    assert shortened("  ab ") == "ab"
    assert shortened("x" * 500, 10) == "x" * 10 + " …"


def test_answers_are_shown_with_their_prompt_path_and_facts(tmp_path):
    path = tmp_path / "responses.json"
    items = [{"index": n, "prompt": f"Why\n {n}?", "output": "So.\nThus."} for n in range(5)]
    items[1]["prompt"] = [{"role": "system", "content": "S"}, {"role": "user", "content": "Why\n 1?"}]
    items[1] = {"index": 1, "error": "too long", "output": ""}
    path.write_text(json.dumps({"items": items}))
    progress = RunProgress(clock=lambda: 5.0)
    stages = (SimpleNamespace(key="a", node="a", task_type="inference"),)
    progress.run_started("run", SimpleNamespace(name="n", stages=stages), {"a": "1"})
    summary = {"model": "m", "usage": {"completion_tokens": 12}}
    progress.stage_started("a", 1)
    progress.stage_ended(
        "a", SimpleNamespace(status="DONE", error=None, reused=False, result_path=str(path), summary=summary)
    )
    stream = io.StringIO()
    show_answers(Console(file=stream, width=200), progress.stages)
    assert stream.getvalue().splitlines() == [
        "",
        "a  0.0 s, m, 12 tokens",
        "  [0] Why 0?",
        "      So.",
        "      Thus.",
        "  [1] failed: too long",
        "  [2] Why 2?",
        "      So.",
        "      Thus.",
        "  … 2 more",
        f"  results: {path}",
    ]
