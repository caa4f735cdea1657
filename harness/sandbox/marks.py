"""Where a program of another language says that its tests have come to their end: a token, printed after the last one.

Each function takes tests as MultiPL-E writes them and leaves them as they are, but for what is said at it.
"""

import re
from collections.abc import Callable

Mark = Callable[[str, str], str]
"""(tests, token) -> the tests with a statement after them that prints the token; ValueError where it has no place."""


def _filled(statement: str, token: str) -> str:
    """A statement with the two halves of the token: the source, which may be printed, has it nowhere in one piece."""
    middle = len(token) // 2
    return statement.replace("FIRST", token[:middle]).replace("SECOND", token[middle:])


def then(statement: str, before: str = "") -> Mark:
    """The statement as the last of the file; `before` the tests."""
    return lambda tests, token: f"{before}{tests}\n{_filled(statement, token)}\n"


def inside(statement: str, braces: int, before: str = "") -> Mark:
    """The statement as the last of `main`, which ends that many closing braces from the end; `before` the tests."""

    def mark(tests: str, token: str) -> str:
        end = re.search(r"\}\s*" * braces + r"\Z", tests)
        if end is None:
            raise ValueError(f"the tests do not end with {braces} closing braces")
        return before + tests[: end.start()] + _filled(statement, token) + "\n" + tests[end.start() :]

    return mark


MACROS = ("assert", "assert_eq", "assert_ne", "println", "vec")
"""Of Rust: those that tests use, and what the mark is printed by."""


def rust(tests: str, token: str) -> str:
    """In `main` the macros are the library's: the last definition of a name counts, also over one of the program."""
    start = re.search(r"\bfn\s+main\s*\(\s*\)\s*\{", tests)
    if start is None:
        raise ValueError("the tests have no main()")
    macros = "".join(
        f" #[allow(unused_macros)] macro_rules! {name} {{ ($($x:tt)*) => {{ ::std::{name}!($($x)*) }} }}"
        for name in MACROS
    )
    whole = tests[: start.end()] + macros + tests[start.end() :]
    return inside('    println!("{}{}", "FIRST", "SECOND");', 1)(whole, token)


def luaunit(tests: str, token: str) -> str:
    """The number of failures is looked at before the process ends with it."""
    ending = "os.exit(lu.LuaUnit.run())"
    if not tests.rstrip().endswith(ending):
        raise ValueError(f"the tests do not end with {ending}")
    # What the tests end with would leave no place for anything after them.
    return tests.rstrip().removesuffix(ending) + _filled(
        "local failures = lu.LuaUnit.run()\nif failures == 0 then io.stdout:write('FIRST' .. 'SECOND\\n') end\n"
        "os.exit(failures)\n",
        token,
    )


def verdict_file(program: str, token: str) -> dict[str, str]:
    """A file beside a Go program, of its package: what runs its tests, and prints the token if they pass."""
    package = re.search(r"^\s*package\s+(\w+)", program, re.MULTILINE)
    name = package[1] if package else "main"
    text = _filled(
        f'package {name}\n\nimport (\n\t"os"\n\t"testing"\n)\n\n'
        "func TestMain(m *testing.M) {\n\tcode := m.Run()\n\tif code == 0 {\n"
        '\t\tos.Stdout.WriteString("FIRST" + "SECOND\\n")\n\t}\n\tos.Exit(code)\n}\n',
        token,
    )
    return {"verdict_test.go": text}


def debug_assert(tests: str, token: str) -> str:
    """Mono goes on after a failed Debug.Assert: the listener that hears of it ends the process."""
    start = re.search(r"void\s+Main\s*\(\s*string\[\]\s*args\s*\)\s*\{", tests)
    if start is None:
        raise ValueError("the tests have no Main(string[] args)")
    listen = " Debug.Listeners.Clear(); Debug.Listeners.Add(new EndsAtAFailure());"
    ends = (
        "class EndsAtAFailure : TraceListener {\n"
        "    public override void Write(string message) {}\n    public override void WriteLine(string message) {}\n"
        "    public override void Fail(string message) { Fail(message, null); }\n"
        "    public override void Fail(string message, string detail) {\n"
        '        Console.Error.WriteLine("Debug.Assert failed"); Environment.Exit(1);\n    }\n}\n'
    )
    marked = inside('    Console.WriteLine("FIRST" + "SECOND");', 2)(tests, token)
    return marked[: start.end()] + listen + marked[start.end() :] + ends
