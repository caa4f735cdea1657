"""A model's features of texts: one vector a text and layer, from its hidden states.

A text's feature is the mean of its tokens' hidden states, each weighted by the bytes of the text that the token adds.
A plain mean would weigh a stretch of text by how finely the model's tokenizer cuts it, and give a BOS, which stands for
no text, the weight of a word. The first token of a forward pass is left out: it has read nothing before it, and many
models park attention there, at hidden states so large that a text's length would decide its feature (Sun et al. 2024,
Massive activations in large language models, arXiv:2402.17762).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fusion.corpus import Document, text_of
from fusion.errors import FusionError
from fusion.packing import positions
from fusion.reading import FORWARD, LONGEST
from fusion.training import Progress

# Numbers in the hidden states of one forward pass, over all layers, at most.
STATES = 1 << 28
# Texts that are tokenized together: what a tokenizer returns is large.
AT_ONCE = 128


@dataclass(frozen=True)
class _Piece:
    """Consecutive tokens of a text that fit the model's context, with each token's share of the text's bytes."""

    text: int
    ids: Int[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]


def write_features(
    model: Any, tokenizer: Any, documents: Sequence[Document], file: Path, progress: Progress
) -> Bool[np.ndarray, " texts"]:
    """The features [layers, texts, width], float32, as `file` (.npy), and which texts have any.

    Layers are the blocks, from the input on: what transformers calls hidden states without the first, the embeddings,
    which say how a text is spelt and not how it is read; its last comes after the model's final norm where it has one.
    Texts longer than the model's context, or 2,048 tokens, are read in consecutive pieces. A text of a single token has
    no feature and is left at 0. progress(done, total) counts texts.

    Raises FusionError for a slow tokenizer, for a model without one hidden state a token and layer, and for hidden
    states that are not finite.
    """
    layers, width = _shape(model)
    pieces, read = _pieces(model, tokenizer, documents)
    features = np.lib.format.open_memmap(file, "w+", np.float32, (layers, len(documents), width))
    done = len(documents) - len({piece.text for piece in pieces})
    for batch in _batches(pieces, min(FORWARD, STATES // (width * (layers + 1)))):
        means = _means(model, batch)
        for row, piece in enumerate(batch):
            features[:, piece.text] += means[:, row]
        done += len({piece.text for piece in batch})
        progress(min(done, len(documents)), len(documents))
    features.flush()
    return read


def _shape(model: Any) -> tuple[int, int]:
    """Layers and width, as a first pass shows them."""
    with torch.inference_mode():
        states = _states(model, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long))
    shapes = {tuple(state.shape) for state in states}
    if not states or len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise FusionError(
            f"{model.config.name_or_path}: gives no hidden state of one width for each token and layer (found "
            f"{sorted(shapes) or 'none'}); its representations cannot be compared. Leave cka and data_kernel out"
        )
    return len(states), int(states[0].shape[-1])


def _states(
    model: Any, ids: Int[Tensor, "rows length"], mask: Int[Tensor, "rows length"]
) -> Sequence[Float[Tensor, "rows length width"]]:
    """The hidden states of all layers. The model without its head is run, so that no logits are made."""
    device = model.device
    out = model.base_model(
        input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
    )
    return tuple(getattr(out, "hidden_states", None) or ())[1:]


def _means(model: Any, batch: Sequence[_Piece]) -> Float[np.ndarray, "layers rows width"]:
    """The weighted sums of a batch's hidden states; padding, at the right, is seen by no token before it."""
    longest = max(len(piece.ids) for piece in batch)
    ids = np.stack([np.pad(piece.ids, (0, longest - len(piece.ids))) for piece in batch])
    mask = np.stack([np.arange(longest) < len(piece.ids) for piece in batch])
    share = np.stack([np.pad(piece.share, (0, longest - len(piece.share))) for piece in batch])
    with torch.inference_mode():
        states = _states(model, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(mask.astype(np.int64)))
        weight = torch.from_numpy(share.astype(np.float32)).to(states[0].device)
        # A sum over the kept tokens alone: 0 times what is not finite is not 0.
        means = torch.stack([torch.einsum("rlw,rl->rw", _kept(state, weight), weight) for state in states])
    bad = torch.nonzero(~torch.isfinite(means).all(-1)).tolist()
    if bad:
        layer, row = bad[0]
        raise FusionError(
            f"{model.config.name_or_path}: its hidden states are not finite in layer {layer + 1} at document "
            f"{batch[row].text + 1}; its weights are damaged, or {str(model.dtype).removeprefix('torch.')} is too "
            "narrow for it"
        )
    found: np.ndarray = means.cpu().numpy()
    return found


def _kept(
    state: Float[Tensor, "rows length width"], weight: Float[Tensor, "rows length"]
) -> Float[Tensor, "rows length width"]:
    return state.float().masked_fill((weight == 0)[:, :, None], 0.0)


def _pieces(
    model: Any, tokenizer: Any, documents: Sequence[Document]
) -> tuple[list[_Piece], Bool[np.ndarray, " texts"]]:
    """What is to be read, longest first, and which texts have anything to read."""
    if not tokenizer.is_fast:
        raise FusionError(
            f"tokenizer {tokenizer.name_or_path!r}: is a slow one; save it as a fast one (tokenizer.json)"
        )
    context = min(LONGEST, positions(model) or LONGEST)
    known = model.get_input_embeddings().weight.shape[0]
    pieces = []
    read = np.zeros(len(documents), bool)
    for number, (ids, sizes) in enumerate(_tokens(tokenizer, documents)):
        sizes[::context] = 0.0
        if not sizes.any():
            continue
        if ids.max() >= known:
            raise FusionError(
                f"{model.config.name_or_path}: the tokenizer gives id {ids.max():,}, and the model knows {known:,}; "
                "the tokenizer is another model's"
            )
        read[number] = True
        share = sizes / sizes.sum()
        starts = range(0, len(ids), context)
        pieces += [_Piece(number, ids[i : i + context], share[i : i + context]) for i in starts]
    wanted = [piece for piece in pieces if piece.share.any()]
    return sorted(wanted, key=lambda piece: -len(piece.ids)), read


def _tokens(
    tokenizer: Any, documents: Sequence[Document]
) -> Iterator[tuple[Int[np.ndarray, " n"], Float64[np.ndarray, " n"]]]:
    """Of each document its tokens' ids and how many bytes each adds to those that were read before."""
    for start in range(0, len(documents), AT_ONCE):
        texts = [text_of(document) for document in documents[start : start + AT_ONCE]]
        encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            sizes = 1 + (characters[:, None] >= np.asarray([0x80, 0x800, 0x10000])).sum(1)
            ends = np.concatenate([[0], np.cumsum(sizes)])[[end for _, end in offsets]] if ids else np.zeros(0)
            read = np.maximum.accumulate(ends) if len(ends) else ends
            yield np.asarray(ids, np.int64), np.diff(read, prepend=0).astype(np.float64)


def _batches(pieces: Sequence[_Piece], tokens: int) -> Iterator[Sequence[_Piece]]:
    """Runs of pieces, longest first, that are at most so many tokens when padded to their first."""
    start = 0
    while start < len(pieces):
        size = max(1, tokens // len(pieces[start].ids))
        yield pieces[start : start + size]
        start += size
