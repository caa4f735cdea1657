"""One pass over some models and their base that finds what all measures of kinship from weights need, for all pairs.

With the task vectors d_i = theta_i - base as vectors of n numbers: their sums, their Gram matrix <d_i, d_j>, their
squared distances, and where they are asked for the counts behind sign agreement, agreement of the largest entries
and overlap of subspaces. All of these add up over parts of the weights, so they are kept by layer and kind of module.
Differences and sums are float64 whatever the checkpoints hold. Only a few blocks are in memory at a time.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from fusion.checkpoint import Checkpoint, Source, check_finite
from fusion.errors import CheckpointError
from fusion.kinship import lowrank, subspaces
from fusion.kinship.lowrank import LowRank
from fusion.kinship.modules import Kind, kind_of
from fusion.kinship.shared import SharedPart
from fusion.layout import layers_of
from fusion.methods.call import Block
from fusion.methods.spectral import is_map
from fusion.methods.trim import Band, kept_count, own_cuts, trim
from fusion.stream import in_order, one_thread

# What costs more than the Gram matrix and is found only where a measure needs it.
Extra = Literal["signs", "top", "subspaces"]
# Where a tensor is: the number of its layer (None outside the stack) and its kind.
Place = tuple[int | None, Kind]

# Elements of all models' blocks together: in float64 they stay in the processor's cache.
BLOCK = 1 << 18
# Elements that one thread takes at a time. Sums are over these pieces in their order, so that threads change no bit.
PIECE = 1 << 22
THREADS = 2

# Share of the task vectors' lengths below which a distance is found by differences: of a difference of products
# nothing but their rounding may be left.
NEAR = 1e-6
# Below this share of its terms, what is left of a difference of float64 sums is their rounding.
ROUNDING = 1e-12
# Largest entries of a task vector that are compared: what TIES keeps.
TOP = 0.2


@dataclass(frozen=True)
class Moments:
    """What is known of the task vectors over a part of the weights. Matrices of counts are 0 where not asked for.

    squares [a, b]: squared distances. signs [:, a, b]: coordinates where both are non-zero; of these those with the
    same sign, and those where a is positive. top [:, a, b]: coordinates among the largest of both; of these those with
    the same sign. subspaces: overlap times weight, and weight, summed over matrices.
    """

    count: int
    sums: Float64[Tensor, " models"]
    gram: Float64[Tensor, "models models"]
    squares: Float64[Tensor, "models models"]
    signs: Float64[Tensor, "3 models models"]
    top: Float64[Tensor, "2 models models"]
    subspaces: Float64[Tensor, "2 models models"]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def dot(self, a: int, b: int) -> float:
        """<d_a, d_b>."""
        return float(self.gram[a, b])

    def covariance(self, a: int, b: int) -> float:
        """The sum over elements of (d_a - mean d_a)(d_b - mean d_b); 0 where it is only rounding."""
        mean_part = float(self.sums[a]) * float(self.sums[b]) / max(self.count, 1)
        value = self.dot(a, b) - mean_part
        return 0.0 if abs(value) <= ROUNDING * abs(mean_part) else value


def nothing(models: int) -> Moments:
    """The moments of no weights at all."""
    square = torch.zeros(models, models, dtype=torch.float64)
    return Moments(0, square[0].clone(), square, square, square.expand(3, -1, -1), *[square.expand(2, -1, -1)] * 2)


def find_moments(
    models: Mapping[str, Source], base: Source, extras: Collection[Extra] = (), threads: int = THREADS
) -> dict[Place, Moments]:
    """The moments of every layer and kind of module, from one pass over models that have the base's tensors.

    Task vectors of LoRA adapters on the base itself enter by their factors, exactly. Tensors of integers are left out.
    Raises CheckpointError for a NaN or an infinity.
    """
    sources = {"the base": base, **models}
    names = [name for name in base.names() if base.dtype(name).is_floating_point]
    layers = layers_of(base.names())
    found: dict[Place, Moments] = {}
    with one_thread():
        for name, parts in in_order(lambda work: work(), _works(names, sources, extras), threads):
            place = (layers.get(name), kind_of(name, name in layers))
            for part in parts:
                found[place] = found.get(place, nothing(len(models))) + part
    return found


Work = Callable[[], tuple[str, list[Moments]]]


def _works(names: Sequence[str], sources: Mapping[str, Source], extras: Collection[Extra]) -> Iterator[Work]:
    """What there is to do: piece by piece where tensors can be read so, else tensor by tensor."""
    whole = bool({"top", "subspaces"} & set(extras))
    for name in names:
        count = math.prod(sources["the base"].shape(name))
        starts = range(0, count, PIECE)
        if whole or _factors(name, sources) or not all(_stream(source, name) for source in sources.values()):
            yield partial(_tensor, name, sources, starts, extras)
        else:
            for start in starts:
                yield partial(_tensor, name, sources, range(start, min(start + PIECE, count), PIECE), extras)


def _tensor(
    name: str, sources: Mapping[str, Source], starts: range, extras: Collection[Extra]
) -> tuple[str, list[Moments]]:
    """The moments of the pieces of one tensor."""
    vectors = _Vectors(name, sources)
    products = vectors.factors is None
    parts = [] if products else [_of_factors(vectors)]
    if not products and not any(factors.rank for factors in vectors.factors or ()):
        return name, parts
    if products or "signs" in extras:
        parts += [
            _piece(vectors, start, min(start + PIECE, vectors.count), products, "signs" in extras) for start in starts
        ]
    for part in parts:
        if not part.gram.isfinite().all():
            raise _not_finite(name, sources)
    if "top" in extras:
        parts.append(_top(vectors))
    if "subspaces" in extras and is_map(name, vectors.shape):
        parts.append(_subspaces(vectors))
    return name, parts


class _Vectors:
    """The task vectors of one tensor, block by block.

    factors: those of every model where all of them are products of factors; the entries then come from these.
    """

    def __init__(self, name: str, sources: Mapping[str, Source]) -> None:
        base, *models = sources.values()
        self.shape = base.shape(name)
        self.count = math.prod(self.shape)
        self.models = len(models)
        self.size = max(1 << 12, BLOCK // (self.models + 1))
        self.factors = _factors(name, sources)
        if self.factors is None:
            self._parts = [_stream(source, name) or partial(_cut, source.tensor(name)) for source in sources.values()]

    def blocks(self, start: int, stop: int) -> Iterator[Float64[Tensor, "models block"]]:
        """Elements `start` to `stop`; a block is overwritten by the next one."""
        if self.factors is not None:
            yield from self._products[:, start:stop].split(self.size, dim=1)
            return
        room = torch.empty(self.models + 1, min(self.size, stop - start), dtype=torch.float64)
        for blocks in zip(*(part(start, stop, self.size) for part in self._parts), strict=True):
            wide = room if blocks[0].numel() == room.shape[1] else room[:, : blocks[0].numel()].contiguous()
            for row, block in zip(wide, blocks, strict=True):
                row.copy_(block)
            yield wide[1:].sub_(wide[0])

    def matrices(self) -> Float32[Tensor, "models m n"]:
        """All of them, of a tensor that is a matrix, in float32."""
        whole = torch.empty(self.models, self.count)
        for start in range(0, self.count, PIECE):
            at = start
            for block in self.blocks(start, min(start + PIECE, self.count)):
                whole[:, at : at + block.shape[1]] = block
                at += block.shape[1]
        return whole.reshape(self.models, *self.shape)

    @cached_property
    def _products(self) -> Float64[Tensor, "models n"]:
        return torch.stack([(factors.left @ factors.right).reshape(-1) for factors in self.factors or ()])

    def in_float32(self) -> Iterator[Block]:
        """The blocks of the whole tensor as merge methods take them: of task vectors, so the base is 0."""
        at = 0
        for start in range(0, self.count, PIECE):
            for block in self.blocks(start, min(start + PIECE, self.count)):
                rows = block.float()
                yield Block(at, list(rows), torch.zeros(rows.shape[1]))
                at += rows.shape[1]


def _piece(vectors: _Vectors, start: int, stop: int, products: bool, signs: bool) -> Moments:
    """The moments of one piece of a tensor: sums and products, counts of signs, or both."""
    found = nothing(vectors.models)
    sums, gram, squares, counts = (torch.zeros_like(part) for part in (found.sums, found.gram, found.gram, found.signs))
    for block in vectors.blocks(start, stop):
        if products:
            inner = block @ block.T
            sums += block.sum(1)
            gram += inner
            squares += _squares(block, inner)
        if signs:
            counts += _signs(block.sign().float())
    return replace(found, count=stop - start if products else 0, sums=sums, gram=gram, squares=squares, signs=counts)


def _squares(
    block: Float64[Tensor, "models n"], inner: Float64[Tensor, "models models"]
) -> Float64[Tensor, "models models"]:
    """The squared distances of all pairs."""
    lengths = inner.diagonal()
    together = lengths[:, None] + lengths[None, :]
    squares = together - 2.0 * inner
    for a, b in (squares <= NEAR * together).triu(1).nonzero().tolist():
        squares[a, b] = squares[b, a] = (block[a] - block[b]).square().sum()
    return squares.fill_diagonal_(0.0)


def _signs(signs: Float32[Tensor, "models n"]) -> Float64[Tensor, "3 models models"]:
    """How often both of a pair are non-zero; and then how often the signs are the same, and the first is positive.

    signs: -1, 0 or 1. Sums of so few of them are exact in float32.
    """
    count = len(signs)
    both = torch.cat([signs, signs.abs()])
    inner = (both @ both.T).double()
    shared = inner[count:, count:]
    return torch.stack([shared, (shared + inner[:count, :count]) / 2, (shared + inner[:count, count:]) / 2])


def _of_factors(vectors: _Vectors) -> Moments:
    sums, gram, squares = lowrank.products(vectors.factors or [])
    return replace(nothing(vectors.models), count=vectors.count, sums=sums, gram=gram, squares=squares)


def _top(vectors: _Vectors) -> Moments:
    """Signs among the largest entries of each task vector in this tensor; of equal magnitudes the first are taken."""
    found = nothing(vectors.models)
    counts = torch.zeros_like(found.top)
    rank = kept_count(vectors.count, TOP)
    cuts = own_cuts(vectors.in_float32, [[rank]] * vectors.models, vectors.count)
    for block in vectors.in_float32():
        kept = [trim(delta, Band(cut), block.start) for delta, (cut,) in zip(block.models, cuts, strict=True)]
        counts += _signs(torch.stack(kept).sign())[:2]
    return replace(found, top=counts)


def _subspaces(vectors: _Vectors) -> Moments:
    return replace(nothing(vectors.models), subspaces=subspaces.overlaps(vectors.matrices()))


def _factors(name: str, sources: Mapping[str, Source]) -> list[LowRank] | None:
    base, *models = sources.values()
    return lowrank.factors(name, base, models)


Stream = Callable[[int, int, int], Iterator[Tensor]]


def _stream(source: Source, name: str) -> Stream | None:
    """How a tensor is read piece by piece; None where it can only be had as a whole."""
    if isinstance(source, SharedPart):
        return None if source.gathers(name) else _stream(source.source, name)
    return partial(source.blocks, name) if isinstance(source, Checkpoint) else None


def _cut(tensor: Tensor, start: int, stop: int, size: int) -> Iterator[Tensor]:
    return iter(tensor.reshape(-1)[start:stop].split(size))


def _not_finite(name: str, sources: Mapping[str, Source]) -> CheckpointError:
    for model, source in sources.items():
        check_finite(source.tensor(name), name, model)
    return CheckpointError(f"the squares of the task vectors overflow in tensor {name}: its values are too large")
