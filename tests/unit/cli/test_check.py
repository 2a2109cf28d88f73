"""validate and plan: JSON forms, exit codes, nothing heavy imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mloc_prefect.cli.app import app
from mloc_prefect.flow import preflight

GOOD = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: pair}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 1GiB}}
  stages:
    - name: a
      spec: {data: {x: 1}}
    - name: b
      spec: {data: {x: "${a.result.echo.data.x}"}}
"""
FIVE = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: five}
spec:
  taskType: inference
  resources: {replicas: 1, hardware: {cpu: 1}}
  model: {source: {identifier: m}}
  data: {type: lists}
  inference: {temperature: hot, top_p: 2, max_tokens: many}
"""


@pytest.fixture
def specs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "five.yaml").write_text(FIVE)
    (tmp_path / "odd.yaml").write_text(GOOD.replace("spec: {data: {x: 1}}", "spec: {data: {x: 1}, ouput: {}}"))
    return tmp_path


def mloc(*arguments, text=None):
    return CliRunner().invoke(app, arguments, input=text)


def rows(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_validate_json_is_one_object_a_file_and_the_good_ones_are_there(specs):
    result = mloc("validate", "--json", "good.yaml", "five.yaml", "absent.yaml")
    good, five, absent = rows(result)
    assert result.exit_code == 2
    assert good == {"file": "good.yaml", "errors": [], "warnings": []}
    assert set(five) == {"file", "errors", "warnings"}
    assert len(five["errors"]) == 5
    assert all({"line", "column", "code", "path", "message"} <= set(e) for e in five["errors"])
    assert [e["line"] for e in five["errors"]] == sorted(e["line"] for e in five["errors"])
    assert absent["errors"][0]["code"] == "unreadable-file"
    assert "No such file" in absent["errors"][0]["message"]


def test_validate_of_good_files_exits_0(specs):
    result = mloc("validate", "good.yaml")
    assert (result.exit_code, result.stdout) == (0, "ok: good.yaml (stages, 2 tasks)\n")


def test_five_mistakes_are_five_lines_with_file_line_and_column(specs):
    result = mloc("validate", "five.yaml")
    heads = [line for line in result.stdout.splitlines() if line.startswith("five.yaml:")]
    assert result.exit_code == 2
    assert len(heads) == 5
    assert [head.split(": ")[0] for head in heads] == [
        "five.yaml:6:28",
        "five.yaml:8:16",
        "five.yaml:9:28",
        "five.yaml:9:40",
        "five.yaml:9:55",
    ]
    assert result.stdout.splitlines()[-1] == "invalid: 5 errors in 1 of 1 file"


def test_warnings_stop_nothing_unless_strict(specs):
    relaxed, strict = mloc("validate", "--json", "odd.yaml"), mloc("validate", "--json", "--strict", "odd.yaml")
    assert (relaxed.exit_code, strict.exit_code) == (0, 2)
    assert [w["code"] for w in rows(relaxed)[0]["warnings"]] == ["unknown-field"]
    assert rows(relaxed)[0]["errors"] == []
    assert [e["code"] for e in rows(strict)[0]["errors"]] == ["unknown-field"]
    assert rows(strict)[0]["warnings"] == []


def test_standard_input_is_a_file_called_stdin(specs):
    assert rows(mloc("validate", "--json", "-", text=GOOD)) == [{"file": "<stdin>", "errors": [], "warnings": []}]


def test_plan_json_has_exactly_the_promised_keys(specs):
    result = mloc("plan", "--json", "five.yaml", "good.yaml")
    five, good = rows(result)
    assert result.exit_code == 2
    assert set(five) == {"file", "errors"}
    assert (good["file"], good["name"], good["kind"]) == ("good.yaml", "pair", "stages")
    assert set(good) == {"file", "name", "kind", "tasks"}
    assert [set(t) for t in good["tasks"]] == [{"node", "name", "task_type", "depends_on", "effective"}] * 2
    assert [t["depends_on"] for t in good["tasks"]] == [[], ["a"]]
    assert [t["name"] for t in good["tasks"]] == ["pair:a", "pair:b"]


def test_json_survives_any_locale(specs):
    specs.joinpath("good.yaml").write_text(GOOD.replace("name: pair", 'name: "Grüße 型"'), encoding="utf-8")
    result = mloc("plan", "--json", "good.yaml")
    assert result.stdout.isascii()
    assert rows(result)[0]["name"] == "Grüße 型"


def test_plan_prints_a_table_or_mermaid_on_stdout_and_findings_on_stderr(specs):
    table, drawing = mloc("plan", "odd.yaml"), mloc("plan", "odd.yaml", "--mermaid")
    assert table.exit_code == drawing.exit_code == 0
    assert "pair (stages, 2 tasks)" in table.stdout
    assert "unknown-field" not in table.stdout
    assert "odd.yaml:9:" in table.stderr
    assert drawing.stdout.startswith("flowchart LR")


def test_json_and_mermaid_are_not_wanted_at_once(specs):
    result = mloc("plan", "good.yaml", "--json", "--mermaid")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --json and --mermaid ")


def test_a_plan_says_what_is_missing_here_and_nothing_when_it_can_run(specs, monkeypatch):
    chat = "inference, model: {source: {identifier: m}}, data: {type: list, items: [x]}"
    search = "rag, query: q, qdrant: {url: 'http://q:6333', collection: c}"
    for name, kind in (("chat", chat), ("search", search)):
        head, resources = (
            "apiVersion: mloc/v1\nkind: K\nmetadata: {name: n}\n",
            "{replicas: 1, hardware: {cpu: 1, memory: 1G}}",
        )
        specs.joinpath(f"{name}.yaml").write_text(f"{head}spec: {{taskType: {kind}, resources: {resources}}}\n")
    there = preflight._there
    ours = {"torch", "transformers", "datasets"}
    monkeypatch.setattr(preflight, "_there", lambda name: name in ours or (".rag" not in name and there(name)))
    assert "notes:" not in mloc("plan", "chat.yaml").stdout
    searching = mloc("plan", "search.yaml").stdout
    assert "n: cannot run here: this version (" in searching
    assert "has no executor for them" in searching
    monkeypatch.setattr(preflight, "_there", lambda name: name != "torch" and there(name))
    assert "n: cannot run here: torch not installed (pip install 'mloc-prefect[transformers]')" in (
        mloc("plan", "chat.yaml").stdout
    )
    monkeypatch.setenv("MLOC_INVENTORY", "nonsense")
    blind = mloc("plan", "chat.yaml")
    assert blind.exit_code == 0
    assert "n (single, 1 task)" in blind.stdout
    assert "note: could not check whether it can run here: " in blind.stderr


def test_set_reaches_the_base_and_stages(specs):
    result = mloc("plan", "--json", "good.yaml", "--set", "metadata.name=other", "--set", "stages.b.spec.data.x=[1, 2]")
    plan = rows(result)[0]
    assert plan["name"] == "other"
    assert plan["tasks"][1]["effective"]["spec"]["data"]["x"] == [1, 2]


def test_parameters_are_known_when_they_are_given(specs):
    specs.joinpath("p.yaml").write_text(GOOD.replace("{x: 1}", '{x: "${param.topic}"}'))
    for command in ("validate", "plan"):
        without, given = mloc(command, "--json", "p.yaml"), mloc(command, "--json", "p.yaml", "--param", "topic=sea")
        assert [e["code"] for e in rows(without)[0]["errors"]] == ["unknown-parameter"]
        assert given.exit_code == 0
    assert mloc("plan", "p.yaml", "--param", "topic").exit_code == 2


def test_a_directory_is_an_unreadable_file(specs):
    result = mloc("plan", "--json", ".")
    assert result.exit_code == 2
    assert "Is a directory" in rows(result)[0]["errors"][0]["message"]


def test_neither_prefect_nor_torch_is_loaded(specs):
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from mloc_prefect.cli.app import app\n"
        "for command in (['validate'], ['plan'], ['plan', '--json']):\n"
        "    assert CliRunner().invoke(app, [*command, 'good.yaml']).exit_code == 0\n"
        "for command in (['version'], ['--help'], ['templates'], ['run', '--help']):\n"
        "    assert CliRunner().invoke(app, command).exit_code == 0\n"
        "print([m for m in ('prefect', 'torch', 'fastapi', 'transformers', 'datasets') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=specs)
    assert done.stdout.strip() == "[]"
