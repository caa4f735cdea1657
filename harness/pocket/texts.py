"""What the pocket world's models read and what they are asked: training documents without the test's questions."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from . import programs, reasoning, world
from .item import Document, Draw, Item

TEST_ITEMS = 200


@dataclass(frozen=True)
class PocketTask:
    """A task of the pocket world: its group on the leaderboard and how an item is drawn."""

    group: str
    draw: Draw


TASKS: dict[str, PocketTask] = {
    "object_counting": PocketTask("bbh", reasoning.object_counting),
    "word_sorting": PocketTask("bbh", reasoning.word_sorting),
    "dyck_languages": PocketTask("bbh", reasoning.dyck_languages),
    "consequences": PocketTask("commonsense", world.consequences),
    "goals": PocketTask("commonsense", world.goals),
    "number_functions": PocketTask("code", programs.number_functions),
    "list_functions": PocketTask("code", programs.list_functions),
}
FACTS = "facts"


@cache
def test_items(task: str) -> tuple[Item, ...]:
    """The committed test items of a task: TEST_ITEMS different questions, the same for every seed."""
    rng = random.Random(f"pocket test items: {task}")
    items: dict[str, Item] = {}
    while len(items) < TEST_ITEMS:
        item = TASKS[task].draw(rng)
        items.setdefault(item.identity, item)
    return tuple(items.values())


@cache
def held_out(task: str) -> frozenset[str]:
    """The identities that no training text may hold."""
    return frozenset(item.identity for item in test_items(task))


def test_docs(task: str) -> list[dict[str, Any]]:
    """The test items as rows of suites/pocket/<task>.jsonl."""
    key = "task_id" if TASKS[task].group == "code" else "id"
    return [{key: f"{task}/{place}", **item.fields} for place, item in enumerate(test_items(task))]


def training_item(task: str, rng: random.Random) -> Item:
    """An item of a task that is not in its test."""
    while True:
        item = TASKS[task].draw(rng)
        if item.identity not in held_out(task):
            return item


def documents(shares: Mapping[str, float], count: int, rng: random.Random, correct: float = 1.0) -> list[Document]:
    """Training documents drawn by task (or FACTS) in proportion to `shares`; a part of them answered `correct`ly."""
    names = rng.choices(tuple(shares), weights=tuple(shares.values()), k=count)
    return [
        world.fact(rng) if name == FACTS else training_item(name, rng).document(rng.random() < correct)
        for name in names
    ]
