"""Whether a model keeps packed documents apart, and the same documents one a row for a model that does not.

A packed row holds documents whose positions each start at 0 (`corpus.py`). From such positions transformers builds
block-diagonal causal attention, but not every architecture takes them, or heeds them in all its layers.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

PROBE = 16  # tokens of the row by which a model is tried


def packs(model: Any) -> bool:
    """Whether a document in a row is to this model what it is in a row of its own.

    Tried on the model itself, as it is loaded: the logits of a row's second document must be those that it has alone,
    and must not move when the first document is another one.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    room = min(positions(model) or PROBE, PROBE)
    vocabulary, device = model.get_input_embeddings().weight.shape[0], model.device
    first = room // 2
    ids = torch.arange(1, room + 1, device=device)[None] * 7919 % vocabulary
    other = torch.cat([(ids[:, :first] + vocabulary // 2 + 1) % vocabulary, ids[:, first:]], 1)
    position = torch.cat([torch.arange(first), torch.arange(room - first)])[None].to(device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            packed, beside = (forward(model, row, position_ids=position)[0, first:].float() for row in (ids, other))
            alone = forward(model, ids[:, first:])[0].float()
    finally:
        model.train(training)
    # Sums are taken in another order in a shorter row: half of a number's digits agree where no document is seen.
    near = torch.finfo(model.dtype).eps ** 0.5 * float((alone - alone.mean()).abs().max())
    return bool((packed - alone).abs().max() <= near) and bool((packed - beside).abs().max() <= near)


def positions(model: Any) -> int | None:
    """How many tokens a row may have, as the model's config states them; None where it states no limit."""
    text = model.config.get_text_config()
    stated = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return min([size for size in stated if size], default=None)


def forward(model: Any, input_ids: Int[Tensor, "rows length"], **more: Tensor) -> Float[Tensor, "rows length v"]:
    """The logits of rows, without the cache, which would hide the documents' borders from transformers."""
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **more).logits
    return logits


def unpack(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of `corpus.Rows` with one document a row: input_ids, attention_mask [documents, longest]; at, as it was.

    Documents that nothing is predicted in, and padding, are left out. The predicted tokens keep their order, so what
    belongs to them (target, and what a loss asked for) stays as it is.
    """
    ids, at = batch["input_ids"].flatten(), batch["at"]
    begins = torch.nonzero(batch["position_ids"].flatten() == 0).flatten()
    document = torch.searchsorted(begins, at, right=True) - 1
    kept, row = torch.unique(document, return_inverse=True)
    # A batch that predicts nothing keeps a document, for the model must be run.
    kept = kept if len(kept) else torch.zeros(1, dtype=torch.long)
    start = begins[kept]
    length = torch.cat([begins, torch.tensor([len(ids)])])[kept + 1] - start
    slot = torch.arange(int(length.max()))
    real = slot < length[:, None]
    padded = torch.where(real, ids[(start[:, None] + slot).clamp(max=len(ids) - 1)], ids[start[0]])
    moved = {"input_ids": padded, "attention_mask": real.long(), "at": row * len(slot) + at - start[row]}
    return {name: value for name, value in batch.items() if name != "position_ids"} | moved
