"""Our verdicts on programs beside bigcode's own, on the same text: HumanEval, and MultiPL-E in several languages.

Needs real data (FUSE_BENCH_DATA) and bigcode's environment (fuse-bench doctor --install bigcode); runs what is written
here and in `solutions.py`, without isolation where bigcode does.
"""

import ast
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import bigcode
from harness.cli_common import store_of
from harness.sandbox import Program, SandboxSettings, run_many
from harness.sandbox.languages import missing_toolchain
from harness.tasks import load
from tests.parity.solutions import LEAVES, LOOP, RIGHT, UNFINISHED, WRONG

pytestmark = pytest.mark.parity

DATA = os.environ.get("FUSE_BENCH_DATA", "")
SECONDS = 8.0
"""For a program, here and there: bigcode's 3 are of wall time, which a loaded machine may use up."""

LEAVES_PYTHON = ("    import os\n    os._exit(0)\n", "    exit()\n", "    raise SystemExit(0)\n")


@pytest.fixture(scope="module")
def venv() -> Path:
    if not DATA:
        pytest.skip("FUSE_BENCH_DATA names no folder of benchmark data")
    absent = bigcode.missing(bigcode.where(store_of(None)))
    if absent:
        pytest.skip(absent)
    return bigcode.where(store_of(None))


def theirs(venv: Path, request: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """bigcode's verdicts."""
    command = [str(venv / "bin" / "python"), str(Path(__file__).with_name("bigcode_runs.py"))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [(passed, said) for passed, said in json.loads(done.stdout)]


def made(task: str, texts: Mapping[int, Sequence[str]]) -> list[list[Program]]:
    """What the sandbox is to run for these completions, by the bench's own way."""
    loaded = load.load(bigcode.task_file(f"bigcode/{task}", store_of(None)))
    responses = [{"id": loaded.ids[i], "doc_id": i, "resps": [list(written)]} for i, written in texts.items()]
    return bigcode.programs(loaded, responses)


def differing(ours: Sequence[Any], other: Sequence[tuple[bool, str]], names: Sequence[str]) -> list[str]:
    return [
        f"{name}: ours {one.reason}, bigcode's {said}"
        for one, (passed, said), name in zip(ours, other, names, strict=True)
        if one.passed != passed
    ]


# ------------------------------------------------------------------------------------------------------- HumanEval


class _Constants(ast.NodeTransformer):
    """Every whole number is one more."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(node.value + 1) if type(node.value) is int else node


def _mutated(prompt: str, body: str, entry: str) -> str:
    """The body with other constants; as it is where it has none that could be changed."""
    tree = ast.parse(prompt + body)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry)
    lines = "\n".join(ast.unparse(_Constants().visit(node)) for node in function.body[1:])
    return "".join(f"    {line}\n" for line in lines.splitlines())


def _broken(number: int, body: str) -> str:
    """In turn: it leaves early, in three ways; it is cut off; it never ends (a few, for each takes its time)."""
    if number % 41 == 40:
        return "    while True:\n        pass\n"
    kind = number % 4
    return body[: len(body) // 2] + "(" if kind == 3 else LEAVES_PYTHON[kind]


def _without_return(body: str) -> str:
    return "".join(line for line in body.splitlines(True) if not line.lstrip().startswith("return")) + "    pass\n"


def test_humaneval(venv: Path) -> None:
    rows = [json.loads(line) for line in (Path(DATA) / "code" / "humaneval.jsonl").read_text().splitlines()]
    texts = {}
    for number, row in enumerate(rows):
        body = row["canonical_solution"]
        # bigcode strips the prompt, and with it the break before the body.
        changed = [
            body,
            _mutated(row["prompt"], body, row["entry_point"]),
            _without_return(body),
            _broken(number, body),
        ]
        texts[number] = ["\n" + text for text in changed]
    programs = [program for item in made("humaneval", texts) for program in item]
    assert len(programs) == 4 * 164
    ours = run_many(programs, SandboxSettings(timeout=SECONDS))
    pairs = [(program.program, program.test) for program in programs]
    other = theirs(venv, {"language": "python", "pairs": pairs, "timeout": SECONDS})
    assert not differing(ours, other, [f"HumanEval/{i // 4} ({i % 4})" for i in range(len(programs))])
    assert all(verdict.passed for verdict in ours[::4])
    # A test that nothing fails, or everything, would show no agreement.
    assert 0 < sum(verdict.passed for verdict in ours[1::4]) < 82
    assert not any(verdict.passed for verdict in ours[3::4])


# ------------------------------------------------------------------------------------------------------- MultiPL-E


def _language(language: str) -> None:
    absent = missing_toolchain(language)
    if absent:
        pytest.skip(absent)


def _numbers(language: str) -> dict[int, int]:
    """The places of the problems that there are solutions of, by number."""
    lines = (Path(DATA) / "code" / "multiple" / f"humaneval-{language}.jsonl").read_text().splitlines()
    found = {int(json.loads(line)["name"].split("_")[1]): place for place, line in enumerate(lines)}
    return {number: found[number] for number in RIGHT[language]}


def _texts(language: str) -> dict[str, tuple[int, str]]:
    """Completions by name, with the place of their problem. The prompt is stripped: they begin with a new line."""
    places = _numbers(language)
    texts = {f"right {number}": (places[number], text) for number, text in RIGHT[language].items()}
    texts |= {f"wrong {number}": (place, WRONG[language]) for number, place in places.items()}
    texts |= {f"empty {number}": (place, "") for number, place in list(places.items())[:2]}
    texts["unfinished"] = (places[53], UNFINISHED)
    if language in LOOP:
        texts["endless"] = (places[53], LOOP[language])
    return {name: (place, "\n" + text) for name, (place, text) in texts.items()}


def _both(venv: Path, language: str, texts: Mapping[str, tuple[int, str]]) -> tuple[list[Any], list[tuple[bool, str]]]:
    by_place: dict[int, list[str]] = {}
    for place, text in texts.values():
        by_place.setdefault(place, []).append(text)
    items = dict(zip(by_place, made(f"multiple-{language}", by_place), strict=True))
    programs = [items[place].pop(0) for place, _ in texts.values()]
    # As bigcode puts them together: cached_eval_script.
    whole = [program.program + "\n" + program.test for program in programs]
    return run_many(programs, SandboxSettings()), theirs(venv, {"language": language, "programs": whole})


@pytest.mark.parametrize("language", ["js", "cpp", "rs", "ts", "lua", "php", "rb", "pl", "sh"])
def test_multiple(venv: Path, language: str) -> None:
    _language(language)
    texts = _texts(language)
    ours, other = _both(venv, language, texts)
    assert not differing(ours, other, list(texts))
    # PHP has a strlen already, and lets nobody define another.
    right = [name for name in texts if name.startswith("right") and (language, name) != ("php", "right 23")]
    passed = [name for name, verdict in zip(texts, ours, strict=True) if verdict.passed]
    assert passed == right


@pytest.mark.parametrize("language", LEAVES)
def test_bigcode_counts_programs_that_leave_early(venv: Path, language: str) -> None:
    _language(language)
    ours, other = _both(venv, language, {"leaves": (_numbers(language)[53], "\n" + LEAVES[language])})
    assert (ours[0].passed, other[0][0]) == (False, True)


def test_bigcode_runs_no_test_in_go(venv: Path) -> None:
    """It gives `go test` a file whose name does not end with _test.go, which has no tests by Go's rules."""
    _language("go")
    texts = _texts("go")
    ours, other = _both(venv, "go", texts)
    passed = [name for name, verdict in zip(texts, ours, strict=True) if verdict.passed]
    assert passed == [f"right {number}" for number in RIGHT["go"]]
    assert {name for name, (they, _) in zip(texts, other, strict=True) if they} > set(passed)
