"""Upload and download of files: the endpoint compared with `cp` on the same disk and with a plain FastAPI handler.

    python benchmarks/upload.py [--quick] [--rounds N] [--mebibytes N] [--json]

Arms, interleaved in each round; the client is a socket that sends by sendfile or writes what it receives to disk:
  cp         `cp` of the file; the copy may still be in memory when it returns
  cp+fsync   the same, until the copy is on disk
  upload     POST .../files of the endpoint: streamed, hashed, on disk before the answer
  download   GET .../files/<name> of the endpoint, to a file
  plain up   the same upload to `async def up(file: UploadFile)`, which copies the file to its place as MLOC does

Printed: MiB/s (median and range), the share of `cp`, and how far the peak memory of each server lies above what it had
before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import uvicorn
from fastapi import FastAPI, File, UploadFile
from held_memory import hold_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
BOUNDARY = "-" * 24 + "f1c9bd2a7e3040d8"  # as long as those of curl
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()
PATH = "/api/v1/results/bench/files"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one round of 16 MiB, for CI: shows that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="times that each arm runs (default 3)")
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of the file (default 2048)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--plain", metavar="DIRECTORY", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        serve_plain(Path(args.plain))
        return
    size, rounds = (16, 1) if args.quick else (args.mebibytes, args.rounds)
    with tempfile.TemporaryDirectory(prefix="mloc-bench-", dir=Path.cwd()) as home:
        speeds, grown = measure(Path(home), size=size, rounds=rounds)
    if args.json:
        print(json.dumps({"mebibytes": size, "mebibytes_per_second": speeds, "grown_mebibytes": grown}))
    else:
        show(speeds, grown, size=size, rounds=rounds)


def measure(home: Path, *, size: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return MiB/s of each arm and round, and the growth of each server in MiB."""
    source = home / "source.bin"
    block = os.urandom(min(size, 64) * MIB)
    with source.open("wb") as file:
        for _ in range(0, size * MIB, len(block)):
            file.write(block)
        file.truncate(size * MIB)
        os.fsync(file.fileno())
    arms = ("cp", "cp+fsync", "upload", "download", "plain up")
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    with server(home, "mloc") as (port, pid), server(home, "plain") as (plain_port, plain_pid):
        for one in (port, plain_port):  # what is imported and allocated once is no growth
            upload(one, source, length=MIB)
        before = {"endpoint": memory(pid, "VmRSS"), "plain": memory(plain_pid, "VmRSS")}
        for _ in range(rounds):
            for arm in arms:
                hold_memory(home, size * MIB)
                seconds = run(arm, home, source, port, plain_port)
                speeds[arm].append(size / seconds)
        after = {"endpoint": memory(pid, "VmHWM"), "plain": memory(plain_pid, "VmHWM")}
    return speeds, {name: (after[name] - before[name]) / MIB for name in before}


def run(arm: str, home: Path, source: Path, port: int, plain_port: int) -> float:
    """Return the seconds of one arm; what it made is removed, except the uploaded file, which is downloaded next."""
    os.sync()
    target = home / "copy.bin"
    start = time.perf_counter()
    if arm.startswith("cp"):
        subprocess.run(["cp", source, target], check=True)
        if arm == "cp+fsync":
            with target.open("rb") as file:
                os.fsync(file.fileno())
    elif arm == "download":
        download(port, target, source.stat().st_size)
    else:
        upload(port if arm == "upload" else plain_port, source)
    seconds = time.perf_counter() - start
    target.unlink(missing_ok=True)
    (home / "plain" / "big.bin").unlink(missing_ok=True)
    return seconds


def upload(port: int, source: Path, length: int | None = None) -> None:
    """Send a file, or only its beginning, as one part of a form."""
    size = length or source.stat().st_size
    with connected(port) as link, source.open("rb") as file:
        whole = len(HEAD) + size + len(TAIL)
        link.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {whole}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
        )
        link.sendall(HEAD)
        link.sendfile(file, 0, size)
        link.sendall(TAIL)
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert b" 200 " in answer.split(b"\r\n", 1)[0], answer[:500]


def download(port: int, target: Path, size: int) -> None:
    """Write the uploaded file to `target`."""
    with connected(port) as link, target.open("wb") as file:
        link.sendall(f"GET {PATH}/big.bin HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += link.recv(65536)
        head, _, rest = head.partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n", 1)[0], head
        file.write(rest)
        buffer = memoryview(bytearray(MIB))
        while received := link.recv_into(buffer):
            file.write(buffer[:received])
    assert target.stat().st_size == size


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield link


@contextmanager
def server(home: Path, arm: str) -> Iterator[tuple[int, int]]:
    """Run a server; gives its port and process id."""
    if arm == "mloc":
        command = [sys.executable, "-m", "mloc_prefect.server"]
    else:
        command = [sys.executable, __file__, "--plain", str(home / "plain")]
    # No Redis is there: files need none.
    environment = {**os.environ, "MLOC_HOME": str(home), "REDIS_URL": "redis://127.0.0.1:1", "PORT": "0"}
    log = (home / f"{arm}.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening on" in line, (home / f"{arm}.log").read_text()
        yield int(line.strip().rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def serve_plain(directory: Path) -> None:
    """Serve the plain handler until the process is ended."""
    app = FastAPI()

    @app.post("/api/v1/results/{task_id}/files")
    async def up(task_id: str, file: Annotated[UploadFile, File()]) -> dict[str, object]:
        directory.mkdir(exist_ok=True)
        with (directory / (file.filename or "x")).open("wb") as target:
            shutil.copyfileobj(file.file, target)
        return {"ok": True, "task": task_id}

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])


def memory(pid: int, name: str) -> int:
    """Return VmRSS or VmHWM of a process, bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def show(speeds: dict[str, list[float]], grown: dict[str, float], *, size: int, rounds: int) -> None:
    print(f"{size} MiB, {rounds} round(s), {os.cpu_count()} cores\n")
    print(f"{'arm':10} {'MiB/s':>8} {'(range)':>16} {'of cp':>7} {'of cp+fsync':>12}")
    middle = {arm: statistics.median(values) for arm, values in speeds.items()}
    for arm, values in speeds.items():
        spread = f"{min(values):.0f} - {max(values):.0f}"
        shares = (f"{middle[arm] / middle[base]:.0%}" for base in ("cp", "cp+fsync"))
        print(f"{arm:10} {middle[arm]:8.0f} {spread:>16} {next(shares):>7} {next(shares):>12}")
    print()
    for name, mebibytes in grown.items():
        print(f"peak memory of the {name} server above its start: {mebibytes:.0f} MiB")
    print("target: less than 64 MiB for the endpoint:", "met" if grown["endpoint"] < 64 else "missed")


if __name__ == "__main__":
    main()
