"""Kinship from weights: how alike are two models' task vectors, their differences from a common base.

Hu et al. 2024, Exploring model kinship for merging large language models, arXiv:2410.12613, section 3. With the task
vectors d_i = theta_i - base as vectors of n numbers, everything is had from what one pass over the base and all models
finds for all pairs at once (see moments.py); over the whole model, by layer, and by kind of module.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from fusion.checkpoint import Source, check_same
from fusion.errors import MismatchError, RecipeError
from fusion.kinship.measure import Measure
from fusion.kinship.moments import Extra, Moments, Place, find_moments, nothing
from fusion.kinship.shared import LeftOut, in_common, misfits
from fusion.packed import check_plain
from fusion.params import did_you_mean

__all__ = ["WEIGHTS", "kinship", "misfits", "summary"]

PAPER = "Hu et al. 2024, arXiv:2410.12613, section 3"
TIES = "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708"
LORA = "Hu et al. 2021, LoRA, arXiv:2106.09685, section 7.2"
BASE = "the base"
PASS = "one pass over the checkpoints"
SIGNS = "the same pass, with about twice the arithmetic"


def pcc(moments: Moments, a: int, b: int) -> float | None:
    """Pearson's correlation of two task vectors, in [-1, 1]; None where one of them is constant."""
    return _normalised(moments.covariance(a, b), moments.covariance(a, a), moments.covariance(b, b))


def cosine(moments: Moments, a: int, b: int) -> float | None:
    """The cosine of the angle between two task vectors, signed, in [-1, 1]; None where one of them is zero."""
    return _normalised(moments.dot(a, b), moments.dot(a, a), moments.dot(b, b))


def euclidean(moments: Moments, a: int, b: int) -> float:
    """The distance of two models, in units of weights. It does not depend on the base."""
    return math.sqrt(float(moments.squares[a, b]))


def relative_euclidean(moments: Moments, a: int, b: int) -> float | None:
    """Their distance in units of the geometric mean of the task vectors' lengths; None where one of them is zero."""
    lengths = math.sqrt(moments.dot(a, a)) * math.sqrt(moments.dot(b, b))
    return euclidean(moments, a, b) / math.sqrt(lengths) if lengths > 0 else None


def norm_ratio(moments: Moments, a: int, b: int) -> float | None:
    """The shorter task vector's length over the longer one's, in [0, 1]; None where both are zero."""
    shorter, longer = sorted((moments.dot(a, a), moments.dot(b, b)))
    return math.sqrt(shorter / longer) if longer > 0 else None


def sign_agreement(moments: Moments, a: int, b: int) -> float | None:
    """Share of the coordinates in which both models have moved that moved the same way; None where there are none."""
    return _share(moments.signs[1, a, b], moments.signs[0, a, b])


def sign_excess(moments: Moments, a: int, b: int) -> float | None:
    """Sign agreement minus what independent signs, as often positive as each model's are there, would have."""
    agreement = sign_agreement(moments, a, b)
    p, q = (_share(moments.signs[2, i, j], moments.signs[0, i, j]) for i, j in ((a, b), (b, a)))
    if agreement is None or p is None or q is None:
        return None
    return agreement - (p * q + (1 - p) * (1 - q))


def top_agreement(moments: Moments, a: int, b: int) -> float | None:
    """Sign agreement among the coordinates that are, tensor by tensor, among the largest fifth of both task vectors.

    Of equal magnitudes at the cut the first are taken, in row-major order, as `ties` does. None where there are none.
    """
    return _share(moments.top[1, a, b], moments.top[0, a, b])


def subspace_overlap(moments: Moments, a: int, b: int) -> float | None:
    """Shared share of the leading singular subspaces of linear maps, above chance; None where a model has none."""
    return _share(moments.subspaces[0, a, b], moments.subspaces[1, a, b])


ROWS = (
    Measure(
        "pcc", "sum (d_a - mean d_a)(d_b - mean d_b) / (n sd(d_a) sd(d_b))", PAPER + " (PCC)",
        "higher is closer", PASS, "weights", pcc,
    ),
    Measure(
        "cosine", "<d_a, d_b> / (|d_a| |d_b|)", PAPER + " (CS), signed as the formula is",
        "higher is closer", PASS, "weights", cosine,
    ),
    Measure("euclidean", "|d_a - d_b|", PAPER + " (ED)", "lower is closer", PASS, "weights", euclidean),
    Measure(
        "relative_euclidean", "|d_a - d_b| / sqrt(|d_a| |d_b|)", PAPER + " (ED), without its unit",
        "lower is closer", PASS, "weights", relative_euclidean,
    ),
    Measure(
        "norm_ratio", "min(|d_a|, |d_b|) / max(|d_a|, |d_b|)", "ours",
        "higher is closer", PASS, "weights", norm_ratio,
    ),
    Measure(
        "sign_agreement", "P(sgn d_a = sgn d_b | both not 0)", TIES + ", section 3.2",
        "higher is closer", SIGNS, "weights", sign_agreement,
    ),
    Measure(
        "sign_excess", "sign_agreement - (p_a p_b + (1 - p_a)(1 - p_b)), p = P(d > 0 | both not 0)",
        TIES + ", section 3.2, above chance",
        "higher is closer", SIGNS, "weights", sign_excess,
    ),
    Measure(
        "top_agreement", "P(sgn d_a = sgn d_b | both among the top 20 % of |d| in their tensor)",
        TIES + ", algorithm 1",
        "higher is closer", "three more passes over the checkpoints", "weights", top_agreement,
    ),
    Measure(
        "subspace_overlap",
        "mean over U, V and matrices, weighed by |D_a| |D_b|, of (phi - r/d) / (1 - r/d), "
        "phi = |U_a^T U_b|_F^2 / r, r <= 16 leading singular vectors",
        LORA + " (phi), above chance",
        "higher is closer", "one more pass, and a truncated SVD of every matrix", "weights", subspace_overlap,
    ),
)  # fmt: skip
WEIGHTS: dict[str, Measure] = {row.name: row for row in ROWS}

EXTRAS: dict[str, Extra] = {
    "sign_agreement": "signs",
    "sign_excess": "signs",
    "top_agreement": "top",
    "subspace_overlap": "subspaces",
}


def kinship(
    models: Mapping[str, Source],
    base: Source,
    measures: Sequence[str] = ("pcc", "cosine", "euclidean"),
    *,
    by: Collection[Literal["layer", "kind"]] = (),
    common: bool = False,
) -> list[dict[str, Any]]:
    """All pairs of models by the given measures, in the models' order, from one pass over the models and their base.

    Sums are float64 whatever the checkpoints hold. Returns a row a pair: {"a", "b", measure: value, ...}. A value that
    is undefined is None; "status" says why, and that a model equals the base. by: adds "layers" ({"0": {measure:
    value}, ...}) and "kinds" ({"attention": ...}; attention, mlp, embedding, norm, head, other). common: compare only
    what all of them have, vocabulary rows by their tokens; "left_out" then says what is not compared: {"tensors",
    "rows"}, tensors by name and the most vocabulary rows that one of them has besides.

    Raises RecipeError for an unknown measure or fewer than two models, MismatchError with every tensor that the models
    and the base do not share, CheckpointError for a NaN or for quantised weights.
    """
    for measure in measures:
        if measure not in WEIGHTS:
            raise RecipeError(f"unknown measure '{measure}': {did_you_mean(measure, WEIGHTS)}")
    if len(models) < 2:
        raise RecipeError(f"kinship compares models pair by pair: got {len(models)}, give two or more")
    sources, left_out = _comparable({BASE: base, **models}, common)
    base, parts = sources.pop(BASE), sources
    extras = sorted({EXTRAS[measure] for measure in measures if measure in EXTRAS})
    found = find_moments(parts, base, extras)
    if not found:
        raise MismatchError("the base has no tensor of floating-point numbers: there are no task vectors to compare")
    groups = {"layers": _grouped(found, 0), "kinds": _grouped(found, 1)}
    asked = {key: groups[key] for key, wanted in (("layers", "layer"), ("kinds", "kind")) if wanted in by}
    whole = sum(found.values(), start=nothing(len(models)))
    pairs = [(a, b) for a in range(len(models)) for b in range(a + 1, len(models))]
    names = list(models)
    rows = [_row(names, whole, measures, a, b) for a, b in pairs]
    for row, (a, b) in zip(rows, pairs, strict=True):
        for key, group in asked.items():
            row[key] = {part: _values(moments, measures, a, b) for part, moments in group.items()}
        if left_out is not None and (left_out.tensors or left_out.rows):
            row["left_out"] = {"tensors": left_out.tensors, "rows": left_out.rows}
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """{measure: {"mean", "min", "max"}} over pairs; a measure that is undefined for any of them has none."""
    found = {}
    for measure in rows[0] if rows else ():
        values = [row.get(measure) for row in rows]
        numbers = [value for value in values if isinstance(value, float)]
        if len(numbers) == len(rows):
            found[measure] = {"mean": math.fsum(numbers) / len(numbers), "min": min(numbers), "max": max(numbers)}
    return found


def _comparable(sources: Mapping[str, Source], common: bool) -> tuple[dict[str, Source], LeftOut | None]:
    """The models as they are compared. Raises MismatchError, and CheckpointError for packed weights."""
    check_plain(sources, "compared")
    if common:
        return in_common(sources)
    try:
        check_same(sources)
    except MismatchError as error:
        raise MismatchError(f"{error};\nor compare only what all of them have (--common)") from None
    return dict(sources), None


def _grouped(found: Mapping[Place, Moments], by: Literal[0, 1]) -> dict[str, Moments]:
    """The moments by layer (0), in order and without what is in none, or by kind of module (1)."""
    groups: dict[str, Moments] = {}
    for place in sorted(found, key=lambda place: (-1 if place[0] is None else place[0], place[1])):
        part = place[by]
        if part is not None:
            moments = groups.get(str(part))
            groups[str(part)] = found[place] if moments is None else moments + found[place]
    return groups


def _row(names: Sequence[str], moments: Moments, measures: Sequence[str], a: int, b: int) -> dict[str, Any]:
    values = _values(moments, measures, a, b)
    row: dict[str, Any] = {"a": names[a], "b": names[b], **values}
    reasons = [why for model in (a, b) if (why := _degenerate(names[model], moments, model, values))]
    lost = [measure for measure, value in values.items() if value is None]
    if lost and not reasons:
        reasons = [f"nothing to compare by {', '.join(lost)}"]
    if reasons:
        row["status"] = "; ".join(reasons)
    return row


def _values(moments: Moments, measures: Sequence[str], a: int, b: int) -> dict[str, float | None]:
    return {measure: WEIGHTS[measure].value(moments, a, b) for measure in measures}


def _degenerate(name: str, moments: Moments, model: int, values: Mapping[str, float | None]) -> str:
    """What is odd about a model: no task vector, or one without a correlation that is asked for."""
    if moments.dot(model, model) == 0:
        return f"'{name}' equals the base: its task vector is zero"
    if values.get("pcc", 0.0) is None and moments.covariance(model, model) == 0:
        return f"'{name}' differs from the base by the same number everywhere: its task vector has no variance"
    return ""


def _normalised(shared: float, a: float, b: float) -> float | None:
    """shared / sqrt(a b), kept within [-1, 1]; None where it is 0 / 0."""
    if a <= 0 or b <= 0:
        return None
    return max(-1.0, min(1.0, shared / (math.sqrt(a) * math.sqrt(b))))


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if float(whole) > 0 else None
