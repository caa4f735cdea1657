"""Tasks' items in training text: what an item is, reports, and the scores of clean items."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion.errors import TrainingError
from harness import stats
from harness.errors import TaskError, UsageError
from harness.overlap import clean_scores, contaminated, overlap_report, overlap_words, search
from harness.plan import unique_ids
from harness.tasks import load
from tests.harness.test_ngrams import OTHER, item, plain, sentence, spell
from tests.harness.test_tasks import CHOICE, CODE, GENERATE, write_task


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": sentence(100 * n, 11),
            "choices": [spell(9000 + n), f"{spell(9100 + n)} {spell(9200 + n)}", "none of these"],
            "label": n % 3,
            "answer": [f"{spell(9300 + n)} {spell(9400 + n)}", f"{spell(9500 + n)} {spell(9600 + n)}"],
        }
        for n in range(count)
    ]


def document(text: str) -> dict[str, str]:
    return {"text": text}


def ids_of(path: Path) -> list[str]:
    return unique_ids(load.load(path).ids)


def test_the_right_choice_belongs_to_the_item(tmp_path: Path) -> None:
    path = write_task(tmp_path, "legs", CHOICE, questions(5))
    ids = ids_of(path)
    asked = f"{sentence(100, 11)} {spell(9101)} {spell(9201)}"
    assert contaminated(path, [document(asked)]) == {ids[1]}
    assert contaminated(path, [document(f"{sentence(100, 11)} none of these")]) == frozenset()
    # A document's prompt and answer are one text, in the task's own words or not.
    prompt = {"prompt": f"Q: {sentence(200, 11)}\nA:", "answer": " none of these"}
    assert contaminated(str(path), iter([prompt])) == {ids[2]}


def test_each_right_answer_of_a_generation(tmp_path: Path) -> None:
    path = write_task(tmp_path, "word", GENERATE, questions(4))
    ids = ids_of(path)
    texts = [document(f"{sentence(100 * n, 11)} {answer}") for n, answer in enumerate(["ABCD", "", "", ""])]
    assert contaminated(path, texts) == frozenset()
    texts[3] = document(f"{sentence(300, 11)} {spell(9503)} {spell(9603)}")
    assert contaminated(path, texts) == {ids[3]}


def test_the_choice_may_come_first(tmp_path: Path) -> None:
    """As in WinoGrande: the choices are beginnings of the text, and the target is what follows each."""
    rows = [
        {
            "index": n % 2,
            "options": [f"{sentence(100 * n, 6)} he", f"{sentence(100 * n, 6)} she"],
            "rest": sentence(n, 8),
        }
        for n in range(4)
    ]
    template = CHOICE.replace('"Q: {{{{question}}}}\\nA:"', "index").replace("choices", "options")
    path = write_task(tmp_path, "legs", template.replace("label", "rest"), rows)
    texts = [document(f"{sentence(100 * n, 6)} she {sentence(n, 8)}") for n in range(4)]
    assert contaminated(path, texts) == {ids_of(path)[1], ids_of(path)[3]}


def test_programs_with_their_solution(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f'def f{n}(x):\n    """{sentence(100 * n, 9)}"""',
            "test": f"def check(f):\n    {sentence(5000 + 100 * n, 20)}",
            "entry_point": f"f{n}",
            **({"canonical_solution": f"\n    return {sentence(9000 + 10 * n, 4)}"} if n else {}),
        }
        for n in range(3)
    ]
    path = write_task(tmp_path, "functions", CODE, rows)
    ids = ids_of(path)
    assert contaminated(path, [document(rows[2]["prompt"] + rows[2]["canonical_solution"])]) == {ids[2]}
    assert contaminated(path, [document(one["prompt"] + "\n    return 1") for one in rows]) == {ids[0]}
    assert contaminated(path, [document(one["test"]) for one in rows]) == frozenset()


def test_description_and_examples_are_no_part_of_an_item(tmp_path: Path) -> None:
    shown = {"question": sentence(8000, 20), "choices": ["a", "b"], "label": 1}
    extra = f"num_fewshot: 1\ndescription: {sentence(7000, 20)}\nfewshot_config: {json.dumps({'samples': [shown]})}\n"
    path = write_task(tmp_path, "legs", CHOICE, questions(4), extra)
    texts = [sentence(8000, 20), sentence(7000, 20)]
    assert contaminated(path, map(document, texts)) == frozenset()


def test_copies_of_an_item_are_found_by_their_own_ids(tmp_path: Path) -> None:
    rows = questions(4)
    path = write_task(tmp_path, "legs", CHOICE, [*rows, rows[1], rows[1]])
    ids = ids_of(path)
    assert ids[5] == f"{ids[1]}#3"
    asked = document(f"{sentence(100, 11)} {spell(9101)} {spell(9201)}")
    assert contaminated(path, [asked]) == {ids[1], ids[4], ids[5]}


def test_several_tasks_in_one_pass(tmp_path: Path) -> None:
    rows = questions(8)
    first, second = (write_task(tmp_path, name, CHOICE, part) for name, part in (("a", rows[:4]), ("b", rows[4:])))
    texts = [document(f"{one['question']} {one['choices'][one['label']]}") for one in (rows[6], rows[1])]
    both = search({"a": first, "b": second}, (one for one in texts))
    assert {name: list(overlap.found) for name, overlap in both.items()} == {
        "a": [ids_of(first)[1]],
        "b": [ids_of(second)[2]],
    }
    assert [both[name].share for name in both] == [0.25, 0.25]
    assert {shared.document for overlap in both.values() for shared in overlap.found.values()} == {1, 2}


def write_corpus(folder: Path, *texts: str) -> Path:
    path = folder / "mix.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_report(tmp_path: Path) -> None:
    rows = questions(6)
    write_task(tmp_path, "legs", CHOICE, rows)
    write_task(tmp_path, "dyck", GENERATE, [{"question": f"close {sign}", "answer": ")"} for sign in "([{<"])
    asked = [f"{one['question']} {one['choices'][one['label']]}" for one in rows]
    write_corpus(tmp_path, OTHER, asked[4], asked[2].lower(), asked[2])
    report = overlap_report("mix.jsonl", ["legs.yaml", "./dyck.yaml", "./legs.yaml"], tmp_path, 0)
    ids = ids_of(tmp_path / "legs.yaml")
    assert {key: report[key] for key in ("corpus", "documents", "n")} == {
        "corpus": "mix.jsonl",
        "documents": 4,
        "n": 13,
    }
    assert report["tasks"] == {
        "legs": {
            "items": 6, "short": 2, "unjudged": 0, "overlapping": 2, "overlapping_short": 0, "share": 2 / 6,
            "examples": [
                {"item": ids[4], "words": words, "document": number}
                for words, number in [(asked[4].lower(), 2)]
            ] + [{"item": ids[2], "words": " ".join(asked[2].lower().split()[:13]), "document": 3}],
        },
        "dyck": {
            "items": 4, "short": 4, "unjudged": 4, "overlapping": 0, "overlapping_short": 0, "examples": [],
        },
    }  # fmt: skip
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    text = overlap_words(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "33.3 %" in text and "–" in text and "of item " + ids[4][:12] + ": " in " ".join(text.split())


def test_words_of_a_report_fit_whatever_the_names(tmp_path: Path) -> None:
    name = "a_benchmark_with_a_name_that_no_table_has_room_for_and_then_some"
    row = {
        "items": 123456, "short": 12345, "unjudged": 1, "overlapping": 100, "overlapping_short": 1, "share": 1.0,
        "examples": [{"item": "0" * 64, "words": "word " * 40, "document": 10**9}],
    }  # fmt: skip
    text = overlap_words({"corpus": "c", "documents": 1, "rule": "r " * 99, "tasks": {name: row}})
    assert max(map(len, text.splitlines())) <= 80
    assert name in text and "100.0 %" in text


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    write_task(tmp_path, "legs", CHOICE, questions(3))
    corpus = str(write_corpus(tmp_path, OTHER))
    with pytest.raises(TrainingError, match="gone.jsonl: cannot be read"):
        overlap_report("gone.jsonl", ["legs.yaml"], tmp_path, 0)
    with pytest.raises(UsageError, match="there is no corpus 'pocket/claen'; did you mean 'pocket/clean'"):
        overlap_report("pocket/claen", ["legs.yaml"], tmp_path, 0)
    with pytest.raises(TaskError, match="no task file .*; did you mean 'legs.yaml'"):
        overlap_report(corpus, ["lgs.yaml"], tmp_path, 0)
    (tmp_path / "copy.yaml").write_text((tmp_path / "legs.yaml").read_text())
    with pytest.raises(TaskError, match="two files define task 'legs'"):
        overlap_report(corpus, ["legs.yaml", "copy.yaml"], tmp_path, 0)
    (tmp_path / "mix.jsonl").write_text("")
    with pytest.raises(TrainingError, match="holds no document"):
        overlap_report(corpus, ["legs.yaml"], tmp_path, 0)


def test_the_pocket_world_holds_its_items_out(tmp_path: Path) -> None:
    assert overlap_report("pocket/clean", ["pocket_goals"], tmp_path, 1)["tasks"]["pocket_goals"] == {
        "items": 200, "short": 200, "unjudged": 0, "overlapping": 0, "overlapping_short": 0, "share": 0.0,
        "examples": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "file", "keys"),
    [
        (GENERATE.replace("{{{{question}}}}", "Q: {{{{input}}}}\\nA:"), "bbh/date_understanding", ("input", "target")),
        (GENERATE.replace("{{{{question}}}}", "Q: {{{{input}}}}\\nA:"), "bbh/boolean_expressions", ("input", "target")),
        (CODE, "code/humaneval", ("prompt", "canonical_solution")),
    ],
)
def test_real_items(tmp_path: Path, template: str, file: str, keys: tuple[str, str]) -> None:
    if "FUSE_BENCH_DATA" not in os.environ:
        pytest.skip("FUSE_BENCH_DATA names no folder with bbh/ and code/")
    lines = (Path(os.environ["FUSE_BENCH_DATA"]) / f"{file}.jsonl").read_text().splitlines()
    path = write_task(tmp_path, "real", template.replace("doc_to_target: answer", "doc_to_target: target"), lines)
    rows = [json.loads(line) for line in lines]
    marks = ("Q: ", "\nA:") if "bbh" in file else ("", "")
    items = [item(f"{marks[0]}{row[keys[0]]}{marks[1]}", row[keys[1]]) for row in rows]
    texts = [f"{OTHER} {rows[n][keys[0]].upper()}\n{rows[n][keys[1]]}" for n in (3, 50, 100)]
    _, judged, where = plain([items], texts)
    assert len(judged) == len(rows)
    assert len(where) < len(rows) / 2
    ids = ids_of(path)
    overlap = search({"real": path}, map(document, texts))["real"]
    assert {n: (overlap.found[ids[n]].words, overlap.found[ids[n]].document) for n in where} == where
    assert len(overlap.found) == len(where)
    if "boolean" not in file:
        assert {3, 50, 100} <= where.keys()


# --------------------------------------------------------------------------------------------------------- clean scores


def test_clean_scores() -> None:
    scores = {
        "a": {"x": np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]), "y": np.array([[0.5, 0.25], [0.5, 1.0]])},
        "b": {"z": np.array([[1.0], [0.0]])},
    }
    ids = {"a": {"x": ["p", "q", "r", "r#2"], "y": ["p", "q"]}, "b": {"z": ["p"]}}
    clean = clean_scores(scores, ids, {"x": {"q", "r#2", "gone"}, "y": {"p"}, "z": frozenset("p")})
    assert set(clean) == {"a"}
    np.testing.assert_array_equal(clean["a"]["x"], [[1.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(clean["a"]["y"], [[0.25], [1.0]])
    assert stats.of_task(clean["a"]["x"]) == stats.of_task(np.array([[1.0, 1.0], [0.0, 1.0]]))
    assert stats.of_group(clean, "a").n == 3
    nothing = clean_scores(scores, ids, {"x": set("pqr") | {"r#2"}, "y": {"p"}, "z": set()})
    assert {group: list(tasks) for group, tasks in nothing.items()} == {"a": ["y"], "b": ["z"]}


def test_clean_scores_of_nothing_dirty_are_the_scores() -> None:
    scores = {"a": {"x": np.array([[1.0, 0.0]])}}
    clean = clean_scores(scores, {"a": {"x": ["p", "q"]}}, {"x": frozenset()})
    np.testing.assert_array_equal(clean["a"]["x"], scores["a"]["x"])
    with pytest.raises(KeyError):
        clean_scores(scores, {"a": {"x": ["p", "q"]}}, {})
