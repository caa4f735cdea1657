"""What each model of the pocket world reads: shares of its training documents by task.

The base knows something of every group and nothing well: a group's share of its text is the lever. A specialist reads
its own group and a replay of the others; without replay it forgets them, and merges of specialists lose everywhere.
"""

import random
from collections.abc import Mapping
from typing import Literal

from .item import Document
from .texts import FACTS, TASKS, documents

Skill = Literal["reasoning", "commonsense", "code"]
GROUP_OF = {"reasoning": "bbh", "commonsense": "commonsense", "code": "code"}

# Within a group: how often each task is drawn.
WITHIN = {
    "bbh": {"object_counting": 1.0, "word_sorting": 1.0, "dyck_languages": 1.0},
    "commonsense": {"consequences": 1.0, "goals": 1.0, FACTS: 0.5},
    "code": {"number_functions": 1.0, "list_functions": 1.0},
}
BASE = {"bbh": 0.40, "commonsense": 0.445, "code": 0.155}
TEACHER = {"bbh": 0.15, "commonsense": 0.45, "code": 0.4}


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


# Text for fusion, by the share of right answers in it; and each specialist's own domain, as it was trained on it.
FUSION_CORPORA = {"pocket/clean": 1.0, "pocket/noisy": 0.5}
DOMAINS = {f"pocket/{skill}": skill for skill in GROUP_OF}
CORPORA = (*FUSION_CORPORA, *DOMAINS)
CORPUS_DOCUMENTS = 2000
REPLAY = 0.3


def corpus(name: str, seed: int) -> list[Document]:
    """Text for fusion: every task alike, all (`pocket/clean`) or half (`pocket/noisy`) of the answers right.

    Or text of one specialist's domain (`pocket/reasoning`, ...): drawn as its training text was, but other documents.
    """
    rng = random.Random(f"{name} {seed}")
    if name in DOMAINS:
        return documents(shares(specialist(DOMAINS[name], REPLAY)), CORPUS_DOCUMENTS, rng)
    return documents(dict.fromkeys(TASKS, 1.0), CORPUS_DOCUMENTS, rng, FUSION_CORPORA[name])
