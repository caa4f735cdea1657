"""The losses of a training: of the text alone, and of the text and what other models say of it (`fused.py`).

FuseLLM (Wan et al., "Knowledge Fusion of Large Language Models", ICLR 2024, arXiv:2401.10491, equation 6) trains a
target on L = lambda L_CLM + (1 - lambda) D(p_fused || p_target). D is taken over k + 1 buckets: the k tokens that the
fused distribution names, and all others together (the tail). Over all tokens it would need what nobody stored; over the
k alone it would not see what the target says beside them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion.fused import Fused

Divergence = Literal["forward_kl", "reverse_kl", "js"]

# Logits that are looked at together: what a CPU's cache holds, and what keeps a GPU busy. Changes no number.
CHUNK = {"cpu": 1 << 17, "cuda": 1 << 26}

# The least probability that a target tells from 0 (`Fused` keeps them in half precision).
LEAST = 2.0**-24


@runtime_checkable
class Objective(Protocol):
    """A loss over the predicted tokens of a batch, n of them.

    A step's batch may come in pieces, and to several processes: `totals` says what of a batch its means divide by, and
    under "totals" a piece gets the sums over the whole step. The losses of the pieces then add up to the step's, and so
    do the parts.
    """

    @property
    def identity(self) -> str:
        """What a checkpoint must share to be resumed under this loss."""

    def about(self, token: Int[np.ndarray, " n"]) -> dict[str, Tensor]:
        """What the loss needs to know of the predicted tokens, given by their index in the corpus."""

    def totals(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the loss's means divide by, as numbers on the batch's device."""

    def loss(
        self, logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss, and its parts by name for the curves. `batch` holds the target, too, and what `about` gave."""


class CausalLM:
    """Next-token cross-entropy in nats, averaged over tokens."""

    identity = "clm"

    def about(self, token: Int[np.ndarray, " n"]) -> dict[str, Tensor]:
        return {}

    def totals(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"tokens": _tokens(batch)}

    def loss(
        self, logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        each = logits.logsumexp(-1) - logits.gather(-1, target[:, None]).squeeze(-1)
        return each.sum() / _totals(self, batch)["tokens"], {}


class FusionLoss:
    """lambda L_CLM + (1 - lambda) D(p_fused || p_target); the parts are called clm, fusion and aligned.

    L_CLM is averaged over the predicted tokens, D over those of weight 1; aligned is the share that a source taught. A
    token that none taught has its label for a target (`Fused`), which is no distribution: it is learnt by
    cross-entropy under every divergence. Forward KL is that; reverse KL from a label is infinite, and the gradient of
    JS vanishes just where the label is thought unlikely.
    """

    def __init__(self, fused: Fused, lambda_: float, divergence: Divergence, identity: str) -> None:
        self.fused, self.lambda_, self.divergence, self.identity = fused, lambda_, divergence, identity

    def about(self, token: Int[np.ndarray, " n"]) -> dict[str, Tensor]:
        p = np.concatenate([self.fused.probs[token], self.fused.tail[token, None]], -1).astype(np.float32)
        # Half precision leaves a sum that is off by some 1e-4.
        p /= np.maximum(p.sum(-1, keepdims=True), LEAST)
        return {
            "fused_ids": torch.from_numpy(self.fused.ids[token].astype(np.int64)),
            "fused_probs": torch.from_numpy(p),
            "fused_weight": torch.from_numpy(self.fused.weight[token].astype(np.float32)),
            "fused_taught": torch.from_numpy(np.array(self.fused.taught[token])),
        }

    def totals(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"tokens": _tokens(batch), "fused_weight": batch["fused_weight"].sum()}

    def loss(
        self, logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        totals = _totals(self, batch)
        ids, p, weight, taught = (batch[f"fused_{name}"] for name in ("ids", "probs", "weight", "taught"))
        # At lambda 1 the divergence is only looked at, and the text's loss is CausalLM's own, to the bit.
        alone = self.lambda_ == 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not alone):
            log_q, log_true = bucket_log_probs(logits, ids, target)
            divergence = forward_kl(p, log_q, ids)
            if self.divergence != "forward_kl":
                divergence = torch.where(taught, DIVERGENCES[self.divergence](p, log_q, ids), divergence)
            fusion = (weight * divergence).sum() / totals["fused_weight"].clamp(min=1)
        clm = CausalLM().loss(logits, target, batch)[0] if alone else -log_true.sum() / totals["tokens"]
        total = clm if alone else self.lambda_ * clm + (1 - self.lambda_) * fusion
        return total, {"clm": clm, "fusion": fusion, "aligned": taught.sum() / totals["tokens"]}


def _tokens(batch: Mapping[str, Any]) -> Float[Tensor, ""]:
    target: Tensor = batch["target"]
    return torch.tensor(float(max(1, len(target))), device=target.device)


def _totals(objective: Objective, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
    return batch["totals"] if "totals" in batch else objective.totals(batch)


# ---------------------------------------------------------------------------------------------------------------------
# Divergences. In all of them an id may come again in its row's later places, with probability 0, to fill a row that
# names fewer than k; only an id's first place counts.


def forward_kl(
    p: Float[Tensor, "n buckets"], log_q: Float[Tensor, "n buckets"], ids: Int[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """KL(p || q) = sum_b p_b log(p_b / q_b), in nats."""
    return (torch.xlogy(p, p) - p * log_q).sum(-1)


def reverse_kl(
    p: Float[Tensor, "n buckets"], log_q: Float[Tensor, "n buckets"], ids: Int[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """KL(q || p) = sum_b q_b log(q_b / p_b), in nats; p_b at least 2^-24.

    A softmax gives no token probability 0: a bucket of 0 is one below what the target's half precision holds.
    """
    q = log_q.exp() * _once(ids)
    return (q * (log_q - p.clamp(min=LEAST).log())).sum(-1)


def js(
    p: Float[Tensor, "n buckets"], log_q: Float[Tensor, "n buckets"], ids: Int[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Jensen-Shannon: (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats; at most log 2."""
    q = log_q.exp() * _once(ids)
    log_m = torch.logaddexp(p.log(), log_q) - math.log(2)
    return (torch.xlogy(p, p) - p * log_m + q * (log_q - log_m)).sum(-1) / 2


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "js": js,
}


def _repeats(ids: Int[Tensor, "n k"]) -> Bool[Tensor, "n k"]:
    """Places that fill a row: those where its first id comes again."""
    repeats = ids == ids[:, :1]
    repeats[:, 0] = False
    return repeats


def _once(ids: Int[Tensor, "n k"]) -> Float[Tensor, "n buckets"]:
    """1 for a bucket that counts, 0 for a place that fills."""
    return torch.nn.functional.pad((~_repeats(ids)).float(), (0, 1), value=1.0)


def bucket_log_probs(
    logits: Float[Tensor, "n v"], ids: Int[Tensor, "n k"], target: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n buckets"], Float[Tensor, " n"]]:
    """log q of the k ids and, last, of all other tokens together; and of the target: q is the softmax of the logits.

    No [n, v] beside the logits: only their gradient is as large. k must be less than v.
    """
    log_q, log_true = _Buckets.apply(logits, ids, target)
    return log_q, log_true


class _Buckets(torch.autograd.Function):
    """With z the logits, r the tokens that are not named and q_r their probability:

    d log q_b / dz_i = [i = b] - q_i,   d log q_r / dz_i = [i in r] q_i / q_r - q_i.

    The tail is summed from its own logits and relative to its own maximum: 1 minus the sum of the named would have
    neither digits nor a gradient left where the tail is small.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        top = logits.new_empty(len(logits))
        total = logits.new_empty(len(logits))
        for rows in _chunks(logits):
            rest = logits[rows].clone().scatter_(-1, ids[rows], -torch.inf)
            torch.amax(rest, -1, out=top[rows])
            torch.sum(rest.sub_(top[rows, None]).exp_(), -1, out=total[rows])
        at = logits.gather(-1, ids)
        named = at.masked_fill(_repeats(ids), -torch.inf)
        highest = torch.maximum(top, named.amax(-1))
        log_sum = (total * (top - highest).exp() + (named - highest[:, None]).exp().sum(-1)).log()
        buckets = torch.cat([at, top[:, None]], -1) - highest[:, None]
        buckets[:, -1] += total.log()
        log_q = buckets - log_sum[:, None]
        log_true = logits.gather(-1, target[:, None])[:, 0] - highest - log_sum
        ctx.save_for_backward(logits, ids, target, top, total, log_q)
        return log_q, log_true

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_q: Tensor, by_true: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, target, top, total, log_q = ctx.saved_tensors
        mass = by_q.sum(-1) + by_true
        q = log_q.exp()
        scale = (by_q[:, -1] - mass * q[:, -1]) / total
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            part = torch.sub(logits[rows], top[rows, None], out=gradient[rows])
            part.scatter_(-1, ids[rows], -torch.inf).exp_().mul_(scale[rows, None])
        named = by_q[:, :-1] - mass[:, None] * q[:, :-1].masked_fill(_repeats(ids), 0)
        gradient.scatter_add_(-1, ids, named)
        gradient.scatter_add_(-1, target[:, None], by_true[:, None])
        return gradient, None, None


def _chunks(logits: Float[Tensor, "n v"]) -> list[slice]:
    n, v = logits.shape
    size = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // v)
    return [slice(start, start + size) for start in range(0, n, size)]
