"""Files, folders and names: what lets a reader guess where a thing is."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

from tests.integration.conftest import LONGEST
from tests.unit.house.test_import_contract import MODULES, PACKAGE, imports, package_of

MOST_FILES = 20
MOST_LINES = 400
SHARED_NAMES = {"__init__", "__main__", "main", "models", "errors"}
"""File names that say all there is to say in any package."""

SHIMS = {"orchestrate"}
"""Import paths of earlier versions: their files repeat names on purpose."""

ROOT = PACKAGE.parent


def source_files() -> list[Path]:
    return [file for module, file in MODULES.items() if package_of(module) not in SHIMS]


def is_pair(paths: list[tuple[str, ...]]) -> bool:
    """Whether two files of one name are a task type and its executor, or a store and its twin in memory."""
    if len(paths) != 2:
        return False
    return {p[0] for p in paths} == {"tasks", "executors"} or {p[-2] for p in paths} == {"redis", "memory"}


def test_folders_are_small_enough_to_read():
    count = Counter(file.parent for file in MODULES.values() if file.name != "__init__.py")
    assert {str(folder): n for folder, n in count.items() if n > MOST_FILES} == {}


def test_file_names_are_unique():
    places: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for file in source_files():
        if file.stem not in SHARED_NAMES:
            places[file.stem].append(file.relative_to(PACKAGE).parts)
    assert {name: paths for name, paths in places.items() if len(paths) > 1 and not is_pair(paths)} == {}


def test_class_names_are_unique():
    homes: dict[str, list[str]] = defaultdict(list)
    for file in source_files():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(file.relative_to(PACKAGE)))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_files_form_no_circle():
    """Imports inside functions count, those for type checkers do not: these never run."""
    graph = {module: set(run_time_imports(module, file)) for module, file in MODULES.items()}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in finished:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def run_time_imports(module: str, file: Path) -> set[str]:
    typed = {
        line
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    names = {name for line, name in imports(file, module) if line not in typed and name in MODULES}
    return {name for name in names if name != module and MODULES[name].name != "__init__.py"}


def test_files_are_short():
    others = (file for name in ("benchmarks", "docs", "flows", "tests") for file in (ROOT / name).rglob("*.py"))
    files = [*MODULES.values(), *others]
    long = {str(f): n for f in files if (n := len(f.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def test_the_files_that_come_first_are_there():
    folder = ROOT / "tests" / "integration"
    assert set(LONGEST) <= {file.stem for file in folder.rglob("test_*.py")}


def test_every_package_says_what_it_is():
    """What it is, what it must not know, and its modules: the first thing that a newcomer reads of it."""
    silent = []
    for module, file in MODULES.items():
        if file.name != "__init__.py" or module == "mloc_prefect" or package_of(module) in SHIMS:
            continue
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        members = [f.stem for f in file.parent.glob("*.py") if f.stem != "__init__"]
        members += [d.name for d in file.parent.iterdir() if (d / "__init__.py").is_file()]
        missing = [name for name in members if f"`{name}`" not in text]
        if missing:
            silent.append(f"{module}: {', '.join(sorted(missing))}")
    assert silent == []


def test_unit_tests_mirror_the_packages():
    allowed = {*(package_of(module) for module in MODULES), "house", "docs", "support"}
    folders = {file.relative_to(ROOT / "tests" / "unit").parts[0] for file in (ROOT / "tests/unit").glob("*/test_*.py")}
    assert folders - allowed == set()
