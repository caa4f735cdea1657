"""Live models read as one over a stretch of a corpus: the k most probable next tokens at each position, and the tail.

Several models are read by the mean of their logits (Lin et al., "Ensemble Distillation for Robust Model Fusion in
Federated Learning", NeurIPS 2020, arXiv:2006.07242, algorithm 1).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion import corpus
from fusion.corpus import Rows, Tokens
from fusion.errors import FusionError
from fusion.packing import forward, packs, positions, unpack

LONGEST = 2048  # tokens of context, whatever the models could take
PART = 1 << 20  # logits that are made into probabilities at a time
# Tokens of one forward pass, and numbers in its logits, at most. On a CPU the same wherever it runs, because sums of
# another shape end in other digits; on a GPU as many as fit into a share of what is free.
FORWARD, LOGITS = 1 << 13, 1 << 28
FORWARD_GPU, FREE_GPU = 1 << 16, 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What is predicted of some tokens, given by their index [n], in natural logarithms.

    log_probs [n, k] in falling order, of tokens ids [n, k]; log_tail [n]: of all others together; true [n]: of the
    token that came.
    """

    index: Int[np.ndarray, " n"]
    ids: Int[np.ndarray, "n k"]
    log_probs: Float[np.ndarray, "n k"]
    log_tail: Float[np.ndarray, " n"]
    true: Float[np.ndarray, " n"]


class Reader:
    """Models by name, on one device, that share a tokenizer.

    vocabulary: outputs of their heads. halved: how often a forward pass did not fit into memory.
    """

    def __init__(self, live: Mapping[str, Any], top_k: int) -> None:
        self.live, self.top_k = dict(live), top_k
        self.device = next(iter(self.live.values())).device
        self.vocabulary = self._vocabulary()
        self.context = min(LONGEST, *(positions(model) or LONGEST for model in self.live.values()))
        self.together = all(packs(model) for model in self.live.values())
        self.halved = 0
        self._tokens = self._fitting()

    def read(self, tokens: Tokens, first: int) -> Iterator[Said]:
        """What is said of all predicted tokens, batch by batch; `first` is the first document's place in the corpus.

        Raises FusionError for logits that are not finite, an id that the models do not have, and a single row that does
        not fit into memory.
        """
        if tokens.ids.max(initial=0) >= self.vocabulary:
            raise FusionError(
                f"{self._names()}: the tokenizer gives id {tokens.ids.max():,}, and there are {self.vocabulary:,} "
                "outputs; the tokenizer is another model's"
            )
        rows, widest = self._rows(tokens)
        start = 0
        while start < len(rows.packed):
            width = int(widest[start])
            numbers = range(len(rows.packed))[start : start + max(1, self._tokens // width)]
            try:
                said = self._forward(replace(rows, context=width)(numbers), tokens, first)
            except torch.OutOfMemoryError:
                said = None  # what the pass took is given back only when its error is gone
            if said is None:
                self._halve(len(numbers), width)
                continue
            yield said
            start = numbers.stop

    def _rows(self, tokens: Tokens) -> tuple[Rows, Int[np.ndarray, " rows"]]:
        """Rows of packed documents, or of one piece each, longest first; and the longest of the rows from each on."""
        context = min(self.context, max(2, int(np.diff(tokens.starts).max(initial=2))))
        pieces = corpus.cut(tokens, context, "all")
        if self.together:
            packed = corpus.pack_once(pieces.length, context)
        else:
            packed = np.argsort(-pieces.length, kind="stable")[:, None].tolist()
        filled = np.asarray([pieces.length[row].sum() for row in packed], np.int64)
        everything = np.broadcast_to(np.True_, len(tokens.ids))
        rows = Rows(tokens, pieces, packed, everything, context, 0, lambda index: {"index": torch.from_numpy(index)})
        return rows, np.maximum.accumulate(filled[::-1])[::-1]

    def _forward(self, batch: Mapping[str, Any], tokens: Tokens, first: int) -> Said:
        batch = batch if self.together else unpack(batch)
        given = {name: batch[name].to(self.device) for name in ("position_ids", "attention_mask") if name in batch}
        ids, at, target = (batch[name].to(self.device) for name in ("input_ids", "at", "target"))
        index = batch["index"].numpy()
        with torch.inference_mode():
            logits = [forward(model, ids, **given).flatten(0, 1) for model in self.live.values()]
            some = max(1, PART // self.vocabulary)
            parts = [
                summarise(mean_at(logits, at[start : start + some]), target[start : start + some], self.top_k)
                for start in range(0, len(at), some)
            ]
            log_probs, best, log_tail, true = (torch.cat(column) for column in zip(*parts, strict=True))
            bad = torch.nonzero(~torch.isfinite(true)).flatten().tolist()
            if bad:
                number = first + int(np.searchsorted(tokens.starts, index[bad[0]], "right"))
                raise self._spoilt([one[at[bad[0]]] for one in logits], number)
            # Three digits of a logarithm, so of a probability where it matters: 0.4 % of one of e^-10.
            log_probs, log_tail = log_probs.half(), log_tail.half()
        return Said(index, *(column.cpu().numpy() for column in (best, log_probs, log_tail, true)))

    def _halve(self, rows: int, width: int) -> None:
        if rows == 1:
            raise FusionError(
                f"{self._names()}: a forward pass over one row of {width:,} tokens does not fit into memory; "
                "read this corpus on a device with more of it, or split the long documents"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.halved += 1
        self._tokens = rows // 2 * width
        log.warning("%s: out of memory; going on with %d rows of %d tokens", self._names(), rows // 2, width)

    def _spoilt(self, logits: list[Float[Tensor, " v"]], document: int) -> FusionError:
        """The error that names who gave logits that are not finite."""
        for (name, model), own in zip(self.live.items(), logits, strict=True):
            if not bool(torch.isfinite(own).all()):
                return FusionError(
                    f"{name}: its logits are not finite at document {document} of the corpus; its weights are damaged, "
                    f"or {str(model.dtype).removeprefix('torch.')} is too narrow for it"
                )
        return FusionError(f"{self._names()}: the mean of logits is not finite at document {document} of the corpus")

    def _vocabulary(self) -> int:
        two = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with torch.inference_mode():
            sizes = {name: forward(model, two).shape[-1] for name, model in self.live.items()}
        size = min(sizes.values())
        if size != max(sizes.values()):
            found = ", ".join(f"{name} has {own:,}" for name, own in sizes.items())
            raise FusionError(f"a mean of logits needs models of as many outputs; {found}")
        if size <= self.top_k:
            raise FusionError(f"{self._names()}: has {size} tokens; top_k must be less, and is {self.top_k}")
        return size

    def _fitting(self) -> int:
        """Tokens of a forward pass that should fit into memory."""
        heads = self.vocabulary * len(self.live)
        if self.device.type == "cpu":
            return min(FORWARD, LOGITS // heads)
        free, _ = torch.cuda.mem_get_info(self.device)
        # Logits twice, because some heads widen them; and several times a layer's width.
        layer = max(32 * model.get_input_embeddings().weight.shape[1] for model in self.live.values())
        size = max(model.dtype.itemsize for model in self.live.values())
        return min(FORWARD_GPU, int(FREE_GPU * free) // (size * (2 * heads + layer)))

    def _names(self) -> str:
        return " and ".join(self.live)


def mean_at(logits: list[Float[Tensor, "slots v"]], at: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
    """The mean of several models' logits at some slots: a float32 copy."""
    picked = (one.index_select(0, at).float() for one in logits)
    return reduce(Tensor.add_, picked).div_(len(logits))


def summarise(
    logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], top_k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-probabilities and ids of the k most probable tokens, the log-probability of all others, the target's.

    The logits are written over.
    """
    top, ids = logits.topk(top_k, -1)
    true = logits.gather(-1, target[:, None]).squeeze(-1)
    # From the tail's own logits: 1 minus the top's probabilities would lose all digits of a small tail.
    tail = logits.scatter_(-1, ids, -torch.inf).logsumexp(-1)
    log_sum = torch.logaddexp(top.logsumexp(-1), tail)
    return top - log_sum[:, None], ids, tail - log_sum, true - log_sum
