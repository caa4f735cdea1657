"""The merge methods, in one explicit table. A method is one file: its formula, paper, parameters and arithmetic.

To add one: write fusion/methods/<name>.py after the pattern in call.py, and add its row below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fusion.methods import linear, slerp, task_arithmetic, ties
from fusion.methods.call import Pass


@dataclass(frozen=True)
class Method:
    """One row of the table.

    `models` is the least and the greatest number of models. `weights` says whether models may be weighted. `version`
    counts changes that alter results; it is part of every key of what the method builds.
    `prepare` sees all tensors once or more before the first is merged; what it returns is each call's `at.state`.
    `check` says what is wrong with weights and parameters that are each in range.
    """

    name: str
    merge: Callable[..., Tensor]
    Params: type
    formula: str
    paper: str
    base: Literal["required", "none", "optional"]
    models: tuple[int, int | None]
    weights: bool
    version: int
    prepare: Callable[[Pass, Any], Any] | None = None
    check: Callable[[Sequence[float], Any], str | None] | None = None


METHODS: dict[str, Method] = {
    "linear": Method(
        name="linear",
        merge=linear.merge,
        Params=linear.Params,
        formula=linear.FORMULA,
        paper=linear.PAPER,
        base="none",
        models=(1, None),
        weights=True,
        version=1,
        check=linear.check,
    ),
    "slerp": Method(
        name="slerp",
        merge=slerp.merge,
        Params=slerp.Params,
        formula=slerp.FORMULA,
        paper=slerp.PAPER,
        base="none",
        models=(2, 2),
        weights=False,
        version=1,
    ),
    "task_arithmetic": Method(
        name="task_arithmetic",
        merge=task_arithmetic.merge,
        Params=task_arithmetic.Params,
        formula=task_arithmetic.FORMULA,
        paper=task_arithmetic.PAPER,
        base="required",
        models=(1, None),
        weights=True,
        version=1,
    ),
    "ties": Method(
        name="ties",
        merge=ties.merge,
        Params=ties.Params,
        formula=ties.FORMULA,
        paper=ties.PAPER,
        base="required",
        models=(1, None),
        weights=True,
        version=1,
        prepare=ties.prepare,
    ),
}
