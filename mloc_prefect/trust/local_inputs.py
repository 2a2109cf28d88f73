"""How the text of a spec names something on this machine: a path, a file URL, a template's data, or a name on the hub.

Standard library only. Specs are judged and files are opened by the same functions, so that both mean the same file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.errors import ArtifactError
from mloc_prefect.trust.input_roots import shown_path
from mloc_prefect.urls import is_chained, local_path, scheme_of
from mloc_prefect.version import PACKAGE_DIR

if TYPE_CHECKING:
    from mloc_prefect.trust.input_roots import InputRoots

_TEMPLATE_DATA = Path("templates/data")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_SCHEMES = "http https s3 s3a r2 gs gcs abfs abfss az adl oci oss hf ftp ftps sftp ssh webhdfs hdfs smb memory"
_REMOTE = frozenset(_SCHEMES.split())


def path_of(text: str) -> str | None:
    """Return the path of this machine that a submitted text names, or None for the URL of another place.

    Raises:
        ArtifactError: It is a URL that could lead to this machine in another way: a chain, an archive, a repository.
    """
    path, scheme = local_path(text), scheme_of(text)
    if path is not None and (scheme is not None or "://" not in text):
        return path
    if scheme not in _REMOTE or is_chained(text):
        hint = "write a path, an https URL, or the URL of an object store"
        raise ArtifactError(
            f"{shown_path(text.partition('://')[0] + '://')} is no kind of URL for submitted specs", hint=hint
        )
    return None


def is_hub_name(text: str) -> bool:
    """Return whether a text has the form of a name on the Hugging Face hub, which no path outside can have."""
    return _HUB_NAME.fullmatch(text) is not None and ".." not in text


def is_plain_part(text: str) -> bool:
    """Return whether a text can only name something below the folder to which it is joined."""
    path = Path(text)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in text


def find_local(text: str, base: Path) -> Path:
    """Return a text as a path; data files of our templates are found in the package from any directory.

    Raises:
        ArtifactError: It begins with `~name` of an unknown user.
    """
    try:
        found = base / Path(text).expanduser()
        if Path(text).parent == _TEMPLATE_DATA and not found.exists():
            packaged = PACKAGE_DIR / text
            return packaged if packaged.is_file() else found
    except (RuntimeError, ValueError, OSError):
        raise ArtifactError(f"{shown_path(text)} is not a path") from None
    return found


def admit_local(text: str, base: Path, roots: InputRoots, *, as_name: bool) -> Path:
    """Return the path of this machine that a submitted spec names.

    Args:
        text: What the spec has.
        base: Folder that relative paths start from.
        roots: Where inputs must be.
        as_name: Whether a name on the hub is meant if there is no such path.

    Raises:
        ArtifactError: It may not be read.
    """
    found = find_local(text, base)
    return found if names_no_input(text, found, as_name=as_name) else roots.admit(found, text)


def names_no_input(text: str, found: Path, *, as_name: bool) -> bool:
    """Return whether a text names nothing that is confined: data of our templates, or a name on the hub.

    Args:
        text: What the spec has.
        found: The path that it names.
        as_name: Whether a name on the hub is meant if there is no such path.
    """
    if Path(text).parent == _TEMPLATE_DATA and found == PACKAGE_DIR / text:
        return True
    return as_name and is_hub_name(text) and not found.exists()
