"""Opens regular files only, and only those inside a folder if that is asked for. Standard library only.

A pipe without a writer would hold its reader forever, and a device would answer with anything.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def open_regular(path: Path) -> io.FileIO:
    """Open a file for reading, unbuffered; links are followed.

    Raises:
        FileNotFoundError: There is nothing.
        OSError: It is not a regular file, or cannot be read.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return io.FileIO(opened)
    except BaseException:
        os.close(opened)
        raise


def open_inside(folder: Path, path: Path) -> io.FileIO | None:
    """Open a regular file inside a folder for reading, unbuffered; None if there is none, or if it leads elsewhere.

    Args:
        folder: The folder, which may itself be a link.
        path: A path below it; links in it may lead to other files of the folder, not out of it.

    Raises:
        OSError: The file is there and cannot be read.
    """
    home, real = os.path.realpath(folder), os.path.realpath(path)
    if not real.startswith(f"{home}{os.sep}"):
        return None
    try:
        # The resolved path: a link that appears in the meantime is not followed.
        opened = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link again, a socket
            return None
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return None
    return io.FileIO(opened)
