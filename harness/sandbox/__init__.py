"""Runs generated programs and says whether they pass their tests.

    run_many(programs, settings)     two at a time, in order
    run_python(program, test)        one

What each level keeps out. LEVELS is ordered from the weakest; a suite's `sandbox:` names the least that it accepts.

rlimits     A program has a fresh `python -I -S` process and session, no environment, an empty temporary folder that
            is removed, no standard streams, limits on address space, CPU time, file size, open files and, where it
            binds, processes, and a wall-clock limit after which it and all its descendants are killed (Linux: also
            those that left its session). As root, it runs as a user of its own without rights. The tests run in
            another process and call the program's functions over pipes that carry plain values only; the verdict is
            a random token that was never in the program's process. So none of these passes or lingers: `sys.exit(0)`,
            `os._exit(0)`, printing, reading its source, argv or frames, objects that equal everything, an endless
            loop, a fork bomb, a flood.
            What remains: the program sees the network and the host's files, as far as the user it runs as may read
            or write them, and can fill a disk with many small files until its time is up. Where no other user can be
            had that user is you: it can then also signal your processes, the bench among them (a program whose
            supervisor dies has failed), may start no process once you own more than the limit, and where the system
            allows tracing could change the bench's memory, though not the tester's. One that leaves its session and
            then ends its supervisor fails, but its processes outlive the limit. Run nothing here that you would fear
            from a careless script.
namespaces  All that, and new user, mount, pid, net, ipc, uts and cgroup namespaces, made by system calls: Linux 5.12 or
            later where user namespaces are allowed. There is no network, not even a loopback. The program sees its own
            processes only, and all of them end with its first. Its root holds, read-only, /usr, /bin, /lib*, the
            interpreter's folder, /dev/null, zero and urandom, and a writable /tmp of 16 MiB and 1,024 files in
            memory; no /proc, no /etc, no home, nothing of the bench. It has no capabilities, can win none by a file
            or by a namespace of its own, and, as root, is a user that nobody else is. The limit on processes
            counts its own only (Linux 5.14 or later; before, all of its user's).
            What remains: whatever lies in /usr or in the interpreter's folder can be read. Shared memory of System V
            is not counted by the limit on memory, only by the time. Where a supervisor is ended from outside, a
            program that has asked not to end with its parent goes on, still confined. The kernel is the host's: its
            faults are not kept out, for which take a machine of its own.
bubblewrap  The same by `bwrap`, 0.8 or later, where it is installed: its set-up has had more eyes on it, and takes
            longer. What remains is the same, and bytes in /tmp are limited, but not the number of files; there is a
            loopback, the program's own.

A test must compare plain values: None, bool, numbers, str, bytes and lists, tuples, sets and dicts of them (subclasses
arrive as the plain type). Changes that a function makes to its arguments are not seen by the test.
"""

import contextlib
import functools
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import SandboxError
from harness.sandbox import bubblewrap

GRACE_S = 10.0
"""How long a supervisor may take beyond a program's own limit before it counts as lost."""


@dataclass(frozen=True)
class Level:
    """How far programs are isolated; `missing` says why a machine lacks it.

    `wrap` goes before their command; `spaces`: their process makes its own namespaces.
    """

    wrap: tuple[str, ...]
    missing: Callable[[], str | None]
    spaces: bool = False


def _no_rlimits() -> str | None:
    return None if os.name == "posix" else f"it needs a POSIX system, this is {os.name}"


@functools.cache
def _no_namespaces() -> str | None:
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, this is {sys.platform}"
    why = _trial("namespaces")
    return why and f"{why}; user namespaces may be limited by sysctl, by AppArmor or by the container that this is"


@functools.cache
def _no_bubblewrap() -> str | None:
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, this is {sys.platform}"
    if shutil.which("bwrap") is None:
        return "bwrap is not installed"
    why = _trial("bubblewrap")
    return why and f"{why}; `bwrap --unshare-all --ro-bind / / true` may say more, and 0.8 is the oldest that will do"


def _trial(level: str) -> str | None:
    """Why a right program does not pass at this level; None if it does."""
    with contextlib.closing(_Supervisor(LEVELS[level])) as supervisor:
        try:
            verdict = supervisor.run(
                Program("def f():\n    return 1\n", "assert f() == 1"), SandboxSettings(timeout=10.0)
            )
        except SandboxError as error:
            return str(error)
    return None if verdict.passed else f"a right program did not pass: {verdict.reason}"


LEVELS: dict[str, Level] = {
    "rlimits": Level(wrap=(), missing=_no_rlimits),
    "namespaces": Level(wrap=(), missing=_no_namespaces, spaces=True),
    "bubblewrap": Level(wrap=bubblewrap.command(), missing=_no_bubblewrap),
}
"""By name, the weakest first."""


@dataclass(frozen=True)
class SandboxSettings:
    """`level`: the least accepted ("any" or a name of LEVELS); seconds and MiB a program; how many at once."""

    level: str = "any"
    timeout: float = 3.0
    memory_mb: int = 512
    parallel: int = 2


@dataclass(frozen=True)
class Program:
    """A program and its tests.

    Names that `test` uses and neither it nor `setup` defines are functions of the program; `entry_point` always is.
    `setup` is code of the task itself (HumanEval's prompt), whose helpers the tests may call.
    """

    program: str
    test: str
    setup: str = ""
    entry_point: str = ""


@dataclass(frozen=True)
class Verdict:
    """`reason`: "passed", "timeout", or one of failed, raised, ended, test error with what happened after a colon.

    "test error" means that the test itself cannot be run: no program could pass it.
    """

    passed: bool
    reason: str
    seconds: float


def probe() -> dict[str, str | None]:
    """For every level, the weakest first: None if this machine has it, else why not."""
    return {name: level.missing() for name, level in LEVELS.items()}


def choose(least: str = "any") -> str:
    """The strongest level that this machine has, if that is at least `least`; SandboxError otherwise."""
    names = list(LEVELS)
    if least != "any" and least not in LEVELS:
        raise SandboxError(f"unknown sandbox level '{least}'; known: any, {', '.join(names)}")
    missing = probe()
    usable = [name for name in names if missing[name] is None]
    if usable and (least == "any" or names.index(usable[-1]) >= names.index(least)):
        return usable[-1]
    why = "; ".join(f"{name}: {reason}" for name, reason in missing.items() if reason)
    raise SandboxError(f"no sandbox of level '{least}' or stronger on this machine ({why or 'none'})")


def run_python(program: str, test: str, timeout: float = 3.0, memory_mb: int = 512) -> Verdict:
    """Run one program against its test. Many are faster by `run_many`."""
    return run_many([Program(program, test)], SandboxSettings(timeout=timeout, memory_mb=memory_mb))[0]


def run_many(programs: Sequence[Program], settings: SandboxSettings) -> list[Verdict]:
    """The verdict of every program, in their order."""
    level = choose(settings.level)
    slots: queue.SimpleQueue[_Supervisor] = queue.SimpleQueue()
    workers = max(1, min(settings.parallel, len(programs)))

    def verdict(program: Program) -> Verdict:
        supervisor = slots.get()
        try:
            return supervisor.run(program, settings)
        finally:
            slots.put(supervisor)

    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            slots.put(stack.enter_context(contextlib.closing(_Supervisor(LEVELS[level]))))
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(verdict, programs))


class _Supervisor:
    """The process of `supervisor.py`: started when needed, and again when a program has managed to end it."""

    def __init__(self, level: Level) -> None:
        self.level = level
        # Not the supervisor's own: it may be killed before it clears up. A user without rights must get through it.
        self.folder = tempfile.mkdtemp(prefix="fuse-bench-")
        os.chmod(self.folder, 0o711)
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, program: Program, settings: SandboxSettings) -> Verdict:
        job = asdict(program) | {"timeout": settings.timeout, "memory_mb": settings.memory_mb}
        job |= {"wrap": list(self.level.wrap), "spaces": self.level.spaces, "folder": self.folder}
        begin = time.monotonic()
        # Twice, because another program may have ended this one's supervisor.
        for _ in range(2):
            self.process = self.process or _launch()
            job["user"] = _own_user(self.level, self.process.pid)
            said = _converse(self.process, json.dumps(job), time.monotonic() + settings.timeout + GRACE_S)
            if said is not None and "fault" in said:
                raise SandboxError(f"a program could not be started: {said['fault']}")
            if said is not None:
                return Verdict(**said)
            self.end()
        return Verdict(False, "failed: it ended the process that watches it", time.monotonic() - begin)

    def close(self) -> None:
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.process = None


def _launch() -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from harness.sandbox.supervisor import main; main()"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=pipe, stdout=pipe, env={}, start_new_session=True
    )


def _converse(process: "subprocess.Popen[bytes]", job: str, deadline: float) -> dict[str, Any] | None:
    """Send a job, and wait for its verdict; None, with the program killed, if none comes."""
    if process.stdin is None or process.stdout is None:
        raise SandboxError("the sandbox's supervisor was started without pipes")
    group = None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.encode() + b"\n")
        process.stdin.flush()
        while (line := _line(process.stdout.fileno(), deadline)) is not None:
            said = json.loads(line)
            if "pid" not in said:
                return dict(said)
            group = said["pid"]
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    return None


def _line(descriptor: int, deadline: float) -> bytes | None:
    """One line, read byte by byte so that nothing of the next is taken; None at the deadline or the end."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        byte = os.read(descriptor, 1)
        if not byte:
            return None
        line += byte
    return line


def _own_user(level: Level, supervisor: int) -> int | None:
    """As root, a user id that nobody has, for a supervisor's programs to run as; None where that is not possible.

    Derived from the supervisor's id, so that the limit on processes counts only its own programs.
    """
    if os.name != "posix" or os.getuid() != 0:
        return None
    user = 1_000_000_000 + supervisor
    # Where a program has a root of its own, the interpreter's folder can be reached whoever owns those above it.
    return user if level.spaces or level.wrap or _another_user() else None


@functools.cache
def _another_user() -> bool:
    """Whether root can run the interpreter as a user that nobody is."""
    command, user = [sys.executable, "-I", "-S", "-c", "pass"], 1_000_000_000 + os.getpid()
    try:
        subprocess.run(
            command, user=user, group=user, extra_groups=[], env={}, check=True, capture_output=True, cwd="/"
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return True
