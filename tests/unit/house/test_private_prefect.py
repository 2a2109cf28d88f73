"""Private names of Prefect: used in two places only, and each use is guarded by a contract test.

An upgrade of Prefect may move them without notice; then a contract test fails, and not the run of a user.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.unit.house.test_import_contract import MODULES, PACKAGE, imports

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOWED = ("mloc_prefect.prefect_ext", "mloc_prefect.worker.worker")
CONTRACTS = [
    Path(__file__).parents[1] / "prefect_ext" / name
    for name in ("test_prefect_contract.py", "test_engine.py", "test_engine_outage.py")
]
DOCUMENTED = {"_block_type_name", "_block_type_slug", "_logo_url", "_documentation_url", "_description"}
"""Attributes that Prefect's documentation tells authors of blocks to set."""


class PrivateUse(NamedTuple):
    line: int
    name: str


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def our_names() -> frozenset[str]:
    """Return all private names that our own code defines: functions, attributes, fields, variables."""
    return frozenset(name for file in MODULES.values() for name in defined_names(ast.parse(file.read_text())))


def defined_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def is_own(node: ast.expr) -> bool:
    """Whether an expression is `self`, `cls` or `super()`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def private_imports(tree: ast.Module) -> Iterator[PrivateUse]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prefect":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [p for a in node.names if a.name.split(".")[0] == "prefect" for p in a.name.split(".")]
        else:
            continue
        yield from (PrivateUse(node.lineno, name) for name in names if is_private(name))


def private_attributes(tree: ast.Module, own: frozenset[str]) -> Iterator[PrivateUse]:
    """Yield private attributes of other objects that are none of ours."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and not is_own(node.value)
            and node.attr not in own
        ):
            yield PrivateUse(node.lineno, node.attr)


def prefect_bases(module: str, name: str) -> list[type]:
    found = getattr(importlib.import_module(module), name, None)
    return [b for b in getattr(found, "__mro__", ()) if b.__module__.partition(".")[0] == "prefect"]


def inherited_privates(node: ast.ClassDef, bases: list[type]) -> Iterator[PrivateUse]:
    """Yield private names of Prefect's base classes that a class of ours overrides, reads or sets."""
    source = "".join(inspect.getsource(base) for base in bases)
    theirs = {name for name in defined_names(ast.parse(source)) if is_private(name)} if source else set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and is_own(inner.value):
            name = inner.attr
        elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            name = inner.name
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            name = inner.id
        else:
            continue
        if name in theirs - DOCUMENTED:
            yield PrivateUse(inner.lineno, name)


@cache
def uses() -> dict[str, list[PrivateUse]]:
    found: dict[str, list[PrivateUse]] = {}
    for module, file in MODULES.items():
        if not any(name.partition(".")[0] == "prefect" for _, name in imports(file, module)):
            continue
        tree = ast.parse(file.read_text())
        here = [*private_imports(tree), *private_attributes(tree, our_names())]
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and (bases := prefect_bases(module, node.name)):
                here += inherited_privates(node, bases)
        found[module] = here
    return found


def test_private_names_are_used_in_two_places_only():
    wrong = [
        f"{MODULES[module].relative_to(PACKAGE.parent)}:{use.line}: {use.name}"
        for module, here in uses().items()
        if not module.startswith(ALLOWED)
        for use in here
    ]
    assert wrong == []


def test_each_private_name_has_a_contract_test():
    contracts = "".join(file.read_text() for file in CONTRACTS)
    names = {use.name for module, here in uses().items() if module.startswith(ALLOWED) for use in here}
    assert len(names) > 10, "the scan finds what is there"
    assert {name for name in names if f'"{name}"' not in contracts and f".{name}" not in contracts} == set()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import prefect._internal.observers", "_internal"),
        ("def f():\n    from prefect._flow_run_suspension import register", "_flow_run_suspension"),
        ("from prefect.flow_engine import _flow_parameters", "_flow_parameters"),
        ("from prefect import flow_engine\nflow_engine._flow_parameters(1)", "_flow_parameters"),
        ("def f(worker):\n    worker._limiter = None", "_limiter"),
        ("def f():\n    return get_client()._client.headers", "_client"),
    ],
)
def test_the_scan_sees_private_names(code: str, name: str):
    tree = ast.parse(code)
    assert name in {use.name for use in (*private_imports(tree), *private_attributes(tree, frozenset()))}


def test_the_scan_sees_what_a_subclass_takes_from_prefect():
    from prefect import Flow

    (node,) = ast.parse(
        "class Ours(Flow):\n"
        "    _block_type_slug = 'x'\n"
        "    def _own(self):\n"
        "        return self._entrypoint\n"
        "    def __call__(self):\n"
        "        self._ours = 1"
    ).body
    assert isinstance(node, ast.ClassDef)
    assert [use.name for use in inherited_privates(node, [Flow])] == ["_entrypoint"]
