"""One command, measured: wall time, processor time, and the peak of memory over its whole tree of processes."""

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02
TICKS = os.sysconf("SC_CLK_TCK")
CHUNK = 8 << 20


@dataclass(frozen=True)
class Measured:
    """wall and cpu: seconds; peak: bytes, RssAnon + RssShmem summed over the tree, as sampled every 20 ms.

    others: processor seconds that the rest of the machine used meanwhile. error: the last lines of a failure, or None.
    """

    wall: float
    cpu: float
    peak: int
    others: float
    error: str | None = None
    timed_out: bool = False


def measure(command: Sequence[str], environment: Mapping[str, str], timeout: float, log: Path) -> Measured:
    """Run a command from its start to its end. After `timeout` seconds it is killed with all that it started."""
    os.sync()
    busy, own = _busy(), _own()
    stop, peaks, killed = threading.Event(), [0], threading.Event()
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        sampler = threading.Thread(target=_sample, args=(process.pid, stop, peaks))
        sampler.start()
        killer = threading.Timer(timeout, _kill, args=(process.pid, killed))
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    killer.cancel()
    stop.set()
    sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    others = max(0.0, _busy() - busy - cpu - (_own() - own))
    said = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    error = None if process.returncode == 0 else f"exit status {process.returncode}: {said}"
    return Measured(wall, cpu, peaks[0], others, error, killed.is_set())


def copy(inputs: Sequence[Path], size: int, out: Path) -> float:
    """Seconds to read files to their end and to write as many bytes as a result has: what no merge can beat by much."""
    os.sync()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    started = time.perf_counter()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with out.open("wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(view[: min(left, CHUNK)])
    wall = time.perf_counter() - started
    out.unlink()
    return wall


def memory_of(pid: int) -> int:
    """RssAnon + RssShmem of a process and all its descendants, in bytes; mapped pages of files are left out."""
    total = 0
    # A process may end between being listed and being read.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += memory_of(int(child))
    return total


def _sample(pid: int, stop: threading.Event, peaks: list[int]) -> None:
    while not stop.is_set():
        peaks[0] = max(peaks[0], memory_of(pid))
        stop.wait(INTERVAL)


def _kill(pid: int, killed: threading.Event) -> None:
    killed.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _busy() -> float:
    """Processor seconds that the machine has spent on anything since it started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def _own() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
