"""Code tasks: real reference solutions pass and emptied ones fail; how programs are put together and counted."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.programs import is_whole, judge_programs, of_rows, pass_at, program_of
from harness.sandbox import Program, SandboxSettings, Verdict, run_many
from harness.tasks import load
from tests.harness.test_tasks import CODE, FUNCTIONS, write_task

SAMPLE = 100
"""Of MBPP's 974 problems; FUSE_BENCH_ALL_PROGRAMS=1 runs them all."""

MBPP_CODE = """
task: problems
dataset_path: json
dataset_kwargs: {{data_files: {{test: problems.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
generation_kwargs: {{until: ["[DONE]"]}}
metadata: {{version: 1.0, kind: code, rows: mbpp}}
"""


def real(name: str) -> list[dict[str, Any]]:
    data = os.environ.get("FUSE_BENCH_DATA")
    if not data:
        pytest.skip(f"FUSE_BENCH_DATA is not set: the folder with code/{name}.jsonl")
    path = Path(data, "code", f"{name}.jsonl")
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdicts(kind: str, rows: Sequence[dict[str, Any]], field: str) -> dict[Any, Verdict]:
    programs = [program_of(kind, row, row.get(field, "")) for row in rows]
    found = run_many(programs, SandboxSettings(timeout=30.0 if kind == "mbpp" else 10.0))
    return dict(zip((row["task_id"] for row in rows), found, strict=True))


def test_humanevals_solutions_pass_and_emptied_ones_fail() -> None:
    rows = real("humaneval")
    assert len(rows) == 164
    assert {
        name: v.reason for name, v in verdicts("humaneval", rows, "canonical_solution").items() if not v.passed
    } == {}
    empty = verdicts("humaneval", rows, "none")
    assert {name for name, verdict in empty.items() if verdict.passed} == set()
    assert {name for name, verdict in empty.items() if verdict.reason.startswith("test error")} == set()


def test_mbpps_solutions_pass_and_emptied_ones_fail() -> None:
    rows = real("mbpp")
    assert len(rows) == 974
    if os.environ.get("FUSE_BENCH_ALL_PROGRAMS") != "1":
        # Among them all that need more than plain values: objects, types, a module, a function named like a builtin.
        special = [row for row in rows if row["task_id"] in (126, 367, 533, 596, 601, 927)]
        rows = [*special, *random.Random(0).sample(rows, SAMPLE - len(special))]
    assert {name: v.reason for name, v in verdicts("mbpp", rows, "code").items() if not v.passed} == {}
    empty = verdicts("mbpp", rows, "none")
    assert {name for name, verdict in empty.items() if verdict.passed} == set()
    assert {name for name, verdict in empty.items() if verdict.reason.startswith("test error")} == set()


# ------------------------------------------------------------------------------------------- objects of the program

PAIR = """
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
    def __eq__(self, other):
        return True
    __hash__ = None
def total(pairs):
    return sum(pair.a + pair.b for pair in pairs)
def first(pairs):
    return pairs[0]
held = Pair(1, 2)
"""


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert total([Pair(1, 2), Pair(3, 4)]) == 10", "passed"),
        ("assert total((held, Pair(3, b=4))) == 10", "passed"),
        ("assert total([first([Pair(1, 2)])]) == 3", "passed"),
        ("assert first([held]) is not None", "passed"),
        ("assert total([Pair(1, 2)]) == 4", "failed: assertion"),
        ("assert Pair(1, 2) == 5", "failed: returned a value of type Pair, which is not plain"),
        ("assert 5 == Pair(1, 2)", "failed: returned a value of type Pair, which is not plain"),
        ("assert [held] == [5]", "failed: returned a value of type held, which is not plain"),
        ("assert Pair(1, 2)", "failed: returned a value of type Pair, which is not plain"),
        ("assert not held or True", "failed: returned a value of type held, which is not plain"),
        ("assert Pair(1, 2) in [1]", "failed: returned a value of type Pair, which is not plain"),
        ("assert Pair(1, 2) <= 3", "failed: returned a value of type Pair, which is not plain"),
        ("assert str(Pair(1, 2))", "failed: returned a value of type Pair, which is not plain"),
        ("assert Pair(1, 2).a == 1", "failed: returned a value of type Pair, which is not plain"),
        ("try:\n    assert held == 5\nexcept BaseException:\n    pass", "failed: returned a value of type held"),
    ],
)
def test_objects_of_the_program_may_be_handed_back_and_nothing_else(test: str, reason: str) -> None:
    (verdict,) = run_many([Program(PAIR, test)], SandboxSettings())
    assert verdict.reason.startswith(reason)
    assert verdict.passed == (reason == "passed")


def test_a_module_of_the_test_is_the_real_one() -> None:
    forged = "class sys:\n    maxsize = 0\ndef f():\n    return 0\n"
    shadow = (
        "import types, sys\nsys.modules['json'] = json = types.SimpleNamespace(loads=lambda x: 0)\ndef f(): return 0"
    )
    test = "import sys\nassert f() == sys.maxsize"
    programs = [
        Program("import math\ndef f():\n    return 3.0", "assert f() == math.sqrt(9)"),
        Program("def f():\n    return 3.0", "assert f() == math.sqrt(9)"),
        Program(forged, test),
        Program(shadow, "assert f() == json.loads('1')"),
    ]
    found = run_many(programs, SandboxSettings())
    assert [verdict.passed for verdict in found] == [True, False, False, False]


def test_types_pass_between_test_and_program() -> None:
    program = (
        "def f(values, kind):\n    return [v for v in values if isinstance(v, kind)]\ndef g(x):\n    return type(x)\n"
    )
    test = "assert f([1, 'a'], str) == ['a']\nassert g(1.5) == float\nassert g({1}) is set\n"
    assert run_many([Program(program, test)], SandboxSettings())[0].reason == "passed"


# -------------------------------------------------------------------------------------------------- put together


def test_programs_of_each_kind_of_rows() -> None:
    row = {"prompt": "def f(x):\n", "test": "def check(candidate):\n    assert candidate(1) == 1", "entry_point": "f"}
    program = program_of("humaneval", row, "    return x")
    assert (program.program, program.setup, program.entry_point) == ("def f(x):\n    return x", "def f(x):\n", "f")
    assert program.test.endswith("\ncheck(f)\n")
    mbpp = {"test_list": ["assert sum(1) == 1", "assert sum(2) == 2"], "test_setup_code": "root = Node(1)\r\n"}
    program = program_of("mbpp", {**mbpp, "code": "def helper():\n  pass\ndef sum(a):\n  return a"}, "def sum(a): ...")
    assert program.program == "def sum(a): ...\nroot = Node(1)\n"
    assert (program.test, program.entry_point) == ("assert sum(1) == 1\nassert sum(2) == 2", "sum")
    assert program_of("mbpp", {"test_list": ["assert f(1)"]}, "x") == Program("x", "assert f(1)")
    rows = {name: {"language": name, "prompt": "p", "tests": "t"} for name in ("go_test.go", "py", "rs")}
    programs = {name: program_of("multiple", row, "c") for name, row in rows.items()}
    assert programs["go_test.go"] == Program("pc", "t", language="go")
    assert programs["py"] == Program("pc", "t")
    assert programs["rs"] == Program("pc", "t", language="rs")


def test_which_texts_made_elsewhere_are_whole_programs() -> None:
    row = {"prompt": '\ndef f(x):\n    """F."""\n', "entry_point": "f"}
    whole = [
        row["prompt"] + "    return x",
        row["prompt"].strip() + "\n    return x",
        "import math\n\ndef f(x): return x",
        "async def f(x): return x",
    ]
    parts = ["    return x", "\n    return x\n\ndef f(x):\n    return 0\n", "def first(x): ...", "\tdef f(y): ...", ""]
    assert [is_whole("humaneval", row, text) for text in (*whole, *parts)] == [True] * 4 + [False] * 5
    # In other languages only what begins with the prompt: the tests close the function that it opens.
    other = {"prompt": "// F.\nlong f(long x) {\n", "language": "cpp", "tests": "}\nint main() {}"}
    assert is_whole("multiple", other, "// F.\nlong f(long x) {\n    return x;")
    assert not is_whole("multiple", other, "long f(long x) {\n    return x;\n}")
    assert not is_whole("mbpp", {"test_list": [], "prompt": "Add."}, "Add.")


def test_programs_made_elsewhere_are_run_as_they_are_and_completions_are_cut(tmp_path: Path) -> None:
    loaded = load.load(write_task(tmp_path, "functions", CODE, FUNCTIONS))
    doc = loaded.docs[0]
    right = doc["canonical_solution"]
    texts = [f"{doc['prompt']}{right}\ndef more(): ...", f"{right}\ndef more(): ...", f"{doc['prompt']}{right}"]
    response = {"id": loaded.ids[0], "doc_id": 0, "resps": [texts]}
    ((written,), (made,)) = of_rows(loaded, [{**response, "postprocessed": True}])
    assert written == [texts[0], right, texts[2]]
    assert [program.program for program in made] == [texts[0], texts[2], texts[2]]
    assert {program.setup for program in made} == {doc["prompt"]}
    # What a model of ours says after its prompt is a completion, whatever it begins with.
    ((written,), (made,)) = of_rows(loaded, [response])
    assert made[2].program == doc["prompt"] + doc["prompt"] + right
    assert [text.count("more") for text in written] == [0, 0, 0]


# ------------------------------------------------------------------------------------------------------- counted


def test_pass_at_k_is_the_share_of_draws_with_one_that_passes() -> None:
    assert pass_at([[True, False, False, False]], 2) == pytest.approx(0.5)
    assert pass_at([[True, True], [False, False]], 1) == pass_at([[True, True], [False, False]], 2) == 0.5
    assert pass_at([[False] * 9 + [True]], 10) == 1.0


def test_a_record_has_pass_at_10_where_there_are_as_many_samples(tmp_path: Path) -> None:
    loaded = load.load(write_task(tmp_path, "functions", CODE, FUNCTIONS))
    right, wrong = FUNCTIONS[1]["canonical_solution"], "\n    return None"
    texts = [[right] * 2 + [wrong] * 9, [wrong]]
    responses = [{"id": loaded.ids[1], "doc_id": 1, "resps": [written]} for written in texts]
    many, one = judge_programs(loaded, responses, SandboxSettings())
    assert many["score"] == pytest.approx(2 / 11)
    # 1 - C(9, 10) / C(11, 10): ten of eleven cannot all be among the nine that fail.
    assert many["also"] == {"pass@10": 1.0}
    assert [program["passed"] for program in many["programs"]] == [True] * 2 + [False] * 9
    assert (one["score"], one["also"]) == (0.0, {})


def test_a_task_of_mbpps_rows(tmp_path: Path) -> None:
    rows = [{"task_id": 1, "text": "Add one.", "test_list": ["assert add(1) == 2"]}]
    loaded = load.load(write_task(tmp_path, "problems", MBPP_CODE, rows))
    texts = ["def add(x):\n    return x + 1\n[DONE]\ndef add(x):\n    return x", "def add(x):\n    return x"]
    (record,) = judge_programs(loaded, [{"id": loaded.ids[0], "doc_id": 0, "resps": [texts]}], SandboxSettings())
    assert record["verdict"] == "passed, failed: assertion"
    assert record["answer"] == "def add(x):\n    return x + 1\n"


def test_multipl_e_in_python_is_judged_as_every_other_language() -> None:
    """Its prompt ends in the middle of the function, which the tests must not meet in the program's place."""
    row = {
        "prompt": 'def strlen(string: str) -> int:\n    """Length."""\n',
        "tests": "def check(candidate):\n    assert candidate('abc') == 3\n\n"
        "def test_check():\n    check(strlen)\n\ntest_check()\n",
        "language": "py",
    }
    programs = [program_of("multiple", row, body) for body in ("    return len(string)", "    return 4", "")]
    assert [verdict.passed for verdict in run_many(programs, SandboxSettings())] == [True, False, False]
