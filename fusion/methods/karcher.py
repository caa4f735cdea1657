"""The Karcher mean of the models' directions, with their mean length."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fusion.methods.call import Blocks, Place
from fusion.methods.geometry import combined, products
from fusion.methods.method import Compat, Method
from fusion.params import param

FORMULA = "theta = mean_i |theta_i| u,   u = argmin over unit vectors of sum_i arccos(<u, theta_i / |theta_i|>)^2"
PAPER = "Karcher 1977, Riemannian center of mass and mollifier smoothing, doi:10.1002/cpa.3160300502; after mergekit"

Numbers = npt.NDArray[np.float64]

# pi - omega below which the way along the sphere has no direction: less than float32 can tell from opposite.
OPPOSITE = 1e-6


@dataclass(frozen=True)
class Params:
    """Karcher's parameters."""

    max_iter: int = param(10, low=0, help="steps towards the mean at most")
    tol: float = param(1e-5, low=0.0, help="a step shorter than this, in radians, is the last")


def merge(
    models: list[Float[Tensor, " n"]],
    base: None,
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Fixed-point iteration on the sphere, from the normalised mean of the unit vectors u_i = theta_i / |theta_i|.

    1. logarithms   T = 1/N sum_i omega_i / sin(omega_i) (u_i - cos(omega_i) u),   omega_i = arccos <u, u_i>
    2. step         u <- cos(|T|) u + sin(|T|) T / |T|,   until |T| < tol or max_iter steps are made
    3. length       theta = mean_i |theta_i| u

    Every u is a linear combination of the models, so the steps are made on its coefficients, in float64. Models whose
    tensor is zero have no direction, and count in the mean length alone. A tensor opposite to u pulls it nowhere: of
    two opposite tensors the mean is in the first one's direction, where mergekit returns what rounding makes of it;
    it also counts a tensor no longer than tol as zero. `compat` repeats both.
    """
    return combined(models, None, at.found)


def survey(blocks: Blocks, weights: None, params: Params, at: Place) -> list[float]:
    """The models' factors, from the lengths of their tensors and the angles between them."""
    return _factors(products(blocks), params)


def _factors(inner: Float64[Tensor, "n n"], params: Params) -> list[float]:
    products = inner.numpy()
    lengths = np.sqrt(np.maximum(products.diagonal(), 0.0))
    used = lengths > 0
    if not used.any():
        return [0.0] * len(lengths)
    inverse = np.where(used, 1.0 / np.where(used, lengths, 1.0), 0.0)
    mean = _mean(products * np.outer(inverse, inverse), used, params)
    return [float(factor) for factor in mean * inverse * lengths.mean()]


def _mean(cosines: Numbers, used: npt.NDArray[np.bool_], params: Params) -> Numbers:
    """The coefficients of the mean of unit vectors with these inner products; those not `used` are zero vectors."""
    share = used / used.sum()
    size = _length(cosines, share)
    point = share / size if size >= max(params.tol, OPPOSITE) else np.eye(len(used))[int(used.argmax())]
    for _ in range(params.max_iter):
        near = np.clip(cosines @ point, -1.0, 1.0)
        angles = np.arccos(near)
        pulls = used & (angles >= params.tol) & (math.pi - angles >= OPPOSITE)
        pull = share * np.where(pulls, angles / np.where(pulls, np.sin(angles), 1.0), 0.0)
        tangent = pull - float(pull @ near) * point
        step = _length(cosines, tangent)
        if step < max(params.tol, np.finfo(np.float64).tiny):
            break
        point = math.cos(step) * point + math.sin(step) / step * tangent
        point = point / _length(cosines, point)
    return point


def _length(cosines: Numbers, vector: Numbers) -> float:
    return math.sqrt(max(float(vector @ cosines @ vector), 0.0))


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]], base: None, weights: None, params: Params, at: Place
) -> Float[Tensor, " *shape"]:
    """In float32 throughout, on the tensors themselves."""
    lengths = [torch.linalg.norm(theta) for theta in models]
    units = [theta / length for theta, length in zip(models, lengths, strict=True) if length > params.tol]
    if not units:
        return torch.zeros_like(models[0])
    mean = sum(unit * (1.0 / len(units)) for unit in units)
    size = torch.linalg.norm(mean)
    point = mean / size if size >= params.tol else units[0]
    for _ in range(params.max_iter):
        step = torch.zeros_like(point)
        for unit in units:
            cosine = torch.dot(point.reshape(-1), unit.reshape(-1)).clamp(-1.0, 1.0)
            angle = torch.acos(cosine)
            if angle >= params.tol:
                step = step + 1.0 / len(units) * (angle / torch.sin(angle)) * (unit - cosine * point)
        size = torch.linalg.norm(step)
        if size < params.tol:
            break
        point = torch.cos(size) * point + torch.sin(size) * (step / size)
        point = point / torch.linalg.norm(point)
    return sum(length * (1.0 / len(models)) for length in lengths) * point


METHOD = Method(
    name="karcher",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="none",
    models=(2, None),
    weights=False,
    version=1,
    unit="elements",
    survey=survey,
    compat=Compat(merge=_as_mergekit),
)
