"""Secrets of our services: made once, kept in files of mode 0600, not printed unasked."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.atomic_file import create_once, write_whole

_BYTES = 24


def read_or_make_secret(path: Path, *, name: str = "secret", prefix: str = "") -> str:
    """Return the secret in a file; make it first when there is none. Of two processes that make one, the first wins.

    Args:
        path: The file; its directory is made if needed, mode 0700.
        name: What messages call it.
        prefix: What a new one begins with, e.g. `mloc:`.

    Raises:
        DispatchError: The file cannot be read or made.
    """
    try:
        _make_private(path.parent)
        if not path.exists():
            create_once(path, f"{prefix}{secrets.token_urlsafe(_BYTES)}\n".encode())
        path.chmod(0o600)
        text = path.read_text().strip()
    except OSError as error:
        raise DispatchError(
            f"cannot keep the {name} in {path}: {error.strerror}", hint="make it readable, or set another MLOC_HOME"
        ) from None
    if not text:
        raise DispatchError(f"the {name} in {path} is empty", hint="remove the file, and a new one is made")
    return text


def read_login(path: str | None) -> str | None:
    """Return the login in a file; None without one.

    Raises:
        DispatchError: The file cannot be read.
    """
    try:
        return Path(path).read_text().strip() if path else None
    except OSError as error:
        raise DispatchError(
            f"cannot read the login of the Prefect server in {path}: {error.strerror}",
            hint="only the user who runs the server can read it",
        ) from None


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Where the secrets of the servers of one state directory lie.

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
    def prefect_page(self) -> Path:
        """Page that opens Prefect's pages with this login."""
        return self.directory / "prefect.html"

    @property
    def join(self) -> Path:
        """Shell variables with which another machine joins."""
        return self.directory / "join.env"

    def read_or_make(self, path: Path, prefix: str = "") -> str:
        """Return the secret in `path`, one of the files above; see `read_or_make_secret`."""
        return read_or_make_secret(path, prefix=prefix)

    def prefect_login(self) -> str:
        """Return `user:password` of the embedded Prefect server; makes it when there is none.

        Raises:
            DispatchError: The file cannot be read or made.
        """
        return read_or_make_secret(self.prefect_auth, name="login of the embedded Prefect server", prefix="mloc:")

    def write(self, path: Path, text: str) -> None:
        """Replace the content of `path` by `text` and a line end."""
        _make_private(self.directory)
        write_whole(path, f"{text}\n".encode())


def _make_private(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
