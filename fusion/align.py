"""Two tokenizations of one text: which predictions of the one are predictions of the other.

A prediction of a model is a token together with what lies before it.

`bytes`: two predictions are identical when as many bytes of the text lie before both and both tokens stand for the same
bytes. Only then is the one model's distribution over the next token about the same choice as the other's: with equal
beginnings alone a source that expects " unhappy" would teach a target that has to say " un" that nothing fits. So a
boundary at the same byte is needed before the token and after it. Linear in the text.

`min_ed` and `exact`: FuseLLM's dynamic programme (Wan et al., "Knowledge Fusion of Large Language Models", ICLR 2024,
arXiv:2401.10491, section 3.2) walks through both token sequences at the least sum of edit distances (`edit.warp`).
Where it puts exactly one source token j beside the target's token i, and the vocabulary map sends j's token to i's,
what the source predicts after j is taken for what the target has to predict after i. Here tokens are compared as the
bytes they stand for, less their spaces (the paper's code leaves out the marks for a space). Tokens without bytes stay
out of the programme: before the text (BOS) they meet each other, after it (EOS) by role. Quadratic in the length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Int

from fusion import edit
from fusion.errors import FusionError
from fusion.vocabulary import Alignments, Compat, Map, Vocabulary, as_characters, respelt, space_mark

# Predictions that begin at one byte (an added space, special tokens) are told apart up to this many.
TOGETHER = 4


@dataclass(frozen=True)
class Cut:
    """One document as one tokenizer cuts it, with the BOS and EOS that it has there.

    ids: its tokens; ends: the byte at which each ends (`vocabulary.byte_ends`), None where the tokenizer does not give
    the text back.
    """

    ids: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " n"] | None


@dataclass(frozen=True)
class Alignment:
    """For each of the target's tokens where the source predicts it.

    source: the index of the source's token whose prediction it is, or -1. boundary: whether the source predicts
    anything there (bytes: as many bytes lie before one of its tokens; else: exactly one of its tokens lies beside the
    target's last one), whatever the map then says. Token 0 is predicted by nothing and never aligned.
    """

    source: Int[np.ndarray, " n"]
    boundary: Bool[np.ndarray, " n"]


def aligner(
    alignment: Alignments, source: Vocabulary, target: Vocabulary, mapping: Map, compat: Compat | None = None
) -> Callable[[Cut, Cut], Alignment]:
    """What aligns a document: called with (target's cut, source's cut).

    mapping: `vocabulary_map` of the same alignment and compat. Under `bytes` a document without ends on either side is
    aligned nowhere.

    compat "fusellm-v1" follows FuseLLM's published code, for comparison only: tokens are compared as they are spelt,
    without the marks for a space and with special tokens among them. That code also has a known defect that is not
    about alignment: where nothing teaches the prediction of token i + 1 it trains the target on token i, its own input,
    instead. `fused.py` reproduces it for the tokens whose `source` is -1 here.

    Raises FusionError for compat with alignment bytes, which the published code does not know.
    """
    if compat is not None:
        if alignment == "bytes":
            raise FusionError("compat fusellm-v1: the published code aligns by min_ed or exact; choose one of them")
        return _published(source, target, mapping)
    same = _same_bytes(target)
    image = np.where(mapping.ids >= 0, same[mapping.ids], -1) if len(same) else mapping.ids
    if alignment == "bytes":
        return partial(_by_bytes, same=same, image=image)
    return _by_edits(source, target, same, image)


def _same_bytes(vocabulary: Vocabulary) -> Int[np.ndarray, " v"]:
    """For each id the first that stands for the same bytes; itself where it stands for none."""
    first: dict[bytes, int] = {}
    return np.asarray([first.setdefault(token, i) if token else i for i, token in enumerate(vocabulary.tokens)], int)


def _nothing(n: int) -> Alignment:
    return Alignment(np.full(n, -1, np.int64), np.zeros(n, bool))


# ---------------------------------------------------------------------------------------------------------------------
# By bytes


def _by_bytes(
    target: Cut,
    source: Cut,
    same: Int[np.ndarray, " target_vocabulary"],
    image: Int[np.ndarray, " source_vocabulary"],
) -> Alignment:
    found = _nothing(len(target.ids))
    if target.ends is None or source.ends is None or len(target.ids) < 2 or len(source.ids) < 2:
        return found
    begins, turn = _begins(target.ends)
    their_begins, their_turn = _begins(source.ends)
    # at[b, t]: the source's prediction after b bytes that t others at the same byte follow.
    at = np.full((max(int(begins[-1]), int(their_begins[-1])) + 1, TOGETHER), -1, np.int64)
    at[their_begins, their_turn] = np.arange(1, len(source.ids))
    there = at[begins, turn]
    found.boundary[1:] = at[begins, 0] >= 0
    equal = (there >= 0) & (image[source.ids[there]] == same[target.ids[1:]])
    found.source[1:][equal] = there[equal]
    return found


def _begins(ends: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n_less_one"], Int[np.ndarray, " n_less_one"]]:
    """Of all tokens but the first the byte at which they begin, and how many others follow that begin there."""
    begins = ends[:-1]
    last = np.searchsorted(begins, begins, side="right") - 1
    return begins, np.minimum(last - np.arange(len(begins)), TOGETHER - 1)


# ---------------------------------------------------------------------------------------------------------------------
# By edit distance


def _beside(
    target: Int[np.ndarray, " n"], source: Int[np.ndarray, " m"], of_target: list[str], of_source: list[str]
) -> Int[np.ndarray, " n"]:
    """For each of the target's tokens the one source token (its index) that lies beside it; -1 for none or several.

    target, source: tokens, as ids; of_target, of_source: the string of each id of a vocabulary.
    """
    kinds, columns = np.unique(target, return_inverse=True)
    their_kinds, rows = np.unique(source, return_inverse=True)
    cost = edit.distances([of_source[i] for i in their_kinds.tolist()], [of_target[i] for i in kinds.tolist()])
    rows, columns = edit.warp(cost, rows, columns)
    beside = np.full(len(target), -1, np.int64)
    beside[columns] = rows
    beside[np.bincount(columns, minlength=len(target)) != 1] = -1
    return beside


def _by_edits(
    source: Vocabulary,
    target: Vocabulary,
    same: Int[np.ndarray, " target_vocabulary"],
    image: Int[np.ndarray, " source_vocabulary"],
) -> Callable[[Cut, Cut], Alignment]:
    of_target, of_source = (
        [token.replace(" ", "") for token in as_characters(vocab, np.arange(len(vocab.tokens)))]
        for vocab in (target, source)
    )

    def align(ours: Cut, theirs: Cut) -> Alignment:
        found = _nothing(len(ours.ids))
        if not len(ours.ids) or not len(theirs.ids):
            return found
        own, other = target.lengths[ours.ids] > 0, source.lengths[theirs.ids] > 0
        at, their_at = np.flatnonzero(own), np.flatnonzero(other)
        beside = np.full(len(own), -1, np.int64)
        one = _beside(ours.ids[at], theirs.ids[their_at], of_target, of_source)
        beside[at[one >= 0]] = their_at[one[one >= 0]]
        mapped = np.zeros(len(own), bool)
        mapped[at] = image[theirs.ids[beside[at]]] == same[ours.ids[at]]
        # Before the text the last token without bytes stands beside the source's.
        before, their_before = _before(own), _before(other)
        if before and their_before:
            beside[before - 1], mapped[before - 1] = their_before - 1, True
        after = np.flatnonzero((beside[:-1] >= 0) & (beside[:-1] + 1 < len(other)))
        there = beside[after] + 1
        # What follows is text on both sides, or the same special token.
        special = ~own[after + 1] & ~other[there] & (image[theirs.ids[there]] == same[ours.ids[after + 1]])
        fits = (own[after + 1] & other[there]) | special
        found.boundary[after[fits] + 1] = True
        taught = fits & mapped[after]
        found.source[after[taught] + 1] = there[taught]
        return found

    return align


def _before(has_bytes: Bool[np.ndarray, " n"]) -> int:
    """How many tokens without bytes open a document, its last token (EOS) not counted."""
    if not len(has_bytes):
        return 0
    return int(np.argmax(has_bytes)) if has_bytes.any() else len(has_bytes) - 1


# ---------------------------------------------------------------------------------------------------------------------
# As FuseLLM's published code does


def _published(source: Vocabulary, target: Vocabulary, mapping: Map) -> Callable[[Cut, Cut], Alignment]:
    ours, theirs = space_mark(target), space_mark(source)
    of_target, of_source = (
        [(piece or "").replace(mark, "") for piece in vocab.pieces]
        for vocab, mark in ((target, ours), (source, theirs))
    )
    spelt = respelt(source, target)
    by_spelling = {piece: i for piece, i in zip(spelt, mapping.ids.tolist(), strict=True) if piece is not None}

    def image_of_first(own: int, other: int) -> int:
        """A byte-level source has no mark before a text's first word where sentencepiece has one: it gets one here."""
        piece, first = target.pieces[own] or "", spelt[other] or ""
        if theirs == "Ġ" and piece.startswith(ours) and not first.startswith(ours):
            return own if ours + first == piece else by_spelling.get(ours + first, -1)
        return int(mapping.ids[other])

    def align(own: Cut, other: Cut) -> Alignment:
        found = _nothing(len(own.ids))
        if not len(own.ids) or not len(other.ids):
            return found
        beside = _beside(own.ids, other.ids, of_target, of_source)
        image = np.where(beside >= 0, mapping.ids[other.ids[beside]], -1)
        if beside[0] >= 0:
            image[0] = image_of_first(int(own.ids[0]), int(other.ids[beside[0]]))
        after = np.flatnonzero((beside[:-1] >= 0) & (beside[:-1] + 1 < len(other.ids)))
        found.boundary[after + 1] = True
        taught = after[image[after] == own.ids[after]]
        found.source[taught + 1] = beside[taught] + 1
        return found

    return align
