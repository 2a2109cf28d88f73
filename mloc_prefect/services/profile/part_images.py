"""Which image a part of the profile runs, and as which user: the targets of deploy/Dockerfile, and public ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mloc_prefect.services.profile.topology import ProfilePart

CORE, VLLM, TRAIN = "mloc-core", "mloc-vllm", "mloc-train"
TARGETS = (CORE, VLLM, TRAIN)
"""What deploy/Dockerfile makes; an image has the name of its target."""

OUR_USER = 10001
"""Number of the user, and of its group, that deploy/Dockerfile makes."""

TRAIN_EXTRAS = "server,redis,train"
"""Extras of the image `mloc-train`, unless the argument EXTRAS of its build names others."""

_PUBLIC = {"valkey-server": ("valkey/valkey:8", 999), "postgres": ("postgres:17", 999)}


def image_of(part: ProfilePart) -> str:
    """Return the name of the image; that of the worker has what executors need."""
    if part.program in _PUBLIC:
        return _PUBLIC[part.program][0]
    return TRAIN if part.name == "worker" else CORE


def user_of(part: ProfilePart) -> int:
    """Return the number of the user who runs the part in that image."""
    return _PUBLIC[part.program][1] if part.program in _PUBLIC else OUR_USER


def is_built(part: ProfilePart) -> bool:
    """Return whether deploy/Dockerfile makes the image."""
    return part.program not in _PUBLIC
