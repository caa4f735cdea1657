"""A hand-made world of three tokenizers, and the fusion of its models transcribed in plain Python."""

import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fusion import align, corpus, teachers, vocabulary
from fusion.fused import How, Source

DOCUMENTS = [
    {"prompt": "aab", "answer": " abba"},
    {"text": "ba ab baab"},
    {"prompt": "ab ", "answer": "b"},
    {"prompt": "abab", "answer": ""},
    {"text": ""},
    {"text": "abba abba bbaa"},
    {"prompt": "b b", "answer": " aa bb ab"},
]
K = 3


def byte_level(merges: list[tuple[str, str]], name: str) -> Any:
    """Single characters, what is merged of them, and an EOS; no BOS."""
    tokens = ["<eos>", "a", "b", "c", "Ġ", *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", name_or_path=name)


def sentencepiece(merges: list[tuple[str, str]], name: str) -> Any:
    """A BOS, a space put before the text, and some byte fallbacks."""
    tokens = ["<s>", "</s>", "<unk>", "▁", "b", "a", *(left + right for left, right in merges)]
    tokens += [f"<0x{byte:02X}>" for byte in b"abc\xc3\xa9"]
    merged = models.BPE({token: i for i, token in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(merged)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", name_or_path=name
    )


TARGET = byte_level([("a", "b"), ("Ġ", "a"), ("b", "a"), ("Ġ", "b"), ("b", "b")], "target")
NEAR = byte_level([("b", "a"), ("a", "a"), ("Ġ", "b"), ("Ġb", "a"), ("ba", "a"), ("Ġ", "a")], "near")
FAR = sentencepiece([("▁", "a"), ("a", "b"), ("▁a", "b"), ("b", "b"), ("▁", "b"), ("bb", "a")], "far")


@dataclass(frozen=True)
class Made(teachers.Store):
    """A store whose numbers are made up; outputs: the model may have more than its tokenizer has tokens."""

    said: dict[str, np.ndarray] = field(default_factory=dict)

    def top(self, index: Any) -> Any:
        return self.said["ids"][index], self.said["log_probs"][index], self.said["log_tail"][index]


def make_store(tokenizer: Any, documents: Any, seed: int, k: int = K) -> Made:
    rng = np.random.default_rng(seed)
    tokens = corpus.encode(tokenizer, documents)
    outputs = len(tokenizer) + 2
    logits = rng.normal(0, 2, (len(tokens.ids), outputs))
    logits[np.arange(len(tokens.ids)), tokens.ids] += 2
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-logits, -1, kind="stable")
    top = np.take_along_axis(logits, ids, -1)
    said = {
        "ids": ids[:, :k],
        "log_probs": top[:, :k].astype(np.float16).astype(float),
        "log_tail": np.log(np.exp(top[:, k:]).sum(-1)).astype(np.float16).astype(float),
    }
    true = logits[np.arange(len(tokens.ids)), tokens.ids].astype(np.float32)
    true[tokens.starts[:-1]] = 0
    meta = {"vocabulary": outputs, "models": [f"digest-{seed}"]}
    return Made(Path("made"), meta, true, np.zeros(0), said)


def make_sources(documents: Any = DOCUMENTS, k: int = K) -> list[Source]:
    named = [("target", TARGET), ("near", NEAR), ("far", FAR)]
    return [Source(name, make_store(own, documents, i, k), own) for i, (name, own) in enumerate(named)]


SOURCES = make_sources()


def how(**given: Any) -> How:
    usual = {"fusion": "min_ce", "per": "document", "alignment": "bytes", "fallback": "next_token", "loss": "all"}
    return How(**{**usual, "top_k": K, "context": 12, "compat": None, **given})


# ---------------------------------------------------------------------------------------------------------------------
# The transcription


class Plain:
    """A source's rows, sizes and alignments as plain lists, document by document."""

    def __init__(self, source: Source, chosen: How, documents: Any) -> None:
        own, target = (vocabulary.read_vocabulary(tokenizer) for tokenizer in (source.tokenizer, TARGET))
        self.itself = source.tokenizer is TARGET
        mapping = vocabulary.vocabulary_map(own, target, chosen.alignment, chosen.compat)
        self.map = {i: image for i, image in enumerate(mapping.ids.tolist()) if image >= 0}
        if self.itself:
            self.map = {i: i for i in range(len(own.tokens))}
        self.store = source.store
        tokens, ours = corpus.encode(source.tokenizer, documents), corpus.encode(TARGET, documents)
        walk = align.aligner(chosen.alignment, own, target, mapping, chosen.compat)
        self.documents = []
        for number, document in enumerate(documents):
            here = range(tokens.starts[number], tokens.starts[number + 1])
            their = range(ours.starts[number], ours.starts[number + 1])
            text = corpus.text_of(document)
            cuts = [
                align.Cut(
                    these.ids[part.start : part.stop], vocabulary.byte_ends(v, these.ids[part.start : part.stop], text)
                )
                for these, part, v in ((ours, their, target), (tokens, here, own))
            ]
            aligned = [None if at < 0 else here.start + at for at in walk(*cuts).source.tolist()]
            if self.itself:
                aligned = [None, *here[1:]]
            ends = cuts[1].ends.tolist()
            sizes = {row: end - before for row, end, before in zip(here, ends, [0, *ends[:-1]], strict=True)}
            counted = [row for row in here[1:] if chosen.loss == "all" or tokens.answer[row]]
            self.documents.append({"aligned": aligned, "sizes": sizes, "counted": counted})

    def bits(self, row: int) -> float:
        return -float(self.store.true[row]) / math.log(2)

    def total(self, number: int) -> tuple[float, float]:
        """Bits and bytes of a document."""
        document = self.documents[number]
        rows = [row for row in document["counted"] if document["sizes"][row]]
        return sum(map(self.bits, rows)), sum(document["sizes"][row] for row in rows)

    def nats(self, number: int) -> float | None:
        rows = self.documents[number]["counted"]
        return sum(map(self.bits, rows)) * math.log(2) / len(rows) if rows else None

    def says(self, row: int, published: bool) -> dict[int, float]:
        ids, log_probs, log_tail = (part[0].tolist() for part in self.store.top([row]))
        found: dict[int, float] = {}
        total = sum(map(math.exp, log_probs)) + math.exp(log_tail)
        for i, log_prob in zip(ids, log_probs, strict=True):
            if i in self.map and not (published and self.map[i] in found):
                found[self.map[i]] = found.get(self.map[i], 0.0) + math.exp(log_prob) / (1 if published else total)
        return {i: p / sum(found.values()) for i, p in found.items()} if published else found


def bfloat(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.bfloat16))


def weigh(scores: list[float | None], chosen: How) -> list[float]:
    """A score is a cost; None is out."""
    there = [score for score in scores if score is not None]
    if not there:
        return [0.0] * len(scores)
    if chosen.fusion == "min_ce":
        best = scores.index(min(there))
        return [float(i == best) for i in range(len(scores))]
    raised = [0.0 if score is None else math.exp(-score) for score in scores]
    return [value / sum(raised) for value in raised]


def published_score(nats: float) -> float:
    return -bfloat(1 / bfloat(math.exp(bfloat(nats))))


def document_weights(plain: list[Plain], chosen: How, lengths: list[int]) -> list[list[float]]:
    groups: list[list[int]] = []
    filled = chosen.context
    for number, length in enumerate(lengths):
        if chosen.per == "document" or filled >= chosen.context:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += length
    weights = [[0.0]] * len(lengths)
    for group in groups:
        score = published_group if chosen.compat else group_bits
        scores = [score(source, group, lengths) for source in plain]
        for number in group:
            weights[number] = weigh(scores, chosen)
    return weights


def group_bits(source: Plain, group: list[int], lengths: list[int]) -> float | None:
    bits, size = (sum(parts) for parts in zip(*(source.total(number) for number in group), strict=True))
    if size:
        return bits / size
    rows = [row for number in group for row in source.documents[number]["counted"]]
    return sum(map(source.bits, rows)) / len(rows) if rows else None


def published_group(source: Plain, group: list[int], lengths: list[int]) -> float | None:
    each = [(nats, lengths[number]) for number in group if (nats := source.nats(number)) is not None]
    return published_score(sum(nats * n for nats, n in each) / sum(n for _, n in each)) if each else None


def token_weights(plain: list[Plain], chosen: How, number: int, at: int) -> list[float]:
    scores = []
    for source in plain:
        row = source.documents[number]["aligned"][at]
        scores.append(None if row is None else source.bits(row) / max(1, source.documents[number]["sizes"][row]))
    return weigh(scores, chosen)


@cache
def read_plainly(name: str, alignment: Any, compat: Any, loss: Any) -> Plain:
    source = next(source for source in SOURCES if source.name == name)
    return Plain(source, how(alignment=alignment, compat=compat, loss=loss), DOCUMENTS)


def transcribe(sources: list[Source], chosen: How) -> list[Any]:
    """For each token of the target's corpus None (not predicted), or (taught, {id: probability})."""
    plain = [read_plainly(source.name, chosen.alignment, chosen.compat, chosen.loss) for source in sources]
    ours = corpus.encode(TARGET, DOCUMENTS)
    lengths = np.diff(ours.starts).tolist()
    by_document = None if chosen.per == "token" else document_weights(plain, chosen, lengths)
    found: list[Any] = []
    for number, start in enumerate(ours.starts[:-1].tolist()):
        for at in range(lengths[number]):
            if at == 0 or (chosen.loss == "answers" and not ours.answer[start + at]):
                found.append(None)
                continue
            weights = token_weights(plain, chosen, number, at) if by_document is None else by_document[number]
            label = int(ours.ids[start + at - 1] if chosen.compat else ours.ids[start + at])
            found.append(fuse_one(plain, weights, number, at, label, chosen))
    return found


def fuse_one(
    plain: list[Plain], weights: list[float], number: int, at: int, label: int, chosen: How
) -> tuple[bool, dict[int, float]]:
    total, taught, summed = 0.0, False, dict[int, float]()
    for source, weight in zip(plain, weights, strict=True):
        row = source.documents[number]["aligned"][at]
        said = {} if row is None else source.says(row, bool(chosen.compat))
        if row is not None and not said and chosen.compat:
            said = next((own.says(own.documents[number]["aligned"][at], True) for own in plain if own.itself), {})
        taught |= bool(weight and said)
        if chosen.compat and not said:
            said = {label: 1.0}
        if chosen.compat or row is not None:
            total += weight
            for i, p in said.items():
                summed[i] = summed.get(i, 0.0) + weight * p
    if not taught:
        return False, {label: 1.0}
    width = chosen.top_k * len(plain) if chosen.compat and chosen.fusion == "avg_ce" else chosen.top_k
    best = sorted(((i, p / total) for i, p in summed.items() if p), key=lambda pair: (-pair[1], pair[0]))
    return True, dict(best[:width])
