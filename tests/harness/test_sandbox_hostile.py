"""Over a hundred hostile programs, at every level that there is: none passes, outlives its limit or leaves a trace.

What a level does not keep out is said here too: SEEN_BY_RLIMITS are attempts that succeed with rlimits alone.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import sandbox
from harness.sandbox import LEVELS, Program, SandboxSettings, limits, probe, run_many
from tests.harness.hostile import HOSTILE, MARK
from tests.harness.hostile_reach import GUARD, NAMESPACES_ONLY, SEEN_BY_RLIMITS

TEST = "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(-1) == 1\n\ncheck(f)\n"
RIGHT = "def f(x):\n    return x * x\n"
TIMEOUT = 1.0
LATE = 2.0
"""Seconds that a loaded machine may add to a program's limit."""

# bwrap gives programs a loopback of their own, and its /tmp a limit on bytes but none on files.
ALLOWED = {"bubblewrap": {"sends a datagram", "listens for others", "many small files", "many folders"}}

USABLE = [name for name, why in probe().items() if why is None]


def only(level: str, programs: list[str], monkeypatch: pytest.MonkeyPatch, test: str = TEST) -> list[sandbox.Verdict]:
    """The verdicts of a level, also where the machine has stronger ones."""
    monkeypatch.setattr(sandbox, "LEVELS", {level: LEVELS[level]})
    return run_many([Program(text, test) for text in programs], SandboxSettings(level, TIMEOUT, 256))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[dict[str, object]]:
    """What programs try to reach: a folder with a secret, and listening sockets."""
    import socket

    victim = tmp_path / "victim"
    victim.mkdir(mode=0o777)
    (victim / "secret").write_text("kept")
    os.chmod(victim / "secret", 0o666)
    root = Path(__file__).resolve().parents[2]
    abstract = f"fuse-bench-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{abstract}")
        local.listen()
        yield {
            **{"victim": str(victim), "port": server.getsockname()[1], "abstract": abstract},
            **{"home": str(Path.home()), "root": str(root), "name": os.uname().nodename},
        }


def listing(victim: Path) -> list[tuple[str, ...]]:
    folders = (Path("/"), Path("/usr"), Path("/etc"), Path(sys.base_prefix), Path("/dev/shm"), Path.home(), victim)
    found = [
        (str(folder), *sorted(path.name for path in folder.iterdir() if folder == victim or MARK in path.name))
        for folder in folders
        if folder.is_dir()
    ]
    return [*found, ("secret", (victim / "secret").read_text())]


def children() -> set[int]:
    """Processes that have this one as their parent and still run."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found |= {pid} if state not in "ZX" else set()
    return found


@pytest.fixture
def foster_parent() -> Iterator[None]:
    """Whatever a supervisor leaves behind becomes a child of the test's process."""
    limits.prctl(limits.PR_SET_CHILD_SUBREAPER, 1)
    yield
    limits.prctl(limits.PR_SET_CHILD_SUBREAPER, 0)


def test_there_are_enough_hostile_programs() -> None:
    assert len(HOSTILE) >= 60
    assert len({*HOSTILE, *SEEN_BY_RLIMITS, *NAMESPACES_ONLY}) == len(HOSTILE) + len(SEEN_BY_RLIMITS) + len(
        NAMESPACES_ONLY
    )


@pytest.mark.parametrize("level", USABLE)
@pytest.mark.usefixtures("foster_parent")
def test_no_hostile_program_passes_or_outlives_its_limit(
    level: str, outside: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, own, scratch = Path(str(outside["victim"])), children(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    programs = dict(HOSTILE)
    if level != "rlimits":
        attempts = SEEN_BY_RLIMITS | {name: GUARD + text for name, text in NAMESPACES_ONLY.items()}
        for name, text in attempts.items():
            for key, value in outside.items():
                text = text.replace(f"{{{key}!r}}", repr(value)).replace(f"{{{key}}}", str(value))
            programs[name] = text
    before, begin = listing(victim), time.monotonic()
    verdicts = only(level, [*programs.values(), RIGHT, RIGHT], monkeypatch)
    taken = time.monotonic() - begin
    assert [verdict.reason for verdict in verdicts[-2:]] == ["passed", "passed"]
    said = dict(zip(programs, verdicts[:-2], strict=True))
    assert {name for name, verdict in said.items() if verdict.passed} - ALLOWED.get(level, set()) == set()
    assert {name: v.seconds for name, v in said.items() if v.seconds > TIMEOUT + LATE} == {}
    assert taken < len(programs) * (TIMEOUT + LATE)
    assert listing(victim) == before
    assert list(scratch.iterdir()) == [], "something is left on the disk"
    assert children() == own, "a process of a program is still there"


@pytest.mark.parametrize("level", USABLE)
def test_what_rlimits_alone_does_not_keep_out(
    level: str, outside: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["reads /etc/passwd", "reads a process's command line", "connects to the loopback", "sees other processes"]
    programs = [SEEN_BY_RLIMITS[name].replace("{port}", str(outside["port"])) for name in names]
    verdicts = only(level, programs, monkeypatch)
    assert [verdict.passed for verdict in verdicts] == [level == "rlimits"] * len(names)


@pytest.mark.parametrize("level", USABLE)
def test_a_program_may_use_its_scratch_folder_and_the_library(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import collections, ctypes, decimal, hashlib, heapq, itertools, json, math, os, random, re, tempfile, time
def f(x):
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(1000))
    with open('kept', 'w') as file:
        file.write(json.dumps(x * x))
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    return json.loads(open('kept').read())
"""
    assert [verdict.reason for verdict in only(level, [program] * 2, monkeypatch)] == ["passed"] * 2
