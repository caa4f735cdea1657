"""FedDF: the parameter mean of models that share an architecture, trained on what they say together."""

from dataclasses import dataclass
from typing import Any

from fusion.builders.builder import Distilling, Readings, Work, check_training
from fusion.builders.distil import distil
from fusion.builders.self_distillation import one_source
from fusion.errors import RecipeError
from fusion.params import param

FORMULA = "θ_0 = mean_i θ_i;   L = λ L_CLM + (1 − λ) D(softmax(mean_i z_i) ‖ p_target)"
PAPER = "Lin et al., Ensemble Distillation for Robust Model Fusion in Federated Learning, 2020, arXiv:2006.07242"


@dataclass(frozen=True)
class Params(Distilling):
    """FedDF's parameters; as in the paper the text's own next tokens do not count."""

    lambda_: float = param(0.0, low=0.0, high=1.0, help="weight of the next-token loss; the rest is the divergence's")


def readings(params: Params, teachers: int) -> Readings:
    """All teachers at once: their logits z_i are averaged."""
    return (tuple(f"teacher.{i}" for i in range(teachers)),)


def check(params: Params, teachers: int) -> None:
    """Raises RecipeError for fewer than two teachers, and as `check_training` does."""
    check_training(params, teachers)
    if teachers < 2:
        raise RecipeError(f"feddf: needs two teachers or more; found {teachers}")


def run(work: Work) -> dict[str, Any]:
    """FedDF (Lin et al. 2020, AVGLOGITS), from the target, by default the mean of the teachers' parameters.

    Raises as `check` does, FusionError for teachers that do not share one tokenizer.
    """
    check(work.params, len(work.teachers))
    return distil(work, [("teachers", list(work.teachers))], one_source(work.params))
