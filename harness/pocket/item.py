"""One question of the pocket world: what is asked, the right answer, a plausible wrong one, and its identity."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, str]
Draw = Callable[[random.Random], "Item"]


@dataclass(frozen=True)
class Item:
    """A question in its benchmark's format.

    `identity` is the same for two questions that ask the same thing (in another order, under other names, in other
    words): what is held out for the test is held out by it. `fields` are the columns of the committed test item.
    """

    prompt: str
    answer: str
    wrong: str
    identity: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def document(self, correct: bool = True) -> Document:
        """The question as a training document; the answer includes the white space that follows the prompt."""
        return {"prompt": self.prompt, "answer": self.answer if correct else self.wrong}
