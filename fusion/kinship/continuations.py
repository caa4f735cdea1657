"""What models say by themselves, and how likely each finds what another said.

After Subramaniam et al. 2025, Multiagent finetuning, arXiv:2501.05707, where the likelihood of other agents' words
measures how far agents have come to speak alike.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Int
from torch import Tensor

from fusion import corpus
from fusion.corpus import Document, prompt_of, text_of
from fusion.packing import packs, positions
from fusion.reading import FORWARD, LONGEST, Reader
from fusion.training import Progress
from fusion.vocabulary import Vocabulary, read_vocabulary

# Tokens of a continuation, or half of the model's context where that is less.
LENGTH = 32


@dataclass(frozen=True)
class Continuation:
    """What a model said after a prompt; ended: whether it closed its words with an EOS."""

    prompt: str
    answer: str
    ended: bool


def opening(document: Document) -> str:
    """What is given to be continued: the document's prompt, else the first half of its text, to the end of a word."""
    if prompt_of(document):
        return prompt_of(document)
    text = text_of(document)
    half = text[: (len(text) + 1) // 2]
    if not text[len(half) :] or text[len(half)].isspace():
        return half
    whole = half.rstrip() if half[-1:].isspace() else half.rpartition(" ")[0]
    return whole or half


def write_continuations(
    model: Any, tokenizer: Any, documents: Sequence[Document], file: Path, seed: int, progress: Progress
) -> None:
    """One continuation a document, drawn from the model's own distribution (temperature 1), as JSON lines.

    It ends with the model's EOS, after LENGTH tokens, or before the first bytes that are no text. A prompt keeps its
    last tokens where the context has no room for more. Documents without a token to begin with have none, and their
    line is null. progress(done, total) counts documents.

    Raises FusionError for a tokenizer whose tokens have no exact bytes.
    """
    vocabulary = read_vocabulary(tokenizer)
    length = min(LENGTH, (positions(model) or LONGEST) // 2)
    room = min(LONGEST, positions(model) or LONGEST) - length
    openings = [opening(document) for document in documents]
    ids = [tokenizer(text, verbose=False)["input_ids"] for text in openings]
    said: list[Continuation | None] = [None] * len(documents)
    done = sum(not own for own in ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in _batches([own[-room:] for own in ids], length, packs(model)):
            drawn = _draw(model, tokenizer, [ids[number][-room:] for number in batch], length)
            for number, own in zip(batch, drawn, strict=True):
                kept = openings[number] if len(ids[number]) <= room else _text(vocabulary, ids[number][-room:])
                said[number] = _continuation(vocabulary, tokenizer.eos_token_id, kept, own.tolist())
            done += len(batch)
            progress(done, len(documents))
    lines = [json.dumps(None if one is None else vars(one), ensure_ascii=False) + "\n" for one in said]
    file.write_text("".join(lines), encoding="utf-8")


def read_continuations(file: Path) -> list[Continuation]:
    """The continuations in a file, of the documents that have one."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [Continuation(**line) for line in lines if line is not None]


def bits_per_byte(name: str, model: Any, tokenizer: Any, said: Sequence[Continuation]) -> float:
    """Bits that a model needs for what was said after its prompts, in bits per byte of it; nan where nothing was said.

    An EOS that was said counts, as bits without bytes. Where the tokenizer joins the end of a prompt and the beginning
    of the answer into one token, all of it counts. Raises as `reading.Reader` and `corpus.encode` do.
    """
    size = sum(len(one.answer.encode()) for one in said)
    if not size:
        return float("nan")
    tokens = corpus.encode(tokenizer, [{"prompt": one.prompt, "answer": one.answer} for one in said])
    counted = tokens.answer.copy()
    counted[tokens.starts[1:] - 1] = [one.ended for one in said]
    nats = 0.0
    for part in Reader({name: model}, 1).read(tokens, 0):
        nats -= float(part.true[counted[part.index]].astype(np.float64).sum())
    return nats / np.log(2) / size


def _batches(ids: Sequence[Sequence[int]], length: int, together: bool) -> Iterator[list[int]]:
    """Numbers of prompts to be continued together, longest first; of one length each unless padding is no matter."""
    order = sorted((number for number, own in enumerate(ids) if own), key=lambda number: -len(ids[number]))
    batch: list[int] = []
    for number in order:
        first = len(ids[batch[0]]) if batch else 0
        full = (len(batch) + 1) * (first + length) > FORWARD
        if batch and (full or (not together and len(ids[number]) != first)):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _draw(model: Any, tokenizer: Any, ids: Sequence[Sequence[int]], length: int) -> Int[Tensor, "rows length"]:
    """The tokens that a model says after each prompt, filled up with its EOS."""
    longest = max(len(own) for own in ids)
    eos = tokenizer.eos_token_id
    padded = torch.tensor([[eos] * (longest - len(own)) + list(own) for own in ids])
    mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in ids])
    # The checkpoint's own way to generate would sample from another distribution than its own.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length, eos_token_id=eos, pad_token_id=eos
    )
    with torch.inference_mode():
        drawn = model.generate(input_ids=padded.to(model.device), attention_mask=mask.to(model.device))
    found: Tensor = drawn[:, longest:].cpu()
    return found


def _continuation(vocabulary: Vocabulary, eos: int, prompt: str, ids: Sequence[int]) -> Continuation:
    said = ids[: ids.index(eos)] if eos in ids else ids
    content = b"".join([_bytes(vocabulary, i) for i in said])
    try:
        return Continuation(prompt, content.decode(), len(said) < len(ids))
    except UnicodeDecodeError as error:
        return Continuation(prompt, content[: error.start].decode(), False)


def _text(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    return b"".join([_bytes(vocabulary, i) for i in ids]).decode(errors="ignore")


def _bytes(vocabulary: Vocabulary, token: int) -> bytes:
    """What a token stands for; nothing for a special one and an output beyond the tokenizer's tokens."""
    return (vocabulary.tokens[token] or b"") if token < len(vocabulary.tokens) else b""
