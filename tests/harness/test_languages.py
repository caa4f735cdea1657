"""Every language whose tools are here: right programs pass, wrong ones and lazy forgeries do not, at every level."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness import sandbox
from harness.errors import SandboxError
from harness.programs import program_of
from harness.sandbox import LANGUAGES, Program, SandboxSettings, canaries, languages, missing_toolchain, run_many
from tests.harness.test_sandbox_hostile import USABLE

MISSING = {name: missing_toolchain(name) for name in LANGUAGES}
HERE = [name for name, missing in MISSING.items() if missing is None]
QUICK = [name for name in HERE if name in ("js", "lua", "php", "pl", "rb", "rs", "sh")]
"""Those of which a program takes less than a second."""

ALL = os.environ.get("FUSE_BENCH_ALL_LANGUAGES") == "1"
"""Also the slow ones, at every level."""


def rows(language: str) -> list[dict[str, Any]]:
    data = os.environ.get("FUSE_BENCH_DATA")
    if not data:
        pytest.skip("FUSE_BENCH_DATA is not set: the folder with code/multiple/*.jsonl")
    path = Path(data, "code", "multiple", f"humaneval-{language}.jsonl")
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "language",
    [
        pytest.param(name, marks=needs)
        for name in LANGUAGES
        for needs in [
            pytest.mark.skipif(
                MISSING[name] is not None or not (ALL or name in QUICK or name == "java"),
                reason=MISSING[name] or "slow; FUSE_BENCH_ALL_LANGUAGES=1 runs it",
            )
        ]
    ],
)
@pytest.mark.parametrize("level", USABLE)
def test_canaries_end_as_they_should(language: str, level: str) -> None:
    assert sandbox._unfit(level, language) is None


# HumanEval/8 in MultiPL-E's data: the sum and the product of a list.
SUM_PRODUCT = {
    "cpp": "    long s = 0, p = 1;\n    for (long n : numbers) { s += n; p *= n; }\n    return std::make_tuple(s, p);",
    "cs": "        long s = 0, p = 1;\n        foreach (var n in numbers) { s += n; p *= n; }\n"
    "        return Tuple.Create(s, p);\n",
    "go": "    s, p := 0, 1\n    for _, n := range numbers {\n        s += n\n        p *= n\n    }\n"
    "    return []interface{}{s, p}\n}\n",
    "java": "        long s = 0, p = 1;\n"
    "        for (long n : numbers) { s += n; p *= n; }\n        return Pair.with(s, p);\n",
    "js": "  return [numbers.reduce((a, b) => a + b, 0), numbers.reduce((a, b) => a * b, 1)];\n}\n",
    "lua": "  local s, p = 0, 1\n  for _, n in ipairs(numbers) do\n    s = s + n\n    p = p * n\n  end\n"
    "  return {s, p}\nend\n",
    "php": "    return array(array_sum($numbers), array_product($numbers));\n}\n",
    "pl": "    my ($s, $p) = (0, 1);\n    for my $n (@$numbers) { $s += $n; $p *= $n; }\n    return [$s, $p];\n}\n",
    "rb": "  [numbers.sum, numbers.reduce(1, :*)]\nend\n",
    "rs": "    (numbers.iter().sum(), numbers.iter().product())\n",
    "sh": "    local s=0 p=1\n    for n in $1; do\n        s=$((s + n))\n        p=$((p * n))\n    done\n"
    '    echo "$s $p"\n',
    "ts": "  return [numbers.reduce((a, b) => a + b, 0), numbers.reduce((a, b) => a * b, 1)];\n}\n",
}


@pytest.mark.parametrize("language", [name for name in SUM_PRODUCT if name in HERE and (ALL or name in QUICK)])
def test_a_solution_of_a_real_row_passes_and_an_empty_one_does_not(language: str) -> None:
    row = next(row for row in rows(language) if row["name"] == "HumanEval_8_sum_product")
    right, stripped = SUM_PRODUCT[language], {**row, "prompt": row["prompt"].strip()}
    programs = [program_of("multiple", doc, text) for doc, text in ((row, right), (stripped, f"\n{right}"), (row, ""))]
    assert [program.language for program in programs] == [language] * 3
    verdicts = run_many(programs, SandboxSettings())
    assert [verdict.passed for verdict in verdicts] == [True, True, False]
    assert not verdicts[2].reason.startswith(("test error", "timeout"))


@pytest.mark.parametrize("language", SUM_PRODUCT)
def test_the_mark_has_a_place_in_the_tests_of_every_row(language: str) -> None:
    token = "0123456789abcdef"
    for row in rows(language):
        files = LANGUAGES[language].files(row["prompt"], row["tests"], token)
        assert [sum(text.count(part) for text in files.values()) for part in (token, "01234567", "89abcdef")] == [
            0,
            1,
            1,
        ]
        whole = files[LANGUAGES[language].file]
        # The tests themselves are as they were, but for the mark.
        assert all(line in whole for line in row["tests"].splitlines()[:-1] if "LuaUnit.run" not in line)


def canary_program(language: str, body: Mapping[str, str]) -> Program:
    canary = canaries.CANARIES[language]
    text = canary.right
    for old, new in body.items():
        assert old in text
        text = text.replace(old, new)
    return Program(text, canary.tests, language=language)


# What would pass by the exit status alone: it ends early with status 0, or hides the tests.
LAZY = {
    "js": [{"return [3 * n]": "process.exit(0)"}, {"function": "process.exit(0); function"}],
    "lua": [{"return {3 * n}": "os.exit(0)"}, {"local": "os.exit(0)\nlocal"}],
    "php": [
        {"return array(3 * $n)": "exit(0)"},
        {"return array(3 * $n);\n}": "}\n?>"},
        {"return array(3 * $n);\n}": "}\n__halt_compiler();"},
    ],
    "pl": [{"return [3 * $n]": "exit 0"}, {"return [3 * $n];\n}": "}\n__END__"}],
    "rb": [
        {"[3 * n]": "exit(0)"},
        {"[3 * n]": "exit!(0)"},
        {"def": "exit(0)\ndef"},
        {"[3 * n]\nend": "end\n__END__"},
        {"[3 * n]\nend": "end\n=begin"},
        {"[3 * n]\nend": "end\nat_exit { exit!(0) }"},
    ],
    "rs": [{"vec![3 * n]": "std::process::exit(0)"}],
    "sh": [{"triple()": "exit 0\ntriple()"}, {"triple()": "trap 'exit 0' EXIT\ntriple()", "3 * n": "n"}],
    "cpp": [
        {"return 3 * n;": "exit(0);"},
        {"return 3 * n;": "_exit(0);"},
        {"return 3 * n;": "return 0;\n#define NDEBUG\n#include <assert.h>\n"},
        {"return 3 * n;": "return 0;\n#undef assert\n#define assert(x)\n"},
        {"return 3 * n;": "return 0; }\nstatic int early = (_exit(0), 0);\nvoid f() {"},
    ],
    "go": [
        {"return 3 * n\n}": "return 0\n}\nfunc init() { os.Exit(0) }", '"fmt"': '"fmt"\n    "os"'},
        {"return 3 * n": "os.Exit(0)\nreturn 0", '"fmt"': '"fmt"\n    "os"'},
        {"return 3 * n\n}": "return 0\n}\nfunc TestMain(m *testing.M) {}"},
    ],
    "java": [{"return Pair.with(n, 3 * n);": "System.exit(0); return null;"}],
    "cs": [{"return new List<long> { 3 * n };": "Environment.Exit(0); return null;"}],
    "ts": [{"return [3 * n]": "eval('process.exit(0)'); return []"}],
    "r": [{"return(c(3 * n))": "quit('no', 0)"}],
}


@pytest.mark.parametrize("language", [name for name in LAZY if name in HERE and (ALL or name in QUICK)])
def test_ending_early_with_status_0_does_not_pass(language: str) -> None:
    verdicts = run_many([canary_program(language, body) for body in LAZY[language]], SandboxSettings())
    assert [verdict.passed for verdict in verdicts] == [False] * len(verdicts)
    assert all(not verdict.reason.startswith(("test error", "timeout")) for verdict in verdicts)
    assert "ended: the program ended before the tests did" in {verdict.reason for verdict in verdicts}


@pytest.mark.parametrize("language", [name for name in ("js", "ts") if name in HERE and (ALL or name in QUICK)])
def test_the_assertions_of_node_cannot_be_replaced(language: str) -> None:
    known = "declare var require: any;\n" if language == "ts" else ""
    forged = "(() => { const no = () => {}; no.deepEqual = () => {}; return no; })()"
    attempts = [
        "eval(\"require('node:assert').deepEqual = () => {}\");",
        f'eval("const real = require; require = name => /assert/.test(name) ? {forged} : real(name)");',
        f"eval(\"require('node:module')._load = () => {forged}\");",
        "eval('test = () => {}');",
        f'eval("require = () => {forged}"); if (0)',
    ]
    texts = [f"function triple(n) {{ return [0]; }}\n{attempt}" for attempt in attempts]
    texts.append("function triple(n) { const util = require('util'); return util.isDeep ? [] : [3 * n]; }\n")
    tests = canaries.CANARIES[language].tests
    verdicts = run_many([Program(known + text, tests, language=language) for text in texts], SandboxSettings())
    assert [verdict.passed for verdict in verdicts] == [False] * len(attempts) + [True]
    # TypeScript has no `if` without a statement.
    assert {verdict.reason.partition(":")[0] for verdict in verdicts[:4]} == {"failed"}


@pytest.mark.skipif("sh" not in HERE, reason="no bash")
def test_reasons_say_what_happened() -> None:
    def bash(body: str) -> Program:
        return Program(f"triple() {{\n{body}", canaries.CANARIES["sh"].tests, language="sh")

    expected = {
        "timeout": "while :; do :; done",
        "failed: output limit": "echo $((3 * $1))\nhead -c 2000000 /dev/zero >&2",
        "failed: status 1": "echo 5",
        "ended: the program ended before the tests did": "echo 5; }\nexit 0\nf() {",
        "failed: program.sh: line 2: no-such-command: command not found": "no-such-command",
    }
    verdicts = run_many([bash(body) for body in expected.values()], SandboxSettings(timeout=1.0))
    assert [verdict.reason for verdict in verdicts] == list(expected)


@pytest.mark.skipif("cpp" not in HERE, reason="no g++")
def test_what_does_not_compile_says_so() -> None:
    (verdict,) = run_many([canary_program("cpp", {"return 3 * n;": "return 3 * m;"})], SandboxSettings())
    assert verdict.reason == "not built: program.cpp:4:16: error: \u2018m\u2019 was not declared in this scope"


def test_tests_without_a_place_for_the_mark_are_the_tasks_fault() -> None:
    for language in ("cpp", "lua", "cs", "rs"):
        with pytest.raises(ValueError, match="the tests"):
            LANGUAGES[language].files("", "int main() {", "token")


# ---------------------------------------------------------------------------------------------- what is missing


def test_a_missing_tool_is_an_error_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert missing_toolchain("cpp") == "C++ needs g++, which is not installed (Debian: g++)"
    assert missing_toolchain("python") is None
    assert str(missing_toolchain("cobol")).startswith("unknown language 'cobol'; known: python, cpp, cs")
    programs = [Program("def f():\n    return 1", "assert f() == 1"), Program("", "", language="rs")]
    monkeypatch.setattr(sandbox, "_slot", None)
    with pytest.raises(SandboxError, match=r"no program in rs can be run: Rust needs rustc.*\(Debian: rustc\)"):
        run_many(programs, SandboxSettings())


@pytest.mark.skipif("lua" not in HERE, reason="no lua")
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    languages._missing.cache_clear()
    monkeypatch.setenv("LUA_PATH", "/nowhere/?.lua")
    try:
        assert missing_toolchain("lua") == "Lua needs the library luaunit, which is not installed (Debian: lua-unit)"
    finally:
        languages._missing.cache_clear()


def test_a_language_that_fails_its_canaries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = canaries.CANARIES["python"]
    monkeypatch.setitem(canaries.CANARIES, "python", canaries.Canary(right.right, right.right, right.tests))
    sandbox._unfit.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"python are not judged rightly .* a wrong program ended with 'passed'"):
            run_many([Program("def f():\n    return 1", "assert f() == 1")], SandboxSettings())
    finally:
        sandbox._unfit.cache_clear()


@pytest.mark.skipif("sh" not in HERE, reason="no bash")
def test_the_version_of_a_language_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    languages._version.cache_clear()
    assert languages.version("python") == platform.python_version()
    found = languages.version("sh")
    assert found[:1].isdigit() and languages.probe()["sh"] == (True, found)
    monkeypatch.setattr(languages.subprocess, "run", lambda *_, **__: pytest.fail("it was asked again"))
    assert languages.version("sh") == found
    with pytest.raises(KeyError):
        languages.version("cobol")


def test_canaries_and_names_cover_every_language() -> None:
    assert set(canaries.CANARIES) == {"python", *LANGUAGES}
    assert {"cpp", "java", "js", "ts", "rs", "go", "php", "r", "rb", "lua", "pl", "sh"} <= set(LANGUAGES)


def test_a_program_that_the_machine_was_too_busy_for_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([("timeout", 0.1), ("passed", 0.0), ("timeout", 0.9), ("timeout", 0.2), ("timeout", 0.2)])

    def verdict(*_: object) -> sandbox.Verdict:
        reason, cpu = next(found)
        return sandbox.Verdict(reason == "passed", reason, 1.0, cpu)

    monkeypatch.setattr(sandbox, "_verdict", verdict)
    monkeypatch.setattr(sandbox, "check_languages", lambda *_: None)

    def judged() -> str:
        return run_many([Program("", "")], SandboxSettings("rlimits"))[0].reason

    # Starved, then passed; busy itself; starved twice, which is the end of it.
    assert [judged(), judged(), judged()] == ["passed", "timeout", "timeout"]
    assert next(found, None) is None
