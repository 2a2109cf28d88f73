"""Which build of torch `make setup` and `mloc env create` get: for the CPU without an NVIDIA driver, else for CUDA.

What the user's own pip configuration, find-links or installed torch offers wins over both, and MLOC_TORCH (cpu or cuda)
over everything. pip is asked what it would find; nothing is downloaded. Standard library only: `make setup` runs this
file before anything is installed.

    python mloc_prefect/execution/environments/torch_source.py     # prints options for pip, and says what they bring
"""

from __future__ import annotations

import ctypes.util
import os
import re
import subprocess
import sys
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PUBLIC = "https://pypi.org/simple"
"""The index that pip has without a configuration; its torch for x86-64 Linux is the CUDA build."""

_SIZES = {
    "cpu": "the CPU build of torch, about 0.2 GB to download",
    "cuda": "the CUDA build of torch, about 3 GB to download and 5 GB on disk",
}
_ASK_SECONDS = 300.0


def torch_options(
    python: str, constraints: Path, build: str = "", *, only: str = "", into: str | None = None
) -> tuple[list[str], str]:
    """Return options for pip, and one line that says what they bring.

    Args:
        python: Interpreter whose pip is asked.
        constraints: The pinned versions.
        build: `cpu` or `cuda`; anything else leaves the choice to us.
        only: The same, of an environment that works with this build alone; then `build` does not count.
        into: Interpreter into which torch will be installed; None = `python`.
    """
    if build == "cuda" and not only:
        return [], f"{_SIZES['cuda']} (MLOC_TORCH)"
    if build == "cpu" and not only:
        return ["--extra-index-url", CPU_INDEX], f"{_SIZES['cpu']} (MLOC_TORCH)"
    own = _own_torch(python, constraints, into or python)
    if own is not None:
        return [], own
    if only:
        return (["--extra-index-url", CPU_INDEX] if only == "cpu" else []), _SIZES[only]
    if has_driver():
        return [], f"{_SIZES['cuda']} (MLOC_TORCH=cpu for the CPU build)"
    why = "no NVIDIA driver is found; MLOC_TORCH=cuda for the CUDA build, 3 GB"
    return ["--extra-index-url", CPU_INDEX], f"{_SIZES['cpu']} ({why})"


def has_driver() -> bool:
    """Return whether the NVIDIA driver is on this machine."""
    return Path("/proc/driver/nvidia/version").exists() or ctypes.util.find_library("nvidia-ml") is not None


def _own_torch(python: str, constraints: Path, into: str) -> str | None:
    """Return what the user has in place of the public index, in one line; None if it is nothing."""
    probe = "from importlib.metadata import version; print(version('torch'))"
    if installed := _output([into, "-c", probe]):
        return f"torch {installed} is installed"
    pins = constraints.read_text()
    found = re.search(r"^torch==([^ ;\n]+)", pins, re.MULTILINE)
    pinned = found[1].partition("+")[0] if found else ""
    excluded = re.findall(r"^torch!=([^ ;\n]+)", pins, re.MULTILINE)  # builds that do not work in this environment
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    indexes = re.findall(r"\.index-url='([^']*)'", _output([*pip, "config", "list"]))
    if any(url.rstrip("/") != _PUBLIC for url in indexes):
        return "torch as your own package index has it"
    linked = _versions(_output([*pip, "index", "versions", "torch", "--no-index"]))  # find-links alone
    built = [one for one in _versions(_output([*pip, "index", "versions", "torch"])) if "+" in one]
    usable = [one for one in (*linked, *built) if one not in excluded]
    own = [one for one in usable if one.partition("+")[0] == pinned or not pinned]
    return f"torch {own[0]} from your own package sources" if own else None


def _versions(listed: str) -> list[str]:
    found = re.search(r"^Available versions: (.*)$", listed, re.MULTILINE)
    return found[1].split(", ") if found else []


def _output(command: list[str]) -> str:
    """Return what a command prints, "" if it fails: the installation itself will say what is wrong with pip."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ASK_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def main() -> None:
    """Print the options for pip on stdout, and what they bring on stderr."""
    pins = Path(__file__).parents[3] / "constraints" / "default.txt"
    options, text = torch_options(sys.executable, pins, os.environ.get("MLOC_TORCH", ""))
    sys.stderr.write(f"==> {text}\n")
    sys.stdout.write(" ".join(options) + "\n")


if __name__ == "__main__":
    main()
