"""The languages other than Python that programs may be in: their tools, how they are built, run and found to pass.

    LANGUAGES["cpp"]               what is known of C++
    missing_toolchain("cpp")       None, or the tool that this machine lacks and the Debian package that has it
    toolchain("cpp")               its commands with the paths of this machine
    probe()                        the version of every language, or why it cannot be used

Program and tests are one file and one process here, as MultiPL-E has it: the program, a newline, the tests. A verdict
is "passed" if the process ends with status 0 and has printed a random token, whose printing stands after the tests.
So none of these passes, in any language: ending early with status 0 (`exit(0)`, `process.exit`, `os._exit`,
`System.exit`, `os.Exit` in an `init`), also where the tests would run at exit (Ruby), an end of the file or an opened
comment that hides the tests (`__END__`, `?>`, `=begin`), printing, tests that are never reached.

Defeated in one language: C++, a program that defines NDEBUG or an `assert` of its own, for <assert.h> is read again
before the tests. JavaScript and TypeScript, replacing the functions of node:assert, which is frozen, `require`, or the
tests' own function `test`, which they get back before the tests. Rust, an `assert_eq!` or `vec!` of the program's own:
those of `main` are the library's. Go, a `TestMain` or an `os.Exit(0)` of the program's own. Lua, an `os.exit` of its
own. C#, a failed Debug.Assert, which mono only notes.

Not defeated in any: a program that reads its own file, binary or memory, finds the token and prints it; one that
changes the language's own library or the test library from inside (prototypes in JavaScript, `Test::Deep` in Perl,
`luaunit`, `==` of a class in Ruby, functions of the shell); one that gives a name of the tests another meaning: a
macro of C++ (`#define triple`, `#define main`), a type of the program's own, named like the library's or returned in
its place, with an `==` or `equals` that is always true (C++, Rust, Java, C#), a `fmt` of its own in Go. That is
cheating on purpose, by a program that knows of this harness, and since program and tests are one program there is no
end to it: a score in these languages is one of models that do not try. For Python the tests are in another process,
where none of it helps.
"""

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.sandbox import marks

PYTHON = "python"
PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Language:
    """How a program is built and run.

    title: for people. file: of the program. tools: the names that a command may have, with the Debian package.
    libraries: what its tests use: a command that fails without it, what it is, and its package. build and run are
    commands; {name} is a tool's path, {name's folder} that of its tree, {here} the scratch folder, {memory} half of its
    MiB. version: what says it. guard stands
    before the program, on its first line; mark: see marks.py. beside: other files, of the program and the token.

    seconds: that it may run; build_seconds: for all of build. memory_mb: that a process of the program may use, and
    build_mb, one of its compiler; reserve_mb: address space that its runtime reserves and does not use. Also bounded
    are processes (and threads) at a time, the size of one file, that of all in the scratch folder, and open files.
    visible: folders that it needs to see besides /usr. proc: whether it needs /proc, its own processes in it.
    """

    title: str
    file: str
    run: tuple[str, ...]
    version: tuple[str, ...]
    mark: marks.Mark
    tools: Mapping[str, tuple[tuple[str, ...], str]]
    build: tuple[tuple[str, ...], ...] = ()
    libraries: tuple[tuple[tuple[str, ...], str, str], ...] = ()
    guard: str = ""
    beside: Callable[[str, str], Mapping[str, str]] = lambda program, token: {}
    env: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 5.0
    build_seconds: float = 30.0
    memory_mb: int = 512
    build_mb: int = 1024
    reserve_mb: int = 0
    processes: int = 32
    file_mb: int = 16
    scratch_mb: int = 64
    visible: tuple[str, ...] = ()
    proc: bool = False

    def files(self, program: str, tests: str, token: str) -> dict[str, str]:
        """What to write before it is built, by name. Raises ValueError where the tests have no place for the mark."""
        whole = f"{self.guard}{program}\n{self.mark(tests, token)}"
        return {self.file: whole, **self.beside(program, token)}


_KEPT = (
    # A `function require` of the program's is there before its first line, and has no `main`.
    "const bench$require = require.main && require, bench$assert = Object.freeze(require('node:assert')), "
    "bench$fs = require('node:fs'), bench$test = test; "
)
"""What a program can neither assign nor declare anew, on its first line: it runs before anything of the program."""

# The semicolon ends what the program may leave open, like `if (0)`. The compiler would not have a function assigned.
_GIVEN_BACK = (
    ";require = !bench$require ? null : name => name === 'node:assert' ? bench$assert : bench$require(name);\n"
    "// @ts-ignore\ntest = bench$test;\n"
)
_WRITTEN = "bench$fs.writeSync(1, 'FIRST' + 'SECOND\\n');"
_NODE = {"node": (("node", "nodejs"), "nodejs")}
_JAVA = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xss1m", "-XX:ReservedCodeCacheSize=64m")
_AS_COMPILER = tuple(f"-J{option}" for option in _JAVA)
TUPLES = ("/usr/share/java/javatuples.jar", "/usr/multiple/javatuples-1.2.jar")
"""Where org.javatuples may lie: Debian's place, and that of MultiPL-E's own image."""

LANGUAGES: dict[str, Language] = {
    "cpp": Language(
        title="C++",
        file="program.cpp",
        tools={"g++": (("g++",), "g++")},
        version=("{g++}", "-dumpfullversion"),
        build=(("{g++}", "-std=c++17", "-pipe", "program.cpp", "-o", "program"),),
        run=("{here}/program",),
        mark=marks.inside('    ::puts("FIRST" "SECOND");', 1, before="\n#undef NDEBUG\n#include <assert.h>\n"),
    ),
    "cs": Language(
        title="C#",
        file="program.cs",
        tools={"mcs": (("mcs",), "mono-mcs"), "mono": (("mono",), "mono-runtime")},
        version=("{mono}", "--version"),
        build=(("{mcs}", "-d:DEBUG", "-r:System.Numerics.dll", "program.cs", "-out:program.exe"),),
        run=("{mono}", "program.exe"),
        libraries=(
            (("test", "-e", "/usr/lib/mono/4.5/System.Core.dll"), "System.Core.dll", "libmono-system-core4.0-cil"),
            (
                ("test", "-e", "/usr/lib/mono/4.5/System.Numerics.dll"),
                "System.Numerics.dll",
                "libmono-system-numerics4.0-cil",
            ),
        ),
        mark=marks.debug_assert,
        reserve_mb=4096,
        visible=("/etc/mono",),
        proc=True,
    ),
    "go": Language(
        title="Go",
        file="program_test.go",
        tools={"go": (("go",), "golang-go")},
        version=("{go}", "version"),
        # `go test` has the code vetted, which `go test -c` does not; what it would run is run afterwards.
        build=(("{go}", "test", "-exec", "/bin/true", "-o", "program", "program_test.go", "verdict_test.go"),),
        run=("{here}/program", "-test.v", "-test.paniconexit0"),
        env={"GOCACHE": "{here}/.cache", "GO111MODULE": "off", "GOFLAGS": "", "CGO_ENABLED": "0", "GOMAXPROCS": "2"},
        mark=lambda tests, token: tests,
        beside=marks.verdict_file,
        build_seconds=60.0,
        reserve_mb=2048,
        processes=64,
        scratch_mb=256,
    ),
    "java": Language(
        title="Java",
        file="Problem.java",
        tools={"java": (("java",), "default-jdk"), "javac": (("javac",), "default-jdk")},
        version=("{java}", "--version"),
        build=(("{javac}", *_AS_COMPILER, "-J-Xmx512m", "-encoding", "UTF8", "-cp", ":".join(TUPLES), "Problem.java"),),
        run=("{java}", *_JAVA, "-Xmx{memory}m", "-ea", "-cp", ":".join(("{here}", *TUPLES)), "Problem"),
        libraries=((("test", "-e", TUPLES[0], "-o", "-e", TUPLES[1]), "the library javatuples", "libjavatuples-java"),),
        mark=marks.inside('    System.out.println("FIRST" + "SECOND");', 2),
        # The loader finds what lies beside a program by /proc, where there is one.
        env={"LD_LIBRARY_PATH": "{java's folder}/lib"},
        reserve_mb=8192,
        processes=64,
        memory_mb=768,
        build_mb=1536,
        visible=("/etc/java-17-openjdk",),
    ),
    "js": Language(
        title="JavaScript",
        file="program.js",
        tools=_NODE,
        version=("{node}", "--version"),
        run=("{node}", "program.js"),
        guard=_KEPT,
        mark=marks.then(_WRITTEN, before=_GIVEN_BACK),
        reserve_mb=16384,
    ),
    "lua": Language(
        title="Lua",
        file="program.lua",
        tools={"lua": (("lua", "lua5.4", "lua5.3"), "lua5.4")},
        libraries=((("{lua}", "-e", "require('luaunit')"), "the library luaunit", "lua-unit"),),
        version=("{lua}", "-v"),
        run=("{lua}", "program.lua"),
        mark=marks.luaunit,
    ),
    "php": Language(
        title="PHP",
        file="program.php",
        tools={"php": (("php",), "php-cli")},
        version=("{php}", "--version"),
        run=("{php}", "program.php"),
        mark=marks.then("fwrite(STDOUT, 'FIRST' . 'SECOND');"),
        visible=("/etc/php",),
    ),
    "pl": Language(
        title="Perl",
        file="program.pl",
        tools={"perl": (("perl",), "perl")},
        libraries=((("{perl}", "-MTest::Deep", "-e", "1"), "the module Test::Deep", "libtest-deep-perl"),),
        version=("{perl}", "-e", "print $^V"),
        run=("{perl}", "program.pl"),
        mark=marks.then('print STDOUT "FIRST" . "SECOND";'),
    ),
    "r": Language(
        title="R",
        file="program.r",
        tools={"Rscript": (("Rscript",), "r-base-core")},
        version=("{Rscript}", "--version"),
        run=("{Rscript}", "--vanilla", "program.r"),
        mark=marks.then("cat('FIRST', 'SECOND', sep = '')"),
        visible=("/etc/R", "/etc/alternatives"),
    ),
    "rb": Language(
        title="Ruby",
        file="program.rb",
        tools={"ruby": (("ruby",), "ruby")},
        libraries=((("{ruby}", "-e", "require 'test/unit/version'"), "the library test/unit", "ruby-test-unit"),),
        version=("{ruby}", "--version"),
        run=("{ruby}", "program.rb"),
        # The tests would run at exit, and after an `exit` of the program not at all.
        mark=marks.then(
            "Test::Unit::AutoRunner.need_auto_run = false\n"
            "exit(1) unless Test::Unit::AutoRunner.run\n"
            "$stdout.syswrite('FIRST' + 'SECOND')"
        ),
    ),
    "rs": Language(
        title="Rust",
        file="program.rs",
        tools={"rustc": (("rustc",), "rustc"), "cc": (("cc", "gcc"), "gcc")},
        version=("{rustc}", "--version"),
        build=(("{rustc}", "-C", "linker={cc}", "program.rs", "-o", "program"),),
        run=("{here}/program",),
        mark=marks.rust,
        env={"LD_LIBRARY_PATH": "{rustc's folder}/lib"},
        reserve_mb=1024,
    ),
    "sh": Language(
        title="Bash",
        file="program.sh",
        tools={"bash": (("bash",), "bash")},
        version=("{bash}", "-c", "echo $BASH_VERSION"),
        run=("{bash}", "program.sh"),
        mark=marks.then("printf '%s%s' FIRST SECOND"),
        # Without /dev/fd there is no process substitution.
        proc=True,
    ),
    "ts": Language(
        title="TypeScript",
        file="program.ts",
        tools={**_NODE, "tsc": (("tsc",), "node-typescript")},
        version=("{node}", "{tsc}", "--version"),
        # The language's own declarations are not checked anew for each program: half of the time.
        build=(("{node}", "{tsc}", "--target", "esnext", "--skipLibCheck", "program.ts"),),
        run=("{node}", "program.js"),
        guard="declare var require: any; " + _KEPT,
        mark=marks.then(_WRITTEN, before=_GIVEN_BACK),
        reserve_mb=16384,
    ),
}
"""By the name that MultiPL-E has for it. Python is none of them: see harness.sandbox."""


# ------------------------------------------------------------------------------------------------- on this machine


@dataclass(frozen=True)
class Toolchain:
    """A language's commands, with the paths of this machine; folders outside /usr that it must see."""

    build: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]
    env: Mapping[str, str]
    visible: tuple[str, ...]


def missing_toolchain(language: str) -> str | None:
    """What this machine lacks for a language, and the Debian package that has it; None if nothing."""
    if language == PYTHON:
        return None
    if language not in LANGUAGES:
        return f"unknown language '{language}'; known: {', '.join([PYTHON, *LANGUAGES])}"
    return _missing(language, os.environ.get("PATH", os.defpath))


@functools.cache
def _missing(language: str, path: str) -> str | None:
    known = LANGUAGES[language]
    for name, (commands, package) in known.tools.items():
        if _found(name, commands, path) is None:
            return f"{known.title} needs {name}, which is not installed (Debian: {package})"
    for command, what, package in known.libraries:
        if not _succeeds(_filled(command, _paths(known, path))):
            return f"{known.title} needs {what}, which is not installed (Debian: {package})"
    return None


def toolchain(language: str) -> Toolchain:
    """A language's commands. Raises KeyError for a tool that missing_toolchain names."""
    return _toolchain(language, os.environ.get("PATH", os.defpath))


@functools.cache
def _toolchain(language: str, path: str) -> Toolchain:
    known = LANGUAGES[language]
    paths = _paths(known, path)
    words = {**paths, "memory": str(known.memory_mb // 2)}
    words |= {f"{name}'s folder": str(Path(tool).parent.parent) for name, tool in paths.items()}
    # A tool of its own tree (rustup's, nvm's) finds its parts beside it.
    trees = dict.fromkeys(str(Path(tool).parent.parent) for tool in paths.values())
    folders = [tree for tree in trees if not Path(tree).is_relative_to("/usr") and tree != "/"]
    env = {"PATH": PATH, "HOME": "{here}", "TMPDIR": "{here}", "LANG": "C.UTF-8"}
    env |= {name: _filled((value,), words)[0] for name, value in known.env.items()}
    return Toolchain(
        tuple(_filled(command, words) for command in known.build),
        _filled(known.run, words),
        env,
        tuple(folder for folder in (*known.visible, *folders) if os.path.exists(folder)),
    )


def probe() -> dict[str, tuple[bool, str]]:
    """For every language whether its tools are here, and then their version, else what is missing."""
    found = {}
    for name in LANGUAGES:
        missing = missing_toolchain(name)
        found[name] = (missing is None, missing or version(name))
    return found


def version(language: str) -> str:
    """What a language's tool says of its version, asked once; of Python it is our own.

    For languages whose tools are here: see missing_toolchain. Raises KeyError for an unknown one.
    """
    if language == PYTHON:
        return platform.python_version()
    return _version(language, os.environ.get("PATH", os.defpath))


@functools.cache
def _version(language: str, path: str) -> str:
    known = LANGUAGES[language]
    command = _filled(known.version, _paths(known, path))
    said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    lines = (said.stdout.strip() or said.stderr.strip()).splitlines()
    return lines[0] if lines else "of unknown version"


def _paths(known: Language, path: str) -> dict[str, str]:
    found = {name: _found(name, commands, path) for name, (commands, _) in known.tools.items()}
    return {name: tool for name, tool in found.items() if tool is not None}


@functools.cache
def _found(name: str, commands: tuple[str, ...], path: str) -> str | None:
    """The file of a tool, behind all links, since those in /etc are not seen inside."""
    for command in commands:
        found = shutil.which(command, path=path)
        if found is not None:
            real = os.path.realpath(found)
            return _of_rustup(real) if name == "rustc" else real
    return None


def _of_rustup(real: str) -> str | None:
    """rustc itself: rustup's is a program that looks up which one to start; None where its user has none."""
    if os.path.basename(real) != "rustup":
        return real
    said = subprocess.run([real, "which", "rustc"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or None


def _filled(command: tuple[str, ...], words: Mapping[str, str]) -> tuple[str, ...]:
    filled = list(command)
    for name, value in words.items():
        filled = [word.replace(f"{{{name}}}", value) for word in filled]
    return tuple(filled)


def _succeeds(command: tuple[str, ...]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False
