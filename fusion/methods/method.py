"""What a merge method is: a row of the table METHODS, at the end of the method's own file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fusion.methods.call import Pass


@dataclass(frozen=True)
class Compat:
    """How mergekit 0.1.5 computes a method where that differs from the paper; called with whole tensors."""

    merge: Callable[..., Tensor]
    prepare: Callable[[Pass, Any], Any] | None = None


@dataclass(frozen=True)
class Method:
    """One row of the table.

    merge(models, base, weights, params, at) -> tensor is pure arithmetic on a block of one tensor; call.py tells what
    it is given. `unit` is what a block may be: any run of "elements" (1-D), whole "rows" (2-D, the first axis kept, a
    vector being one row), or the whole "tensor" in its shape. Smaller units take less memory and are faster.
    `models` is the least and the greatest number of models. `weights` says whether models may be weighted.
    `merges_base` says that the base is one of the models that are merged, and not what task vectors are taken from.
    `random` says that the result depends on the seed. `statistics` names what the method needs to know of each model's
    data (see fusion/statistics.py). `routed` says that the result is one model a task (see emr.py).
    `version` counts changes that alter results; it is part of every key of what the method builds.
    `prepare` sees all tensors once or more before the first is merged: its result is each call's `at.state`.
    `survey` sees all blocks of one tensor before the first of them is merged: its result is each call's `at.found`.
    `check` says what is wrong with weights and parameters that are each in range.
    `steady` names, given the parameters, those that must be one number for all tensors ("weight": the weights).
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
    unit: Literal["elements", "rows", "tensor"]
    merges_base: bool = False
    random: bool = False
    statistics: Literal["gram", "gram++", "fisher"] | None = None
    routed: bool = False
    prepare: Callable[[Pass, Any], Any] | None = None
    survey: Callable[..., Any] | None = None
    check: Callable[[Sequence[float], Any], str | None] | None = None
    steady: Callable[[Mapping[str, Any]], Sequence[str]] = lambda values: ()
    compat: Compat | None = None
