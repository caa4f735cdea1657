"""What a merge method is given, and the arithmetic that several methods share.

A method is one file with a frozen dataclass `Params`, its row `METHOD`, and a function

    merge(models, base, weights, params, at) -> tensor

of pure tensor arithmetic on one block of one tensor: `models` holds the block of each model and `base` that of the base
(None where there is none), all float32, of one shape, on one device; the result is float32 of that shape. None of them
may be written to: they can be views of a file. `weights` is one number a model, or None where the user gave none, and
`params` an instance of Params for this very tensor: a parameter may vary by layer, by name and, where it is declared
`PerModel`, by model; it is then a tuple in the models' order. Reading, casting, checking and writing belong to the
caller.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

# Elements a block on the CPU: small enough for some blocks in float32 to stay in the processor's cache.
BLOCK = 1 << 17

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Block(NamedTuple):
    """A piece of one tensor: where it starts (in elements, row-major), and what every model and the base hold there."""

    start: int
    models: list[Tensor]
    base: Tensor | None


# The blocks of one tensor, from the start as often as they are asked for.
Blocks = Callable[[], Iterator[Block]]


@dataclass(frozen=True)
class Place:
    """Where in the merge a call is made: `tensor` of the result, from the tensors `sources` of the models and the base.

    A method that draws random numbers seeds them from (seed, tensor, model's position) and takes them at `start`, the
    block's first element, so that neither the order of work nor the size of blocks can matter. `shape` is the whole
    tensor's. `state` is what the method's `prepare` returned, `found` what its `survey` did. `statistics` holds what is
    known of this tensor from each model's data. `note(key, value)` puts a number into the ledger beside the tensor.
    """

    tensor: str
    models: tuple[str, ...]
    seed: int = 0
    start: int = 0
    shape: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    state: Any = None
    found: Any = None
    statistics: tuple[Any, ...] = ()
    note: Callable[[str, float], None] = lambda key, value: None


@runtime_checkable
class Visit(Protocol[T_co]):
    """What `prepare` does with one tensor; it may run beside others, so it returns its part instead of keeping it."""

    def __call__(self, blocks: Blocks, weights: Sequence[float] | None, params: Any, at: Place) -> T_co: ...


@runtime_checkable
class Pass(Protocol):
    """One pass over all checkpoints: every tensor that is merged, in the order of sorted names, with its part."""

    def __call__(self, visit: Visit[T]) -> Iterator[tuple[str, T]]: ...


def spread(weights: Sequence[float] | None, count: int) -> list[float]:
    """One weight a model: 1 each where none are given."""
    return [1.0] * count if weights is None else [float(weight) for weight in weights]


def inner(a: Float[Tensor, " *shape"], b: Float[Tensor, " *shape"]) -> float:
    """The inner product <a, b> of two tensors taken as vectors, summed in float64 block by block."""
    blocks = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    return sum(float(torch.dot(x.double(), y.double())) for x, y in blocks)


def gram(vectors: Sequence[Float[Tensor, " *shape"]]) -> Float[Tensor, "n n"]:
    """The Gram matrix <v_i, v_j> of tensors taken as vectors: float64, on the CPU."""
    wide = [vector.reshape(-1).double() for vector in vectors]
    found = torch.empty(len(wide), len(wide), dtype=torch.float64)
    for i, a in enumerate(wide):
        for j in range(i + 1):
            found[i, j] = found[j, i] = torch.dot(a, wide[j])
    return found
