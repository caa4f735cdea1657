"""Task vectors of LoRA adapters without making them: all products of pairs follow from the factors.

<B1 A1, B2 A2> = sum of (B1^T B2) o (A1 A2^T), in O((m + n) r1 r2) for matrices of shape (m, n).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from fusion.adapter import Adapted
from fusion.checkpoint import Checkpoint, Source
from fusion.kinship.shared import SharedPart

# Share of the squared lengths below which a squared distance is found from differences of factors.
NEAR = 1e-6


@dataclass(frozen=True)
class LowRank:
    """A matrix as the product of two factors; of rank 0 where nothing is changed."""

    left: Float64[Tensor, "m r"]
    right: Float64[Tensor, "r n"]

    @property
    def rank(self) -> int:
        """The number of columns that are multiplied."""
        return self.left.shape[1]

    def dot(self, other: "LowRank") -> Float64[Tensor, ""]:
        """<self, other>."""
        return ((self.left.T @ other.left) * (self.right @ other.right.T)).sum()

    def square_distance(self, other: "LowRank") -> Float64[Tensor, ""]:
        """The squared length of the difference; exact too where the matrices are nearly the same."""
        lengths = self.dot(self) + other.dot(other)
        found = lengths - 2.0 * self.dot(other)
        if found > NEAR * lengths or self.left.shape != other.left.shape:
            return found.clamp(min=0.0)
        left = torch.cat([self.left - other.left, other.left], dim=1)
        right = torch.cat([self.right, self.right - other.right])
        difference = LowRank(left, right)
        return difference.dot(difference).clamp(min=0.0)


def factors(name: str, base: Source, models: Sequence[Source]) -> list[LowRank] | None:
    """What every model adds to one tensor of the base; None unless all are adapters on it that add a product there."""
    origin, *sources = (_own(name, source) for source in (base, *models))
    found = [_factors(name, origin, source) for source in sources]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def _own(name: str, source: Source) -> Source:
    """The model whose tensor it is, where only a part of the model is looked at."""
    return source.source if isinstance(source, SharedPart) and not source.takes_rows(name) else source


def _factors(name: str, base: Source, model: Source) -> LowRank | None:
    if not isinstance(model, Adapted) or not _same(model.base, base):
        return None
    if model.changes(name):
        pair = model.low_rank(name)
        return None if pair is None else LowRank(*pair)
    shape = base.shape(name)
    width = math.prod(shape[1:])
    return LowRank(
        torch.zeros(math.prod(shape[:1]), 0, dtype=torch.float64), torch.zeros(0, width, dtype=torch.float64)
    )


def _same(a: Source, b: Source) -> bool:
    return a is b or (isinstance(a, Checkpoint) and isinstance(b, Checkpoint) and a.donor.samefile(b.donor))


def products(
    matrices: Sequence[LowRank],
) -> tuple[Float64[Tensor, " models"], Float64[Tensor, "models models"], Float64[Tensor, "models models"]]:
    """The sums of all entries, the Gram matrix and the squared distances of some matrices."""
    count = len(matrices)
    sums = torch.stack([(one.left.sum(0) @ one.right.sum(1)) for one in matrices])
    gram, squares = (torch.zeros(count, count, dtype=torch.float64) for _ in range(2))
    for a, one in enumerate(matrices):
        for b, other in enumerate(matrices[: a + 1]):
            gram[a, b] = gram[b, a] = one.dot(other)
            squares[a, b] = squares[b, a] = 0.0 if a == b else one.square_distance(other)
    return sums, gram, squares
