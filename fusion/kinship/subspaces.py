"""How much of the leading singular vectors of their task vectors two models share.

phi = |U_a^T U_b|_F^2 / r is the share of one r-dimensional subspace that lies in the other (Hu et al. 2021, LoRA,
arXiv:2106.09685, section 7.2 and appendix G), r / d of two random ones among d dimensions. Given is the excess over
that, (phi - r/d) / (1 - r/d): 1 of the same subspaces, 0 of unrelated ones.
"""

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from fusion.methods.spectral import singular

# At most so many singular vectors are compared, and at most a quarter of a matrix's own.
LEADING, SHARE = 16, 4
# Of matrices this narrow all singular vectors are found; of wider ones the leading ones by a block Krylov method.
SMALL = 384
# Its blocks have some columns more than are wanted, and so many of them make its basis: with fewer, what two models
# share would be the random start. The start is the same for all, so that equal matrices have equal subspaces.
MORE, DEPTH, SEED = 8, 10, 0


def overlaps(matrices: Float32[Tensor, "models m n"]) -> Float64[Tensor, "2 models models"]:
    """For one matrix of every model: the overlap of each pair times its weight |D_a| |D_b|, and that weight.

    The overlap is the mean over left and right singular vectors; the weight that by which this matrix counts in the
    cosine of the whole task vectors. r = min(16, min(m, n) / 4, the ranks of both): 0, and no weight, where one is zero
    or the matrix too narrow.
    """
    count = len(matrices)
    found = torch.zeros(2, count, count, dtype=torch.float64)
    most = min(LEADING, min(matrices.shape[1:]) // SHARE)
    if most == 0:
        return found
    lengths = [float(matrix.double().norm()) for matrix in matrices]
    spaces = [leading(matrix, most) for matrix in matrices]
    for a in range(count):
        for b in range(a + 1):
            if min(spaces[a][0].shape[1], spaces[b][0].shape[1]):
                weight = lengths[a] * lengths[b]
                overlap = sum(_excess(u, v) for u, v in zip(spaces[a], spaces[b], strict=True)) / 2
                found[:, a, b] = found[:, b, a] = torch.tensor([overlap * weight, weight], dtype=torch.float64)
    return found


def leading(matrix: Float32[Tensor, "m n"], most: int) -> tuple[Float32[Tensor, "m r"], Float32[Tensor, "n r"]]:
    """The first left and right singular vectors, at most `most` of them and no more than the matrix's rank.

    Of a wide matrix by the randomised block Krylov method (Musco and Musco 2015, arXiv:1504.05477, algorithm 2).
    """
    if min(matrix.shape) <= SMALL:
        left, _, right = singular(matrix)
        return left[:, :most], right[:most].T
    basis = _krylov(matrix, most + MORE)
    left, _, right = singular(basis.T @ matrix)
    return basis @ left[:, :most], right[:most].T


def _krylov(matrix: Float32[Tensor, "m n"], width: int) -> Float32[Tensor, "m k"]:
    """An orthonormal basis of the blocks A W, (A A^T) A W, ..., (A A^T)^(DEPTH - 1) A W of a random W."""
    start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(SEED))
    blocks: list[Tensor] = [torch.linalg.qr(matrix @ start).Q]
    for _ in range(DEPTH - 1):
        known = torch.cat(blocks, dim=1)
        block = matrix @ (matrix.T @ blocks[-1])
        blocks.append(torch.linalg.qr(_without(_without(block, known), known)).Q)
    return torch.linalg.qr(torch.cat(blocks, dim=1)).Q


def _without(block: Float[Tensor, "m k"], known: Float[Tensor, "m j"]) -> Float[Tensor, "m k"]:
    return block - known @ (known.T @ block)


def _excess(u: Float32[Tensor, "d i"], v: Float32[Tensor, "d j"]) -> float:
    size = min(u.shape[1], v.shape[1])
    phi = float((u[:, :size].T.double() @ v[:, :size].double()).square().sum()) / size
    chance = size / len(u)
    return (phi - chance) / (1 - chance)
