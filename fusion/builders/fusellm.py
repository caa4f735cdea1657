"""FuseLLM: the target learns from the text and from what its teachers, of any architecture and tokenizer, say of it."""

from dataclasses import dataclass
from typing import Any, Literal

from fusion.builders.builder import LONGEST, Distilling, Readings, Work, check_training
from fusion.builders.distil import distil
from fusion.errors import RecipeError
from fusion.fused import How
from fusion.params import param

FORMULA = "L = λ L_CLM + (1 − λ) D(p_fused ‖ p_target)"
PAPER = "Wan et al., Knowledge Fusion of Large Language Models, ICLR 2024, arXiv:2401.10491"


@dataclass(frozen=True)
class Params(Distilling):
    """FuseLLM's parameters; `alignment` and `per` default to what works better than the published choices."""

    fusion: Literal["min_ce", "avg_ce"] = param(
        "min_ce", help="the source of lowest cross-entropy, or all of them weighted by softmax(-cross-entropy)"
    )
    per: Literal["document", "block", "token"] = param(
        "document", help="what the cross-entropy, in bits per byte, is compared over; block: documents of one context"
    )
    alignment: Literal["bytes", "min_ed", "exact"] = param(
        "bytes", help="tokens of the same bytes at the same place; or by edit distance, as published: MinED and EM"
    )
    self_: bool = param(True, help="whether the target as it was is a source, too")
    fallback: Literal["next_token", "drop"] = param("next_token", help="what tokens learn that no source predicts")
    compat: Literal["fusellm-v1"] | None = param(
        None, help="the published code's numbers, its defects included, for comparison only"
    )


def readings(params: Params, teachers: int) -> Readings:
    """The target, if it is a source, and each teacher.

    The target comes first: of equally good sources MinCE takes the first, and what is known already costs nothing.
    """
    return ((("target",),) if params.self_ else ()) + tuple((f"teacher.{i}",) for i in range(teachers))


def check(params: Params, teachers: int) -> None:
    """Raises RecipeError without a teacher and for parameters that exclude each other, TrainingError for `trainer`."""
    check_training(params, teachers)
    if not teachers:
        raise RecipeError("fusellm: needs at least one teacher")
    if params.compat is not None and params.per == "token":
        raise RecipeError(f"compat {params.compat}: the published code compares blocks of text, not tokens")
    if params.compat is not None and params.alignment == "bytes":
        raise RecipeError(f"compat {params.compat}: the published code aligns by min_ed or exact, not by bytes")


def run(work: Work) -> dict[str, Any]:
    """FuseLLM (Wan et al. 2024, section 3): L = λ L_CLM + (1 − λ) D(p_fused ‖ p_target).

    p_fused comes per document from the source of lowest cross-entropy (MinCE) or from all of them, weighted (AvgCE).
    The paper compares cross-entropies per token; ours are per byte, which tokenizers share.
    Raises as `check` and `distil` do.
    """
    params: Params = work.params
    check(params, len(work.teachers))
    models = {"target": work.target, **{f"teacher.{i}": model for i, model in enumerate(work.teachers)}}
    sources = [(role, [models[role]]) for (role,) in readings(params, len(work.teachers))]
    return distil(work, sources, _how(params))


def _how(params: Params) -> How:
    return How(
        fusion=params.fusion,
        per=params.per,
        alignment=params.alignment,
        fallback=params.fallback,
        loss=params.loss,
        top_k=params.top_k,
        context=params.context or LONGEST,
        compat=params.compat,
    )
