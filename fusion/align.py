"""Two tokenizations of one text: which predictions of the one are predictions of the other.

A prediction of a model is a token together with the bytes before it. Two predictions are identical when as many bytes
of the text lie before both and both tokens stand for the same bytes. Only then is the one model's distribution over the
next token about the same choice as the other's: with equal prefixes alone a source that expects " unhappy" would teach
a target that has to say " un" that nothing fits.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Alignment:
    """For the target's tokens: the source's identical token or -1, and whether as many bytes lie before any of them.

    Token 0 is predicted by nothing and never aligned.
    """

    source: Int[np.ndarray, " n"]
    boundary: Bool[np.ndarray, " n"]


def align(
    target_ids: Int[np.ndarray, " n"],
    target_ends: Int[np.ndarray, " n"],
    source_ids: Int[np.ndarray, " m"],
    source_ends: Int[np.ndarray, " m"],
    mapping: Int[np.ndarray, " source_vocabulary"],
) -> Alignment:
    """Align one text, in time linear in its bytes.

    ids: tokens; ends: the byte at which each ends (`vocabulary.byte_ends`); mapping: source id to target id or -1.
    """
    aligned = np.full(len(target_ids), -1, np.int64)
    boundary = np.zeros(len(target_ids), bool)
    if len(target_ids) < 2 or len(source_ids) < 2:
        return Alignment(aligned, boundary)
    # at[b]: the source's prediction after b bytes. Tokens without bytes (BOS, an added space) share a beginning with
    # the next token, and the later assignment, which has seen them, wins.
    at = np.full(max(int(source_ends[-1]), int(target_ends[-1])) + 1, -1, np.int64)
    at[source_ends[:-1]] = np.arange(1, len(source_ids))
    found = at[target_ends[:-1]]
    boundary[1:] = found >= 0
    same = boundary[1:] & (mapping[source_ids[found]] == target_ids[1:])
    aligned[1:][same] = found[same]
    return Alignment(aligned, boundary)
