"""KL with data partitioning: at every token the teacher teaches where it is surer of the label, else the student.

What a student knows better than its teacher is kept by distilling it from itself.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fusion.builders.builder import LONGEST, Distilling, Readings, Work, check_training
from fusion.builders.distil import distil
from fusion.errors import RecipeError
from fusion.fused import How
from fusion.params import param

FORMULA = (
    "L = λ L_CLM + (1 − λ) D(p_m ‖ p_target),   m = argmax over teachers and frozen target of p_m(label), by token"
)
PAPER = "Roth et al., Fantastic Gains and Where to Find Them, ICLR 2024, arXiv:2310.17653 (KL with data partitioning)"


@dataclass(frozen=True)
class Params(Distilling):
    """Parameters of KL with data partitioning; as in the paper the label itself is not learnt."""

    lambda_: float = param(0.0, low=0.0, high=1.0, help="weight of the next-token loss; the rest is the divergence's")
    alignment: Literal["bytes", "min_ed", "exact"] = param("bytes", help="as fusellm's")
    fallback: Literal["next_token", "drop"] = param("drop", help="what tokens learn that no source predicts")


def readings(params: Params, teachers: int) -> Readings:
    """The frozen target and each teacher."""
    return (("target",), *((f"teacher.{i}",) for i in range(teachers)))


def check(params: Params, teachers: int) -> None:
    """Raises RecipeError without a teacher, and as `check_training` does."""
    check_training(params, teachers)
    if not teachers:
        raise RecipeError("partitioned_kl: needs at least one teacher")


def run(work: Work) -> dict[str, Any]:
    """KL with data partitioning (Roth et al. 2024), among the sources that are aligned at a token.

    The paper's models share their classes; here what is compared is the probability of the true token, per byte of it
    where tokenizers differ. Raises as `check` and `distil` do.
    """
    params: Params = work.params
    check(params, len(work.teachers))
    sources = [("target", [work.target]), *((f"teacher.{i}", [model]) for i, model in enumerate(work.teachers))]
    how = How(
        fusion="min_ce",
        per="token",
        alignment=params.alignment,
        fallback=params.fallback,
        loss=params.loss,
        top_k=params.top_k,
        context=params.context or LONGEST,
        compat=None,
    )
    return distil(work, sources, how)
