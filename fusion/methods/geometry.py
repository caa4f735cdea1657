"""What merges share that are linear combinations of tensors taken as vectors, with factors from lengths and angles.

All of these follow from inner products, summed in float64 over the blocks; so a block at a time is enough, and what is
left to do for each element is a weighted sum. "Vectors" are the task vectors theta_i - base where there is a base, and
the models' own tensors elsewhere.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods.call import Block, Blocks, gram, spread

# One factor a model: for a whole tensor, or for every row or column of it.
Factors = Sequence[float] | Float64[Tensor, "n *parts"]


def cancels(weights: Sequence[float]) -> str | None:
    """What is wrong with weights that a method divides by the sum of."""
    return None if sum(weights) else f"the weights {list(weights)} sum to 0, so their average is undefined"


def shares(weights: Sequence[float] | None, count: int, tensor: str) -> list[float]:
    """The weights divided by their sum. Raises RecipeError where that is 0, as it may be in one tensor alone."""
    given = spread(weights, count)
    if wrong := cancels(given):
        raise RecipeError(f"{tensor}: {wrong}")
    return [weight / sum(given) for weight in given]


def vectors(models: Sequence[Float[Tensor, " *shape"]], base: Tensor | None) -> list[Float[Tensor, " *shape"]]:
    """Task vectors where there is a base, else the models themselves."""
    return list(models) if base is None else [theta - base for theta in models]


def products(blocks: Blocks) -> Float64[Tensor, "n n"]:
    """The inner products <v_i, v_j> of one tensor's vectors."""
    return sum((gram(_vectors(block)) for block in blocks()), start=torch.zeros((), dtype=torch.float64))


def column_products(blocks: Blocks) -> Float64[Tensor, "n n columns"]:
    """The inner products over the first axis: for every column of the blocks' rows."""
    return sum((_per(_vectors(block), 0) for block in blocks()), start=torch.zeros((), dtype=torch.float64))


def row_products(rows: Sequence[Float[Tensor, "rows width"]]) -> Float64[Tensor, "n n rows"]:
    """The inner products of every row by itself."""
    return _per(rows, 1)


def as_rows(tensor: Float[Tensor, " *shape"], shape: tuple[int, ...]) -> Float[Tensor, "rows width"]:
    """A block of whole rows, each as long as the last axis of its tensor's shape; a vector is one row."""
    width = tensor.numel() if len(shape) < 2 else shape[-1]
    return tensor.reshape(tensor.numel() // max(width, 1), width)


def combined(
    models: Sequence[Float[Tensor, " *shape"]], base: Float[Tensor, " *shape"] | None, factors: Factors
) -> Float[Tensor, " *shape"]:
    """sum_i f_i v_i, put onto the base where there is one."""
    total = torch.zeros_like(models[0]) if base is None else base.clone()
    room = None if base is None else torch.empty_like(base)
    for theta, factor in zip(models, factors, strict=True):
        vector = theta if base is None else torch.sub(theta, base, out=room)
        if isinstance(factor, Tensor):
            total.addcmul_(vector, factor.to(vector))
        else:
            total.add_(vector, alpha=factor)
    return total


def arc(
    inner: Float64[Tensor, "2 2 *parts"],
    t: float,
    straight: Callable[[Float[Tensor, " *parts"]], Bool[Tensor, " *parts"]],
) -> Float64[Tensor, "..."]:
    """The factors of two vectors on the arc between them: sin((1-t) omega)/sin(omega) and sin(t omega)/sin(omega).

    straight(cos omega): whether the line between them is taken instead, with the factors 1-t and t; it is also taken
    where a vector is zero.
    """
    length = (inner[0, 0] * inner[1, 1]).clamp_min(0.0).sqrt()
    cosine = torch.where(length > 0, inner[0, 1] / length, 1.0).clamp(-1.0, 1.0)
    omega = torch.acos(cosine)
    line = straight(cosine)
    sine = torch.where(line, 1.0, torch.sin(omega))
    return torch.stack([torch.where(line, part, torch.sin(part * omega) / sine) for part in (1.0 - t, t)])


def _vectors(block: Block) -> list[Tensor]:
    return vectors(block.models, block.base)


def _per(rows: Sequence[Float[Tensor, "rows width"]], dim: int) -> Float64[Tensor, "n n kept"]:
    wide = [row.double() for row in rows]
    return torch.stack([torch.stack([(a * b).sum(dim) for b in wide]) for a in wide])
