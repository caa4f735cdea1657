"""How models answered, side by side, and what a run folder keeps of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from harness import answers, kinship_rows
from harness.blocks import SCORES, write_block
from harness.drive import Failure, Progress
from harness.errors import UsageError
from harness.plan import Block, TaskItems
from harness.relating import Related
from harness.spec import Candidate, Group, Source
from harness.store import Entry

OPTIONS = {"quiz": (4, 2, 4), "essay": (0, 0, 0)}  # choices an item of each task
RIGHT = {"a": 0.9, "b": 0.6, "c@1": 0.5, "c@2": 0.7}


@pytest.fixture
def run(tmp_path):
    """A plan of two tasks with three dev and three test items each, and what four instances of models answered."""
    models = {name: Source(name, f"/{name}") for name in "ab"}
    models["c"] = Candidate(
        name="c", method="ties", kind="merged", params={}, models=("a", "b"), base="base", seeds=(1, 2)
    )
    items, done = {"g": {}}, {}
    for task, options in OPTIONS.items():
        ids = {split: tuple(f"{task} {split} {i}" for i in range(3)) for split in ("dev", "test")}
        # Of a block more may be scored than counts.
        blocks = tuple(Block(task, split, 0, (*ids[split], "beyond"), (0, 1, 2, 3)) for split in ids)
        items["g"][task] = TaskItems(blocks, ids)
        for name, right in RIGHT.items():
            for block in blocks:
                folder = tmp_path / f"{name} {task} {block.split}"
                folder.mkdir()
                shift = 0.0 if block.split == "dev" else 0.05
                records = [_record(count, right - shift) for count in (*options, 4)]
                write_block(folder, SCORES, records)
                done[f"judge {name} g/{block.name}"] = Entry("k", folder, "judge", "d", {}, {})
    suite = SimpleNamespace(
        models=models, groups=[Group("g", tuple(OPTIONS), None, 8), Group("t", (), None, 8, "t.jsonl")],
        dev_share=0.3, measures=("pcc", "capa", "flips"), kinship_base="base",
    )  # fmt: skip
    related = Related(("a", "b"), "base", "relate 2 models to base", None)
    plan = SimpleNamespace(
        suite=suite, items=items, facts=SimpleNamespace(groups={"g": tuple(OPTIONS)}), kinship={"c": related}
    )
    return plan, Progress(done=done)


def _record(options: int, right: float) -> dict:
    if not options:
        return {"score": right, "also": {}}
    others = [(1 - right) / (options - 1)] * (options - 1)
    return {"score": 1.0, "also": {}, "choices": {"p": [right, *others], "correct": 0}}


def test_answers_are_of_dev_items_and_replicates_are_averaged(run):
    answered = answers.collect(*run)
    names, found = answered.models, answered.answers
    assert names == ("a", "b", "c")
    assert found.options.tolist() == [4, 2, 4, 0, 0, 0] and found.correct.tolist() == [0, 0, 0, -1, -1, -1]
    assert found.right[:, 3].tolist() == pytest.approx([0.9, 0.6, 0.6]) and (found.right[:, :3] == 1).all()
    assert found.probs.shape == (3, 6, 4)
    assert found.probs[2, 0].tolist() == pytest.approx([0.6, *[0.4 / 3] * 3])
    assert found.probs[0, 1].tolist() == pytest.approx([0.9, 0.1, 0, 0]) and not found.probs[:, 3:].any()


def test_without_a_dev_split_they_are_of_the_test_items(run):
    plan, progress = run
    plan.suite.dev_share = 0.0
    assert answers.collect(plan, progress).answers.right[0, 3] == pytest.approx(0.85)


def test_a_model_that_lacks_an_item_has_no_answers_and_one_alone_is_none(run):
    plan, progress = run
    del progress.done["judge c@2 g/essay/dev.0"]
    assert answers.collect(plan, progress).models == ("a", "b")
    del progress.done["judge b g/quiz/dev.0"]
    assert answers.collect(plan, progress) is None


def test_a_score_that_is_no_share_says_nothing_of_right_and_wrong(run, tmp_path):
    plan, progress = run
    block = progress.done["judge b g/essay/dev.0"].path
    write_block(block, SCORES, [{"score": value, "also": {}} for value in (0.5, 17.0, 0.25, 0.0)])
    found = answers.collect(plan, progress)
    assert found.answers.right.shape == (3, 5) and found.left_out == 1
    assert kinship_rows.collect(plan, progress, found)["items_left_out"] == 1


def test_a_run_folder_gives_them_back(run, tmp_path):
    answered = answers.collect(*run)
    names, found = answered.models, answered.answers
    answers.write(tmp_path, names, found)
    kept = answers.answers(tmp_path, ["c", "a"])
    assert np.array_equal(kept.right, found.right[[2, 0]]) and np.array_equal(kept.probs, found.probs[[2, 0]])
    assert np.array_equal(kept.correct, found.correct)
    before = (tmp_path / answers.FILE).read_bytes()
    answers.write(tmp_path, names, found)
    assert (tmp_path / answers.FILE).read_bytes() == before, "the same answers are the same bytes"
    with pytest.raises(UsageError, match="no answers of nobody: .*it has a, b, c"):
        answers.answers(tmp_path, ["a", "nobody"])
    with pytest.raises(UsageError, match="keeps no answers"):
        answers.answers(tmp_path / "elsewhere", ["a"])


def test_without_choices_there_are_no_probabilities(run, tmp_path):
    plan, progress = run
    plan.facts.groups["g"] = ("essay",)
    answered = answers.collect(plan, progress)
    names, found = answered.models, answered.answers
    answers.write(tmp_path, names, found)
    assert found.probs is None and answers.answers(tmp_path, ["a", "b"]).probs is None
    assert answers.pairs(names, found, ["capa"])[0] == {"a": "a", "b": "b", "capa": None}


# --- what becomes of them in the results


def kinship(tmp_path, *rows):
    folder = tmp_path / "kinship"
    folder.mkdir(exist_ok=True)
    (folder / "kinship.json").write_text(json.dumps({"pairs": rows, "lineage": {"a": {"kin": True}}}))
    return Entry("k", folder, "judge", "d", {}, {})


def test_a_candidate_has_the_kinship_of_its_parents_by_weights_and_records(run, tmp_path):
    plan, progress = run
    progress.done["relate 2 models to base"] = kinship(tmp_path, {"a": "a", "b": "b", "pcc": 0.25})
    found = kinship_rows.collect(plan, progress, answers.collect(plan, progress))
    assert found["weights"] == {"base": {"pairs": [{"a": "a", "b": "b", "pcc": 0.25}], "lineage": {"a": {"kin": True}}}}
    row = kinship_rows.of_candidate(plan, progress, "c", found)
    assert list(row) == ["kinship"] and list(row["kinship"]) == ["pcc", "capa", "flips"]
    assert row["kinship"]["pcc"] == {"mean": 0.25, "min": 0.25, "max": 0.25}
    assert kinship_rows.by_measure(plan, found)["pcc"] == {("a", "b"): 0.25}
    assert set(kinship_rows.by_measure(plan, found)) == {"pcc", "capa", "flips"}


def test_kinship_that_is_not_known_says_why(run, tmp_path):
    plan, progress = run
    progress.done["relate 2 models to base"] = kinship(
        tmp_path, {"a": "a", "b": "b", "pcc": None, "status": "a is the base"}
    )
    row = kinship_rows.of_candidate(plan, progress, "c", kinship_rows.collect(plan, progress, None))
    assert row == {"kinship_status": "a is the base"}
    del progress.done["relate 2 models to base"]
    progress.failed["relate 2 models to base"] = Failure("no room", "user")
    row = kinship_rows.of_candidate(plan, progress, "c", kinship_rows.collect(plan, progress, None))
    assert row == {"kinship_status": "relate 2 models to base: no room"}
    assert kinship_rows.of_candidate(plan, progress, "a", {}) == {}
    plan.kinship = {}
    assert kinship_rows.collect(plan, progress, None) == {}


def test_a_stranger_among_the_parents_is_told(run):
    plan, _ = run
    for kin in (True, False):
        found = {"weights": {"base": {"pairs": [], "lineage": {"a": {"kin": True}, "b": {"kin": kin}}}}}
        assert kinship_rows.are_kin(plan, "c", found) is kin
    assert kinship_rows.are_kin(plan, "c", {}) and kinship_rows.are_kin(plan, "a", found), "not known to be strangers"
