"""Which entries of a task vector stay, by magnitude: exact selection of the k largest from a stream of blocks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods.call import Block, Blocks, Pass, Place

# A float32 magnitude is 31 bits that sort as the magnitudes do: the upper 12 choose a bin, the lower 19 a value in it.
LOW_BITS = 19
HIGH_BINS = 1 << 12
LOW_BINS = 1 << LOW_BITS
# Later than any position.
NEVER = 1 << 62

Numbers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.int32]


class Cut(NamedTuple):
    """The k entries of largest magnitude of one tensor: above `threshold`, and equal to it up to position `last`.

    Of equal magnitudes the first are among the k. A block needs nothing else to tell which of its entries stay.
    """

    threshold: float
    last: int


NOTHING = Cut(math.inf, -1)
EVERYTHING = Cut(0.0, NEVER)


class Band(NamedTuple):
    """What of a tensor stays: the entries of `lower` without those of `upper`, which are larger, times `factor`."""

    lower: Cut
    upper: Cut = NOTHING
    factor: float = 1.0


@dataclass(frozen=True)
class Shared:
    """The k entries of largest magnitude of a whole task vector.

    `ties` says how many entries equal to the threshold stay in each tensor that does not keep all of its own.
    """

    threshold: float
    ties: dict[str, int] = field(default_factory=dict)


def kept_count(numel: int, density: float) -> int:
    """How many of `numel` values stay: the nearest whole number, but at least one where the density is above 0."""
    return 0 if density <= 0 else min(numel, max(1, round(density * numel)))


def trim(delta: Float[Tensor, " n"], band: Band, start: int) -> Float[Tensor, " n"]:
    """A block of a task vector, which begins at position `start`, with all but a band of it set to 0, in place."""
    if band.lower != EVERYTHING or band.upper != NOTHING:
        mask = _kept(delta.abs(), band.lower, start)
        delta.mul_(mask if band.upper == NOTHING else mask.sub_(_kept(delta.abs(), band.upper, start)))
    return delta if band.factor == 1 else delta.mul_(band.factor)


def rescaled(blocks: Blocks, bands: Sequence[Band]) -> list[Band]:
    """The bands with the factors that give each trimmed task vector the L1 norm that it had in this tensor.

    1 where nothing stays. The norms are summed in float64.
    """
    before, after = np.zeros(len(bands)), np.zeros(len(bands))
    for block in blocks():
        assert block.base is not None
        for i, (theta, band) in enumerate(zip(block.models, bands, strict=True)):
            delta = theta - block.base
            before[i] += float(delta.abs().sum(dtype=torch.float64))
            after[i] += float(trim(delta, band, block.start).abs_().sum(dtype=torch.float64))
    factors = np.divide(before, after, out=np.ones(len(bands)), where=after > 0)
    return [band._replace(factor=float(factor)) for band, factor in zip(bands, factors, strict=True)]


def _kept(magnitude: Float[Tensor, " n"], cut: Cut, start: int) -> Float[Tensor, " n"]:
    """1 where an entry stays and 0 elsewhere, written over a block's magnitudes."""
    equal = min(max(cut.last - start + 1, 0), magnitude.numel())
    magnitude[:equal].ge_(cut.threshold)
    magnitude[equal:].gt_(cut.threshold)
    return magnitude


def own_cuts(blocks: Blocks, ranks: Sequence[Sequence[int]], numel: int) -> list[list[Cut]]:
    """The cuts of one tensor by itself: for every model, and each of its `ranks` k, the one that keeps the k largest.

    Two passes over the tensor: the first counts magnitudes by their upper bits, the second takes out those that share
    these with a k-th largest.
    """
    wanted = [sorted({k for k in mine if 0 < k < numel}) for mine in ranks]
    found: list[dict[int, Cut]] = [{} for _ in ranks]
    if any(wanted):
        counts = _high_counts(blocks, [bool(mine) for mine in wanted])
        places = [{k: _find(mine, k) for k in ks} for mine, ks in zip(counts, wanted, strict=True)]
        taken = _take(blocks, [{high for high, _ in mine.values()} for mine in places])
        found = [{k: _cut(*taken[i][high], rank) for k, (high, rank) in mine.items()} for i, mine in enumerate(places)]
    return [
        [NOTHING if k <= 0 else EVERYTHING if k >= numel else mine[k] for k in ks]
        for ks, mine in zip(ranks, found, strict=True)
    ]


def shared_cuts(passes: Pass, density: Sequence[float]) -> list[Cut | Shared]:
    """For every model the cut that keeps this share of its whole task vector.

    An exact selection in passes of fixed memory, as a radix sort would find it: the first counts magnitudes by their
    upper 12 bits, the second by the lower 19 within the bin that holds the k-th largest. A third, only where some but
    not all of the magnitudes equal to the k-th stay, counts these by tensor: they stay in the order of sorted names.

    Raises RecipeError when the density varies over the tensors: one cut has one density.
    """
    chosen = [0.0 < share < 1.0 for share in density]
    cuts: list[Cut | Shared] = [EVERYTHING if share >= 1 else NOTHING for share in density]
    upper = _upper(passes, tuple(density), chosen)
    if not any(chosen):
        return cuts
    totals = [np.zeros(LOW_BINS, dtype=np.int64) for _ in density]
    within = [{high} if want else set() for (high, _), want in zip(upper, chosen, strict=True)]
    for _, part in passes(lambda blocks, weights, params, at: _low_counts(blocks, within)):
        for total, (values, times) in zip(totals, part, strict=True):
            total[values] += times
    left: dict[int, tuple[float, int]] = {}
    for i, (high, rank) in enumerate(upper):
        if chosen[i]:
            low, ties = _find(totals[i], rank)
            threshold = _magnitude((high << LOW_BITS) | low)
            cuts[i] = Shared(threshold)
            # Which zeros stay makes no difference, so a threshold of 0 needs no count.
            if threshold > 0 and ties < totals[i][low]:
                left[i] = (threshold, ties)
    return _share(passes, cuts, left) if left else cuts


def cut_of(blocks: Blocks, model: int, cut: Cut | Shared, tensor: str) -> Cut:
    """What a cut, through a whole task vector or not, is in one tensor of a model."""
    if isinstance(cut, Cut):
        return cut
    left = cut.ties.get(tensor)
    if not left:
        return Cut(cut.threshold, NEVER if left is None else -1)
    for block in blocks():
        equal = np.flatnonzero(_bits(block, model).cpu().numpy() == _as_bits(cut.threshold))
        if equal.size >= left:
            return Cut(cut.threshold, block.start + int(equal[left - 1]))
        left -= equal.size
    raise AssertionError(f"{tensor} has fewer entries equal to {cut.threshold} than were counted")


def _upper(passes: Pass, density: tuple[float, ...], chosen: Sequence[bool]) -> list[tuple[int, int]]:
    """The bin, by upper bits, of the k-th largest magnitude of every model's task vector, and its rank in the bin."""
    totals = [np.zeros(HIGH_BINS, dtype=np.int64) for _ in density]

    def visit(blocks: Blocks, weights: Any, params: Any, at: Place) -> tuple[tuple[float, ...], list[Numbers]]:
        return params.density, _high_counts(blocks, chosen)

    for name, (found, part) in passes(visit):
        if found != density:
            raise RecipeError(
                f"density is {found} in {name} and {density} elsewhere, but one cut through the whole task vector has "
                "one density: set trim: tensor to trim every tensor by its own"
            )
        for total, counts in zip(totals, part, strict=True):
            total += counts
    return [
        _find(total, kept_count(int(total.sum()), share)) if want else (0, 0)
        for total, share, want in zip(totals, density, chosen, strict=True)
    ]


def _high_counts(blocks: Blocks, chosen: Sequence[bool]) -> list[Numbers]:
    """For every model that is chosen, how often each upper half of a magnitude's bits occurs in one tensor."""
    totals = [torch.zeros(HIGH_BINS, dtype=torch.int64) for _ in chosen]
    models = [i for i, want in enumerate(chosen) if want]
    for block in blocks() if models else ():
        for i in models:
            totals[i] += torch.bincount(_bits(block, i) >> LOW_BITS, minlength=HIGH_BINS).cpu()
    return [total.numpy() for total in totals]


def _low_counts(blocks: Blocks, within: Sequence[set[int]]) -> list[tuple[Bits, Numbers]]:
    """For every model, the lower halves that occur in one tensor beside an upper half, and how often each does."""
    taken = _take(blocks, within)
    empty = np.empty(0, dtype=np.int32)
    bits = [next((values for values, _ in mine.values()), empty) for mine in taken]
    return [np.unique(values & (LOW_BINS - 1), return_counts=True) for values in bits]


def _take(blocks: Blocks, within: Sequence[set[int]]) -> list[dict[int, tuple[Bits, Numbers]]]:
    """For every model and each of its upper halves: the bits of the magnitudes that have it, and their positions."""
    parts: list[dict[int, list[tuple[Bits, Numbers]]]] = [{high: [] for high in mine} for mine in within]
    models = [i for i, mine in enumerate(within) if mine]
    for block in blocks() if models else ():
        for i in models:
            bits = _bits(block, i).cpu().numpy()
            upper = bits >> LOW_BITS
            for high, found in parts[i].items():
                places = np.flatnonzero(upper == high)
                if places.size:
                    found.append((bits[places], places + block.start))
    return [{high: _joined(found) for high, found in mine.items()} for mine in parts]


def _joined(parts: list[tuple[Bits, Numbers]]) -> tuple[Bits, Numbers]:
    if not parts:
        return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
    return np.concatenate([bits for bits, _ in parts]), np.concatenate([places for _, places in parts])


def _cut(bits: Bits, places: Numbers, rank: int) -> Cut:
    """The cut that keeps the `rank` largest of these, of equal ones the first."""
    threshold = int(np.partition(bits, bits.size - rank)[bits.size - rank])
    ties = rank - int(np.count_nonzero(bits > threshold))
    return Cut(_magnitude(threshold), int(places[bits == threshold][ties - 1]))


def _share(passes: Pass, cuts: list[Cut | Shared], left: dict[int, tuple[float, int]]) -> list[Cut | Shared]:
    """The cuts, with the entries equal to a threshold given to the tensors that come first.

    left: by model, its threshold and how many entries equal to it stay.
    """

    def visit(blocks: Blocks, weights: Any, params: Any, at: Place) -> dict[int, int]:
        counts = dict.fromkeys(left, 0)
        for block in blocks():
            for i, (threshold, _) in left.items():
                counts[i] += int(np.count_nonzero(_bits(block, i).cpu().numpy() == _as_bits(threshold)))
        return counts

    free = {i: ties for i, (_, ties) in left.items()}
    shares: dict[int, dict[str, int]] = {i: {} for i in left}
    for name, counts in passes(visit):
        for i, count in counts.items():
            if count > free[i]:
                shares[i][name] = free[i]
            free[i] -= min(count, free[i])
    return [Shared(left[i][0], shares[i]) if i in left else cut for i, cut in enumerate(cuts)]


def _find(counts: Numbers, rank: int) -> tuple[int, int]:
    """The bin that holds the value of this rank, the largest being 1, and its rank within that bin."""
    above = counts[::-1].cumsum()
    place = int(np.searchsorted(above, rank))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - before


def _bits(block: Block, model: int) -> Int32[Tensor, " n"]:
    """The magnitudes of a task vector in one block, as the integers that sort as they do."""
    assert block.base is not None
    return (block.models[model] - block.base).abs_().reshape(-1).view(torch.int32)


def _magnitude(bits: int) -> float:
    return float(np.array(bits, dtype=np.int32).view(np.float32))


def _as_bits(magnitude: float) -> np.int32:
    return np.float32(magnitude).view(np.int32)
