"""`fuse-bench evaluate`: a model on tasks as a run of its own, and programs that were made elsewhere."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import evaluating
from harness.cli import cli
from harness.errors import TaskError, UsageError
from harness.evaluating import Asked, judge_generations, pass_at, suite_of
from harness.run import Options
from tests.harness.test_evaluate import write_model
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, QUESTIONS, write_task


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluating")
    write_model(folder / "my model", seed=1)
    write_task(folder, "legs", CHOICE, QUESTIONS)
    write_task(folder, "functions", CODE, FUNCTIONS)
    return folder


def generations(folder: Path, programs: object) -> Path:
    path = folder / "generations.json"
    path.write_text(json.dumps(programs))
    return path


def test_a_model_is_scored_as_a_run_that_is_cached(world: Path, tmp_path: Path) -> None:
    options = Options(out=tmp_path / "runs", store=tmp_path / "store", slots=1, progress="none")
    asked = Asked(str(world / "my model"), (str(world / "legs.yaml"),), limit=6)
    outcome = evaluating.evaluate(asked, options)
    found = evaluating.scores(outcome)
    assert found["model"] == "my-model" and not found["failed"]
    assert found["tasks"]["legs"]["n"] == 6 and found["tasks"]["legs"]["metric"] == "acc_norm"
    assert outcome.run_dir.name.startswith("evaluate-my-model-")
    assert (outcome.run_dir / "leaderboard.html").is_file()
    assert "legs" in evaluating.score_words(found) and "n 6" in evaluating.score_words(found)
    again = evaluating.evaluate(asked, options)
    assert again.jobs["ran"] == 0 and evaluating.scores(again) == found


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (Asked("nowhere", ("pocket_goals",)), UsageError, "no model folder"),
        (
            Asked("{world}/my model", ("pocket_goals", "pocket_goals")),
            UsageError,
            "pocket_goals is given more than once",
        ),
        (Asked("{world}/my model", ("pocket_goal",)), TaskError, "did you mean 'pocket_goals'"),
    ],
)
def test_what_cannot_be_evaluated(world: Path, tmp_path: Path, asked: Asked, error: type, said: str) -> None:
    options = Options(out=tmp_path / "runs", store=tmp_path / "store", slots=1, progress="none")
    asked = Asked(asked.model.format(world=world), asked.tasks)
    with pytest.raises(error, match=said):
        evaluating.evaluate(asked, options)


def test_models_and_tasks_make_other_runs(world: Path) -> None:
    one = suite_of(Asked(str(world / "my model"), ("pocket_goals",)))
    more: list[dict[str, Any]] = [{"limit": 3}, {"batch_size": 1}, {"trust": True}, {"weak_sandbox": True}]
    more += [{"samples": 2}, {"samples": 2, "temperature": 0.5}, {"temperature": 0.2, "top_p": 0.5}, {"chat": "on"}]
    others = [suite_of(Asked(str(world / "my model"), ("pocket_goals",), **m)) for m in more]
    assert len({one.digest, *(other.digest for other in others)}) == 9
    json.loads(one.text)
    drawn = others[4].groups[0]
    assert (drawn.samples, drawn.temperature, drawn.top_p) == (2, 0.2, 0.95)
    assert [other.chat for other in (one, others[7])] == ["off", "on"]
    with pytest.raises(UsageError, match="3 samples at temperature 0 are all the same"):
        suite_of(Asked(str(world / "my model"), ("pocket_goals",), samples=3, temperature=0.0))


def test_programs_are_drawn_and_the_counts_are_told(world: Path, tmp_path: Path) -> None:
    options = Options(out=tmp_path / "runs", store=tmp_path / "store", slots=1, progress="none")
    write_model(tmp_path / "chatty", seed=1)
    (tmp_path / "chatty" / "chat_template.jinja").write_text("{{ messages[0].content }}:")
    model, task = str(tmp_path / "chatty"), str(world / "functions.yaml")
    found = evaluating.scores(
        evaluating.evaluate(Asked(model, (task,), samples=3, temperature=1.0, weak_sandbox=True, chat="on"), options)
    )
    entry = found["tasks"]["functions"]
    assert entry["n"] == len(FUNCTIONS) and 0 < entry["unfinished"] <= 3 * len(FUNCTIONS)
    assert f"{entry['unfinished']} answers cut off" in evaluating.score_words(found)
    assert found["chat"] is True and "chatty, asked in its chat template" in evaluating.score_words(found)
    with pytest.raises(TaskError, match="group 'tasks' asks for 3 samples at temperature 0.2, and none of its tasks"):
        evaluating.evaluate(Asked(model, (str(world / "legs.yaml"),), samples=3), options)
    with pytest.raises(UsageError, match="`chat: on` asks for a chat template, and my-model has none"):
        evaluating.evaluate(Asked(str(world / "my model"), (task,), chat="on", weak_sandbox=True), options)


def test_programs_made_elsewhere_are_judged_one_by_one(world: Path, tmp_path: Path) -> None:
    rows = FUNCTIONS[:3]
    programs = [[r["canonical_solution"], "\n    return None", r["prompt"] + r["canonical_solution"]] for r in rows]
    found = judge_generations(generations(world, programs), str(world / "functions.yaml"), tmp_path, True)
    outcomes = [[program["passed"] for program in verdict["programs"]] for verdict in found["verdicts"]]
    assert outcomes == [[True, False, True]] * 3, "with the prompt or without it"
    assert found["verdicts"][0]["programs"][0]["reason"] == "passed"
    assert found["verdicts"][0]["programs"][1]["reason"].startswith("failed")
    assert (found["samples"], found["problems"], found["of"]) == (9, 3, len(FUNCTIONS))
    assert found["pass@1"] == pytest.approx(2 / 3) and "pass@10" not in found
    words = evaluating.generation_words(found)
    assert (
        "pass@1 66.7" in words
        and f"3 problems (the first of {len(FUNCTIONS)})" in words
        and "6 passed, 3 failed" in words
    )


def test_finished_programs_are_run_as_they_are_and_completions_end_at_a_stop(tmp_path: Path) -> None:
    """HumanEval/0 as other harnesses may have written it."""
    data = Path(os.environ.get("FUSE_BENCH_DATA", "/nowhere"), "code", "humaneval.jsonl")
    if not data.is_file():
        pytest.skip("FUSE_BENCH_DATA is not set: the folder with code/humaneval.jsonl")
    row = json.loads(data.read_text(encoding="utf-8").splitlines()[0])
    prompt, body = row["prompt"], row["canonical_solution"]
    helped = "    return near(numbers, threshold)\n\n\n"
    helper = (
        "def near(numbers, threshold):\n"
        "    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])\n"
    )
    file = "import itertools\n\n" + helper + "\ndef has_close_elements(numbers, threshold):\n" + helped
    texts = {
        prompt + helped + helper: True,
        prompt.strip() + "\n" + helped + helper: True,
        prompt + helped: False,
        file: True,
        file + "\n# a comment\nif __name__ == '__main__':\n    print(has_close_elements([1.0], 1.0))\n": True,
        file.replace("< threshold", "> threshold"): False,
        file.replace("has_close_elements", "has_far_elements"): False,
        body + "\ndef has_close_elements(numbers, threshold):\n    return None\n": True,
        body + "\nprint(has_close_elements(": True,
        helped + helper: False,
    }
    found = judge_generations(generations(tmp_path, [list(texts)]), "humaneval", tmp_path / "store" / "facts", True)
    assert [program["passed"] for program in found["verdicts"][0]["programs"]] == list(texts.values())


def test_pass_at_k_is_the_share_of_draws_with_one_that_passes() -> None:
    assert pass_at([[True, False, False, False]], 2) == pytest.approx(0.5)
    assert pass_at([[True, True], [False, False]], 1) == pass_at([[True, True], [False, False]], 2) == 0.5
    assert pass_at([[False] * 9 + [True]], 10) == 1.0


@pytest.mark.parametrize(
    ("programs", "task", "said"),
    [
        ({"a": 1}, "functions", "expected a list with a list of programs"),
        ([], "functions", "expected a list"),
        ([["x"], []], "functions", "problem 1"),
        ([["x"], "x"], "functions", "problem 1"),
        ([["x"]] * 99, "functions", "programs for 99 problems"),
        ([["x"]], "legs", "is no code task"),
    ],
)
def test_what_are_no_generations(world: Path, tmp_path: Path, programs: object, task: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        judge_generations(generations(world, programs), str(world / f"{task}.yaml"), tmp_path, True)


def test_files_that_are_none(tmp_path: Path, world: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        judge_generations(tmp_path / "nothing.json", str(world / "functions.yaml"), tmp_path, True)
    (tmp_path / "bad.json").write_text("[[")
    with pytest.raises(UsageError, match="is not JSON"):
        judge_generations(tmp_path / "bad.json", str(world / "functions.yaml"), tmp_path, True)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["evaluate", "--task", "x"], "give a MODEL"),
        (["evaluate", "m", "--task", "x", "--generations", "g.json"], "give a MODEL"),
        (["evaluate", "--generations", "g.json", "--task", "x", "--task", "y"], "one --task"),
    ],
)
def test_a_model_or_generations(command: list[str], said: str) -> None:
    assert said in str(CliRunner().invoke(cli, command).exception)
