"""The directory of sockets, logs and locks of running programs."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from mloc_prefect.errors import DispatchError

SOCKET_LIMIT = 107
"""Bytes of a unix socket's path on Linux (sun_path, without the final zero)."""

_ROOM = 24  # bytes for "/<8 digits>.sock.new" and its like


def run_dir(home: Path) -> Path:
    """Return the directory for sockets and logs of `home`, made if needed, mode 0700.

    It is `home/run`, or, where socket paths would grow too long there, a directory of the same meaning in `/tmp`.

    Raises:
        DispatchError: It cannot be made, or belongs to another user.
    """
    path = home.absolute() / "run"
    if len(os.fsencode(path)) + _ROOM > SOCKET_LIMIT:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        name = f"mloc-{os.getuid()}-{digest}"
        path = Path("/tmp", name)  # noqa: S108  # made 0700 and checked below; not TMPDIR: all processes must find the same
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid():
            raise DispatchError(f"{path} belongs to another user", hint="set MLOC_HOME to a directory of your own")
        path.chmod(0o700)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DispatchError(f"cannot make {path}: {reason}", hint="set MLOC_HOME to a writable directory") from None
    return path
