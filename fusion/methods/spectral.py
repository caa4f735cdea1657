"""What merges share that work on the singular vectors of matrices."""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Tables of tokens and positions, by the name of their module: their rows are looked up, they are no linear maps.
TABLE = re.compile(r"emb|^wte$|^wpe$|^shared$|lm_head|^output$")


def is_map(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the matrix of a linear map: 2-D, and by its name no embedding and no output head."""
    parts = name.split(".")
    return len(shape) == 2 and min(shape) > 0 and TABLE.search(parts[-2] if len(parts) > 1 else parts[-1]) is None


def singular(matrix: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m r"], Float[Tensor, " r"], Float[Tensor, "r n"]]:
    """The singular value decomposition of a matrix up to its rank: what rounding leaves of zeros is left out.

    Singular vectors of the value 0 are arbitrary; nothing may depend on them.
    """
    if matrix.shape[0] < matrix.shape[1]:
        # Of a tall matrix it takes half the time.
        right, values, left = singular(matrix.T)
        return left.T, values, right.T
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    least = float(values[:1].sum()) * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    rank = int((values > least).count_nonzero())
    return left[:, :rank], values[:rank], right[:rank]


def orthogonalized(columns: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    """The orthonormal columns next to these (orthogonal Procrustes): U V^T of their decomposition U S V^T."""
    left, _, right = singular(columns)
    return left @ right


def mean(deltas: Sequence[Float[Tensor, " *shape"]]) -> Float[Tensor, " *shape"]:
    """The mean of task vectors."""
    return torch.stack(list(deltas)).mean(0)
