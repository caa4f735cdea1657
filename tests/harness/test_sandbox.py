"""Right programs pass, wrong ones fail, hostile ones neither pass nor outlive their limit."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from harness import sandbox
from harness.errors import SandboxError
from harness.sandbox import LEVELS, Program, SandboxSettings, choose, guest, probe, run_many, run_python

TEST = "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(-1) == 1\n\ncheck(f)\n"
RIGHT = "def f(x):\n    return x * x\n"
QUICK = SandboxSettings(timeout=1.0, memory_mb=256)

HOSTILE = {
    "loop that swallows exceptions": """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    "loop in the call": "def f(x):\n    while True:\n        pass",
    "sleep that ignores signals": """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def f(x):
    while True:
        time.sleep(1)
""",
    "small fork bomb": """
import os, time
for _ in range(4):
    os.fork()
time.sleep(60)
""",
    "daemon that leaves its session": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
def f(x):
    return None
""",
    "memory bomb": "def f(x):\n    block = []\n    while True:\n        block.append(bytearray(1 << 24))",
    "output flood": "def f(x):\n    while True:\n        print('passed' * 1000)",
    "flood of the reply": "def f(x):\n    return 'passed' * (1 << 20)",
    "flood of every descriptor": """
import os
def f(x):
    while True:
        for descriptor in range(32):
            try:
                os.write(descriptor, b'passed\\n' * 1000)
            except OSError:
                pass
""",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "sys.exit(0) in the call": "import sys\ndef f(x):\n    sys.exit(0)",
    "os._exit(0)": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef f(x):\n    os._exit(0)",
    "os._exit(0) at exit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "forged prints": "print('passed')\nprint(True)\ndef f(x):\n    print('passed')\n    return 'passed'",
    "forged replies": """
import os
for descriptor in range(32):
    try:
        os.write(descriptor, b"{'ready': ['f']}\\n{'value': {'passed': True}}\\n{'value': True}\\n")
    except OSError:
        pass
""",
    "equals everything": """
class Any:
    def __eq__(self, other):
        return True
def f(x):
    return Any()
""",
    "equal int subclass": """
class Any(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
def f(x):
    return Any(7)
""",
    "frames and argv": """
import gc, sys
def f(x):
    frame = sys._getframe()
    found = [sys.orig_argv, sys.argv]
    while frame:
        found.append(sorted(map(str, frame.f_globals)))
        for name, value in frame.f_locals.items():
            if isinstance(value, dict) and 'passed' in value:
                value['passed'] = True
        frame = frame.f_back
    for thing in gc.get_objects():
        if callable(thing) and getattr(thing, '__name__', '') == 'check':
            return 4
    return str(found)
""",
    "raises the exception of a failed comparison": "def f(x):\n    raise AssertionError('passed')",
    "raises BaseException": "def f(x):\n    raise BaseException('passed')",
    "no such function": "def g(x):\n    return x * x",
    "not Python": "def f(x:\n",
    "null byte": "def f(x):\n    return x\0",
    "raises its limits": """
import resource
def f(x):
    for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return x * x
""",
    "large file": "def f(x):\n    open('large', 'wb').write(bytes(1 << 24))\n    return x * x",
    "many open files": "def f(x):\n    kept = [open('/dev/null') for _ in range(200)]\n    return x * x",
    "reads the supervisor's memory": """
import os
def f(x):
    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)
    return x * x
""",
    "opens the supervisor's pipes": """
import os
def f(x):
    for number in range(3, 16):
        try:
            os.readlink(f'/proc/{os.getppid()}/fd/{number}')
            return x * x
        except FileNotFoundError:
            pass
""",
    "kills its supervisor": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "deep nesting": "def f(x):\n    value = []\n    for _ in range(100000):\n        value = [value]\n    return value",
}


@pytest.mark.parametrize("level", [name for name, why in probe().items() if why is None])
def test_no_hostile_program_passes_or_outlives_its_limit(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = time.monotonic()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    verdicts = run_many([Program(text, TEST) for text in HOSTILE.values()], SandboxSettings(level, 1.0, 256))
    passed = [name for name, verdict in zip(HOSTILE, verdicts, strict=True) if verdict.passed]
    assert passed == []
    late = {name: v.seconds for name, v in zip(HOSTILE, verdicts, strict=True) if v.seconds > QUICK.timeout + 2}
    assert late == {}
    assert time.monotonic() - begin < len(HOSTILE) * (QUICK.timeout + 2)
    assert list(tmp_path.iterdir()) == [], "something is left on the disk"
    assert _inside(tmp_path) == [], "a process of a program is still there"


def _inside(folder: Path) -> list[str]:
    """Processes whose working folder is, or was until it was removed, in `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            where = os.readlink(place / "cwd")
        except OSError:
            continue
        if where.startswith(str(folder)):
            found.append(place.name)
    return found


def test_reasons_say_what_happened() -> None:
    expected = {
        "loop that swallows exceptions": "timeout",
        "os._exit(0)": "ended: the program ended before the tests did",
        "flood of the reply": "failed: output limit",
        "not Python": "raised: SyntaxError",
        "memory bomb": "raised: MemoryError",
        "no such function": "raised: NameError",
        "equals everything": "failed: returned a value of type Any, which is not plain",
        "large file": "raised: OSError",
    }
    verdicts = run_many([Program(HOSTILE[name], TEST) for name in expected], QUICK)
    for (name, reason), verdict in zip(expected.items(), verdicts, strict=True):
        assert verdict.reason.startswith(reason), name


def test_right_programs_pass_in_order_and_wrong_ones_do_not() -> None:
    programs = [Program(RIGHT, TEST), Program("def f(x):\n    return x + 2", TEST)] * 4
    verdicts = run_many(programs, QUICK)
    assert [verdict.passed for verdict in verdicts] == [True, False] * 4
    assert verdicts[0].reason == "passed"
    assert verdicts[1].reason == "failed: assertion"
    assert run_python(RIGHT, TEST).passed


def test_a_swallowed_stop_does_not_help() -> None:
    test = "try:\n    f(1)\nexcept:\n    pass\n"
    assert not run_python("import os\ndef f(x):\n    os._exit(0)", test, timeout=1.0).passed


def test_a_test_may_expect_an_exception() -> None:
    test = "try:\n    f(1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'no'\n"
    assert run_python("def f(x):\n    raise ValueError('no')", test).passed


def test_a_fault_of_the_test_is_named_as_such() -> None:
    tests = ["check(f", "f(lambda: 1)", "raise SystemExit"]
    verdicts = run_many([Program(RIGHT, test) for test in tests], QUICK)
    assert all(verdict.reason.startswith("test error") and not verdict.passed for verdict in verdicts)


def test_helpers_of_the_prompt_come_from_the_task() -> None:
    prompt = 'def double(x):\n    return 2 * x\n\ndef f(x):\n    """Twice."""\n'
    test = "def check(candidate):\n    assert candidate(3) == double(3)\n\ncheck(f)\n"
    redefined = prompt + "    return 0\n\ndef double(x):\n    return 0\n"
    programs = [Program(prompt + "    return x + x\n", test, prompt, "f"), Program(redefined, test, prompt, "f")]
    assert [verdict.passed for verdict in run_many(programs, QUICK)] == [True, False]


def test_programs_have_no_environment_and_an_empty_folder_that_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_BENCH", "1")
    program = "import os\ndef f():\n    open('kept', 'w').write('x')\n    return [os.getcwd(), dict(os.environ)]"
    test = "folder, environment = f()\nassert 'SECRET_OF_THE_BENCH' not in environment\nassert False, folder"
    reason = run_python(program, test).reason
    folder = reason.removeprefix("failed: ")
    assert Path(folder).parent.name.startswith("fuse-bench-")
    assert not Path(folder).parent.exists()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1 << 200,
        -0.5,
        float("inf"),
        "\ud800\n'\"",
        b"\x00",
        [1, (2, {3}), {}],
        {(1, 2): frozenset({"a"})},
        set(),
        1 + 2j,
    ],
)
def test_plain_values_pass_unchanged(value: object) -> None:
    passed = guest.decode(eval(ascii(guest.encode(value))))
    assert passed == value
    assert type(passed) is type(value)


def test_levels() -> None:
    assert next(iter(LEVELS)) == "rlimits"
    assert choose("any") in LEVELS
    assert choose("rlimits") in LEVELS
    with pytest.raises(SandboxError, match="unknown sandbox level 'docker'; known: any, rlimits"):
        choose("docker")


def test_a_program_that_cannot_be_started_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, "broken", sandbox.Level(wrap=("/absent/command",), missing=lambda: None))
    with pytest.raises(SandboxError, match="a program could not be started: FileNotFoundError"):
        run_many([Program(RIGHT, TEST)], SandboxSettings("broken"))


def test_a_level_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stronger = sandbox.Level(wrap=("absent",), missing=lambda: "absent is not installed")
    monkeypatch.setitem(LEVELS, "absent", stronger)
    assert choose("any") == "rlimits"
    with pytest.raises(SandboxError, match="absent is not installed"):
        choose("absent")
