"""Files of tasks are for their owner only, or for the members of one group (`MLOC_RESULTS_GROUP`)."""

from __future__ import annotations

import grp
import logging
import os
import stat
from typing import TYPE_CHECKING

from mloc_prefect.errors import SettingsError, reason

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)
_OTHERS = 0o077


def keep_private(settings: MlocSettings) -> None:
    """Create all further files of this process, and of its children, for the owner only, or for the group as well.

    The results root is created if it is missing, and an older one below `MLOC_HOME` is closed to others. With a group,
    files below it belong to that group.

    Raises:
        SettingsError: There is no such group.
    """
    group = _group_id(settings.results_group)
    os.umask(_OTHERS if group is None else 0o007)
    root = settings.results_root
    try:
        root.mkdir(parents=True, exist_ok=True)
        _protect(root, group, ours=root.is_relative_to(settings.home))
    except OSError as error:  # what needs the results root reports this with more detail
        _log.warning("the access to %s could not be limited: %s", root, reason(error))


def _protect(root: Path, group: int | None, *, ours: bool) -> None:
    found = root.stat()
    if found.st_uid != os.geteuid():
        return
    mode = stat.S_IMODE(found.st_mode)
    if group is not None:
        os.chown(root, -1, group)
        wanted = (mode | 0o2770) & ~0o007  # files in it get its group
    else:
        wanted = mode & ~_OTHERS if ours else mode  # another root may be shared on purpose
    if wanted != mode:
        root.chmod(wanted)


def _group_id(name: str | None) -> int | None:
    if not name:
        return None
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise SettingsError(
            f"setting MLOC_RESULTS_GROUP: there is no group {name!r}", hint="see `getent group`"
        ) from None
