"""The cost of compiling a spec: read, validate and plan, compared with only loading the YAML.

    python benchmarks/compile.py [--quick] [--rounds N] [FILE...]

Three arms take turns on each file, in one process, in an order that changes with each round:
`mloc` (text -> plan: everything that `mloc plan` does before it prints), `safe_load` (PyYAML in Python) and `c_load`
(PyYAML on libyaml, data only). Printed are medians, and the range of the middle 80 %; ratios are medians of the ratios
of one round. Without files: our templates.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from mloc_prefect.plan import check

ROOT = Path(__file__).parents[1]
TARGET_MS = 1.0

_WIDTHS = (8, 16, 10, 8, 11, 8)

Arm = Callable[[bytes], object]


def _mloc(text: bytes) -> object:
    plan, found = check(text)
    assert plan is not None, found
    return plan


def _safe_load(text: bytes) -> object:
    return yaml.load(text, Loader=yaml.SafeLoader)


def _c_load(text: bytes) -> object:
    return yaml.load(text, Loader=yaml.CSafeLoader)


ARMS: dict[str, Arm] = {"mloc": _mloc, "safe_load": _safe_load, "c_load": _c_load}


def measure(files: list[Path], rounds: int) -> dict[str, dict[Path, list[float]]]:
    """Return milliseconds of each round by arm and file; one round before is not counted."""
    texts = {file: file.read_bytes() for file in files}
    times: dict[str, dict[Path, list[float]]] = {arm: {file: [] for file in files} for arm in ARMS}
    names = list(ARMS)
    gc.disable()  # a collection would hit one arm and not the other
    for number in range(rounds + 1):
        order = names[number % len(names) :] + names[: number % len(names)]
        for file, text in texts.items():
            for arm in order:
                start = time.perf_counter()
                ARMS[arm](text)
                took = (time.perf_counter() - start) * 1000
                if number:
                    times[arm][file].append(took)
        gc.collect()
    gc.enable()
    return times


def report(files: list[Path], times: dict[str, dict[Path, list[float]]]) -> None:
    """Print one line a file, then all files together."""
    columns = ("mloc ms", "(80 % range)", "safe_load", "c_load", "/safe_load", "/c_load")
    print(f"{'file':36} " + " ".join(f"{name:>{width}}" for name, width in zip(columns, _WIDTHS, strict=True)))
    for file in files:
        row = {arm: times[arm][file] for arm in ARMS}
        low, high = _range(row["mloc"])
        print(
            f"{file.name:36} {statistics.median(row['mloc']):8.3f} {f'{low:.3f} - {high:.3f}':>16} "
            f"{statistics.median(row['safe_load']):10.3f} {statistics.median(row['c_load']):8.3f} "
            f"{_ratio(row['mloc'], row['safe_load']):11.2f} {_ratio(row['mloc'], row['c_load']):8.2f}"
        )
    medians = {arm: [statistics.median(times[arm][file]) for file in files] for arm in ARMS}
    met = sum(median <= TARGET_MS for median in medians["mloc"])
    ours = medians["mloc"]
    print(f"\nall {len(files)} files: median {statistics.median(ours):.3f} ms, slowest file {max(ours):.3f} ms")
    for arm in ("safe_load", "c_load"):
        ratio = _ratio(ours, medians[arm])
        print(f"  {arm} alone: median {statistics.median(medians[arm]):.3f} ms, ratio {ratio:.2f}")
    print(f"target: median <= {TARGET_MS:g} ms for each file: {met} of {len(files)}")


def _range(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    cut = len(ordered) // 10
    return ordered[cut], ordered[-1 - cut]


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="spec files (default: our templates)")
    parser.add_argument("--rounds", type=int, default=200, help="turns of each arm on each file")
    parser.add_argument("--quick", action="store_true", help="9 rounds: shows that it works")
    arguments = parser.parse_args()
    files = arguments.files or sorted((ROOT / "templates").glob("*.yaml"))
    rounds = 9 if arguments.quick else arguments.rounds
    folder = files[0].parent.name
    print(f"Python {platform.python_version()}, PyYAML {yaml.__version__}, {rounds} rounds, files of {folder}\n")
    report(files, measure(files, rounds))


if __name__ == "__main__":
    main()
