"""The targets that several models' distributions are fused into, one for every token that a training predicts.

FuseLLM (Wan et al., "Knowledge Fusion of Large Language Models", ICLR 2024, arXiv:2401.10491, section 3.2) fuses the
distributions of its sources by their cross-entropy on a text: MinCE takes the source of the lowest, AvgCE the mean
weighted by softmax(-cross-entropy). The cross-entropy is in bits per byte here, because that per token favours whoever
cuts the text into more tokens.

Two passes, neither of which holds more than some numbers a document: the first reads the corpus with all tokenizers
side by side (`listening.py`), the second weighs, carries over and mixes (`mixing.py`).

Under `compat: fusellm-v1` it is done as the published code does it, defects included, to be compared with. The k
probabilities are scaled to sum 1; of ids with the same image the first stays; cross-entropies are in nats per own
token, weights come from exp(-cross-entropy); and where a source is not aligned, it says for certain that the token
BEFORE the predicted one comes again. Not reproduced are its half-precision sums, the tokens after the end of a text,
and that documents are packed before they are compared (`per: block` is the nearest).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, UInt

from fusion import mixing, vocabulary
from fusion.corpus import Document, Loss
from fusion.errors import FusionError, RecipeError
from fusion.listening import Column, Reading, Voice
from fusion.mixing import Fusion
from fusion.teachers import Store
from fusion.training import Progress
from fusion.vocabulary import Alignments, Compat

# Tokens that are fused at a time: bounds the memory, changes no target.
BLOCK = 1 << 16

# Share of what a source says that has no image in the target's vocabulary: above the first a warning, at most.
UNMAPPED, TOO_MUCH = 0.5, 0.9
# Share of the positions that a source should be aligned at, and of documents that may be unreadable.
ALIGNED, UNREADABLE = 0.1, 0.5

PUBLISHED = (
    "compat fusellm-v1 reproduces the published code with its known defects, for comparison only: where a source is "
    "not aligned, the target is taught to repeat the token before"
)


@dataclass(frozen=True)
class How:
    """How to fuse. per: what the sources are compared over; block: whole documents of at least `context` tokens.

    fallback: what a token learns that no weighted source teaches: itself, or nothing.
    """

    fusion: Fusion
    per: Literal["document", "block", "token"]
    alignment: Alignments
    fallback: Literal["next_token", "drop"]
    loss: Loss
    top_k: int
    context: int
    compat: Compat | None


@dataclass(frozen=True)
class Source:
    """A model to learn from: what it said of the corpus, and the tokenizer that it read it with."""

    name: str
    store: Store
    tokenizer: Any


@dataclass(frozen=True)
class Fused:
    """Targets for the tokens of the target's corpus: k ids with probabilities, in falling order, and the tail's.

    A row that names fewer than k is filled with its first id at probability 0. weight: whether there is anything to
    learn; taught: whether from a source. What has weight but no source has its label for a target, at probability 1;
    tokens that the loss is not about are all zero. Probabilities are in half precision, which from 2^-14 on is finer
    than a store's half-precision logarithms: 44 bytes a token at k = 10 and 65,536 tokens or fewer.
    """

    ids: UInt[np.ndarray, "n k"]
    probs: Float16[np.ndarray, "n k"]
    tail: Float16[np.ndarray, " n"]
    weight: Bool[np.ndarray, " n"]
    taught: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class _Heard:
    """What the first pass leaves. ids, counted: of the target; rows, scores: of each source at the target's tokens."""

    reading: Reading
    voices: Sequence[Voice]
    starts: Int[np.ndarray, " documents_and_one"]
    ids: Int[np.ndarray, " n"]
    counted: Bool[np.ndarray, " n"]
    rows: Sequence[Int[np.ndarray, " n"]]
    scores: Sequence[Float[np.ndarray, " n"]]


def fuse(
    tokenizer: Any, sources: Sequence[Source], documents: Sequence[Document], how: How, folder: Path, progress: Progress
) -> tuple[Fused, dict[str, Any]]:
    """The fused target of every token that the loss is about, memory-mapped in `folder`, and a report.

    A source with the target's own vocabulary is aligned token by token. Of all others, under `alignment: bytes`, a
    document that one of the two tokenizers does not give back byte by byte is left out. Ids with the same image are
    summed, what has no image goes to the tail. Per token, sources are compared where they are aligned, by -log2 p of
    their token there per byte of it. Where only an EOS is predicted, it counts as one byte.

    Report: positions (tokens that the loss is about) and of them the shares aligned (taught by a weighted source),
    fallback and dropped; by source its mean weight over documents and over positions, bits per byte (mean over
    documents), the shares of positions aligned and with a shared boundary, of its vocabulary by types and by use, of
    the probability that it names what has no image, and its models' digests; unreadable documents; warnings.

    Raises RecipeError for `per: token` under compat; FusionError for an empty corpus, a store of another text, a
    tokenizer that does not give back half of the documents, a source of whose say over 90 % has no image.
    """
    if how.compat and how.per == "token":
        raise RecipeError(f"compat {how.compat}: the published code compares documents or blocks; per: token is ours")
    if not documents or not sources:
        raise FusionError(f"nothing to fuse: {len(documents)} documents and {len(sources)} sources")
    folder.mkdir(parents=True, exist_ok=True)
    heard = _listen(tokenizer, sources, documents, how, folder, _half(progress, 0))
    warnings = _check(heard, how, len(documents))
    weights = None if how.per == "token" else mixing.choose(_by_document(heard, how), how.fusion)
    fused, given = _write(heard, weights, how, folder, _half(progress, 1))
    for file in folder.glob("heard.*"):
        file.unlink()
    return fused, _report(heard, fused, weights, given, warnings)


def _half(progress: Progress, which: int) -> Progress:
    """One of the two passes, in thousandths of both."""
    return lambda done, of: progress(500 * which + 500 * done // max(of, 1), 1000)


# ---------------------------------------------------------------------------------------------------------------------
# First pass


def _listen(
    tokenizer: Any, sources: Sequence[Source], documents: Sequence[Document], how: How, folder: Path, progress: Progress
) -> _Heard:
    readings = {id(tokenizer): Reading(tokenizer)}
    for source in sources:
        readings.setdefault(id(source.tokenizer), Reading(source.tokenizer))
    target = readings[id(tokenizer)]
    voices = [
        Voice(
            source.name, source.store, readings[id(source.tokenizer)], target, how.alignment, how.compat, len(documents)
        )
        for source in sources
    ]
    ids, counted = Column(folder / "heard.ids", np.int32), Column(folder / "heard.counted", np.bool_)
    rows = [Column(folder / f"heard.rows.{i}", np.int64) for i in range(len(voices))]
    scores = [Column(folder / f"heard.scores.{i}", np.float64) for i in range(len(voices))]
    lengths = [np.zeros(1, np.int64)]
    blocks = [reading.blocks(documents, how.loss) for reading in readings.values()]
    done = 0
    for some in zip(*blocks, strict=True):
        by_tokenizer = dict(zip(readings, some, strict=True))
        own = by_tokenizer[id(tokenizer)]
        for source, voice, row, score in zip(sources, voices, rows, scores, strict=True):
            found, bits = voice.hear(by_tokenizer[id(source.tokenizer)], own)
            row.append(found)
            if how.per == "token":
                score.append(bits)
        ids.append(own.tokens.ids)
        counted.append(own.counted)
        lengths.append(np.diff(own.tokens.starts))
        done += len(own.cuts)
        progress(done, len(documents))
    for voice in voices:
        voice.check_rows()
    mapped = [score.mapped() for score in scores] if how.per == "token" else []
    starts = np.cumsum(np.concatenate(lengths))
    return _Heard(target, voices, starts, ids.mapped(), counted.mapped(), [row.mapped() for row in rows], mapped)


def _check(heard: _Heard, how: How, documents: int) -> list[str]:
    """Warnings. Raises FusionError for what makes a fusion pointless."""
    others = [voice for voice in heard.voices if not voice.same]
    if how.alignment == "bytes" and others:
        named = [("the target", heard.reading), *((voice.name, voice.reading) for voice in others)]
        for name, reading in named:
            if reading.unreadable > UNREADABLE * documents:
                raise FusionError(
                    f"{name}: its tokenizer does not give back {reading.unreadable} of {documents} documents byte by "
                    f"byte; {reading.reason}"
                )
    warnings = [PUBLISHED] if how.compat else []
    positions = int(heard.counted.sum())
    for voice in heard.voices:
        lost = voice.lost / voice.named if voice.named else 0.0
        if lost > TOO_MUCH:
            raise FusionError(
                f"{voice.name}: {lost:.0%} of what it says has no image in the target's vocabulary, over "
                f"{TOO_MUCH:.0%}; nothing is left to learn from it. Leave it out, or use alignment: min_ed"
            )
        if lost > UNMAPPED:
            warnings.append(f"{voice.name}: {lost:.0%} of what it says has no image in the target's vocabulary")
        if voice.aligned < ALIGNED * positions:
            warnings.append(f"{voice.name}: aligned at only {voice.aligned / positions:.1%} of the positions")
    return warnings


# ---------------------------------------------------------------------------------------------------------------------
# Second pass


def _by_document(heard: _Heard, how: How) -> Float[np.ndarray, "sources documents"]:
    """Scores by which sources are chosen, of each document; infinite where a source is out."""
    teaches = np.stack([voice.teaches for voice in heard.voices])
    lengths = np.diff(heard.starts)
    blocks = mixing.blocks(lengths, how.context) if how.per == "block" else np.arange(len(lengths))

    def total(values: Sequence[Float[np.ndarray, " documents"]]) -> Float[np.ndarray, "sources documents"]:
        rows = np.where(teaches, np.stack(values), 0.0)
        return np.stack([np.bincount(blocks, row)[blocks] for row in rows])

    if how.compat:
        # A packed block's cross-entropy there: its documents' means per own token, weighted by the target's tokens.
        nats = [voice.all_bits * np.log(2) / np.maximum(voice.tokens, 1) for voice in heard.voices]
        extent = [np.where(voice.tokens > 0, lengths, 0.0) for voice in heard.voices]
        cost = [own * over for own, over in zip(nats, extent, strict=True)]
        scores = mixing.published_scores(mixing.ratio(total(cost), total(extent)))
    else:
        scores = mixing.ratio(total([voice.bits for voice in heard.voices]), total([v.bytes for v in heard.voices]))
        # Where an EOS is all that is predicted there are no bytes: then it counts as one.
        bare = mixing.ratio(total([voice.all_bits for voice in heard.voices]), total([v.tokens for v in heard.voices]))
        scores = np.where(np.isfinite(scores), scores, bare)
    return np.where(teaches, scores, np.inf)


def _write(
    heard: _Heard,
    weights: Float[np.ndarray, "sources documents"] | None,
    how: How,
    folder: Path,
    progress: Progress,
) -> tuple[Fused, Float[np.ndarray, " sources"]]:
    """The targets, and the sum of each source's weights over the positions."""
    # The published code sums what its sources say without cutting it to k again.
    width = how.top_k * len(heard.voices) if how.compat and how.fusion == "avg_ce" else how.top_k
    types: dict[str, Any] = {
        "ids": np.min_scalar_type(len(heard.reading.vocabulary.tokens) - 1),
        "probs": np.float16,
        "tail": np.float16,
        "weight": np.bool_,
        "taught": np.bool_,
    }
    columns = {name: Column(folder / f"{name}.bin", dtype) for name, dtype in types.items()}
    given = np.zeros(len(heard.voices))
    n = len(heard.ids)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        at = start + np.flatnonzero(heard.counted[start:end])
        document = np.searchsorted(heard.starts, at, "right") - 1
        chosen = (
            mixing.choose(np.stack([scores[at] for scores in heard.scores]), how.fusion)
            if weights is None
            else weights[:, document]
        )
        given += chosen.sum(-1)
        for name, values in _fused(heard, at, chosen, how, width).items():
            whole = np.zeros((end - start, *values.shape[1:]), types[name])
            whole[at - start] = values
            columns[name].append(whole)
        progress(end, n)
    shapes = {"ids": (width,), "probs": (width,)}
    fused = Fused(**{name: column.mapped(*shapes.get(name, ())) for name, column in columns.items()})
    return fused, given


def _fused(
    heard: _Heard, at: Int[np.ndarray, " n"], chosen: Float[np.ndarray, "sources n"], how: How, width: int
) -> dict[str, np.ndarray]:
    """The targets of some tokens, by the names of Fused, given the sources' weights."""
    rows = [np.asarray(own[at]) for own in heard.rows]
    said = [_said(voice, row, weight > 0, how) for voice, row, weight in zip(heard.voices, rows, chosen, strict=True)]
    if how.compat:
        _stand_in(heard.voices, rows, said, chosen, how)
    taught = np.any([probs.any(-1) for _, probs in said], 0)
    label = heard.ids[at - 1] if how.compat else heard.ids[at]
    if how.compat:
        for ids, probs in said:
            silent = ~probs.any(-1)
            ids[silent], probs[silent] = label[silent, None], np.eye(1, how.top_k)
    else:
        chosen = chosen * (np.stack(rows) >= 0)
    ids, probs, tail = mixing.mix([(weight, *own) for weight, own in zip(chosen, said, strict=True)], width)
    ids[~taught], probs[~taught], tail[~taught] = label[~taught, None], np.eye(1, width), 0
    weight = taught | (how.fallback == "next_token")
    halves = probs.astype(np.float16)
    return {
        "ids": np.where(halves > 0, ids, ids[:, :1]) * weight[:, None],
        "probs": halves * weight[:, None],
        "tail": tail * weight,
        "weight": weight,
        "taught": taught,
    }


def _said(
    voice: Voice, rows: Int[np.ndarray, " n"], wanted: Bool[np.ndarray, " n"], how: How
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """What a source says, in the target's ids; nothing where it is not aligned or not wanted."""
    ids, probs = np.zeros((len(rows), how.top_k), np.int64), np.zeros((len(rows), how.top_k))
    there = wanted & (rows >= 0)
    own, log_probs, log_tail = voice.store.top(rows[there])
    if how.compat:
        ids[there], probs[there] = mixing.published_carry(own, log_probs, voice.images)
    else:
        ids[there], probs[there] = mixing.carry(own, log_probs, log_tail, voice.images)
    return ids, probs


def _stand_in(
    voices: Sequence[Voice],
    rows: Sequence[Int[np.ndarray, " n"]],
    said: Sequence[tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]],
    chosen: Float[np.ndarray, "sources n"],
    how: How,
) -> None:
    """As published: where a source is aligned but none of its ids has an image, the target's own say stands in."""
    own = next((i for i, voice in enumerate(voices) if voice.same), None)
    if own is None:
        return
    for row, weight, (ids, probs) in zip(rows, chosen, said, strict=True):
        empty = (weight > 0) & (row >= 0) & ~probs.any(-1)
        mine = _said(voices[own], rows[own], empty, how)
        ids[empty], probs[empty] = (part[empty] for part in mine)


# ---------------------------------------------------------------------------------------------------------------------
# Report


def _report(
    heard: _Heard,
    fused: Fused,
    weights: Float[np.ndarray, "sources documents"] | None,
    given: Float[np.ndarray, " sources"],
    warnings: list[str],
) -> dict[str, Any]:
    positions = int(heard.counted.sum())
    taught, weight = int(fused.taught.sum()), int(fused.weight.sum())
    unreadable = {"target": heard.reading, **{voice.name: voice.reading for voice in heard.voices}}
    return {
        "positions": positions,
        **_of(positions, {"aligned": taught, "fallback": weight - taught, "dropped": positions - weight}),
        "sources": {
            voice.name: _about(voice, None if weights is None else weights[:, weights.any(0)][i], given[i], positions)
            for i, voice in enumerate(heard.voices)
        },
        "unreadable": {
            name: {"documents": reading.unreadable, "first": reading.reason}
            for name, reading in unreadable.items()
            if reading.unreadable
        },
        "warnings": warnings,
    }


def _about(
    voice: Voice, weights: Float[np.ndarray, " documents"] | None, given: float, positions: int
) -> dict[str, Any]:
    read = voice.bytes > 0
    own = _of(positions, {"weight_of_positions": given, "aligned": voice.aligned, "boundary": voice.boundary})
    if weights is not None and len(weights):
        own["weight"] = float(weights.mean())
    if read.any():
        own["bits_per_byte"] = float((voice.bits[read] / voice.bytes[read]).mean())
    return {
        **own,
        **_of(voice.named, {"unmapped_mass": voice.lost}),
        "vocabulary": vocabulary.shares(voice.mapping, voice.reading.vocabulary),
        "used": vocabulary.shares(voice.mapping, voice.reading.vocabulary, voice.use),
        "models": voice.store.meta["models"],
    }


def _of(total: float, parts: dict[str, float]) -> dict[str, float]:
    """Shares of a total; none of nothing."""
    return {name: float(part) / total for name, part in parts.items()} if total else {}
