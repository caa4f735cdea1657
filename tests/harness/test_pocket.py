"""The pocket world: its committed questions are what it generates, and no training text holds one of them."""

import ast
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusion.params import describe, fill
from harness.pocket import CORPORA, HELD_OUT, TRAINERS, corpus, mixtures, programs, texts, trainers, world
from harness.pocket.__main__ import FOLDER, lines

TASKS = sorted(texts.TASKS)
MIXTURES = {
    "base": mixtures.BASE,
    **{f"teacher of {skills}": shares for skills, shares in mixtures.TEACHERS.items()},
    **{skill: mixtures.specialist(skill, 0.3) for skill in mixtures.GROUP_OF},
}


def question(prompt: str, answer: str) -> tuple[str, object]:
    """What a document asks, read from its text alone: (task, the same value for every way to ask the same)."""
    if prompt.startswith("def "):
        argument = prompt[prompt.index("(") + 1 : prompt.index(")")]
        task, probes = {
            "x": ("number_functions", programs.NUMBER_PROBES),
            "xs": ("list_functions", programs.LIST_PROBES),
        }[argument]
        function = eval(f"lambda {argument}: {answer.removeprefix(chr(10)).removeprefix('    return ')}")
        return task, repr([function(probe) for probe in probes])
    if "alphabetically" in prompt:
        return "word_sorting", frozenset(prompt.removesuffix("\nA:").rpartition(": ")[2].split())
    if prompt.startswith("Q: I have"):
        things = re.findall(r"(a|two|three) (\w+)", prompt)
        return "object_counting", frozenset((number, noun.rstrip("s")) for number, noun in things)
    if "parentheses" in prompt:
        return "dyck_languages", "".join(re.findall(r"[][(){}<>]", prompt))
    known = {name for name, _ in world.things()}
    thing = next(word for word in re.findall(r"\w+", prompt) if word in known)
    if "made of" in prompt:
        return texts.FACTS, thing
    task = "goals" if "How do you" in prompt else "consequences"
    return task, (thing, prompt.replace(thing, "", 1))


def asked(task: str) -> set[object]:
    found = [question(item.prompt, item.answer) for item in texts.test_items(task)]
    assert {name for name, _ in found} == {task}
    return {what for _, what in found}


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_items_are_what_the_generators_give(task: str) -> None:
    assert (FOLDER / f"{task}.jsonl").read_text(encoding="utf-8") == lines(task), "run: python -m harness.pocket"


def test_every_committed_file_belongs_to_a_task() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.jsonl")) == TASKS
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_no_question_is_asked_twice(task: str) -> None:
    assert len(asked(task)) == len(texts.test_items(task)) == texts.TEST_ITEMS


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [*MIXTURES, *CORPORA])
def test_no_training_text_asks_a_test_question(name: str, seed: int) -> None:
    """However it is asked: things in another order, functions under another name or in other words."""
    held = {task: asked(task) for task in TASKS}
    if name in CORPORA:
        documents = corpus(name, seed)
        prompts = {item.prompt for task in TASKS for item in texts.test_items(task)}
        assert not prompts & {document["prompt"] for document in documents}
        if name == "pocket/noisy":
            return  # a wrong answer says nothing about what was asked of a function; prompts are drawn as in the others
    else:
        documents = texts.documents(mixtures.shares(MIXTURES[name]), 4000, random.Random(f"{name} {seed}"))
    seen = dict.fromkeys([*TASKS, texts.FACTS], 0)
    for document in documents:
        task, what = question(document["prompt"], document["answer"])
        assert what not in held.get(task, ()), document
        seen[task] += 1
    assert all(seen[task] for task in TASKS)


def test_held_out_text_is_the_test_questions_with_their_right_answers() -> None:
    """Which no training text asks, as the test above shows; and it cannot be named as text to train on."""
    documents = corpus(HELD_OUT, 1)
    assert HELD_OUT not in CORPORA
    assert documents == corpus(HELD_OUT, 2) and len(documents) == len(TASKS) * texts.TEST_ITEMS
    asked_here = [question(document["prompt"], document["answer"])[0] for document in documents]
    assert all(asked_here.count(task) == texts.TEST_ITEMS for task in TASKS)
    for task in TASKS:
        identities = {item.identity for item in texts.test_items(task)}
        assert identities == texts.held_out(task)
        assert all(item.document() in documents for item in texts.test_items(task))


def test_fusion_corpora_have_as_many_documents_as_they_say() -> None:
    sizes = {name: len(corpus(name, 2)) for name in mixtures.FUSION_CORPORA}
    assert sizes == {"pocket/clean": 2000, "pocket/clean_small": 250, "pocket/noisy": 2000, "pocket/unlabelled": 2000}


def test_unlabelled_text_says_nothing_of_what_is_right() -> None:
    """The answers of a task are those of its questions, dealt anew: right by chance alone."""
    documents = corpus("pocket/unlabelled", 5)
    tasks = {"object_counting": "How many objects", "word_sorting": "alphabetically", "goals": "How do you"}
    for words in tasks.values():
        assert 280 <= sum(words in document["prompt"] for document in documents) <= 290
    sorting = [document for document in documents if "alphabetically" in document["prompt"]]
    prompts = [tuple(sorted(d["prompt"].removesuffix("\nA:").rpartition(": ")[2].split())) for d in sorting]
    answers = [tuple(document["answer"].split()) for document in sorting]
    assert sorted(prompts) == sorted(answers)
    assert sum(prompt == answer for prompt, answer in zip(prompts, answers, strict=True)) < 10
    right = dict.fromkeys(world.GOALS, 0)
    known = dict(world.things())
    goals = [document for document in documents if "How do you" in document["prompt"]]
    for document in goals:
        goal, thing = re.findall(r"How do you (\w+) a (\w+)\?", document["prompt"])[0]
        right[goal] += document["answer"] == f" {world.GOALS[goal][known[thing]]}"
    assert 0 < sum(right.values()) < 0.1 * len(goals)


def test_what_is_drawn_for_training_is_not_held_out() -> None:
    """By the generators' own identities, so for wrongly answered questions, too."""
    rng = random.Random(3)
    for task in TASKS:
        for _ in range(200):
            assert texts.training_item(task, rng).identity not in texts.held_out(task)


@pytest.mark.parametrize("task", [task for task in TASKS if texts.TASKS[task].group == "code"])
def test_solutions_pass_their_checks_and_wrong_ones_do_not(task: str) -> None:
    for item in texts.test_items(task):
        assert passes(item.fields, item.fields["canonical_solution"])
        assert not passes(item.fields, item.wrong)
        ast.parse(item.prompt + item.answer)


def passes(doc: Any, completion: str) -> bool:
    scope: dict[str, Any] = {}
    exec(f"{doc['prompt']}{completion}\n{doc['test']}", scope)
    try:
        scope["check"](scope[doc["entry_point"]])
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("task", [task for task in TASKS if texts.TASKS[task].group == "commonsense"])
def test_choices_hold_the_answer_once_and_anywhere(task: str) -> None:
    labels = []
    for item in texts.test_items(task):
        choices, label = item.fields["choices"], item.fields["label"]
        assert item.answer == f" {choices[label]}" and item.wrong.strip() in choices and item.wrong != item.answer
        assert len(set(choices)) == len(choices)
        labels.append(label)
    assert all(labels.count(label) > 0.6 * len(labels) / len(choices) for label in range(len(choices)))


def test_answers_are_right() -> None:
    for item in texts.test_items("object_counting"):
        numbers = re.findall(r"\b(a|two|three)\b", item.prompt)
        assert int(item.answer) == sum({"a": 1, "two": 2, "three": 3}[number] for number in numbers)
    for item in texts.test_items("word_sorting"):
        assert item.answer.split() == sorted(item.answer.split())
    for item in texts.test_items("dyck_languages"):
        text = str(item.fields["input"]).rpartition(":")[2] + item.answer
        text = text.replace(" ", "")
        while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
            text = shorter
        assert not text


@pytest.mark.parametrize("task", TASKS)
def test_a_wrong_answer_is_wrong(task: str) -> None:
    rng = random.Random(4)
    assert all(item.wrong != item.answer for item in (texts.training_item(task, rng) for _ in range(300)))


def test_a_specialist_replays_the_other_skills_as_the_base_has_them() -> None:
    shares = mixtures.specialist("code", 0.3)
    assert shares["code"] == pytest.approx(0.7) and sum(shares.values()) == pytest.approx(1)
    assert shares["bbh"] / shares["commonsense"] == pytest.approx(mixtures.BASE["bbh"] / mixtures.BASE["commonsense"])
    assert sum(mixtures.shares(shares).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("pocket/noisy", 0.4, 0.6), ("pocket/clean", 1.0, 1.0), ("pocket/clean_small", 1.0, 1.0)]
)
def test_half_of_the_noisy_corpus_is_wrong(name: str, low: float, high: float) -> None:
    """Seen where the right answer can be read from the question: counted objects and sorted words."""
    right = []
    for document in corpus(name, 5):
        numbers = re.findall(r"\b(a|two|three)\b", document["prompt"].partition("How many objects")[0])
        if "How many objects" in document["prompt"]:
            right.append(int(document["answer"]) == sum({"a": 1, "two": 2, "three": 3}[number] for number in numbers))
        elif "alphabetically" in document["prompt"]:
            right.append(document["answer"].split() == sorted(document["answer"].split()))
    assert len(right) > 50 and low <= sum(right) / len(right) <= high


def test_text_depends_on_the_seed_alone() -> None:
    code = (
        "import hashlib, json, random; from harness.pocket import corpus, mixtures, texts; "
        "d = texts.documents(mixtures.shares(mixtures.BASE), 500, random.Random(7)) + corpus('pocket/noisy', 7)[:500]; "
        "print(hashlib.sha256(json.dumps(d).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert corpus("pocket/noisy", 7) != corpus("pocket/noisy", 8)


def test_the_table_of_trainers_says_what_it_takes() -> None:
    assert sorted(TRAINERS) == ["pocket/base", "pocket/multitask", "pocket/specialist", "pocket/teacher"]
    assert [name for name, trainer in TRAINERS.items() if trainer.parent] == ["pocket/specialist", "pocket/multitask"]
    _, problems = fill(TRAINERS["pocket/specialist"].Params, {"skill": "cooking", "replay": 2})
    assert [problem.message for problem in problems] == [
        "'skill' is 'cooking'; expected reasoning | commonsense | code",
        "'replay' is 2.0; allowed: [0.0, 1.0]",
    ]
    assert all(row["help"] for trainer in TRAINERS.values() for row in describe(trainer.Params))


def test_the_multitask_model_reads_what_the_specialists_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[tuple[list[str], int]] = []

    def take(parent: object, documents: list[dict[str, str]], settings: object, *rest: object) -> dict[str, object]:
        read.append((sorted(map(json.dumps, documents)), settings.steps))
        return {}

    monkeypatch.setattr(trainers, "_go_on", take)
    place = (tmp_path, tmp_path, lambda done, of: None)
    for skill in ("reasoning", "commonsense", "code"):
        params = trainers.SpecialistParams(skill=skill, size="tiny")
        trainers.specialist(params, tmp_path, 3, *place)
    trainers.multitask(trainers.MultitaskParams(size="tiny"), tmp_path, 3, *place)
    *specialists, joined = read
    assert joined[0] == sorted(document for documents, _ in specialists for document in documents)
    assert joined[1] == sum(steps for _, steps in specialists)


def test_lm_eval_asks_what_the_generators_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    loaded = manager.load([f"pocket_{task}" for task in TASKS])["tasks"]
    for task in TASKS:
        items = texts.test_items(task)
        lm_task = loaded[f"pocket_{task}"]
        metadata = lm_task.config.metadata
        assert metadata["group"] == texts.TASKS[task].group and 0 <= metadata["chance"] < 1
        assert metadata.get("kind") == ("code" if metadata["group"] == "code" else None)
        docs = list(lm_task.test_docs())
        assert len(docs) == len(items)
        for doc, item in zip(docs, items, strict=True):
            assert lm_task.doc_to_text(doc) == item.prompt
            target = lm_task.doc_to_target(doc)
            if metadata["group"] == "commonsense":
                target = lm_task.doc_to_choice(doc)[target]
            assert str(target).strip() == item.answer.strip()


@pytest.mark.slow
def test_a_tiny_specialist_learns_its_skill(tmp_path: Path) -> None:
    """Ten seconds: the smallest world, trained through the table as a suite does."""
    done: list[tuple[int, int]] = []
    base = TRAINERS["pocket/base"]
    report = base.run(
        trainers.BaseParams(size="tiny", steps=40),
        None,
        1,
        tmp_path / "base",
        tmp_path / "s1",
        lambda *at: done.append(at),
    )
    assert done[-1] == (40, 40) and report["steps"] == 40
    params = trainers.SpecialistParams(skill="code", size="tiny", steps=40)
    again = TRAINERS["pocket/specialist"].run(
        params, tmp_path / "base", 1, tmp_path / "code", tmp_path / "s2", lambda *at: None
    )
    assert again["loss"] < report["loss"]
    curve = [json.loads(line) for line in (tmp_path / "code" / "curves.jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == 40
