"""Tasks of bigcode's harness, driven in an environment of its own: here with a package of the same shape in it."""

import ast
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import bigcode
from harness.errors import TaskError, UsageError
from harness.sandbox import SandboxSettings, run_many
from harness.tasks import load
from tests.harness import fake_bigcode

TWICE = {
    "task_id": "T/0",
    "prompt": 'def helper(x):\n    return x + x\n\ndef twice(x):\n    """Two times x."""\n',
    "test": "def check(candidate):\n    assert candidate(4) == helper(4)\n    assert candidate(0) == 0\n",
    "entry_point": "twice",
}
ADD = {
    "task_id": "T/1",
    "prompt": "def add(x, y):\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}
SHELL = {
    "name": "HumanEval_53_add",
    "language": "sh",
    "prompt": "add() {\n",
    "tests": "}\n[[ $(add 2 3) = 5 ]] || exit 1\n",
    "stop_tokens": ["\n}"],
}
BUG = {"prompt": "# fix\n", "correct_code": "# fix\nx = 1\n"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an environment that holds a fake bigcode."""
    root = tmp_path_factory.mktemp("store")
    fake_bigcode.install(bigcode.where(root))
    return root


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """`data:` with a file of rows for each task."""
    monkeypatch.delenv("FUSE_BENCH_DATA", raising=False)
    rows = {"humaneval": [TWICE, ADD], "multiple-sh": [SHELL], "python_bugs": [BUG]}
    rows |= {name: rows["humaneval"] for name in ("instruct-humaneval", "sneaky", "unknown")}
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {f"bigcode/{name}": str(tmp_path / f"{name}.jsonl") for name in rows}


def loaded(name: str, store: Path, data: dict[str, str]) -> load.Loaded:
    return load.load(bigcode.task_file(f"bigcode/{name}", store, data))


def answers(task: load.Loaded, *texts: list[str], **more: object) -> list[dict[str, object]]:
    return [{"id": task.ids[i], "doc_id": i, "resps": [some], **more} for i, some in enumerate(texts)]


def test_a_task_is_asked_with_bigcode_s_prompts(store: Path, data: dict[str, str]) -> None:
    task = loaded("humaneval", store, data)
    assert task.definition.name == "bigcode-humaneval"
    assert task.kind == "code"
    # The break that a prompt ends with is the model's to go on from.
    assert [task.task.doc_to_text(doc) for doc in task.docs] == [TWICE["prompt"], ADD["prompt"]]
    assert [doc["index"] for doc in task.docs] == [0, 1]
    assert [json.loads(doc["doc"]) for doc in task.docs] == [TWICE, ADD]
    assert task.docs[1]["reference"] == "\n" + ADD["test"] + "\ncheck(add)"
    assert task.task.config.generation_kwargs["until"] == ["\nSTOP"]
    assert bigcode.seconds(task) == 7.0
    assert task.definition.config["metadata"]["version"] == "26.3"


def test_a_task_is_the_same_wherever_store_and_data_lie(store: Path, data: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(bigcode.where(store), bigcode.where(other), symlinks=True)
    moved = tmp_path / "moved.jsonl"
    shutil.copy(data["bigcode/humaneval"], moved)
    there = loaded("humaneval", other, {"bigcode/humaneval": str(moved)})
    assert there.definition.path.is_relative_to(other)
    assert there.definition.digest() == loaded("humaneval", store, data).definition.digest()


def test_another_side_script_is_another_task(
    store: Path, data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = loaded("humaneval", store, data).definition
    changed = tmp_path / "bigcode_side.py"
    changed.write_text(bigcode._SIDE.read_text() + "# changed\n")
    monkeypatch.setattr(bigcode, "_SIDE", changed)
    after = loaded("humaneval", store, data).definition
    sides = [str(one.config["metadata"]["side"]) for one in (before, after)]
    assert [len(side) for side in sides] == [16, 16] and sides[0] != sides[1]
    assert after.digest() != before.digest()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import os; os.abort()", r"it said nothing \(status -6\)"),
        ("raise SystemExit('out of order')", r"out of order \(status 1\)"),
        ("print('{')", "JSONDecodeError: .*"),
        ("while True: pass", r"no answer within 1\.2 s"),
    ],
)
def test_another_side_that_gives_no_answer(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    (tmp_path / "side.py").write_text(script)
    monkeypatch.setattr(bigcode, "_SIDE", tmp_path / "side.py")
    monkeypatch.setattr(bigcode, "SECONDS", 0.2 if "while" in script else 60.0)
    venv = bigcode.where(store)
    with pytest.raises(TaskError, match=rf"failed at task 'bigcode/x': .*{says}; try again, .* `{bigcode.INSTALL}`"):
        bigcode._ask(venv, {"do": "programs", "task": "x", "items": [{}]})


def test_an_environment_without_its_python(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"failed: FileNotFoundError.* remove that folder and run"):
        bigcode._ask(tmp_path / "gone", {"do": "list"})


def test_the_revision_of_a_task_is_what_bigcode_loaded(store: Path, data: dict[str, str]) -> None:
    task = loaded("humaneval", store, data)
    assert load.revision(task) is None, "local data"
    task.definition.config["metadata"]["revision"] = "0" * 40
    assert load.revision(task) == "0" * 40


def test_a_task_is_described_once(store: Path, data: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = bigcode.task_file("bigcode/humaneval", store, data)
    monkeypatch.setattr(bigcode, "_ask", lambda *_, **__: pytest.fail("bigcode was asked again"))
    assert bigcode.task_file("bigcode/humaneval", store, data) == path
    Path(data["bigcode/humaneval"]).write_text(json.dumps(ADD) + "\n")
    with pytest.raises(pytest.fail.Exception):
        bigcode.task_file("bigcode/humaneval", store, data)


def test_programs_run_in_the_sandbox_and_cannot_forge_a_verdict(store: Path, data: dict[str, str]) -> None:
    task = loaded("humaneval", store, data)
    written = {
        "    return 2 * x\nSTOP\nx = 1 / 0": True,
        "    return x\n": False,
        "    import os\n    os._exit(0)\n": False,
        "    return 0\n\ndef helper(x):\n    return 0\n": False,
        "    return 0\n\ndef check(candidate):\n    pass\n": False,
    }
    responses = answers(task, list(written), ["    return x + y\n"])
    assert bigcode.texts(task, responses)[0][0] == TWICE["prompt"] + "    return 2 * x"
    made = bigcode.programs(task, responses)
    verdicts = [run_many(programs, SandboxSettings(timeout=5.0)) for programs in made]
    assert [verdict.passed for verdict in verdicts[0]] == list(written.values())
    assert [verdict.passed for verdict in verdicts[1]] == [True]


def test_a_function_with_the_name_of_a_builtin_one_is_the_program_s() -> None:
    doc = {"code": "def helper(a):\n    return a\ndef sum(a, b):\n    return helper(a) - b"}
    programs = [bigcode._program(doc, text, "assert sum(5, 3) == 2", "python") for text in (doc["code"], "pass")]
    assert [verdict.passed for verdict in run_many(programs, SandboxSettings(timeout=5.0))] == [True, False]


def test_only_the_items_of_the_responses_are_judged(store: Path, data: dict[str, str]) -> None:
    task = loaded("humaneval", store, data)
    ((program,),) = bigcode.programs(task, [{"id": task.ids[1], "doc_id": 1, "resps": [["    return 5\n"]]}])
    assert program.program == ADD["prompt"] + "    return 5\n"
    assert program.test.endswith("check(add)")
    assert bigcode.programs(task, []) == []


def test_programs_of_bigcode_s_own_file_are_taken_as_they_are(store: Path, data: dict[str, str]) -> None:
    task = loaded("humaneval", store, data)
    text = "def add(x, y): return x + y\nSTOP"
    ((program,),) = bigcode.programs(task, answers(task, [text], postprocessed=True))
    assert program.program == text


def test_an_instruction_is_no_part_of_the_program(store: Path, data: dict[str, str]) -> None:
    task = loaded("instruct-humaneval", store, data)
    assert task.docs[1]["prompt"] == "Write: " + ADD["prompt"]
    assert bigcode.texts(task, answers(task, ["    return 2 * x\n"])) == [[TWICE["prompt"] + "    return 2 * x\n"]]


def test_another_language_is_the_sandbox_s(store: Path, data: dict[str, str]) -> None:
    task = loaded("multiple-sh", store, data)
    assert task.task.config.generation_kwargs["until"] == ["\n}", "<file_sep>"]
    ((right, wrong),) = bigcode.programs(task, answers(task, ["    echo $(($1 + $2))\n", "    echo 1\n"]))
    assert (right.language, right.program, right.test) == ("sh", "add() {\n    echo $(($1 + $2))\n", SHELL["tests"])
    assert [verdict.passed for verdict in run_many([right, wrong], SandboxSettings())] == [True, False]


def test_texts_that_are_compared_are_scored_one_by_one(store: Path, data: dict[str, str]) -> None:
    task = loaded("python_bugs", store, data)
    assert bigcode.is_compared(task)
    assert bigcode.scores(task, answers(task, ["x = 1\n", "x = 2\n"])) == [[1.0, 0.0]]
    assert not bigcode.is_compared(loaded("humaneval", store, data))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("humanevl", "unknown task 'bigcode/humanevl'; did you mean 'humaneval'"),
        ("unknown", "cannot be scored: its scorer runs what was generated itself"),
        ("multiple-jl", "cannot be scored: the sandbox does not run programs in jl"),
        ("sneaky", "bigcode's scorer tried to start a process (subprocess.Popen)"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_generated(
    store: Path, data: dict[str, str], name: str, says: str
) -> None:
    with pytest.raises(TaskError) as error:
        bigcode.task_file(f"bigcode/{name}", store, data)
    assert says in str(error.value)


def test_tests_that_need_a_library_are_refused(store: Path, data: dict[str, str], tmp_path: Path) -> None:
    needs = {**ADD, "test": "import numpy as np\n" + ADD["test"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(ADD) + "\n" + json.dumps(needs) + "\n")
    with pytest.raises(TaskError, match="its tests import numpy, and the sandbox has the standard library only"):
        bigcode.task_file("bigcode/humaneval", store, {"bigcode/humaneval": str(tmp_path / "rows.jsonl")})


def test_a_bad_row_is_named_by_its_line(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lacking = {key: value for key, value in ADD.items() if key != "entry_point"}
    for text, says in {
        json.dumps(TWICE)
        + "\n\n"
        + json.dumps(lacking): f"{file}:3: task 'bigcode/humaneval'.*KeyError: 'entry_point'",
        json.dumps(TWICE) + "\n{": f"{file}:2: not JSON",
        "\n": "no data: its data set has no rows",
    }.items():
        file.write_text(text)
        with pytest.raises(TaskError, match=says):
            bigcode.task_file("bigcode/humaneval", store, {"bigcode/humaneval": str(file)})


def test_data_of_the_hub_that_are_not_here(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSE_BENCH_DATA", raising=False)
    with pytest.raises(bigcode.NotHere, match=r"its data cannot be loaded from the hub .*no hub"):
        bigcode.resolved(["bigcode/humaneval"], store)
    assert bigcode.resolved(["arc_easy", "bigcode/humaneval"], store, offline=True) == (
        ("arc_easy",),
        ("bigcode/humaneval",),
    )


def test_local_data_have_the_names_of_our_own_tasks(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "humaneval.jsonl").write_text(json.dumps(TWICE) + "\n")
    monkeypatch.setenv("FUSE_BENCH_DATA", str(tmp_path))
    names, absent = bigcode.resolved(["pocket_code", "bigcode/humaneval"], store)
    assert not absent
    assert len(load.load(Path(names[1])).docs) == 1


def test_the_catalogue_says_what_can_be_scored_and_why_not(store: Path) -> None:
    known = bigcode.catalogue(bigcode.where(store))
    # What one scorer does beside the call that is led away is found out when the task is described.
    assert {name for name, why in known.items() if why is None} == {
        *("humaneval", "instruct-humaneval", "multiple-sh", "python_bugs", "sneaky")
    }
    assert known["multiple-jl"] == "the sandbox does not run programs in jl"


# -------------------------------------------------------------------------------------------------- the environment


def test_what_is_not_installed_is_said_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="is not installed in .*: fuse-bench doctor --install bigcode"):
        bigcode.resolved(["bigcode/humaneval"], tmp_path)
    venv = bigcode.where(tmp_path)
    venv.mkdir()
    (venv / "installed").write_text("another\n")
    assert "another version" in str(bigcode.missing(venv))


def test_an_installation_that_fails_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    steps: list[list[str]] = []

    def step(command: list[str]) -> None:
        steps.append(command)
        if "pip" in command:
            raise UsageError("pip failed: no network")

    monkeypatch.setattr(bigcode, "_step", step)
    with pytest.raises(UsageError, match="no network"):
        bigcode.install(tmp_path / "bigcode", said.append)
    assert f"{bigcode.DISTRIBUTION}=={bigcode.VERSION}" in steps[-1]
    assert bigcode.missing(tmp_path / "bigcode") is not None


def test_what_is_installed_stays(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigcode, "_step", lambda _: pytest.fail("it was made again"))
    bigcode.install(bigcode.where(store))


def test_a_python_that_is_too_new_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigcode, "sys", SimpleNamespace(version_info=(3, 13, 0), executable=sys.executable))
    with pytest.raises(UsageError, match=r"needs Python 3\.12 or older, and this is 3\.13"):
        bigcode.install(tmp_path)


# ---------------------------------------------------------------------------------------------------- generations


def test_generations_are_written_in_the_order_of_the_data(tmp_path: Path) -> None:
    file = tmp_path / "generations.json"
    bigcode.write_generations(file, {1: ["c", "d"], 0: ["a", "b"]}, 2)
    assert json.loads(file.read_text()) == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("programs", "says"),
    [
        ({0: ["a"], 2: ["c"]}, "1 of 3 have none, the first is number 1"),
        ({0: ["a"], 1: ["b", "c"], 2: ["d"]}, r"as many programs of every problem; these have \[1, 2\]"),
    ],
)
def test_generations_that_bigcode_would_misread_are_refused(
    tmp_path: Path, programs: dict[int, list[str]], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        bigcode.write_generations(tmp_path / "generations.json", programs, 3)
    assert not list(tmp_path.iterdir())


def test_the_other_side_imports_the_standard_library_and_bigcode_alone() -> None:
    nodes = list(ast.walk(ast.parse(bigcode._SIDE.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in found} - sys.stdlib_module_names == {"nltk"}
