"""Loads an executor class by its string path, inside the host. Standard library only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from mloc_prefect.errors import MissingExtraError

if TYPE_CHECKING:
    from mloc_prefect.execution.executor import Executor


def load_class(path: str) -> type[Executor]:
    """Return the executor class at `path` (`package.module:Class`).

    Raises:
        ImportError: The module, or a library that it imports, is not there.
        MissingExtraError: The module has no such class.
    """
    module_name, _, class_name = path.partition(":")
    found: Any = getattr(import_module(module_name), class_name, None)
    if not isinstance(found, type):
        raise MissingExtraError(f"executor {path!r}: the module has no class {class_name!r}")
    return cast("type[Executor]", found)
