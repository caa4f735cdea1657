"""What each model of the pocket world reads: shares of its training documents by task.

The base knows something of every group and nothing well: a group's share of its text is the lever. A specialist reads
its own group and a replay of the others; without replay it forgets them, and merges of specialists lose everywhere.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .item import Document
from .texts import FACTS, TASKS, documents, test_items

Skill = Literal["reasoning", "commonsense", "code"]
Skills = Literal["commonsense+code", "reasoning"]
GROUP_OF = {"reasoning": "bbh", "commonsense": "commonsense", "code": "code"}

# Within a group: how often each task is drawn.
WITHIN = {
    "bbh": {"object_counting": 1.0, "word_sorting": 1.0, "dyck_languages": 1.0},
    "commonsense": {"consequences": 1.0, "goals": 1.0, FACTS: 0.5},
    "code": {"number_functions": 1.0, "list_functions": 1.0},
}
BASE = {"bbh": 0.40, "commonsense": 0.445, "code": 0.155}
# Each teacher is strong in what the other is weak in.
TEACHERS: dict[str, dict[str, float]] = {
    "commonsense+code": {"bbh": 0.15, "commonsense": 0.45, "code": 0.4},
    "reasoning": {"bbh": 0.8, "commonsense": 0.1, "code": 0.1},
}


def shares(groups: Mapping[str, float]) -> dict[str, float]:
    """Shares by task from shares by group."""
    return {
        task: share * weight / sum(WITHIN[group].values())
        for group, share in groups.items()
        for task, weight in WITHIN[group].items()
    }


def specialist(skill: str, replay: float) -> dict[str, float]:
    """Shares by group: its own, and `replay` spread over the others as the base has them."""
    own = GROUP_OF[skill]
    rest = sum(share for group, share in BASE.items() if group != own)
    return {group: 1 - replay if group == own else replay * share / rest for group, share in BASE.items()}


@dataclass(frozen=True)
class FusionText:
    """Text for fusion, every task alike: how much, and the share of right answers.

    `unlabelled` deals a task's answers anew among its questions, so that the text does not tell which is right.
    """

    documents: int = 2000
    correct: float = 1.0
    unlabelled: bool = False


FUSION_CORPORA = {
    "pocket/clean": FusionText(),
    "pocket/clean_small": FusionText(documents=250),
    "pocket/noisy": FusionText(correct=0.5),
    "pocket/unlabelled": FusionText(unlabelled=True),
}
# Each specialist's own domain, as it was trained on it.
DOMAINS = {f"pocket/{skill}": skill for skill in GROUP_OF}
CORPORA = (*FUSION_CORPORA, *DOMAINS)
DOMAIN_DOCUMENTS = 2000
REPLAY = 0.3
# Text to measure bits per byte on. It is not among CORPORA: nothing may be trained on it.
HELD_OUT = "pocket/held_out"


def corpus(name: str, seed: int) -> list[Document]:
    """The documents of one of CORPORA, or of HELD_OUT.

    Text of one specialist's domain (`pocket/reasoning`, ...) is drawn as its training text was, but other documents.
    The held-out text is the test's questions with their right answers, the same for every seed: no generator of
    training text gives one of them, in whatever words (`texts.training_item`).
    """
    rng = random.Random(f"{name} {seed}")
    if name == HELD_OUT:
        return [item.document() for task in TASKS for item in test_items(task)]
    if name in DOMAINS:
        return documents(shares(specialist(DOMAINS[name], REPLAY)), DOMAIN_DOCUMENTS, rng)
    text = FUSION_CORPORA[name]
    if text.unlabelled:
        return _unlabelled(text.documents, rng)
    return documents(dict.fromkeys(TASKS, 1.0), text.documents, rng, text.correct)


def _unlabelled(count: int, rng: random.Random) -> list[Document]:
    found: list[Document] = []
    for place, task in enumerate(TASKS):
        drawn = documents({task: 1.0}, count // len(TASKS) + (place < count % len(TASKS)), rng)
        answers = [document["answer"] for document in drawn]
        rng.shuffle(answers)
        found += [{**document, "answer": answer} for document, answer in zip(drawn, answers, strict=True)]
    rng.shuffle(found)
    return found
