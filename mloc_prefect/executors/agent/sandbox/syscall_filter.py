"""The filter of system calls that code of a model runs under: a program of classic BPF, as bytes. See seccomp(2).

It takes away what the limits of a sandbox do not count or hold: memory that belongs to no process, namespaces in which
code would be root again and could mount file systems, and interfaces of the kernel that it has no use for.
"""

from __future__ import annotations

import errno
import struct

_REFUSED = {
    "x86_64": {
        "memory": (319, 447, 29, 64, 68, 323),  # memfd_create, memfd_secret, shmget, semget, msgget, userfaultfd
        "namespaces": (272, 308, 165, 166, 155),  # unshare, setns, mount, umount2, pivot_root
        "mounts": (428, 429, 430, 431, 432, 433, 442),  # open_tree to fspick, mount_setattr
        "kernel": (248, 249, 250, 321, 425, 298, 101),  # three of keys, bpf, io_uring_setup, perf_event_open, ptrace
    },
    "aarch64": {
        "memory": (279, 447, 194, 190, 186, 282),
        "namespaces": (97, 268, 40, 39, 41),
        "mounts": (428, 429, 430, 431, 432, 433, 442),
        "kernel": (217, 218, 219, 280, 425, 241, 117),
    },
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435  # on both; its flags are in memory, where no filter can read them, and libraries go on with clone
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_OTHER_ABI = 0x40000000  # numbers of x32
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def syscall_filter(machine: str) -> bytes | None:
    """Return the filter for a kind of machine, None if there is none.

    Args:
        machine: As `platform.machine` names it.
    """
    if machine not in _REFUSED:
        return None
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, 0, _ARCHITECTURE[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *_answered(_IF_AT_LEAST, _OTHER_ABI, errno.ENOSYS),
        *_answered(_IF_EQUAL, _CLONE3, errno.ENOSYS),
    ]
    for numbers in _REFUSED[machine].values():
        for number in numbers:
            program += _answered(_IF_EQUAL, number, errno.EPERM)
    program += [
        (_IF_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        *_answered(_IF_ANY_BIT, _NEW_NAMESPACES, errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _answered(condition: int, value: int, error: int) -> list[tuple[int, int, int, int]]:
    """Return the instructions that answer with an error under a condition, and go on otherwise."""
    return [(condition, 0, 1, value), (_RETURN, 0, 0, _FAIL | error)]
