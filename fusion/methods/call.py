"""What a merge method is given, and the arithmetic that several methods share.

A method is one file with a frozen dataclass `Params` and a function

    merge(models, base, weights, params, at) -> tensor

of pure tensor arithmetic: `models` holds the tensor of each model and `base` that of the base (None where the method
takes none), all float32, of one shape, on one device; the result is float32 too. None of them may be written to: they
can be views of a file. Reading, casting, checking and writing belong to the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Small enough for a block in float64 to stay in the processor's cache.
BLOCK = 1 << 16

# Called with (name, the models' tensors, the base's or None).
Visit = Callable[[str, list[Tensor], Tensor | None], None]

# One pass over all checkpoints: a visit to every tensor that is merged, by sorted name. A visit and not an iterator,
# whose loop would hold on to the last tensors while the next are read.
Pass = Callable[[Visit], None]


@dataclass(frozen=True)
class Place:
    """Where in the merge a call is made.

    A method that draws random numbers seeds them from (seed, tensor, model), so that the order of work cannot matter.
    `state` is what the method's `prepare` returned.
    """

    tensor: str
    models: tuple[str, ...]
    seed: int = 0
    state: Any = None


def spread(weights: Sequence[float] | None, count: int) -> list[float]:
    """One weight a model: 1 each where none are given."""
    return [1.0] * count if weights is None else [float(weight) for weight in weights]


def inner(a: Float[Tensor, " *shape"], b: Float[Tensor, " *shape"]) -> float:
    """The inner product <a, b> of two tensors taken as vectors, summed in float64 block by block."""
    blocks = zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True)
    return sum(float(torch.dot(x.double(), y.double())) for x, y in blocks)
