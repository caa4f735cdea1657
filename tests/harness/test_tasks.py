"""Task files: found by name or path, described once, refused with a reason."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import TaskError
from harness.tasks import Task, describe, files, load, shipped, sources

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
GENERATE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
filter_list:
  - {{name: first-sign, filter: [{{function: regex, regex_pattern: '([^ ])'}}, {{function: take_first}}]}}
  - {{name: raw, filter: [{{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0, chance: 0.1}}
"""
CODE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: generate_until
unsafe_code: true
doc_to_text: "{{{{prompt}}}}"
generation_kwargs: {{until: ["\\ndef", "\\nprint"], max_gen_toks: 8, do_sample: false}}
metadata: {{version: 1.0, kind: code, chance: 0.0}}
"""
QUESTIONS = [
    {
        "question": f"how many legs has a {animal}?",
        "choices": ["two", "four or more", "none"],
        "label": n % 3,
        "answer": "f",
    }
    for n, animal in enumerate(
        ["hen", "cow", "snake", "duck", "horse", "worm", "goose", "long-haired dog", "eel", "owl"]
    )
]
FUNCTIONS = [
    {
        "task_id": f"f/{n}",
        "prompt": f'def add(x):\n    """Add {n} to x."""',
        "canonical_solution": f"\n    return x + {n}",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + n}\n",
        "entry_point": "add",
    }
    for n in range(4)
]


def write_task(folder: Path, name: str, template: str, rows: Sequence[Any], extra: str = "") -> Path:
    """A task file and its data; rows that are texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    path = folder / f"{name}.yaml"
    path.write_text(template.format(name=name) + extra)
    return path


def describe_one(path: Path, trust: bool = False) -> Task:
    return describe([path.name], path.parent, path.parent / "cache", trust)[path.name]


def test_describe_a_choice_task(tmp_path: Path) -> None:
    task = describe_one(write_task(tmp_path, "legs", CHOICE, QUESTIONS))
    assert (task.name, task.version, task.output_type, task.kind) == ("legs", "2.0", "multiple_choice", "likelihood")
    assert (task.metric, task.also, task.chance, task.shots) == ("acc_norm", ("acc",), pytest.approx(1 / 3), 0)
    assert len(set(task.items)) == len(QUESTIONS)
    assert task.source == str(tmp_path / "legs.yaml")
    assert task.digest.startswith("sha256:")


def test_describe_generation_and_code(tmp_path: Path) -> None:
    task = describe_one(write_task(tmp_path, "word", GENERATE, QUESTIONS))
    assert (task.kind, task.metric, task.also, task.chance) == (
        "generate",
        "exact_match,first-sign",
        ("exact_match,raw",),
        0.1,
    )
    task = describe_one(write_task(tmp_path, "functions", CODE, FUNCTIONS))
    assert (task.kind, task.metric, task.also) == ("code", "pass@1", ())


def test_the_file_may_name_the_metric_that_counts(tmp_path: Path) -> None:
    path = write_task(tmp_path, "legs", CHOICE.replace("version: 2.0", "metric: acc"), QUESTIONS)
    assert describe_one(path).metric == "acc"
    path.write_text(path.read_text().replace("metric: acc}", "metric: f1}"))
    with pytest.raises(TaskError, match=r"metadata\.metric is 'f1'"):
        describe_one(path)


def test_the_second_time_nothing_heavy_is_imported(tmp_path: Path) -> None:
    first = describe_one(write_task(tmp_path, "legs", CHOICE, QUESTIONS))
    code = f"""
        import json, sys
        from dataclasses import asdict
        from pathlib import Path
        from harness.tasks import describe
        task = describe(["legs.yaml"], Path({str(tmp_path)!r}), Path({str(tmp_path / "cache")!r}))["legs.yaml"]
        heavy = [name for name in ("torch", "datasets", "lm_eval", "transformers", "numpy") if name in sys.modules]
        print(json.dumps([heavy, asdict(task)]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    heavy, again = json.loads(done.stdout)
    assert heavy == []
    assert Task(**{**again, "also": tuple(again["also"]), "items": tuple(again["items"])}) == first


def test_local_tasks_need_no_network(tmp_path: Path) -> None:
    write_task(tmp_path, "legs", CHOICE, QUESTIONS)
    code = f"""
        import socket, sys
        def refuse(*arguments, **named):
            print("network", arguments, file=sys.stderr); raise OSError("no network")
        socket.socket.connect = socket.getaddrinfo = refuse
        from pathlib import Path
        from harness.tasks import describe
        describe(["legs.yaml"], Path({str(tmp_path)!r}), Path({str(tmp_path / "cache")!r}))
        import datasets.config
        assert datasets.config.HF_HUB_OFFLINE is False
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment["HF_HOME"] = str(tmp_path / "hf")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    path = write_task(tmp_path, "legs", CHOICE, QUESTIONS)
    child = tmp_path / "child.yaml"
    child.write_text("include: legs.yaml\ntask: child\n")
    digests = [describe_one(child).digest]
    write_task(tmp_path, "legs", CHOICE, QUESTIONS[:-1])
    digests.append(describe_one(child).digest)
    path.write_text(path.read_text().replace("Q: ", "Question: "))
    digests.append(describe_one(child).digest)
    child.write_text(child.read_text() + "description: Think.\n")
    digests.append(describe_one(child).digest)
    assert len(set(digests)) == 4


def test_the_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.append(describe_one(write_task(tmp_path / name, "legs", CHOICE, QUESTIONS)).digest)
    assert digests[0] == digests[1]


def test_data_are_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write_task(tmp_path / "inner", "legs", CHOICE, QUESTIONS)
    (tmp_path / "child.yaml").write_text("include: inner/legs.yaml\ntask: child\n")
    definition = files.read(tmp_path / "child.yaml")
    assert definition.data == {"test": (tmp_path / "inner" / "legs.jsonl",)}
    assert definition.name == "child"


def test_find_by_path_and_by_name(tmp_path: Path) -> None:
    path = write_task(tmp_path, "legs", CHOICE, QUESTIONS)
    found = sources(["legs.yaml", "./legs.yaml"], tmp_path, tmp_path / "cache")
    assert found == {"legs.yaml": path, "./legs.yaml": path}
    own = shipped()
    assert sources(list(own), tmp_path, tmp_path / "cache") == own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("arc_eazy", "unknown task 'arc_eazy'; did you mean 'arc_easy'"),
        ("lgs.yaml", "no task file .*lgs.yaml; did you mean 'legs.yaml'"),
        ("hellaswag", "cannot be loaded from the hub"),
    ],
)
def test_unknown_tasks(tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    write_task(tmp_path, "legs", CHOICE, QUESTIONS)
    with pytest.raises(TaskError, match=message):
        describe([name], tmp_path, tmp_path / "cache")


def _without(field: str) -> list[Any]:
    return [*QUESTIONS[:2], {key: value for key, value in QUESTIONS[2].items() if key != field}, *QUESTIONS[3:]]


@pytest.mark.parametrize(
    ("template", "rows", "extra", "message"),
    [
        (CHOICE, [], "", r"legs.jsonl is empty"),
        (CHOICE, ["", ""], "", r"no data: no rows in .*legs.jsonl"),
        (CHOICE, _without("question"), "", r"legs.jsonl:3: the row has no 'question', which task 'legs' uses"),
        (CHOICE, [*QUESTIONS, {**QUESTIONS[0], "label": None}], "", r"legs.jsonl:11: the row has no 'label'"),
        (CHOICE, [QUESTIONS[0], "{'question'}"], "", r"legs.jsonl:2: not JSON"),
        (CHOICE, [QUESTIONS[0], "", "[1]"], "", r"legs.jsonl:3: a row must be an object"),
        (CHOICE, [*QUESTIONS, {**QUESTIONS[0], "label": 3}], "", r"legs.jsonl:11: .*gives 3, which is none of the 3"),
        (CHOICE, [QUESTIONS[0], {**QUESTIONS[1], "choices": ["a"]}], "", r"legs.jsonl:2: .*two or more texts"),
        (CHOICE.replace("question", "riddle"), QUESTIONS, "", r"legs.jsonl:1: the row has no 'riddle'"),
        (CHOICE, QUESTIONS, "num_fewshot: 2", r"2 shots, but no examples .* name a 'training_split'"),
        (
            CHOICE,
            QUESTIONS,
            "num_fewshot: 1\nfewshot_config: {samples: [{question: a}]}\n",
            r"no prompt with 1 shots can be made",
        ),
        (CHOICE, QUESTIONS, "process_docs: !function mine.docs", r"!function mine.docs.*trust_task_code: true"),
        (CHOICE, QUESTIONS, "unsafe_code: true", r"run generated programs inside the bench.*kind: code"),
        (CHOICE.replace("2.0", "2.0, kind: riddle"), QUESTIONS, "", r"metadata.kind is 'riddle'; expected likelihood"),
        (CHOICE.replace("2.0", "2.0, kind: code"), QUESTIONS, "", r"a code task needs 'output_type: generate_until'"),
        (CHOICE.replace("test_split", "training_split"), QUESTIONS, "", r"nothing to score"),
        (CHOICE.replace("legs", "other"), QUESTIONS, "group: legs", r"a group of tasks"),
        (CHOICE.replace("{name}.jsonl", "gone.jsonl"), QUESTIONS, "", r"its data file .*gone.jsonl does not exist"),
        (CHOICE, QUESTIONS, "doc_to_text: '{{question'", r"the template of 'doc_to_text' of task 'legs'"),
        (CHOICE, QUESTIONS, "include: legs.yaml", r"includes itself"),
        (CHOICE, QUESTIONS, "x: [", r"legs.yaml: not YAML"),
        (CODE, _without("question"), "", r"legs.jsonl:1: the row has no 'entry_point', 'prompt', 'test'"),
        (
            CHOICE.replace("acc_norm, aggregation: mean", "f1, aggregation: f1")
            .replace("acc, ", "mcc, ")
            .replace(": mean", ": f1"),
            QUESTIONS,
            "",
            r"no metric that is a mean",
        ),
    ],
)
def test_bad_tasks(tmp_path: Path, template: str, rows: list[Any], extra: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        describe_one(write_task(tmp_path, "legs", template, rows, extra))


def test_a_validation_split_that_is_scored_gives_no_shots(tmp_path: Path) -> None:
    template = CHOICE.replace("test: ", "validation: ").replace("test_split: test", "validation_split: validation")
    with pytest.raises(TaskError, match="no examples to take them from"):
        describe_one(write_task(tmp_path, "legs", template, QUESTIONS, "num_fewshot: 1\nfewshot_split: validation"))


def test_two_files_of_one_name(tmp_path: Path) -> None:
    path = write_task(tmp_path, "legs", CHOICE, QUESTIONS)
    (tmp_path / "copy.yaml").write_text(path.read_text())
    with pytest.raises(TaskError, match="two files define task 'legs'"):
        describe(["legs.yaml", "copy.yaml"], tmp_path, tmp_path / "cache")


def test_trusted_code_runs_and_counts_in_the_digest(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text("def docs(dataset):\n    return dataset.select(range(3))\n")
    path = write_task(tmp_path, "legs", CHOICE, QUESTIONS, "process_docs: !function mine.docs")
    first = describe_one(path, trust=True)
    assert len(first.items) == 3
    module.write_text("def docs(dataset):\n    return dataset.select(range(4))  # more\n")
    assert describe_one(path, trust=True).digest != first.digest


def test_items_are_the_doc_hashes_of_lm_eval(tmp_path: Path) -> None:
    path = write_task(tmp_path, "legs", CHOICE, QUESTIONS)
    loaded = load.load(path)
    assert loaded.docs[1]["question"] == QUESTIONS[1]["question"]
    assert loaded is load.load(path)
    write_task(tmp_path, "legs", CHOICE, QUESTIONS[::-1])
    assert load.load(path).ids == loaded.ids[::-1]
