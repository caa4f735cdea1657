"""`fuse-bench samples`: answers item by item, from a run folder and its store."""

import json

import pytest

from harness import samples as kept
from harness.blocks import RESPONSES, SCORES, write_block
from harness.errors import UsageError
from harness.store import Store

VALUES = {"a": [1.0, 0.0, 0.0], "b": [1.0, 1.0, 0.0], "c@1": [0.0] * 3, "c@2": [0.0] * 3}


@pytest.fixture
def run(tmp_path):
    """A run of four instances on a quiz (three test items of which two count, one dev item) and an essay."""
    store, run_dir, keys = Store(tmp_path / "store"), tmp_path / "runs" / "mine-01234567", {}
    (run_dir / "scores").mkdir(parents=True)

    def put(job, name, rows):
        folder = store.begin()
        write_block(folder, name, rows)
        keys[job] = "0" * 56 + f"{len(keys):08x}"
        store.commit(folder, keys[job], kind=job.split(" ")[0], spec={}, inputs={}, result={}, cost={})

    for model, scores in VALUES.items():
        for place, ids in (
            ("g/quiz/test.0", (5, 2)),
            ("g/quiz/test.1", (9,)),
            ("g/quiz/dev.0", (7,)),
            ("g/essay/test.0", (0,)),
        ):
            quiz = "quiz" in place
            said = [
                {"id": f"h{i}", "doc_id": i, "prompt_hash": f"p{i}", "target": "1", "truncated": False,
                 "resps": [[[-1.5, True]], [[-0.5, False]]] if quiz else [[f"{model} writes\nof {i}"]]}
                for i in ids
            ]  # fmt: skip
            judged = [
                {"id": f"h{i}", "score": scores[{5: 0, 2: 1}.get(i, 2)], "also": {}, "answer": "two" if quiz else None,
                 "verdict": None}
                for i in ids
            ]  # fmt: skip
            put(f"generate {model} {place}", RESPONSES, said)
            put(f"judge {model} {place}", SCORES, judged)
    (run_dir / "objects.json").write_text(json.dumps(keys))
    (run_dir / "plan.json").write_text("{}")
    counted = {"g": {"quiz": ["h5", "h2#2"], "essay": ["h0"]}}
    (run_dir / "scores" / "items.json").write_text(json.dumps({"test": counted, "dev": {"g": {"quiz": ["h7"]}}}))
    return lambda model, task="quiz", **more: kept.samples(
        "mine", model, task, tmp_path / "runs", tmp_path / "store", **more
    )


def test_the_counted_test_items_are_there_in_the_order_of_the_data(run):
    found = run("a")
    assert (found["run"], found["group"], found["n"]) == ("mine-01234567", "g", 2)
    assert [sample["doc_id"] for sample in found["samples"]] == [2, 5], "neither dev items nor those beyond the limit"
    assert found["samples"][1] == {
        "id": "h5", "doc_id": 5, "prompt_hash": "p5", "target": "1", "truncated": False, "score": 1.0, "also": {},
        "answer": "two", "verdict": None, "likelihoods": [-1.5, -0.5],
    }  # fmt: skip


def test_the_wrong_ones_and_those_that_another_did_otherwise_on(run):
    assert [sample["doc_id"] for sample in run("a", wrong=True)["samples"]] == [2]
    flips = run("a", against="b")
    assert [(s["doc_id"], s["score"], s["other"]["score"]) for s in flips["samples"]] == [(2, 0.0, 1.0)]
    assert run("b", wrong=True, against="a")["samples"] == []


def test_what_is_printed(run):
    said = kept.words(run("a", against="b"), 10)
    assert "a on quiz: 1 of 2 test items that b did otherwise on" in said
    assert 'item 2: score 0, target "1"' in said and "b: score 1" in said and "log-likelihoods -1.50, -0.50" in said
    assert "and 1 more" in kept.words(run("a"), 1)
    assert 'said "a writes\\nof 0"' in kept.words(run("a", "essay"), 1) and "no answer found" in kept.words(
        run("a", "essay"), 1
    )


def test_several_programs_are_told_by_how_they_ended(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    reasons = ["failed: no", "passed", "failed: no", "timeout", "crashed: a", "crashed: b", "crashed: c"]
    sample = {
        "doc_id": 3, "score": 1 / 7, "target": "", "answer": "x" * 900, "verdict": ", ".join(reasons), "also": {},
        "truncated": True, "unfinished": 2, "responses": [f"    return {i} " + "y" * 900 for i in range(7)],
        "programs": [{"passed": reason == "passed", "reason": reason} for reason in reasons],
    }  # fmt: skip
    said = kept.words({"model": "m", "task": "t", "n": 9, "samples": [sample]}, 5).splitlines()
    text = " ".join(line.strip() for line in said)
    assert max(map(len, said)) <= 80 and len(said) < 20
    assert "1 of 7 programs pass" in text and "2 ended in 2 other ways" in text
    shown = [line.strip().partition(" y")[0] for line in said if " x " in line]
    assert shown[0] == '2 x failed: no: "    return 0' and shown[1] == '1 x passed: "    return 1' and len(shown) == 4
    assert "2 cut off at the most tokens allowed" in text and "lost its beginning" in text


@pytest.mark.parametrize(
    ("model", "task", "said"),
    [
        ("aa", "quiz", "no answers of 'aa'; did you mean 'a'"),
        ("c", "quiz", "several seeds: name one of c@1, c@2"),
        ("a", "quizz", "was not scored on 'quizz'; it was on quiz, essay"),
    ],
)
def test_what_a_run_has_not(run, model, task, said):
    with pytest.raises(UsageError, match=said):
        run(model, task)


def test_answers_that_the_store_no_longer_has(run, tmp_path):
    for folder in (tmp_path / "store" / "objects").glob("*/*"):
        folder.rename(tmp_path / f"gone-{folder.name}")
    with pytest.raises(UsageError, match="has no more answers of a g/quiz/test.0"):
        run("a")


def test_a_task_in_two_groups_is_named_with_its_group(run, tmp_path):
    keys = json.loads((tmp_path / "runs" / "mine-01234567" / "objects.json").read_text())
    more = {job.replace("g/essay", "h/quiz"): key for job, key in keys.items() if "g/essay" in job}
    (tmp_path / "runs" / "mine-01234567" / "objects.json").write_text(json.dumps({**keys, **more}))
    with pytest.raises(UsageError, match="'quiz' was asked in several groups: name one as g/quiz or h/quiz"):
        run("a")
    assert [sample["doc_id"] for sample in run("a", "g/quiz")["samples"]] == [2, 5]
    with pytest.raises(UsageError, match="was not scored on 'essay'; it was on quiz"):
        run("a", "h/essay")
