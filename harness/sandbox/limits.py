"""What is set on a process before it runs anything: resource limits and, on Linux, the loss of special rights."""

import resource
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 28, 36, 38
NO_ROOT = 0b1111
"""SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP, both locked: user 0 gets no capabilities when it executes a program."""


def _prctl() -> Callable[[int, int], int]:
    if not sys.platform.startswith("linux"):
        return lambda option, value: -1
    import ctypes

    libc = ctypes.CDLL(None)
    return lambda option, value: int(libc.prctl(option, value, 0, 0, 0))


prctl = _prctl()
"""Linux's prctl(option, value) -> 0 or -1. Loaded once: it is called between fork and exec."""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def give_up_rights() -> None:
    """What this process executes next has no capabilities, even as root, and can win none: it cannot raise a limit."""
    prctl(PR_SET_SECUREBITS, NO_ROOT)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_limits(
    memory_mb: int, cpu_s: int, files: int, processes: int | None = None, file_mb: int = 1, reserve_mb: int = 0
) -> None:
    """Hard limits on this process and its children. NPROC counts per user, and does not bind root.

    reserve_mb: address space beyond the memory, for runtimes that reserve what they do not use.
    """
    for which, limit in numbers(memory_mb, cpu_s, files, processes, file_mb, reserve_mb):
        hard = resource.getrlimit(which)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (value, value))


def numbers(
    memory_mb: int, cpu_s: int, files: int, processes: int | None = None, file_mb: int = 1, reserve_mb: int = 0
) -> list[tuple[int, int]]:
    """The same as pairs of resource and limit."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: (memory_mb + reserve_mb) << 20,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: file_mb << 20,
        resource.RLIMIT_NOFILE: files,
    }
    if reserve_mb:
        wanted[resource.RLIMIT_DATA] = memory_mb << 20
    if processes is not None:
        wanted[resource.RLIMIT_NPROC] = processes
    return list(wanted.items())
