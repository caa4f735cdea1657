"""Where we are meant to differ from mergekit 0.1.5, why, and how far at most.

Further differences than these there are none on the recipes of cases.py: the same tensors, of the same bits where the
method is made of additions and masks alone, and otherwise within 2e-7 of the largest value of each tensor.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Values may be apart by `within` times the largest value of their tensor."""

    reason: str
    within: float


# Where a recipe has no dtype mergekit computes in that of the checkpoints, in bf16 for bf16 models, and rounds to its
# eight bits in between. Our arithmetic is float32 whatever the checkpoints hold, and rounds once, at the end.
_ROUNDED = Difference("mergekit rounds to bf16 in between, we at the end", 4 * 2.0**-8)

# Of tensors above a million elements mergekit takes the quantiles of a random sample; ours are exact.
_SAMPLED = Difference("mergekit's quantiles are of a sample, ours of all elements", 0.2)

DIFFERENCES: dict[str, Difference] = {
    "task_arithmetic bf16 without dtype": _ROUNDED,
    "task_arithmetic cast to bf16": _ROUNDED,
    "arcee_fusion large": _SAMPLED,
    "arcee_fusion large, seed 7": _SAMPLED,
}

# Recipes that mergekit runs and we refuse, with a pattern of what we say.
REFUSED: dict[str, str] = {
    # mergekit does not divide by a sum of nearly 0; a recipe that asks for an average of such weights is a mistake.
    "task_arithmetic weights that cancel": "sum to 0",
    "nuslerp weights that cancel": "sum to 0",
    # mergekit goes on along the arc, beyond the second model.
    "slerp far t 1.5": "allowed",
}
