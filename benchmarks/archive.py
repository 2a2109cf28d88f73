"""Passing on a trained model: pack, upload, download, unpack; compared with MLOC's deflated zip sent with requests.

    python benchmarks/archive.py [--quick] [--rounds N] [--mebibytes N] [--json]

The model is a folder of bf16 weights drawn from a normal distribution, which deflate shrinks by a fifth or so. Both
arms use the same endpoint and run as processes of their own, interleaved in each round:
  mloc_prefect   artifacts.archive, artifacts.transfer, artifacts.checkpoint (streamed, stored, unpacked with checks)
  mloc           shutil.make_archive (deflate), requests.post(files=...), requests.get(stream=True), ZipFile.extractall

Printed: seconds of each step (median and range), the ratio of the totals, and how far the peak memory of each client
lies above what it had before, in MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from held_memory import hold_memory
from upload import MIB, memory, server

if TYPE_CHECKING:
    from collections.abc import Callable

ARMS = ("mloc_prefect", "mloc")
STEPS = ("pack", "upload", "download", "unpack")
SHARDS = 4  # files of weights


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one round of 16 MiB, for CI: shows that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="times that each arm runs (default 3)")
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of the model (default 2048)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--arm", nargs=3, metavar=("NAME", "HOME", "URL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        name, home, url = args.arm
        print(json.dumps(run_arm(name, Path(home), url)))
        return
    size, rounds = (16, 1) if args.quick else (args.mebibytes, args.rounds)
    with tempfile.TemporaryDirectory(prefix="mloc-bench-", dir=Path.cwd()) as home:
        found = measure(Path(home), size=size, rounds=rounds)
    if args.json:
        print(json.dumps({"mebibytes": size, "rounds": found}))
    else:
        show(found, size=size, rounds=rounds)


def measure(home: Path, *, size: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return seconds of each step and grown MiB of each arm and round."""
    make_model(home / "model", size)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with server(home, "mloc") as (port, _):
        for _ in range(rounds):
            for arm in ARMS:
                os.sync()
                hold_memory(home, size * MIB)
                command = [sys.executable, __file__, "--arm", arm, str(home), f"http://127.0.0.1:{port}"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                found[arm].append(json.loads(done.stdout))
                for left in (home / arm, home / "results"):
                    shutil.rmtree(left, ignore_errors=True)
    return found


def make_model(folder: Path, size: int) -> None:
    """Write `size` MiB of bf16 weights and the small files of a model."""
    import numpy as np

    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(b"{}" * MIB)
    draw = np.random.default_rng(0)
    for shard in range(SHARDS):
        with (folder / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors").open("wb") as file:
            for _ in range(max(1, size // SHARDS // 8)):
                weights = draw.normal(0.0, 0.02, 4 * MIB).astype(np.float32)
                file.write((weights.view(np.uint32) >> 16).astype(np.uint16).tobytes())  # the upper half is bf16


def run_arm(name: str, home: Path, url: str) -> dict[str, float]:
    """Do all steps of one arm; return the seconds of each and the grown MiB."""
    work = home / name
    work.mkdir()
    steps = ours(home / "model", work, url) if name == "mloc_prefect" else theirs(home / "model", work, url)
    before = memory(os.getpid(), "VmRSS")
    found: dict[str, float] = {}
    for step, action in zip(STEPS, steps, strict=True):
        began = time.perf_counter()
        action()
        found[step] = time.perf_counter() - began
    found["grown"] = (memory(os.getpid(), "VmHWM") - before) / MIB
    (back,) = [p.parent for p in work.rglob("config.json")]
    for file in (home / "model").iterdir():
        assert (back / file.name).stat().st_size == file.stat().st_size, file.name
    return found


def ours(model: Path, work: Path, url: str) -> tuple[Callable[[], object], ...]:
    import httpx  # noqa: F401 - loaded before the memory is measured, as requests is

    from mloc_prefect.artifacts.archive import pack
    from mloc_prefect.artifacts.transfer.artifact_upload import upload
    from mloc_prefect.artifacts.transfer.delivery import HttpDestination
    from mloc_prefect.artifacts.transfer.file_download import DownloadSource, download
    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
    from mloc_prefect.artifacts.unpack import unpack

    hosts, archive, fetched = AllowedHosts(loopback=True), work / "final_model.zip", work / "fetched.zip"
    destination, links, digest = HttpDestination(f"{url}/api/v1/results"), [], []
    return (
        lambda: digest.append(pack(model, archive).sha256),
        lambda: links.append(asyncio.run(upload(archive, destination, "ours", hosts, sha256=digest[0]))),
        lambda: download(DownloadSource(links[0]), fetched, hosts),
        lambda: unpack(fetched, work / "back", kind="zip"),
    )


def theirs(model: Path, work: Path, url: str) -> tuple[Callable[[], object], ...]:
    import requests

    archive, fetched = work / "final_model.zip", work / "fetched.zip"
    files = f"{url}/api/v1/results/theirs/files"

    def send() -> None:
        with archive.open("rb") as file:
            part = (archive.name, file, "application/zip")
            requests.post(files, files={"file": part}, timeout=600).raise_for_status()

    def fetch() -> None:
        with requests.get(f"{files}/{archive.name}", stream=True, timeout=600) as answer, fetched.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_content(8192):
                file.write(chunk)

    def extract() -> None:
        with zipfile.ZipFile(fetched) as packed:
            packed.extractall(work / "back")

    return (lambda: shutil.make_archive(str(work / "final_model"), "zip", model), send, fetch, extract)


def show(found: dict[str, list[dict[str, float]]], *, size: int, rounds: int) -> None:
    print(f"{size} MiB of bf16 weights, {rounds} round(s), {os.cpu_count()} cores; seconds, median (range)\n")
    print(f"{'':14}" + "".join(f"{step:>22}" for step in (*STEPS, "total")) + f"{'peak above idle':>18}")
    totals: dict[str, list[float]] = {}
    for arm, values in found.items():
        totals[arm] = [sum(value[step] for step in STEPS) for value in values]
        cells = [cell([value[step] for value in values]) for step in STEPS] + [cell(totals[arm])]
        grown = max(value["grown"] for value in values)
        print(f"{arm:14}" + "".join(f"{text:>22}" for text in cells) + f"{grown:14.0f} MiB")
    ratios = [theirs_ / ours_ for ours_, theirs_ in zip(totals["mloc_prefect"], totals["mloc"], strict=True)]
    spread = f"{min(ratios):.1f} - {max(ratios):.1f}"
    print(f"\nmloc / mloc_prefect: {statistics.median(ratios):.1f} times the time ({spread})")


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


if __name__ == "__main__":
    main()
