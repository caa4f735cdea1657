"""Filters of our own for lm-eval's `filter_list`. Who changes what one extracts raises `plan.JUDGE_VERSION`."""

from collections.abc import Iterable, Sequence
from typing import Any


class Until:
    """`{function: until, stops: [...]}`: responses as they would have been with other stop sequences.

    A model that is generated from greedily says the same up to the first of them, so that one generation is scored by
    two protocols.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[Any]) -> list[list[str]]:
        """The responses of each item, cut."""
        return [[self._cut(text) for text in texts] for texts in resps]

    def _cut(self, text: str) -> str:
        return text[: min((text.find(stop) for stop in self.stops if stop in text), default=len(text))]


def register() -> None:
    """Make the filters known to lm-eval by their names."""
    from lm_eval.api.registry import filter_registry, register_filter

    if "until" not in filter_registry:
        register_filter("until")(Until)
