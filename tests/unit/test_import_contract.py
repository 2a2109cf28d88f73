"""Who may import what: layers, light modules, and heavy libraries in leaves only."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mloc_prefect

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(mloc_prefect.__file__).parent
LAYERS = {
    **dict.fromkeys(("errors", "settings", "settings_sources"), 0),
    **dict.fromkeys(("spec", "tasks"), 1),
    **dict.fromkeys(("plan", "artifacts", "execution", "executors"), 2),
    **dict.fromkeys(("orchestrate", "worker", "bridge", "up", "blocks", "collection"), 3),
    **dict.fromkeys(("server", "cli"), 4),
}
HEAVY = {"torch", "vllm", "transformers", "trl", "datasets", "peft"}
FACE = {"prefect", "redis", "fastapi"}
MODULES = {
    ".".join(("mloc_prefect", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
LIGHT = [
    *(name for name in MODULES if 0 <= LAYERS.get(name.partition(".")[2].partition(".")[0], 9) <= 2),
    "mloc_prefect.worker.inventory",
]
LIGHT = [name for name in LIGHT if not name.startswith("mloc_prefect.executors.")]


def imports(file: Path, module: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every import in a file, at any depth, except those for type checkers only."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in run_time_nodes(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from mloc_prefect import spec` imports a module, `from mloc_prefect.spec import load` a name
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "mloc_prefect" else [base]
            yield from ((node.lineno, name) for name in names)


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from run_time_nodes(child)


def layer_of(name: str) -> int | None:
    """Return the layer of one of our modules, None for others and for names of the package itself."""
    parts = name.split(".")
    return LAYERS.get(parts[1]) if parts[0] == "mloc_prefect" and len(parts) > 1 else None


def loaded(code: str) -> set[str]:
    """Return what is in `sys.modules` of a fresh interpreter after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_every_module_has_a_layer():
    assert {name.split(".")[1] for name in MODULES if name != "mloc_prefect"} - set(LAYERS) == set()


def test_modules_import_from_their_own_or_a_lower_layer():
    wrong = [
        f"{file.relative_to(PACKAGE.parent)}:{line}: {module} (layer {layer_of(module)}) imports {name}"
        for module, file in MODULES.items()
        for line, name in imports(file, module)
        if layer_of(module) is not None and (layer_of(name) or 0) > (layer_of(module) or 0)
    ]
    assert wrong == []


def test_heavy_libraries_are_named_in_executor_leaves_only():
    wrong = [
        f"{file.relative_to(PACKAGE.parent)}:{line}: {name}"
        for module, file in MODULES.items()
        if not module.startswith("mloc_prefect.executors.")
        for line, name in imports(file, module)
        if name.partition(".")[0] in HEAVY
    ]
    assert wrong == []


def test_lower_layers_never_name_prefect_or_redis():
    wrong = [
        f"{file.relative_to(PACKAGE.parent)}:{line}: {name}"
        for module, file in MODULES.items()
        if (layer_of(module) or 0) <= 2
        for line, name in imports(file, module)
        if name.partition(".")[0] in FACE
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "at", "name"),
    [
        ("mloc_prefect.plan.x", "import mloc_prefect.orchestrate.flow", "mloc_prefect.orchestrate.flow"),
        ("mloc_prefect.plan.x", "def f():\n    from mloc_prefect import worker", "mloc_prefect.worker"),
        ("mloc_prefect.plan.x", "from ..cli import app", "mloc_prefect.cli"),
        ("mloc_prefect.plan.x", "try:\n    import torch.nn\nexcept E:\n    pass", "torch.nn"),
    ],
)
def test_the_reader_of_imports_sees_all_kinds(tmp_path: Path, module: str, at: str, name: str):
    file = tmp_path / "x.py"
    file.write_text(f"if TYPE_CHECKING:\n    import mloc_prefect.server\n{at}\n")
    assert [found for _, found in imports(file, module)] == [name]


def test_plain_import_is_light():
    assert tops(loaded("import mloc_prefect")) & {"pydantic", "prefect", "yaml", "typer", "fsspec"} == set()


def test_lower_layers_load_no_heavy_library():
    assert len(LIGHT) > 20
    modules = loaded("\n".join(f"import {name}" for name in LIGHT))
    assert tops(modules) & (HEAVY | FACE) == set()


def test_hosts_and_runtime_need_the_standard_library_only():
    """They must start fast, and hosts run in environments that have nothing else of ours."""
    code = "import mloc_prefect.execution.host, mloc_prefect.orchestrate.runtime, mloc_prefect.executors.echo"
    new = tops(loaded(code)) - tops(loaded("import asyncio, json, logging, subprocess"))
    assert new - set(sys.stdlib_module_names) == {"mloc_prefect"}


def test_collection_adds_next_to_nothing_to_a_prefect_command():
    """Beside Prefect's own modules only ours, and of these only what a worker type and a block need to be known."""
    stock = loaded("import prefect.main, prefect.workers.process, prefect.filesystems")
    new = loaded("import mloc_prefect.collection") - stock
    ours = {name for name in new if name.startswith("mloc_prefect")}
    assert new - ours == set()
    assert ours == {
        "mloc_prefect",
        "mloc_prefect.blocks",
        "mloc_prefect.collection",
        "mloc_prefect.errors",
        "mloc_prefect.worker",
        "mloc_prefect.worker.worker",
    }
