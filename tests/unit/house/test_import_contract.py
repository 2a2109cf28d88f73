"""Who may import what: packages in a strict order, light modules, and heavy libraries in leaves only.

Types and imports inside functions count. There is no list of exceptions: `orchestrate` holds shims and is imported by
no other package.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mloc_prefect

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(mloc_prefect.__file__).parent

# From the bottom up; a package imports only from rows above its own. `mloc_prefect` stands for its `__init__`.
ORDER = (
    ("version", "diagnostics", "urls", "redis_url"),
    ("errors",),
    ("tasks",),
    ("process", "settings_limits", "settings_sources", "spec"),
    ("settings",),
    ("execution", "plan", "trust"),
    ("artifacts",),
    ("hardware", "prefect_ext"),
    ("executors", "blocks"),
    ("leases", "store", "services"),
    ("client", "flow"),
    ("cluster", "mloc_workers", "mloc_prefect"),
    ("bridge", "worker"),
    ("server", "collection"),
    ("cli", "orchestrate"),
)
LEVELS = {package: level for level, packages in enumerate(ORDER) for package in packages}
FREE_OF_PREFECT = {"hardware", *(p for row in ORDER[: LEVELS["prefect_ext"]] for p in row)}
HEAVY = {"torch", "vllm", "transformers", "trl", "datasets", "peft"}
PLATFORM = {"prefect", "redis", "fastapi"}
MODULES = {
    ".".join(("mloc_prefect", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


def package_of(name: str) -> str:
    """Return the top-level package (or module) of ours in which `name` lies."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@cache
def imports(file: Path, module: str) -> tuple[tuple[int, str], ...]:
    """Return line and full name of every import in a file, at any depth, those for type checkers included."""
    return tuple(_imports(file, module))


def _imports(file: Path, module: str) -> Iterator[tuple[int, str]]:
    base_package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = base_package.split(".")[: len(base_package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from mloc_prefect import spec` imports a module, `from mloc_prefect.spec import load` a name
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "mloc_prefect" else [base]
            yield from ((node.lineno, name) for name in names)


def edges() -> Iterator[tuple[str, str, str]]:
    """Yield importing package, imported package, and the place of each import between two packages of ours."""
    for module, file in MODULES.items():
        for line, name in imports(file, module):
            if name.partition(".")[0] == "mloc_prefect" and package_of(name) != package_of(module):
                yield package_of(module), package_of(name), f"{file.relative_to(PACKAGE.parent)}:{line} imports {name}"


def loaded(code: str) -> set[str]:
    """Return what is in `sys.modules` of a fresh interpreter after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def named(packages: set[str], libraries: set[str]) -> list[str]:
    """Return where modules of `packages` name one of `libraries`."""
    return [
        f"{file.relative_to(PACKAGE.parent)}:{line}: {name}"
        for module, file in MODULES.items()
        if package_of(module) in packages
        for line, name in imports(file, module)
        if name.partition(".")[0] in libraries
    ]


def test_every_package_has_a_level():
    assert {package_of(name) for name in MODULES} == set(LEVELS)


def test_packages_import_only_from_lower_levels():
    wrong = [where for importer, imported, where in edges() if LEVELS[imported] >= LEVELS[importer]]
    assert wrong == []


def test_heavy_libraries_are_named_in_executors_only():
    assert named(set(LEVELS) - {"executors"}, HEAVY) == []


def test_lower_levels_never_name_prefect_or_redis():
    assert named(FREE_OF_PREFECT, PLATFORM) == []


@pytest.mark.parametrize(
    ("module", "at", "name"),
    [
        ("mloc_prefect.plan.x", "import mloc_prefect.flow.build", "mloc_prefect.flow.build"),
        ("mloc_prefect.plan.x", "def f():\n    from mloc_prefect import worker", "mloc_prefect.worker"),
        ("mloc_prefect.plan.x", "from ..cli import app", "mloc_prefect.cli"),
        ("mloc_prefect.plan.x", "try:\n    import torch.nn\nexcept E:\n    pass", "torch.nn"),
        ("mloc_prefect.plan.x", "if TYPE_CHECKING:\n    import mloc_prefect.server", "mloc_prefect.server"),
    ],
)
def test_the_reader_of_imports_sees_all_kinds(tmp_path: Path, module: str, at: str, name: str):
    file = tmp_path / "x.py"
    file.write_text(f"{at}\n")
    assert [found for _, found in imports(file, module)] == [name]


def test_plain_import_is_light():
    assert tops(loaded("import mloc_prefect")) & {"pydantic", "prefect", "yaml", "typer", "fsspec"} == set()


def test_lower_levels_load_no_heavy_library():
    light = [name for name in MODULES if package_of(name) in FREE_OF_PREFECT]
    assert len(light) > 20
    modules = loaded("\n".join(f"import {name}" for name in light))
    assert tops(modules) & (HEAVY | PLATFORM) == set()


def test_hosts_and_runtime_need_the_standard_library_only():
    """They must start fast, and hosts run in environments that have nothing else of ours."""
    modules = ("execution.host.main", "services.local_runtime.daemon", "executors.echo")
    code = "\n".join(f"import mloc_prefect.{name}" for name in modules)
    new = tops(loaded(code)) - tops(loaded("import asyncio, json, logging, subprocess"))
    assert new - set(sys.stdlib_module_names) == {"mloc_prefect"}


def test_collection_adds_next_to_nothing_to_a_prefect_command():
    """In addition to Prefect's own modules only ours, and of these only what a worker type and a block need."""
    stock = loaded("import prefect.main, prefect.workers.process, prefect.filesystems")
    new = loaded("import mloc_prefect.collection") - stock
    ours = {name for name in new if name.startswith("mloc_prefect")}
    assert new - ours == set()
    assert ours == {
        "mloc_prefect",
        "mloc_prefect.blocks",
        "mloc_prefect.collection",
        "mloc_prefect.errors",
        "mloc_prefect.version",
        "mloc_prefect.worker",
        "mloc_prefect.worker.job_configuration",
        "mloc_prefect.worker.worker",
    }
