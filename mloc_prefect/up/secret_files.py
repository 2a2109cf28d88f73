"""Secrets of a `mloc up` that other machines can reach: made once, kept in files of mode 0600, not printed unasked."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from mloc_prefect.errors import DispatchError

_BYTES = 24


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Where the secrets of one `MLOC_HOME` lie.

    Attributes:
        directory: `$MLOC_HOME/secrets`, mode 0700.
    """

    directory: Path

    @classmethod
    def below(cls, home: Path) -> SecretFiles:
        """Return the files of `home`."""
        return cls(home / "secrets")

    @property
    def token(self) -> Path:
        """Bearer token of the endpoint."""
        return self.directory / "token"

    @property
    def prefect_auth(self) -> Path:
        """`user:password` of the Prefect API."""
        return self.directory / "prefect-auth"

    @property
    def join(self) -> Path:
        """Shell variables with which another machine joins."""
        return self.directory / "join.env"

    def read_or_make(self, path: Path, prefix: str = "") -> str:
        """Return the secret in `path`; make it first when there is none.

        Args:
            path: One of the files above.
            prefix: What a new one begins with, e.g. `mloc:`.

        Raises:
            DispatchError: The file cannot be read or made.
        """
        try:
            if not path.exists():
                self.write(path, prefix + secrets.token_urlsafe(_BYTES))
            path.chmod(0o600)
            text = path.read_text().strip()
        except OSError as error:
            raise DispatchError(
                f"cannot keep a secret in {path}: {error.strerror}", hint="make it readable, or set another MLOC_HOME"
            ) from None
        if not text:
            raise DispatchError(f"the secret in {path} is empty", hint="remove the file, and a new one is made")
        return text

    def write(self, path: Path, text: str) -> None:
        """Put `text` and a line end into `path`, mode 0600 from its first moment, all of it or nothing."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.chmod(0o700)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
        new.replace(path)
