"""The TRL of the environment `train`, laid over the libraries of the tests, which have the last TRL with PPO.

`constraints/train.txt` differs from `constraints/default.txt` in few packages; only these are installed, once for each
version, so that no second torch is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]


def newest_trl_env() -> dict[str, str]:
    """Return variables with which `sys.executable` imports the libraries of `train`."""
    wanted = sorted(_pins("train").items() - _pins("default").items())
    names = [f"{name}=={version}" for name, version in wanted]
    folder = ROOT / ".cache" / "train" / "-".join(names)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name("lock")):
        if not folder.is_dir():
            made = folder.with_name("unfinished")
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--upgrade",
                "--target",
                str(made),
            ]
            done = subprocess.run([*command, *names], capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, done.stderr
            made.rename(folder)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "OMP_NUM_THREADS": "1"}


def _pins(name: str) -> dict[str, str]:
    """Return the pins of a file that hold for each Python."""
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pins = (line for line in lines if "==" in line and ";" not in line and not line.startswith("#"))
    return dict(line.split("==") for line in pins)
