"""Runs generated programs and says whether they pass their tests.

    run_many(programs, settings)     two at a time, in order
    run_python(program, test)        one
    missing_toolchain("rs")          what this machine lacks for a language; see languages.py

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
            had that user is you (root is refused then): it can also signal your processes, the bench among them (a
            program whose supervisor dies has failed), may start no process once you own more than the limit, and where
            the system allows tracing could change the bench's memory, though not the tester's. One that leaves its
            session and then ends its supervisor fails, but its processes outlive the limit. Run nothing here that you
            would fear from a careless script.
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

A test of a Python program compares plain values: None, bool, numbers, str, bytes and lists, tuples, sets and dicts of
them (subclasses arrive as the plain type), and the types themselves. Any other object stays in the program's process;
a test may hand it back to a function, and fails when it compares it or takes it for a value. Changes that a function
makes to its arguments are not seen by the test.

Programs of other languages are built and run in one process at the same levels, so what is said of the tests' own
process and of plain values is Python's alone: languages.py says what of a forged verdict is defeated there. They have
more room to write in, more processes and time, and their memory is that of each process; address space that a runtime
reserves and does not use is limited apart, so that shared memory of a program counts only against both together. They
see what their language has in /etc; Bash and C# see a /proc of their own processes, where the system lets one be
mounted.

A program whose time runs out while its processes have hardly run, on a machine that is busy with others, is tried once
more, alone.
"""

import contextlib
import functools
import os
import queue
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from harness.errors import SandboxError
from harness.sandbox import bubblewrap, canaries, languages
from harness.sandbox.languages import LANGUAGES, PYTHON, missing_toolchain
from harness.sandbox.namespaces import Room
from harness.sandbox.slot import Slot, another_user

__all__ = ["LANGUAGES", "LEVELS", "Level", "Program", "SandboxSettings", "Verdict", "choose", "missing_toolchain"]
__all__ += ["probe", "run_many", "run_python"]

TIMEOUT_S, MEMORY_MB, PROCESSES = 3.0, 512, 16
"""What a Python program may take; LANGUAGES says it for the others."""

IDLE = 0.5
"""A program whose time ran out while its processes had less than this share of it is tried again, alone."""


@dataclass(frozen=True)
class Level:
    """How far programs are isolated; `missing` says why a machine lacks it.

    `wrap` gives what goes before their command; `spaces`: their process makes its own namespaces.
    """

    wrap: Callable[[Room], tuple[str, ...]] | None
    missing: Callable[[], str | None]
    spaces: bool = False


def _no_rlimits() -> str | None:
    if os.name != "posix":
        return f"it needs a POSIX system, this is {os.name}"
    if os.getuid() == 0 and not another_user():
        return f"as root its programs need another user to run as, and no other can read {sys.executable}"
    return None


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
    with contextlib.closing(_slot(LEVELS[level])) as slot:
        try:
            program = Program("def f():\n    return 1\n", "assert f() == 1")
            verdict = _verdict(slot, program, LEVELS[level], SandboxSettings(timeout=10.0))
        except SandboxError as error:
            return str(error)
    return None if verdict.passed else f"a right program did not pass: {verdict.reason}"


LEVELS: dict[str, Level] = {
    "rlimits": Level(wrap=None, missing=_no_rlimits),
    "namespaces": Level(wrap=None, missing=_no_namespaces, spaces=True),
    "bubblewrap": Level(wrap=bubblewrap.command, missing=_no_bubblewrap),
}
"""By name, the weakest first."""


@dataclass(frozen=True)
class SandboxSettings:
    """`level`: the least accepted ("any" or a name of LEVELS); seconds and MiB a program; how many at once.

    Without `timeout` or `memory_mb` a program may take what its language may.
    """

    level: str = "any"
    timeout: float | None = None
    memory_mb: int | None = None
    parallel: int = 2


@dataclass(frozen=True)
class Program:
    """A program and its tests.

    In Python, names that `test` uses and neither it nor `setup` defines are the program's; `entry_point` always is.
    `setup` is code of the task itself (HumanEval's prompt), whose helpers the tests may call. In another language the
    program and, on a new line, `test` are one file.
    """

    program: str
    test: str
    setup: str = ""
    entry_point: str = ""
    language: str = PYTHON


@dataclass(frozen=True)
class Verdict:
    """`reason`: "passed", "timeout", or one of failed, raised, ended, not built, test error with what happened.

    "test error" means that the test itself cannot be run: no program could pass it. `cpu`: the seconds of processor
    time that a program which ran out of time had by then, with all its processes.
    """

    passed: bool
    reason: str
    seconds: float
    cpu: float = 0.0


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


def accepted(least: str | None) -> str:
    """The level that programs are run at: as `choose` says; where nobody says the least, any but the weakest."""
    try:
        return choose(least or list(LEVELS)[1])
    except SandboxError as error:
        if least is not None:
            raise
        raise SandboxError(
            f"programs that models write are to be run, and there is {error}. To run them all the same: "
            "--allow-weak-sandbox, or `sandbox: any` in the suite (what that keeps out: fuse-bench doctor)"
        ) from None


def run_python(program: str, test: str, timeout: float = TIMEOUT_S, memory_mb: int = MEMORY_MB) -> Verdict:
    """Run one program against its test. Many are faster by `run_many`."""
    return run_many([Program(program, test)], SandboxSettings(timeout=timeout, memory_mb=memory_mb))[0]


def run_many(programs: Sequence[Program], settings: SandboxSettings) -> list[Verdict]:
    """The verdict of every program, in their order.

    Raises SandboxError, before any program has run, for a language whose tools are missing or which does not tell a
    right program of its own (canaries.py) from a wrong one.
    """
    name = choose(settings.level)
    check_languages(name, (program.language for program in programs))
    level = LEVELS[name]
    slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    workers = max(1, min(settings.parallel, len(programs)))

    def verdict(program: Program) -> Verdict:
        slot = slots.get()
        try:
            return _verdict(slot, program, level, settings)
        finally:
            slots.put(slot)

    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            slots.put(stack.enter_context(contextlib.closing(_slot(level))))
        with ThreadPoolExecutor(workers) as pool:
            verdicts = list(pool.map(verdict, programs))
        return [
            verdict(program) if _starved(found) else found for program, found in zip(programs, verdicts, strict=True)
        ]


def _job(program: Program, level: Level, settings: SandboxSettings) -> dict[str, Any]:
    """What supervisor.run is given, but for the folder and the user."""
    job = asdict(program) | {"python": program.language == PYTHON, "spaces": level.spaces}
    if job["python"]:
        seconds, memory = settings.timeout or TIMEOUT_S, settings.memory_mb or MEMORY_MB
        bounds = {"memory_mb": memory, "cpu_s": int(seconds) + 1, "files": 32, "processes": PROCESSES}
        room = Room()
        job |= {"timeout": seconds, "memory_mb": memory, "build_timeout": 0.0}
    else:
        known, tools = LANGUAGES[program.language], languages.toolchain(program.language)
        seconds, memory = settings.timeout or known.seconds, settings.memory_mb or known.memory_mb
        bounds = {
            **{"memory_mb": max(known.build_mb, memory), "reserve_mb": known.reserve_mb, "file_mb": known.file_mb},
            **{"cpu_s": int(known.build_seconds + seconds) + 1, "files": 256, "processes": known.processes},
        }
        room = Room(tools.visible, known.scratch_mb, known.proc)
        job |= {"timeout": seconds, "memory_mb": memory, "build_timeout": known.build_seconds}
        job |= {"build": tools.build, "run": tools.run, "env": tools.env}
    return job | {"limits": bounds, "room": asdict(room), "wrap": level.wrap(room) if level.wrap else ()}


def _verdict(slot: Slot, program: Program, level: Level, settings: SandboxSettings) -> Verdict:
    job = _job(program, level, settings)
    return Verdict(**slot.run(job, job["timeout"] + job["build_timeout"]))


def check_toolchains(names: Iterable[str]) -> None:
    """SandboxError that names every language whose tools this machine lacks."""
    missing = {language: found for language in sorted(set(names)) if (found := missing_toolchain(language))}
    if missing:
        lines = [f"no program in {language} can be run: {found}" for language, found in missing.items()]
        raise SandboxError("\n  ".join(lines))


def check_languages(level: str, names: Iterable[str]) -> None:
    """SandboxError for the first language that cannot be judged on this machine."""
    used = sorted(set(names))
    check_toolchains(used)
    for language in used:
        unfit = _unfit(level, language)
        if unfit:
            raise SandboxError(f"programs in {language} are not judged rightly on this machine ({level}): {unfit}")


@functools.cache
def _unfit(level: str, language: str) -> str | None:
    """Why a language's canaries do not end as they should; None if they do. Once a process and level."""
    canary = canaries.CANARIES[language]
    with contextlib.closing(_slot(LEVELS[level])) as slot:
        for text, passes in ((canary.right, True), (canary.wrong, False)):
            program = Program(text, canary.tests, language=language)
            verdict = _tried_twice(slot, program, LEVELS[level], SandboxSettings())
            if verdict.passed != passes or verdict.reason.startswith(("not built", "timeout")):
                return f"a {'right' if passes else 'wrong'} program ended with '{verdict.reason}'"
    return None


def _slot(level: Level) -> Slot:
    return Slot(contained=level.spaces or level.wrap is not None)


def _tried_twice(slot: Slot, program: Program, level: Level, settings: SandboxSettings) -> Verdict:
    verdict = _verdict(slot, program, level, settings)
    return _verdict(slot, program, level, settings) if _starved(verdict) else verdict


def _starved(verdict: Verdict) -> bool:
    """Whether a program may have run out of time because the machine was busy with others."""
    return verdict.reason == "timeout" and verdict.cpu < IDLE * verdict.seconds
