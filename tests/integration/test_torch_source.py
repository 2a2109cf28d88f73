"""Which build of torch is fetched: dry runs of pip against indexes in a directory."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from mloc_prefect.execution.environments import torch_source
from mloc_prefect.execution.environments.builder import create
from mloc_prefect.execution.environments.catalog import ExecutorEnvironment
from mloc_prefect.execution.environments.torch_source import torch_options


def index(root: Path, version: str) -> str:
    """Return the URL of an index that has an empty torch of a version."""
    folder = root / "torch"
    folder.mkdir(parents=True)
    wheel = folder / f"torch-{version}-py3-none-any.whl"
    info = f"torch-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_hash(text)},{len(text)}" for name, text in files.items()]
    with ZipFile(wheel, "w") as content:
        for name, text in {**files, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,"])}.items():
            content.writestr(name, text)
    (folder / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>')
    return root.as_uri()


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the interpreter of an environment that has pip and no torch."""
    folder = tmp_path_factory.mktemp("empty") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the public index, which has the CUDA build, and the one of the CPU builds."""
    root = tmp_path_factory.mktemp("indexes")
    return index(root / "public", "2.13.0"), index(root / "cpu", "2.13.0+cpu")


@pytest.fixture
def pins(tmp_path: Path, indexes: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip know the public index only, on a machine without a driver; return pinned versions."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", indexes[0])
    monkeypatch.setattr(torch_source, "_PUBLIC", indexes[0])
    monkeypatch.setattr(torch_source, "CPU_INDEX", indexes[1])
    monkeypatch.setattr(torch_source, "has_driver", lambda: False)
    (tmp_path / "pins.txt").write_text("torch==2.13.0\n")
    return tmp_path / "pins.txt"


def fetched(python: str, pins: Path, options: list[str]) -> str:
    """Return the version of torch that pip would install with the options."""
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", "-c", str(pins), "torch"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])


def test_without_a_driver_the_cpu_build_is_fetched(python: str, pins: Path) -> None:
    options, text = torch_options(python, pins)
    assert fetched(python, pins, options) == "2.13.0+cpu"
    assert "no NVIDIA driver is found" in text
    assert "0.2 GB" in text


def test_with_a_driver_the_cuda_build_is_fetched(python: str, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_source, "has_driver", lambda: True)
    options, text = torch_options(python, pins)
    assert fetched(python, pins, options) == "2.13.0"
    assert "3 GB" in text


@pytest.mark.parametrize(("build", "version"), [("cpu", "2.13.0+cpu"), ("cuda", "2.13.0")])
@pytest.mark.parametrize("driver", [True, False])
def test_the_setting_wins(
    python: str, pins: Path, monkeypatch: pytest.MonkeyPatch, build: str, version: str, driver: bool
) -> None:
    monkeypatch.setattr(torch_source, "has_driver", lambda: driver)
    options, text = torch_options(python, pins, build)
    assert fetched(python, pins, options) == version
    assert "MLOC_TORCH" in text


def test_the_users_own_sources_win(python: str, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index(tmp_path / "own", "2.13.0+own"))
    options, text = torch_options(python, pins)
    assert (options, text) == ([], "torch 2.13.0+own from your own package sources")


@pytest.mark.parametrize("only", ["cpu", "cuda"])
def test_an_environment_that_works_with_one_build_gets_that(python: str, pins: Path, only: str) -> None:
    options, text = torch_options(python, pins, "cuda" if only == "cpu" else "cpu", only=only)
    assert fetched(python, pins, options) == ("2.13.0+cpu" if only == "cpu" else "2.13.0")
    assert f"the {only.upper()} build" in text


def test_a_pinned_cpu_build_of_the_user_wins(python: str, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins.write_text("torch==2.13.0+cpu\n")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", torch_source.CPU_INDEX)
    assert torch_options(python, pins, only="cpu") == ([], "torch 2.13.0+cpu from your own package sources")


def test_a_build_that_the_pins_exclude_is_not_said_to_come(
    python: str, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.write_text("torch==2.13.0\ntorch!=2.13.0+cpu\n")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", torch_source.CPU_INDEX)
    options, text = torch_options(python, pins, only="cuda")
    assert fetched(python, pins, options) == "2.13.0"
    assert "the CUDA build" in text


@pytest.mark.parametrize("uv", [False, True])
@pytest.mark.parametrize("driver", [False, True])
def test_an_environment_is_built_with_the_build_that_is_chosen(
    pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv: bool, driver: bool
) -> None:
    monkeypatch.setattr(torch_source, "has_driver", lambda: driver)
    said: list[str] = []
    recipe = ExecutorEnvironment("tiny", "only torch", ("torch",), str(pins), size="a few files")
    made = create(recipe, tmp_path, uv=uv, tell=said.append)
    probe = "from importlib.metadata import version; print(version('torch'))"
    done = subprocess.run([str(made), "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("2.13.0" if driver else "2.13.0+cpu")
    (size,) = (line for line in said if line.startswith("this brings"))
    assert ("about 3 GB to download" if driver else "about 0.2 GB to download") in size
    assert size.endswith("the environment takes about a few files")


def test_what_is_installed_wins(pins: Path) -> None:
    pins.write_text("")
    options, text = torch_options(sys.executable, pins)
    assert options == []
    assert text.endswith("is installed")


def test_wheels_of_the_user_win(python: str, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index(tmp_path / "wheels", "2.13.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels" / "torch"))
    assert torch_options(python, pins) == ([], "torch 2.13.0 from your own package sources")
    pins.write_text("torch==2.12.0\n")
    assert torch_options(python, pins)[0] != [], "another version is of no use"


def test_an_index_of_the_user_wins(python: str, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.invalid/simple")
    assert torch_options(python, pins) == ([], "torch as your own package index has it")
