"""The first program of a sandbox: locks itself in, then runs the code that it reads from stdin. Standard library only.

Run as a script, with one argument of JSON: see `code_sandbox`. What the code sees: a file system of its own (`/usr`
and the interpreter, read-only; `/work`, in memory and limited), no network, no process but its own, no privilege, and
no system call that `syscall_filter` refuses.
`MS_*`, `CLONE_*` and the other constants are those of Linux, the same on every architecture.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _NOATIME = 1, 2, 4, 8, 32, 1024
_NODIRATIME, _BIND, _REC, _PRIVATE, _RELATIME = 2048, 4096, 16384, 1 << 18, 1 << 21
_KEPT = {
    "nosuid": _NOSUID,
    "nodev": _NODEV,
    "noexec": _NOEXEC,
    "noatime": _NOATIME,
    "nodiratime": _NODIRATIME,
    "relatime": _RELATIME,
}
_DETACH = 2
_PDEATHSIG, _SET_SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_FILTER = 2
_CAPABILITIES_V3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_FIRST_UID = 2_000_000_000
"""Users that no machine has: of code that root runs, each with one of its own so that limits of processes apply."""

_ESCAPE = re.compile(rb"\\([0-7]{3})")  # of spaces and line ends in /proc/self/mountinfo

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Set up the sandbox and run the code; the exit status is that of the code, 128 + n after a signal."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    status = int(wanted["status"])
    code = sys.stdin.buffer.read()
    try:
        _die_with_owner()
        _leave_namespaces()
        child = os.fork()
    except OSError as error:
        os.write(status, f"{error.strerror or error}".encode())
        raise SystemExit(125) from None
    if child:
        os.close(status)
        raise SystemExit(_status_of(child))
    try:
        _die_with_owner()
        user = _user()
        _enter_root(Path(wanted["root"]), wanted["binds"], int(wanted["disk_bytes"]), user)
        Path("/work/main.py").write_bytes(code)
        _drop_privileges(user)
        _die_with_owner()  # a change of the user forgets it
        _filter_calls(bytes.fromhex(wanted["filter"]))
    except (OSError, KeyError) as error:
        os.write(status, f"{getattr(error, 'strerror', None) or error}".encode())
        os._exit(125)
    os.write(status, b"ok")
    os.close(status)
    _be_init(wanted)


def _be_init(wanted: dict[str, Any]) -> None:
    """Run the code in a child of its own; all that it started ends with this process."""
    program = os.fork()
    if program == 0:
        _limit(wanted)
        python = wanted["python"]
        environment = {"HOME": "/work", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": "/work"}
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.execve(python, [python, "-I", "-S", "-u", "-X", "utf8", "/work/main.py"], environment)  # noqa: S606 - no shell
    while True:
        ended, how = os.wait()
        if ended == program:
            os._exit(os.WEXITSTATUS(how) if os.WIFEXITED(how) else 128 + os.WTERMSIG(how))


def _status_of(child: int) -> int:
    _, how = os.waitpid(child, 0)
    return os.WEXITSTATUS(how) if os.WIFEXITED(how) else 128 + os.WTERMSIG(how)


def _die_with_owner() -> None:
    _checked(_libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _leave_namespaces() -> None:
    """Get mounts, processes, network and IPC of one's own; without root through a user namespace."""
    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        _checked(_libc.unshare(flags), "unshare")
        return
    _checked(_libc.unshare(flags | _NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _user() -> int:
    """Return the user that the code runs as: ours in a user namespace, for root one that owns nothing."""
    return os.getuid() or _FIRST_UID + int(Path("/proc/self").readlink().name) % 100_000_000


def _enter_root(root: Path, binds: list[str], disk_bytes: int, user: int) -> None:
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", str(root), "tmpfs", _NOSUID | _NODEV, "size=1m,mode=0755")
    for path in binds:
        _show(Path(path), root / path.lstrip("/"))
    work = root / "work"
    work.mkdir()
    owner = f"uid={user},gid={user if os.getuid() == 0 else os.getgid()}"
    _mount("tmpfs", str(work), "tmpfs", _NOSUID | _NODEV, f"size={disk_bytes},mode=0700,{owner},nr_inodes=10k")
    (root / "tmp").symlink_to("work")
    (root / ".old").mkdir()
    _checked(
        _libc.syscall(_PIVOT_ROOT[platform.machine()], os.fsencode(root), os.fsencode(root / ".old")), "pivot_root"
    )
    os.chdir("/")
    _checked(_libc.umount2(b"/.old", _DETACH), "umount")
    Path("/.old").rmdir()
    _mount("none", "/", None, _REMOUNT | _RDONLY | _NOSUID | _NODEV, "size=1m,mode=0755")
    os.chdir("/work")


def _show(path: Path, target: Path) -> None:
    """Let the sandbox see a folder or device of the machine, read-only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(path.readlink())
        return
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(str(path), str(target), None, _BIND | _REC)
    if path.is_dir():
        for point, kept in _mounts(target):
            _mount("none", point, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV | kept)


def _mounts(top: Path) -> list[tuple[str, int]]:
    """Return the mounts at and below a folder, each with the restrictions that it must keep in a user namespace."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        point = os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), fields[4]))
        if point == str(top) or point.startswith(f"{top}/"):
            found.append((point, sum(_KEPT.get(option, 0) for option in fields[5].decode().split(","))))
    return found


def _filter_calls(program: bytes) -> None:
    """Let this process and all that it starts make only the system calls that a filter allows."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _checked(_libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.c_char_p(fprog), 0, 0), "seccomp")


def _drop_privileges(user: int) -> None:
    for capability in range(64):
        _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # the numbers that this kernel lacks fail
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, none), "capset")
    _checked(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def _limit(wanted: dict[str, Any]) -> None:
    for kind, amount in (
        (resource.RLIMIT_AS, wanted["memory_bytes"]),
        (resource.RLIMIT_CPU, wanted["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, wanted["disk_bytes"]),
        (resource.RLIMIT_NPROC, wanted["processes"]),
        (resource.RLIMIT_NOFILE, wanted["files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (int(amount), int(amount)))


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    done = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode() if kind else None, flags, options.encode() or None
    )
    _checked(done, f"mount of {target}")


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
