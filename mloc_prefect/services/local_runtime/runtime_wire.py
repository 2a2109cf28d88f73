"""Files, configuration and messages that the local runtime and its clients agree on. Standard library only.

Both ends talk over a unix socket (mode 0600) in JSON lines. A request is `{"id", "op", ...arguments}`; its answer
`{"id", "result"}` or `{"id", "error": {"message", "hint"}}`; before it any number of `{"id", "progress": text}`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.process.lock_file import LockFile
from mloc_prefect.process.proxies import restored
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.version import PACKAGE_DIR, __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.settings import MlocSettings

LINE_BYTES = 16 << 20
WIRE = 1
"""Number of this protocol; clients do not talk to a runtime with another one."""

_HOST_ENV_PREFIXES = (
    "ANTHROPIC_",
    "AWS_",
    "AZURE_",
    "CUDA_",
    "GOOGLE_",
    "HF_",
    "HUGGINGFACE_",
    "LC_",
    "MKL_",
    "MLOC_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "OPENAI_",
    "PYTORCH_",
    "SSL_CERT_",
    "TOKENIZERS_",
    "TORCH",
    "TRANSFORMERS_",
    "VLLM_",
    "WANDB_",
)
_HOST_ENV_NAMES = frozenset(
    {
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "LD_LIBRARY_PATH", "PYTHONPATH", "MODEL", "HF_MODEL", "VLLM_MODEL"),
    }
)
_LEASED = frozenset({"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"})  # set for each host from what it leased
_BASE_ENV_NAMES = frozenset(
    {"HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "PYTHONPATH", "SHELL", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME"}
)


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Settings of the runtime.

    Attributes:
        home: `MLOC_HOME`.
        server_port: Wanted port of the embedded server.
        idle_seconds: The runtime leaves after so long without a client.
        host_idle_seconds: A warm host leaves after so long without a task.
        host_start_seconds: Longest time until a host listens.
    """

    home: str
    server_port: int
    idle_seconds: float
    host_idle_seconds: float
    host_start_seconds: float

    @classmethod
    def of(cls, settings: MlocSettings) -> RuntimeConfig:
        """Return the settings of the runtime among those of MLOC."""
        return cls(
            home=str(settings.home),
            server_port=settings.server_port,
            idle_seconds=settings.runtime_idle_seconds,
            host_idle_seconds=settings.host_idle_seconds,
            host_start_seconds=settings.host_start_seconds,
        )

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RuntimeFiles:
    """Files of the runtime of one `MLOC_HOME`, all of mode 0600 in a directory of mode 0700."""

    directory: Path
    log: Path

    @classmethod
    def below(cls, home: Path) -> RuntimeFiles:
        """Return the files for `home`."""
        return cls(directory=run_dir(home), log=home / "logs" / "runtime.log")

    @property
    def socket(self) -> Path:
        """The unix socket."""
        return self.directory / "runtime.sock"

    @property
    def lock(self) -> LockFile:
        """Locked by the runtime as long as it lives; holds its process id."""
        return LockFile(self.directory / "runtime.lock")


def fingerprint(config: RuntimeConfig) -> str:
    """Return what a runtime started now would be: version, interpreter, newest change of our files, settings.

    A runtime with another fingerprint runs other code or by other settings, and is replaced when it has no users.
    """
    newest = max(_changed(file) for folder in (PACKAGE_DIR, *_folders(PACKAGE_DIR)) for file in folder.glob("*.py"))
    settings = json.dumps(config.to_wire(), sort_keys=True)
    return f"{__version__} {sys.executable} {newest} {settings}"


def host_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of the user's shell that executors read; part of a host's key, so volatile ones stay out."""
    return {
        name: value
        for name, value in sorted(restored(dict(environ)).items())
        if name not in _LEASED and (name in _HOST_ENV_NAMES or name.startswith(_HOST_ENV_PREFIXES))
    }


def base_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of the runtime itself, without what concerns only the shell that started it."""
    return {name: value for name, value in environ.items() if name in _BASE_ENV_NAMES}


def encode(message: Mapping[str, Any]) -> bytes:
    """Return `message` as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _folders(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir() and entry.name != "__pycache__"]


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:  # an editor replaces it at this moment
        return 0
