"""A measure of kinship, as a row of a table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Measure:
    """One row: what the measure is called, its formula and source, which way it points, and what it costs.

    `cost` is in words. `needs` says what the measure is computed from: the checkpoints' weights, texts that the models
    read, or the records that an evaluation kept. `value(facts, a, b)` is its value for the models at positions `a` and
    `b` of what was found there (weights.Moments, what probe.py loads, behaviour.Answers), or None where it is
    undefined.
    """

    name: str
    formula: str
    source: str
    direction: Literal["higher is closer", "lower is closer"]
    cost: str
    needs: Literal["weights", "texts", "records"]
    value: Callable[[Any, int, int], float | None]
