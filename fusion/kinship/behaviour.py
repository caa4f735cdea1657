"""Kinship from behaviour: do two models answer alike?

CAPA, error consistency and flips come from the records that an evaluation keeps; the divergence of next-token
distributions and cross-likelihood from texts that the models read (`probe.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion.errors import FusionError
from fusion.kinship.measure import Measure
from fusion.kinship.probed import Probed, pair

# Chance agreement nearer to 1 leaves nothing to divide by but rounding.
CERTAIN = 1e-12


@dataclass(frozen=True)
class Answers:
    """What several models made of the same items.

    right: the score of each answer, 0 to 1; one in between (a pass rate) is read as the probability to be right.
    probs: of each choice, summing to 1 over an item's own and 0 beyond them; None where no item has choices.
    options: the number of an item's choices, 0 for one without. correct: the right choice, -1 where there are none.

    Raises FusionError for a score that is not in 0 to 1, and for probabilities of an item's choices that do not sum
    to 1.
    """

    right: Float[np.ndarray, "models items"]
    probs: Float[np.ndarray, "models items options"] | None
    options: Int[np.ndarray, " items"]
    correct: Int[np.ndarray, " items"]

    def __post_init__(self) -> None:
        bad = np.argwhere(~((self.right >= 0) & (self.right <= 1)))
        if len(bad):
            model, item = bad[0].tolist()
            raise FusionError(
                f"answer of model {model} to item {item}: its score is {self.right[model, item]}, expected 0 to 1"
            )
        if self.probs is None:
            return
        sums = np.where(self.options > 0, self.probs.sum(-1), 1.0)
        bad = np.argwhere(~(np.abs(sums - 1) < 1e-3))
        if len(bad):
            model, item = bad[0].tolist()
            raise FusionError(
                f"answer of model {model} to item {item}: the probabilities of its choices sum to "
                f"{sums[model, item]}, expected 1"
            )

    def of(self, models: Sequence[int]) -> "Answers":
        """The answers of some of the models, given by their positions, in that order."""
        probs = None if self.probs is None else self.probs[list(models)]
        return Answers(self.right[list(models)], probs, self.options, self.correct)


def capa(answers: Answers, a: int, b: int) -> float | None:
    """Chance-adjusted probabilistic agreement kappa_p of two models over all items with choices, at most 1.

    (c_obs - c_exp) / (1 - c_exp) with c_obs = mean sum_o p_a(o) p_b(o), the probability that they choose alike, and
    c_exp = r_a r_b + (1 - r_a)(1 - r_b) mean 1 / (options - 1), what two models that are right with the mean
    probabilities r_a and r_b, and else choose blindly, would have (Goel et al. 2025, arXiv:2502.04313, section 3).

    Models that are the same have 1 only where they are certain of every choice: two draws of an uncertain one differ.
    None without items of two choices or more, and where chance agreement is 1 (both are always right).
    """
    items = _with_choices(answers)
    if answers.probs is None or not items.any():
        return None
    first, second = (np.asarray(answers.probs[model][items], np.float64) for model in (a, b))
    at = np.arange(len(first)), answers.correct[items]
    right = float(first[at].mean()), float(second[at].mean())
    blind = float((1.0 / (answers.options[items] - 1)).mean())
    expected = right[0] * right[1] + (1 - right[0]) * (1 - right[1]) * blind
    return _beyond_chance(float((first * second).sum(-1).mean()), expected)


def error_consistency(answers: Answers, a: int, b: int) -> float | None:
    """Kappa of two models being right and wrong on the same items, at most 1 (Geirhos et al. 2020, arXiv:2006.16736).

    (c_obs - c_exp) / (1 - c_exp) with c_obs the share of items that both get right or both wrong, and
    c_exp = r_a r_b + (1 - r_a)(1 - r_b) for the models' accuracies r. A score between 0 and 1 is not rounded to either:
    agreement is then that of two independent tries, as in `capa`. None without items, and where chance agreement is 1.
    """
    first, second = _right(answers, a, b)
    if not len(first):
        return None
    observed = float((first * second + (1 - first) * (1 - second)).mean())
    accuracy = float(first.mean()), float(second.mean())
    return _beyond_chance(observed, accuracy[0] * accuracy[1] + (1 - accuracy[0]) * (1 - accuracy[1]))


def positive_flips(answers: Answers, a: int, b: int) -> float | None:
    """The share of items that model a gets wrong and model b right; the negative flips are those from b to a.

    Roth et al. 2024, Fantastic gains and where to find them, arXiv:2310.17653, section 3. None without items.
    """
    first, second = _right(answers, a, b)
    return float(((1 - first) * second).mean()) if len(first) else None


def flips(answers: Answers, a: int, b: int) -> float | None:
    """The share of items that exactly one of two models gets right; of scores in between, in two independent tries.

    None without items.
    """
    gained, lost = positive_flips(answers, a, b), positive_flips(answers, b, a)
    return None if gained is None or lost is None else gained + lost


def js(facts: Probed, a: int, b: int) -> float | None:
    """`next_token.divergence` of two models, in bits; None where they are aligned nowhere."""
    return facts.divergence[pair(a, b)].bits


def cross_likelihood(facts: Probed, a: int, b: int) -> float | None:
    """The bits per byte that each of two models needs more for the other's words than the other itself, on average.

    (D(a, b) + D(b, a) - D(a, a) - D(b, b)) / 2 with D(i, j) the bits per byte of what j says, read by i: half of the
    sum of both Kullback-Leibler divergences, so not below 0 but for chance and for words that a model would have cut
    into other tokens than its tokenizer does. None where one of the models says nothing.
    """
    bits = facts.bits
    excess = float((bits[a, b] + bits[b, a]) - (bits[a, a] + bits[b, b])) / 2
    return excess if np.isfinite(excess) else None


def _with_choices(answers: Answers) -> Bool[np.ndarray, " items"]:
    return (answers.options > 1) & (answers.correct >= 0)


def _right(answers: Answers, a: int, b: int) -> Float[np.ndarray, "two items"]:
    return np.asarray(answers.right[[a, b]], np.float64)


def _beyond_chance(observed: float, expected: float) -> float | None:
    return (observed - expected) / (1 - expected) if 1 - expected > CERTAIN else None


FREE = "free: from the records of an evaluation"

BEHAVIOUR: dict[str, Measure] = {
    "capa": Measure(
        "capa",
        "(c_obs - c_exp) / (1 - c_exp), c_obs = mean over items of sum_o p_a(o) p_b(o)",
        "Goel et al. 2025, arXiv:2502.04313, section 3 (CAPA)",
        "higher is closer",
        FREE,
        "records",
        capa,
    ),
    "error_consistency": Measure(
        "error_consistency",
        "(c_obs - c_exp) / (1 - c_exp), c_obs = share of items both right or both wrong",
        "Geirhos et al. 2020, arXiv:2006.16736",
        "higher is closer",
        FREE,
        "records",
        error_consistency,
    ),
    "flips": Measure(
        "flips",
        "share of items that exactly one of both gets right",
        "Roth et al. 2024, arXiv:2310.17653, section 3, both ways added",
        "lower is closer",
        FREE,
        "records",
        flips,
    ),
    "js": Measure(
        "js",
        "mean over aligned positions of JS(p_a, p_b) in bits, the least that the k best tokens allow",
        "Lin 1991, IEEE Transactions on Information Theory 37(1)",
        "lower is closer",
        "one pass of each model over the texts",
        "texts",
        js,
    ),
    "cross_likelihood": Measure(
        "cross_likelihood",
        "(D(a, b) + D(b, a) - D(a, a) - D(b, b)) / 2, D(i, j) = bits per byte of j's words under i",
        "after Subramaniam et al. 2025, arXiv:2501.05707 (likelihood of the other agents' words)",
        "lower is closer",
        "continuations by each model, read by every other",
        "texts",
        cross_likelihood,
    ),
}
