"""Tasks on local data: found by name or folder, and refused with a reason."""

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SuiteError, TaskError
from harness.facts import gather
from harness.store import Store
from harness.suite import load as load_suite
from harness.tasks import Task, describe, describe_here, files, load, local, names
from harness.tasks.derived import derive
from harness.tasks.names import find
from tests.harness.test_evaluate import write_model

EASY = [
    {
        "id": f"q{n}",
        "question": f"Which of these is number {n}?",
        "choices": {"text": ["zero", "the one", "two of them"], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[n % 3],
    }
    for n in range(5)
]
BBH = [{"input": f"If you take {n} steps back, are you there?", "target": "No" if n else "Yes"} for n in range(4)]
GOAL = [{"goal": f"count to {n}", "sol1": "begin at one", "sol2": "do not", "label": n % 2} for n in range(3)]
SUM = [{"question": f"What is {n} + {n}?", "answer": f"Add them.\n#### {2 * n}"} for n in range(9)]
MANY = [
    {
        "question": f"Is {n} even?",
        "mc1_targets": {"choices": ["yes", "no"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["yes", "it is", "no"], "labels": [1, 1, 0]},
    }
    for n in range(3)
]
PASSAGE = [{"question": f"is {n} here", "passage": "", "label": n % 2} for n in range(3)]
LUA = [
    {
        "name": f"HumanEval_{n}_f",
        "language": "lua",
        "prompt": f"-- Adds {n}.\nlocal function f(x)\n",
        "tests": "assert(f(1))",
        "stop_tokens": ["\nlocal", "\nfunction", "\n--", "\n\n"],
    }
    for n in range(2)
]
PROGRAMS = [
    {
        "text": f"Write a function to add {n}.",
        "code": f"def f(x):\r\n    return x + {n}",
        "task_id": n,
        "test_setup_code": "",
        "test_list": [f"assert f({i}) == {i + n}" for i in range(3)],
        "challenge_test_list": [],
    }
    for n in (*range(1, 14), 509, 510, 511, 974)
]
ROWS = {
    "commonsense/arc_easy.jsonl": EASY,
    "commonsense/piqa.jsonl": GOAL,
    "bbh/navigate.jsonl": BBH,
    "code/mbpp.jsonl": PROGRAMS,
    "code/multiple/humaneval-lua.jsonl": LUA,
}


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like the one of FUSE_BENCH_DATA, and no such variable."""
    monkeypatch.delenv(local.VARIABLE, raising=False)
    for name, rows in ROWS.items():
        write_rows(tmp_path / "data" / name, rows)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share, for the scan of lm-eval's names."""
    return tmp_path_factory.mktemp("cache")


def one(name: str, kept: Path, data: Any = None, metric: str | None = None) -> Task:
    return describe([name], Path(), kept, False, data, metric)[name]


def store_of(folder: Path, kept: Path) -> Store:
    """A store that knows lm-eval's names already."""
    names.builtin(kept)
    (folder / "facts").mkdir(parents=True)
    for file in kept.glob("lm-eval-*.json"):
        shutil.copy(file, folder / "facts")
    return Store(folder)


# --------------------------------------------------------------------------------------------------- what is found


def test_a_folder_has_data_by_name(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local.VARIABLE, str(folder))
    task = one("arc_easy", kept)
    assert (task.name, task.metric, task.also, len(task.items)) == ("arc_easy", "acc_norm", ("acc",), 5)
    definition = files.read(Path(task.source))
    assert definition.data == {"test": (folder / "commonsense/arc_easy.jsonl",)}
    assert definition.origin == files.builtin_folder() / "arc" / "arc_easy.yaml"
    assert files.read(Path(one("piqa", kept).source)).data.keys() == {"validation"}
    found, absent = describe_here(["commonsense"], Path(), kept)
    assert (set(found), absent) == ({"arc_easy", "piqa"}, {"commonsense": (7, 9)})


def test_data_of_the_suite_win(folder: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local.VARIABLE, str(folder))
    other = write_rows(tmp_path / "other/commonsense/arc_easy.jsonl", EASY[:2])
    assert len(one("arc_easy", kept).items) == 5
    assert len(one("arc_easy", kept, str(tmp_path / "other")).items) == 2
    assert len(one("arc_easy", kept, {"arc_easy": str(other)}).items) == 2
    # What they do not have is in the folder of the variable.
    assert len(one("piqa", kept, str(tmp_path / "other")).items) == 3
    assert len(one("piqa", kept, {"arc_easy": str(other)}).items) == 3


def test_a_task_with_data_of_its_own_keeps_them(
    folder: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(local.VARIABLE, str(folder))
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"include: {files.builtin_folder()}/arc/arc_easy.yaml\ndataset_path: json\ndataset_name: null\n"
        "training_split: null\nvalidation_split: null\ndataset_kwargs: {data_files: {test: mine.jsonl}}\n"
    )
    mine = write_rows(tmp_path / "mine.jsonl", EASY[:1])
    assert one(str(path), kept).source == str(path)
    assert len(one(str(path), kept, {"arc_easy": str(write_rows(tmp_path / "b.jsonl", EASY[:3]))}).items) == 3
    assert files.read(path).data == {"test": (mine,)}


@pytest.mark.parametrize("name", ["arc_easy", "bbh_cot_fewshot_navigate", "mbpp", "multiple-lua"])
def test_the_digest_does_not_know_where_data_lie(folder: Path, tmp_path: Path, kept: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    store = store_of(tmp_path / "store", kept).root / "facts"
    here, there = one(name, kept, str(folder)), one(name, store, str(tmp_path / "elsewhere"))
    assert here.source != there.source
    assert (here.digest, here.data, here.prompts) == (there.digest, there.data, there.prompts)
    for file in (tmp_path / "elsewhere").rglob("*.jsonl"):
        write_rows(file, ROWS[str(file.relative_to(tmp_path / "elsewhere"))][:-1])
    changed = one(name, store, str(tmp_path / "elsewhere"))
    assert changed.digest != here.digest
    if name != "mbpp":
        # Of MBPP the row that is gone is none of the test split's.
        assert changed.data != here.data and changed.prompts != here.prompts


def test_prompts_are_known_by_what_they_say(folder: Path, kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "terse.yaml"
    path.write_text(
        f'include: {files.builtin_folder()}/arc/arc_easy.yaml\ntask: terse\ndoc_to_text: "{{{{question}}}}"\n'
    )
    data = str(folder / "commonsense/arc_easy.jsonl")
    terse, usual = one(str(path), kept, {"terse": data}), one("arc_easy", kept, {"arc_easy": data})
    assert terse.data == usual.data and terse.prompts != usual.prompts


def test_tasks_that_the_table_lacks_are_given_files(folder: Path, kept: Path, tmp_path: Path) -> None:
    train, test = write_rows(tmp_path / "train.jsonl", SUM), write_rows(tmp_path / "test.jsonl", SUM[:3])
    task = one("gsm8k", kept, {"gsm8k": {"test": str(test), "train": str(train)}})
    assert (task.shots, len(task.items), task.metric) == (5, 3, "exact_match,strict-match")
    task = one("truthfulqa_mc2", kept, {"truthfulqa_mc2": str(write_rows(tmp_path / "many.jsonl", MANY))})
    assert (task.shots, len(task.items), task.metric, task.chance) == (0, 3, "acc", None)


def test_no_network_is_asked(folder: Path, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_model(tmp_path / "m")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "suite: here\nmodels: {m: {from: ./m}}\ndata: data\nevaluate:\n"
        "  bbh: {tasks: [bbh_cot_fewshot_navigate, bbh_fewshot_navigate, leaderboard_bbh_navigate]}\n"
        "  easy: {tasks: [arc_easy, piqa], metric: acc}\n"
    )
    store = store_of(tmp_path / "store", kept)
    facts = gather(load_suite(suite), store, offline=True)
    assert facts.missing == ()
    assert {name: task.metric for name, task in facts.tasks.items()} == {
        "bbh_cot_fewshot_navigate": "exact_match,answer", "bbh_fewshot_navigate": "exact_match,answer",
        "leaderboard_bbh_navigate": "acc_norm", "arc_easy": "acc", "piqa": "acc",
    }  # fmt: skip
    assert gather(load_suite(suite), store).tasks == facts.tasks


def test_what_is_known_is_not_looked_up_again(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names_asked = ["bbh_fewshot_navigate", "arc_easy", "mbpp"]
    first = describe(names_asked, Path(), kept, False, str(folder))
    names.builtin.cache_clear()
    for place, name in ((names, "_scan"), (load, "load")):
        monkeypatch.setattr(place, name, lambda *_: pytest.fail("looked up again"))
    assert describe(names_asked, Path(), kept, False, str(folder)) == first


def test_shots_of_a_group_need_their_split(folder: Path, kept: Path, tmp_path: Path) -> None:
    both = {"arc_challenge": {"test": str(write_rows(tmp_path / "a.jsonl", EASY))}}
    both["arc_challenge"]["train"] = str(write_rows(tmp_path / "b.jsonl", [*EASY * 5, EASY[0]]))
    found = find(["openllm"], Path(), kept)["arc_challenge"]
    task = load.load(derive(found, kept, both, None))
    assert task.task.config.num_fewshot == 25 and len(task.docs) == 5
    with pytest.raises(TaskError, match="25 shots, but no examples"):
        load.load(derive(found, kept, {"arc_challenge": both["arc_challenge"]["test"]}, None))


# ------------------------------------------------------------------------------------------------- what is refused


def _lacking(rows: Sequence[dict[str, Any]], index: int, field: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if n != index or k != field} for n, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "arc_easy",
            _lacking(EASY, 3, "question"),
            r"arc_easy.jsonl:4: the row has no 'question', which task 'arc_easy'",
        ),
        ("arc_easy", [], r"arc_easy.jsonl is empty"),
        (
            "arc_easy",
            [EASY[0], {**EASY[1], "answerKey": "E"}],
            r"arc_easy.jsonl:2: .*not fit the templates: ValueError",
        ),
        ("boolq", PASSAGE, r"boolq.jsonl:1: the row has no 'passage', which task 'boolq' uses"),
        (
            "gsm8k",
            SUM,
            r"gsm8k.yaml \(task 'gsm8k'\): 5 shots, but no examples .*under `data:`, give the file of that spl",
        ),
        ("mbpp", _lacking(PROGRAMS, 2, "test_list"), r"mbpp.jsonl:3: the row has no 'test_list'"),
        ("mbpp", PROGRAMS[:9], r"mbpp.yaml .*: no data: split 'test' has no rows for it"),
        ("mbpp", PROGRAMS[3:], r"mbpp.yaml .*: no prompt with 3 shots can be made"),
        ("multiple-lua", _lacking(LUA, 1, "tests"), r"multiple-lua.jsonl:2: the row has no 'tests'"),
        (
            "multiple-lua",
            [LUA[0], {**LUA[1], "stop_tokens": ["\nend"]}],
            r"row 1 of split 'test': .*its stop_tokens are \['\\nend'\], and the task generates until",
        ),
    ],
)
def test_bad_data(folder: Path, kept: Path, name: str, rows: list[Any], message: str) -> None:
    file = write_rows(folder / f"{name}.jsonl", rows)
    with pytest.raises(TaskError, match=message):
        one(name, kept, {name: str(file)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"gsm8k": {"tset": "data/bbh/navigate.jsonl"}},
            r"of task 'gsm8k': 'tset' is none of its splits; it reads test, tr",
        ),
        ({"gsm8k": {"train": "data/bbh/navigate.jsonl"}}, r"of task 'gsm8k' lacks 'test', the split that is scored"),
        ({"gsm8k": "gone.jsonl"}, r"of task 'gsm8k': there is no file gone.jsonl"),
        ({"gsm8k": "m.txt"}, r"m.txt is of no known format; expected .jsonl"),
        ({"gsm8k": {"test": "data/bbh/navigate.jsonl", "train": "m.csv"}}, r"its files are of different formats"),
        ("nowhere", r"`data:` is nowhere, and there is no such folder"),
    ],
)
def test_data_that_are_no_data(
    folder: Path, kept: Path, data: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "m.txt").write_text("x")
    (folder.parent / "m.csv").write_text("question,answer\n1,2\n")
    with pytest.raises(TaskError, match=message):
        one("gsm8k", kept, data)


def test_a_variable_that_names_no_folder(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local.VARIABLE, "nowhere")
    with pytest.raises(TaskError, match="FUSE_BENCH_DATA is nowhere, and there is no such folder"):
        one("gsm8k", kept)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gone", r"there is no folder .*gone\n.*suite.yaml:3:7"),
        ("{arc_easy: gone.jsonl}", r"there is no file .*gone.jsonl\n.*suite.yaml:3:18"),
        ("{arc_easy: {test: 3}}", r"'test' is 3; expected the path of a file"),
        ("[a]", r"`data:` is a folder or a mapping"),
        ("{}", r"`data:` is a folder or a mapping"),
    ],
)
def test_bad_data_in_a_suite(folder: Path, tmp_path: Path, data: str, message: str) -> None:
    write_model(tmp_path / "m")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"suite: bad\nmodels: {{m: {{from: ./m}}}}\ndata: {data}\nevaluate: {{easy: {{tasks: [arc_easy]}}}}\n"
    )
    with pytest.raises(SuiteError, match=message):
        load_suite(suite)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("data: {arc_eazy: data/bbh/navigate.jsonl}", r"has files of 'arc_eazy', which is no task .*mean 'arc_easy'"),
        ("data: data\nx: {metric: f1}", r"task 'arc_easy' has no score 'f1'; it has acc, acc_norm"),
        (
            "data: data\nx: {}",
            r"task 'arc_easy' is in two groups, scored by 'acc' in one and by 'acc_norm' in the other",
        ),
    ],
)
def test_bad_facts(
    folder: Path, tmp_path: Path, kept: Path, keys: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(local.VARIABLE, str(folder))
    write_model(tmp_path / "m")
    data, _, second = keys.partition("\nx: ")
    groups = "  easy: {tasks: [arc_easy], metric: acc}\n"
    groups += f"  again: {{tasks: [arc_easy], {second.strip('{}')}}}\n" if second else ""
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"suite: bad\nmodels: {{m: {{from: ./m}}}}\n{data}\nevaluate:\n{groups}")
    with pytest.raises(TaskError, match=message):
        gather(load_suite(suite), store_of(tmp_path / "store", kept))


def test_a_code_task_counts_passes(folder: Path, kept: Path) -> None:
    task = one("multiple-lua", kept, str(folder), "pass@1")
    assert (task.metric, task.language, task.kind) == ("pass@1", "lua", "code")
    with pytest.raises(TaskError, match="task 'multiple-lua' has no score 'acc' that can count: it has pass@1"):
        one("multiple-lua", kept, str(folder), "acc")


def test_a_task_may_be_in_two_groups_if_it_is_asked_one_way(folder: Path, kept: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    store = store_of(tmp_path / "store", kept)

    def groups(metric: str) -> dict[str, tuple[str, ...]]:
        (tmp_path / "s.yaml").write_text(
            f"suite: s\nmodels: {{m: {{from: ./m}}}}\ndata: {folder}\n"
            f"evaluate:\n  a: {{tasks: [arc_easy]}}\n  b: {{tasks: [arc_easy], metric: {metric}}}\n"
        )
        return dict(gather(load_suite(tmp_path / "s.yaml"), store).groups)

    assert groups("acc_norm") == {"a": ("arc_easy",), "b": ("arc_easy",)}, "its usual metric, said aloud"
    with pytest.raises(TaskError, match="scored by 'acc_norm' in one and by 'acc' in the other"):
        groups("acc")
