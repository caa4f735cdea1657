"""What a supervisor does with processes that are to be gone: they, their groups and all that descends from them."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path


def clear(program: "subprocess.Popen[bytes]", *others: int) -> None:
    """Kill the others, the program's group and whatever still descends from this process, and reap them all."""
    for stream in (program.stdin, program.stdout):
        if stream:
            stream.close()
    _kill(program.pid, os.killpg)
    for other in others:
        _kill(other, os.kill)
    _kill(program.pid, os.kill)
    program.wait()
    # What left the group has become this process's child by now; it is killed until nothing is left to be reaped.
    while True:
        children = _children()
        for child in children:
            _kill(child, os.kill)
        try:
            reaped, _ = os.waitpid(-1, 0 if children else os.WNOHANG)
        except ChildProcessError:
            return
        if not reaped:
            return


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _kill(pid: int, kill: Callable[[int, int], None]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        kill(pid, signal.SIGKILL)


def cpu_of_descendants() -> float:
    """Seconds of processor time that all that descends from this process has used; 0 where there is no /proc."""
    return sum(_cpu(pid) for pid in _descendants(os.getpid()))


def _descendants(pid: int) -> Iterator[int]:
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, listed.read_text().split()):
                yield child
                yield from _descendants(child)


def _cpu(pid: int) -> float:
    """Of a process and of those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
