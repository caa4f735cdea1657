"""Self-distillation: the target as it was is its own and only teacher; a control that has a teacher but no news."""

from dataclasses import dataclass
from typing import Any

from fusion.builders.builder import LONGEST, Distilling, Readings, Work, check_training
from fusion.builders.distil import distil
from fusion.fused import How

FORMULA = "L = λ L_CLM + (1 − λ) D(p_before ‖ p_target)"
PAPER = "Furlanello et al., Born Again Neural Networks, ICML 2018, arXiv:1805.04770"


@dataclass(frozen=True)
class Params(Distilling):
    """Self-distillation's parameters: those of a fusion without its choices."""


def readings(params: Params, teachers: int) -> Readings:
    """The target alone."""
    return (("target",),)


def run(work: Work) -> dict[str, Any]:
    """Train the target on the text and on what it said of the text before. Raises as `distil` does."""
    check_training(work.params, 0)
    return distil(work, [("target", [work.target])], one_source(work.params))


def one_source(params: Distilling) -> How:
    """Targets from a single source of the target's own tokenizer: every token is aligned, nothing is chosen."""
    return How(
        fusion="min_ce",
        per="document",
        alignment="bytes",
        fallback="next_token",
        loss=params.loss,
        top_k=params.top_k,
        context=params.context or LONGEST,
        compat=None,
    )
