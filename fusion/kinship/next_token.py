"""Jensen-Shannon divergence of what two models expect next, from their sparse stores (`teachers.py`).

Tokenizers may differ. Two predictions are compared where both models have read the same bytes and the tokens that come
stand for the same bytes (`align.py`, `bytes`), and of their distributions the tokens that stand for the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion.corpus import Document
from fusion.kinship.probed import Divergence
from fusion.listening import Block, Reading, Voice
from fusion.teachers import Store

# Numbers of the largest array that is held at once: k * k a position.
NUMBERS = 1 << 24


@dataclass(frozen=True)
class Said:
    """What a model expects of some texts: its store, its tokenizer, and the texts as that cuts them."""

    store: Store
    reading: Reading
    blocks: Sequence[Block]


def said(store: Store, tokenizer: object, documents: Sequence[Document]) -> Said:
    """The store of a model with its texts. Raises FusionError for a tokenizer whose tokens have no exact bytes."""
    reading = Reading(tokenizer)
    return Said(store, reading, list(reading.blocks(documents, "all")))


def divergence(first: Said, second: Said) -> Divergence:
    """The mean Jensen-Shannon divergence, 0 to 1 bit, over the positions where the two models are aligned.

    At each it is the least divergence of any two distributions that say what the two stores say (`js`): a lower bound,
    and the divergence itself where the stores name the whole vocabulary. Ids with the same bytes count as one token,
    and a token that only one of the vocabularies has as not named: where tokens differ, so may their cuts of the same
    words. Stores hold three digits of each probability's logarithm.

    aligned: of the predictions of the model that makes more of them, the share compared. A document that a tokenizer
    does not give back byte by byte is compared only with a model of the same tokenizer.
    """
    voice = Voice("", first.store, first.reading, second.reading, "bytes", None, _documents(second.blocks))
    found = np.concatenate([voice.hear(a, b)[0] for a, b in zip(first.blocks, second.blocks, strict=True)])
    at = np.flatnonzero(found >= 0)
    of_first, of_second = _tokens(voice, second)
    total = 0.0
    step = max(1, NUMBERS // max(first.store.meta["top_k"], second.store.meta["top_k"]) ** 2)
    for start in range(0, len(at), step):
        here = at[start : start + step]
        total += float(js(_known(first.store, found[here], of_first), _known(second.store, here, of_second)).sum())
    predictions = max(int(sum(block.counted.sum() for block in own.blocks)) for own in (first, second))
    return Divergence(total / len(at) if len(at) else None, len(at) / predictions if predictions else 0.0)


Known = tuple[Int[np.ndarray, "n _"], Float[np.ndarray, "n _"], Float[np.ndarray, " n"]]


def js(first: Known, second: Known) -> Float[np.ndarray, " n"]:
    """The divergence, in bits, that each of n pairs of distributions has at least: tokens (-1: of one vocabulary only),
    their probabilities, and the probability of all others.

    What only one distribution names, a and b in all, may take any share of what the other leaves unnamed, s and t. The
    divergence is least where all shares are in one proportion, as if all of it were one token; where a b > s t, no
    shares are, and it is least where a meets the whole of t, and b the whole of s.
    """
    (tokens, p, s), (their_tokens, q, t) = _merged(*first), _merged(*second)
    same = (tokens[:, :, None] == their_tokens[:, None, :]) & (tokens >= 0)[:, :, None]
    here, there = same.any(2), same.any(1)
    named = np.stack([np.where(here, p, 0.0), (same * q[:, None, :]).sum(2)], 1)
    a, b = np.where(here, 0.0, p).sum(1), np.where(there, 0.0, q).sum(1)
    apart = a * b > s * t
    rest = np.stack([np.where(apart, [a, t], [a + s, b + t]), np.where(apart, [s, b], 0.0)], 2).swapaxes(0, 1)
    full = np.concatenate([named, rest], 2)
    full /= full.sum(2, keepdims=True)
    mean = full.mean(1, keepdims=True)
    ratio = np.divide(full, mean, out=np.ones_like(full), where=full > 0)
    bits: np.ndarray = (full * np.log2(ratio)).sum(2).mean(1)
    return np.maximum(bits, 0.0)


def _merged(
    tokens: Int[np.ndarray, "n k"], probs: Float[np.ndarray, "n k"], rest: Float[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
    """Each token once, at its first place with the sum of its probabilities; those of no token go to the rest."""
    named = tokens >= 0
    equal = (tokens[:, :, None] == tokens[:, None, :]) & named[:, :, None]
    first: Bool[np.ndarray, "n k"] = named & (equal.argmax(2) == np.arange(tokens.shape[1]))
    summed = (equal * probs[:, None, :]).sum(2) * first
    return np.where(first, tokens, -1), summed, rest + np.where(named, 0.0, probs).sum(1)


def _known(store: Store, rows: Int[np.ndarray, " n"], tokens: Int[np.ndarray, " v"]) -> Known:
    ids, log_probs, log_tail = store.top(rows)
    return tokens[ids], np.exp(log_probs), np.exp(log_tail)


def _tokens(voice: Voice, second: Said) -> tuple[Int[np.ndarray, " v"], Int[np.ndarray, " w"]]:
    """For each output of either model the token it stands for, as the second's first id of the same bytes.

    -1 for what the other model's tokenizer does not have.
    """
    outputs = second.store.meta["vocabulary"]
    if voice.same:
        # One tokenizer: outputs beyond its tokens are the same to both as well.
        every = np.arange(max(outputs, voice.store.meta["vocabulary"]))
        return every, every
    lowest: dict[bytes, int] = {}
    known = second.reading.vocabulary.tokens
    of_second = [lowest.setdefault(token, i) if token else i for i, token in enumerate(known)]
    own = np.pad(np.asarray(of_second, np.int64), (0, max(0, outputs - len(known))), constant_values=-1)
    of_first = np.where(voice.images >= 0, own[voice.images], -1)
    return of_first, np.where(np.isin(own, of_first), own, -1)


def _documents(blocks: Sequence[Block]) -> int:
    return sum(len(block.cuts) for block in blocks)
