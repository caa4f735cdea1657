"""Do these models share an ancestor? Fine-tuning moves weights a little; another pre-training moves them everywhere.

"Revealing Secrets From Pre-trained Models" (arXiv:2207.09539) showed that a fine-tuned model stays so close to its base
that its weights alone tell which base it was. The same closeness is what makes merging work, so it is checked before
any merge: two numbers a matrix, the cosine of the two models' weights and their relative distance |a - b| / |b|.

Only matrices are compared, since the gains of norms are near 1 in every model. What the threshold stands on was
measured on the pocket world (two seeds of the base, three specialists of each), see KIN_COSINE.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoint import Checkpoint, Source, check_finite
from fusion.errors import LineageError
from fusion.layout import layers_of

# The median cosine over matrices. Strangers: two bases of one architecture, data and length of training from different
# random weights, and each's specialists against the other: within 0.002 of 0, at relative distances of 1.41 to 1.48.
# Kin: specialists trained further for two thirds of their base's steps: 0.96 to 0.97 at 0.30 to 0.33; two specialists
# of one base: 0.94 to 0.95. Half-way is far from both.
KIN_COSINE = 0.5

# Of larger matrices evenly spread pieces are read: a cosine is then known to within 0.01 or so.
PIECES, PIECE = 8, 2048


@dataclass(frozen=True)
class Lineage:
    """What a model shares with a base.

    cosine: median over the matrices that both have; distance: |model - base| / |base| over all of them; layers: the
    median cosine of each layer, by its number. `same`, `reshaped`, `missing`, `extra` count the base's tensors that the
    model has, has in another shape, or lacks, and its own further ones. cosine and distance are None where no matrix is
    shared.
    """

    cosine: float | None
    distance: float | None
    layers: Mapping[int, float]
    same: int
    reshaped: int
    missing: int
    extra: int

    @property
    def kin(self) -> bool:
        """Whether the model comes from the base, by its weights."""
        return self.cosine is not None and self.cosine >= KIN_COSINE and 2 * self.same > self.same + self.missing

    @property
    def lowest(self) -> int | None:
        """The layer that is least like the base's; None where no layer is shared."""
        return min(self.layers, key=self.layers.__getitem__) if self.layers else None

    def words(self) -> str:
        """What was found, in one line."""
        parts = [] if self.cosine is None else [f"cosine {self.cosine:.3f}, relative distance {self.distance:.3f}"]
        odd = {"of another shape": self.reshaped, "missing": self.missing, "extra": self.extra}
        counts = [f"{count} tensors {what}" for what, count in odd.items() if count]
        return "; ".join([*parts, *counts]) or "no matrix in common"


def lineage(model: Source, base: Source) -> Lineage:
    """Compare a model's matrices with those of a base, by samples of at most 16,384 values each.

    Raises CheckpointError for a NaN.
    """
    mine, theirs = dict.fromkeys(model.names()), base.names()
    shared = [name for name in theirs if name in mine]
    same = [name for name in shared if model.shape(name) == base.shape(name)]
    layer = layers_of(theirs)
    cosines: dict[str, float] = {}
    moved = size = 0.0
    for name in same:
        if len(base.shape(name)) < 2 or not base.dtype(name).is_floating_point:
            continue
        a, b = (_sample(source, name) for source in (model, base))
        lengths = float(a.norm() * b.norm())
        cosines[name] = float(a @ b) / lengths if lengths else float(torch.equal(a, b))
        scale = max(1, _numel(base.shape(name))) / max(1, b.numel())
        moved += scale * float((a - b).square().sum())
        size += scale * float(b.square().sum())
    by_layer: dict[int, list[float]] = {}
    for name, value in cosines.items():
        if name in layer:
            by_layer.setdefault(layer[name], []).append(value)
    return Lineage(
        cosine=statistics.median(cosines.values()) if cosines else None,
        distance=(moved / size) ** 0.5 if size else None,
        layers={number: statistics.median(by_layer[number]) for number in sorted(by_layer)},
        same=len(same),
        reshaped=len(shared) - len(same),
        missing=len(theirs) - len(shared),
        extra=len(mine) - len(shared),
    )


def check_kin(models: Mapping[str, Source], base: str) -> dict[str, Lineage]:
    """The lineage of every model against `base` (one of them). Raises LineageError with all that are not its kin."""
    found = {name: lineage(source, models[base]) for name, source in models.items() if name != base}
    strangers = [f"{name}: {about.words()}" for name, about in found.items() if not about.kin]
    if strangers:
        raise LineageError(
            f"not kin to '{base}': a merge of models without a common ancestor is noise\n  "
            + "\n  ".join(strangers)
            + f"\nkin have a cosine of at least {KIN_COSINE} (fine-tuned models: .9 and more; strangers: about 0). "
            "Give the base that they were trained from; allow_unrelated: true in the recipe (or --allow-unrelated) "
            "merges them all the same"
        )
    return found


def to_json(found: Mapping[str, Lineage]) -> dict[str, Any]:
    """The numbers of some models, by name."""
    return {
        name: {
            "kin": about.kin,
            "cosine": about.cosine,
            "distance": about.distance,
            "layers": {str(number): cosine for number, cosine in about.layers.items()},
            "lowest_layer": about.lowest,
            "tensors": {key: getattr(about, key) for key in ("same", "reshaped", "missing", "extra")},
        }
        for name, about in found.items()
    }


def ranked(found: Mapping[str, Lineage]) -> list[str]:
    """Candidate bases of one model, by its lineage against each: the likeliest first.

    Kin come before all others, the nearest by relative distance first: where a model differs from two relatives in a
    few matrices only, its median cosine with both is 1 and tells nothing. The others follow by their cosine.
    """

    def place(name: str) -> tuple[bool, float, float]:
        about = found[name]
        cosine = -1.0 if about.cosine is None else about.cosine
        return (not about.kin, (about.distance or 0.0) if about.kin else 0.0, -cosine)

    return sorted(found, key=place)


def nearest(found: Mapping[str, Lineage]) -> str | None:
    """The base that a model comes from, of its lineage by candidate base; None where it is kin to none."""
    best = ranked(found)[:1]
    return best[0] if best and found[best[0]].kin else None


def _sample(source: Source, name: str) -> Tensor:
    """Evenly spread pieces of a tensor, in float64: read where they lie, so that large models cost little."""
    count = _numel(source.shape(name))
    step = count // PIECES
    spans = [(i * step, i * step + PIECE) for i in range(PIECES)] if step > PIECE else [(0, count)]
    if isinstance(source, Checkpoint) and count:
        # A mapped page brings its neighbours into memory, and they would stay.
        flat = torch.cat([piece for start, stop in spans for piece in source.blocks(name, start, stop, PIECE * PIECES)])
    else:
        whole = source.tensor(name).reshape(-1)
        flat = torch.cat([whole[start:stop] for start, stop in spans])
    check_finite(flat, name, str(source.donor))
    return flat.double()


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
