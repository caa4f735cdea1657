"""Random numbers that depend on nothing but (seed, tensor, model, position)."""

import hashlib
import json

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place

# Numbers that one step of Philox's counter gives: four of 64 bits, each split in two.
A_STEP = 8
STATES = 1 << 32

Uniform = npt.NDArray[np.int32]


def key(seed: int, tensor: str, model: int) -> int:
    """The key of a stream, 128 bits of SHA-256 over the seed, the tensor's name and the model's position."""
    digest = hashlib.sha256(json.dumps([seed, tensor, model]).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def uniform(at: Place, model: int, count: int) -> Uniform:
    """`count` integers for the block that begins at `at.start`, uniform over all of int32.

    Philox 4x64 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3) is counted, not stepped through: the
    number at a position is a function of the key and the position, so blocks can be drawn in any order and size.
    """
    step, skip = divmod(at.start, A_STEP)
    stream = np.random.Generator(np.random.Philox(key=key(at.seed, at.tensor, model), counter=step))
    wide = stream.integers(0, 1 << 64, -(-(skip + count) // 2), dtype=np.uint64)
    return wide.astype("<u8", copy=False).view("<i4")[skip : skip + count]


def bernoulli(at: Place, model: int, density: float, like: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 with probability `density`, in steps of 2^-32, and 0 otherwise, for every entry of a block.

    Drawn on the CPU, wherever the block is. Density 0 gives zeros and density 1 ones.
    """
    limit = int(bounds(np.array([density]))[0])
    drawn = uniform(at, model, like.numel()) < limit
    return torch.from_numpy(drawn.astype(np.float32)).to(like.device)


def bounds(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """What a uniform int32 is below with each of these probabilities."""
    return np.rint(probabilities * STATES).astype(np.int64) - STATES // 2
