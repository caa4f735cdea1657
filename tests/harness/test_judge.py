"""Scores equal bare lm-eval's, item by item; programs are judged by running them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.errors import TaskError
from harness.evaluate import Settings, respond
from harness.judge import judge
from harness.tasks import describe, load
from tests.harness.test_evaluate import SHOTS, loaded, write_model
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, GENERATE, QUESTIONS, write_task

PARITY = ["legs", "shots", "word"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, and tasks of which it gets some items right."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "m", seed=1)
    write_task(folder, "legs", CHOICE, QUESTIONS)
    write_task(folder, "shots", CHOICE.replace("test: ", "train: legs.jsonl, test: "), QUESTIONS, SHOTS)
    path = write_task(folder, "word", GENERATE, QUESTIONS)
    write_task(folder, "functions", CODE, FUNCTIONS)
    responses = respond(loaded(folder, "m"), str(path), range(10), Settings())
    answers = [record["answer"] or "" for record in judge(str(path), responses)]
    rows = [{**row, "answer": answers[n] if n % 3 else "?"} for n, row in enumerate(QUESTIONS)]
    write_task(folder, "word", GENERATE, rows)
    return folder


@pytest.fixture(scope="module")
def bare(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """lm-eval's own results for the model folder, in one call, with the data named as it needs them named."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("bare")
    for task in PARITY:
        text = (world / f"{task}.yaml").read_text()
        for name in PARITY:
            text = text.replace(f" {name}.jsonl", f" {world / name}.jsonl")
        (folder / f"{task}.yaml").write_text(text)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with load.quiet(), pytest.MonkeyPatch.context() as patch:
        # It asks pip and the processor about themselves, which takes seconds.
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        return evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(world / "m"), "dtype": "float32"},
            tasks=PARITY,
            task_manager=manager,
            device="cpu",
            batch_size=3,
            bootstrap_iters=0,
        )


@pytest.mark.parametrize("task", PARITY)
def test_scores_are_lm_evals(world: Path, bare: Any, task: str) -> None:
    live, source = loaded(world, "m"), str(world / f"{task}.yaml")
    about = describe([source], world, world / "cache")[source]
    responses = [
        record for ids in ([0, 1, 2], [3, 4, 5, 6], [7, 8, 9]) for record in respond(live, source, ids, Settings(2))
    ]
    records = judge(source, json.loads(json.dumps(responses)))
    for label in (about.metric, *about.also):
        metric, _, name = label.partition(",")
        values = [record["score"] if label == about.metric else record["also"][label] for record in records]
        samples = [sample for sample in bare["samples"][task] if sample["filter"] == (name or "none")]
        assert values == [float(sample[metric]) for sample in samples]
        assert [record["id"] for record in records] == [sample["doc_hash"] for sample in samples]
        assert sum(values) / len(values) == pytest.approx(bare["results"][task][f"{metric},{name or 'none'}"])
    assert 0 < sum(record["score"] for record in records) < len(records)
    _same_responses(responses, bare["samples"][task])


def _same_responses(responses: list[Any], samples: list[Mapping[str, Any]]) -> None:
    by_id = {sample["doc_id"]: sample for sample in samples}
    for response in responses:
        sample = by_id[response["doc_id"]]
        assert response["prompt_hash"] == sample["prompt_hash"]
        for ours, theirs in zip(response["resps"], sample["resps"], strict=True):
            if isinstance(theirs[0], str):
                assert ours == theirs
            else:
                assert ours[0][0] == pytest.approx(theirs[0][0], abs=1e-4)
                assert ours[0][1] == theirs[0][1]


def test_answers(world: Path) -> None:
    def response(doc_id: int, resps: list[Any], task: str) -> dict[str, Any]:
        return {"id": load.load(world / f"{task}.yaml").ids[doc_id], "doc_id": doc_id, "resps": resps}

    likely = [[[-3.0, False]], [[-6.0, False]], [[-9.0, False]]]
    (record,) = judge(str(world / "legs.yaml"), [response(0, likely, "legs")])
    # Per character "four or more" is the most likely, although "two" is by itself.
    assert (record["answer"], record["score"], record["also"]) == ("four or more", 0.0, {"acc": 1.0})
    records = judge(str(world / "word.yaml"), [response(1, [["  x 12"]], "word"), response(2, [["  "]], "word")])
    assert [record["answer"] for record in records] == ["x", None]


def code_response(world: Path, doc_id: int, *texts: str) -> dict[str, Any]:
    return {"id": load.load(world / "functions.yaml").ids[doc_id], "doc_id": doc_id, "resps": [list(texts)]}


def test_programs_are_run(world: Path) -> None:
    source = str(world / "functions.yaml")
    right = [code_response(world, n, row["canonical_solution"]) for n, row in enumerate(FUNCTIONS)]
    empty = [code_response(world, n, "") for n in range(len(FUNCTIONS))]
    assert [record["score"] for record in judge(source, right, "rlimits")] == [1.0] * 4
    assert [record["verdict"] for record in judge(source, right[:1])] == ["passed"]
    # An empty completion of the prompt is a function that returns None.
    assert [record["score"] for record in judge(source, empty)] == [0.0] * 4


def test_programs_are_cut_at_the_tasks_stop_sequences(world: Path) -> None:
    rambling = "\n    return x + 1\ndef add(x):\n    return 0\n"
    (record,) = judge(str(world / "functions.yaml"), [code_response(world, 1, rambling)])
    assert (record["score"], record["answer"]) == (1.0, "\n    return x + 1")


def test_several_programs_for_one_item(world: Path) -> None:
    response = code_response(world, 1, "\n    return x + 1", "\n    return x", "\n    return (")
    (record,) = judge(str(world / "functions.yaml"), [response])
    assert record["score"] == pytest.approx(1 / 3)
    assert record["verdict"].startswith("passed, failed: assertion, raised: SyntaxError")


def test_a_test_that_cannot_run_is_the_tasks_fault(tmp_path: Path) -> None:
    path = write_task(tmp_path, "functions", CODE, [FUNCTIONS[0], {**FUNCTIONS[1], "test": "def check(candidate:"}])
    response = code_response(tmp_path, 1, "\n    return x + 1")
    with pytest.raises(TaskError, match=r"functions.jsonl:2: test error: SyntaxError.*correct the row's 'test'"):
        judge(str(path), [response])


def test_data_that_changed_since(world: Path) -> None:
    response = {"id": "0" * 64, "doc_id": 3, "resps": [[[-1.0, False]]] * 3}
    with pytest.raises(TaskError, match="item 3 is not the one that was answered"):
        judge(str(world / "legs.yaml"), [response])


def test_nothing_to_judge(world: Path) -> None:
    assert judge(str(world / "legs.yaml"), []) == []


def test_how_likely_each_choice_was_is_kept_with_the_right_one(world: Path) -> None:
    source = str(world / "legs.yaml")
    responses = respond(loaded(world, "m"), source, range(4), Settings())
    for response, record, question in zip(responses, judge(source, responses), QUESTIONS, strict=False):
        marks = [math.exp(repeat[0][0]) for repeat in response["resps"]]
        assert record["choices"]["correct"] == question["label"]
        assert record["choices"]["p"] == pytest.approx([mark / sum(marks) for mark in marks])
    written = respond(loaded(world, "m"), str(world / "word.yaml"), range(2), Settings())
    assert all("choices" not in record for record in judge(str(world / "word.yaml"), written))
