"""A measure of kinship, as a row of a table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Measure:
    """One row: what the measure is called, its formula and source, and which way it points.

    `value(facts, a, b)` is its value for the models at positions `a` and `b` of what one pass has found, or None where
    it is undefined.
    """

    name: str
    formula: str
    source: str
    direction: Literal["higher is closer", "lower is closer"]
    value: Callable[[Any, int, int], float | None]
