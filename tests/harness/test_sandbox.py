"""Right programs pass, wrong ones fail, and both say why."""

from pathlib import Path

import pytest

from harness import sandbox
from harness.errors import SandboxError
from harness.sandbox import LEVELS, Program, SandboxSettings, choose, guest, run_many, run_python
from tests.harness.hostile import HOSTILE
from tests.harness.test_sandbox_hostile import RIGHT, TEST, USABLE, only

QUICK = SandboxSettings(timeout=1.0, memory_mb=256)


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


@pytest.mark.parametrize("level", USABLE)
def test_programs_have_no_environment_and_an_empty_folder_that_is_removed(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_BENCH", "1")
    program = "import os\ndef f(x):\n    seen = os.listdir('.')\n    open('kept', 'w').write('x')\n"
    program += "    return [os.getcwd(), seen, dict(os.environ)]"
    test = "folder, seen, environment = f(0)\nassert seen == [] and 'SECRET_OF_THE_BENCH' not in environment\n"
    for verdict in only(level, [program] * 3, monkeypatch, f"{test}assert False, folder"):
        folder = Path(verdict.reason.removeprefix("failed: "))
        if level == "rlimits":
            assert folder.parent.name.startswith("fuse-bench-")
            assert not folder.parent.exists()
        else:
            assert folder == Path("/tmp")


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
    passed = guest.decode(eval(ascii(guest.encode(value, list))), list)
    assert passed == value
    assert type(passed) is type(value)


def test_levels() -> None:
    assert list(LEVELS) == ["rlimits", "namespaces", "bubblewrap"]
    assert choose("any") in LEVELS
    assert choose("rlimits") in LEVELS
    with pytest.raises(SandboxError, match="unknown sandbox level 'docker'; known: any, rlimits, namespaces"):
        choose("docker")


@pytest.mark.parametrize(
    ("command", "reason"),
    [("/absent/command", "FileNotFoundError"), ("/bin/false", "its process ended before the program began")],
)
def test_a_program_that_cannot_be_started_is_not_scored(
    command: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = sandbox.Level(wrap=lambda room: (command,), missing=lambda: None)
    monkeypatch.setattr(sandbox, "LEVELS", {"broken": broken})
    with pytest.raises(SandboxError, match=f"a program could not be started: {reason}"):
        run_many([Program(RIGHT, TEST)], SandboxSettings("broken"))


def test_a_level_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stronger = sandbox.Level(wrap=lambda room: ("absent",), missing=lambda: "absent is not installed")
    monkeypatch.setitem(LEVELS, "absent", stronger)
    assert choose("any") in {"rlimits", "namespaces", "bubblewrap"}
    with pytest.raises(SandboxError, match="absent is not installed"):
        choose("absent")
