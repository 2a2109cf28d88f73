"""The tools of agents for files: arguments that a model makes up, and names that are not what they seem."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from mloc_prefect.executors.agent.agent_tools import FileTools
from mloc_prefect.executors.agent.item_steps import ItemSteps
from mloc_prefect.executors.agent.step_journal import StepJournal


def test_a_link_to_nothing_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "gone").symlink_to("nowhere")
    assert FileTools(tmp_path, 100).list_files() == "a.txt (3)\ngone (7)"


def test_an_offset_beyond_all_files_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    files = FileTools(tmp_path, 100)
    assert [files.read_file("a.txt", offset) for offset in (-1, 1, 3, 1 << 80)] == ["abc", "bc", "", ""]


def test_a_made_up_name_of_a_tool_is_one_line_of_the_trace(tmp_path: Path) -> None:
    steps = ItemSteps("item", StepJournal(tmp_path, tmp_path / "attempts" / "1-1"), 1, 1, lambda: None)
    part = SimpleNamespace(part_kind="tool-call", tool_name="a\n## 9. The model answers", args_as_json_str=lambda: "{}")
    steps.note_answer(SimpleNamespace(usage=SimpleNamespace(input_tokens=1, output_tokens=1), parts=[part]))
    steps.note_result("a\nb" * 500, "text")
    titles = [title for _kind, title, _text in steps.trace]
    assert titles[0] == "The model calls a ## 9. The model answers"
    assert "\n" not in titles[1]
    assert len(titles[1]) < 300
