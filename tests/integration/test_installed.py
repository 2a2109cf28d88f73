"""Installed without a checkout: the wheel that the source distribution gives, and beside it another distribution.

The other one is `samples/task-type`, which adds a task type by an entry point.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

from tests.support.server import prepare_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "task-type"


def built(kind: str, source: Path, out: Path) -> Path:
    """Return the `sdist` or `wheel` that is made of a source tree."""
    script = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(out)], cwd=source, check=True, capture_output=True)
    (found,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, made of the source distribution as pip makes it."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "tree" / name, follow_symlinks=False)
    with tarfile.open(built("sdist", folder / "tree", folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return built("wheel", source, folder)


@pytest.fixture(scope="module")
def packages(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `site-packages` of an environment that has the wheel and the sample, and sees our libraries."""
    folder = tmp_path_factory.mktemp("installed")
    sample = built("wheel", shutil.copytree(SAMPLE, folder / "sample"), folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (found,) = (folder / "env" / "lib").glob("python*/site-packages")
    (found / "libraries.pth").write_text(f"import site; site.addsitedir({site.getsitepackages()[0]!r})\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(found)]
    subprocess.run([*pip, str(wheel), str(sample)], check=True, capture_output=True)
    return found


@pytest.fixture(scope="module")
def mloc(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Return a function that runs `mloc` there and returns what it prints."""
    home = tmp_path_factory.mktemp("home")
    prepare_home(home)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLOC_", "PYTHONPATH"))}
    env = kept | {"MLOC_HOME": str(home), "MLOC_RESULTS_DIR": str(home / "results"), "MLOC_SERVER_PORT": "24390"}
    command = [str(packages.parents[2] / "bin" / "python"), "-c", "from mloc_prefect.cli import main; main()"]

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [*command, *arguments], cwd=home, env=env, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout + (done.stderr if code else "")

    yield run
    run("down")


def test_the_wheel_has_all_files_of_the_package(wheel: Path) -> None:
    with ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
    wanted = {
        f"mloc_prefect/{file.relative_to(ROOT / 'mloc_prefect')}" for file in (ROOT / "mloc_prefect").rglob("*.py")
    }
    for folder, pattern in (("templates", "*.yaml"), ("templates/data", "*.jsonl"), ("constraints", "*.txt")):
        wanted |= {f"mloc_prefect/{folder}/{file.name}" for file in (ROOT / folder).glob(pattern)}
    wanted |= {str(file.relative_to(ROOT)) for file in (ROOT / "mloc_prefect" / "agents").rglob("*.yaml")}
    assert names == {*wanted, "mloc_prefect/py.typed"}


def test_a_template_runs_from_the_wheel(mloc: Callable[..., str], packages: Path) -> None:
    assert "echo" in mloc("templates")
    result = json.loads(mloc("run", "--json", str(packages / "mloc_prefect" / "templates" / "echo.yaml")))
    assert {task["status"] for task in result["tasks"]} == {"DONE"}


def test_a_task_type_of_another_distribution_is_known_as_ours_are(mloc: Callable[..., str], tmp_path: Path) -> None:
    spec = SAMPLE / "shout.yaml"
    mloc("validate", "--strict", str(spec))
    assert "shout" in mloc("plan", str(spec))
    schema = json.loads(mloc("schema"))
    assert "ShoutSpec" in schema["$defs"]
    assert "shout" in json.dumps(schema)
    findings = json.loads(mloc("doctor", "--json"))["findings"]
    (found,) = (f for f in findings if (f["topic"], f["name"]) == ("task type", "shout"))
    assert found["level"] == "ok"
    assert found["facts"]["distribution"] == "mloc-shout 1.0"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(spec.read_text().replace("marks: 2", "marks: many"))
    assert f"{wrong}:8:10: error" in mloc("validate", str(wrong), code=2)


def test_it_runs_as_ours_do(mloc: Callable[..., str]) -> None:
    result = json.loads(mloc("run", "--json", str(SAMPLE / "shout.yaml")))
    (task,) = result["tasks"]
    answers = json.loads(Path(task["result_path"]).read_text())
    assert [item["output"] for item in answers["items"]] == ["HELLO!!", "WORLD!!"]
