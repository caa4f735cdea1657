"""What a model says about a corpus, kept sparse: one pass writes a store, every fusion reads it.

For each token that the model predicts the store holds its k most probable next tokens with their log-probabilities, the
probability of all others together (the tail), and the log-probability of the token that did come.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int, UInt
from torch import Tensor

from fusion import corpus
from fusion.checkpoint import Checkpoint, tokenizer_files
from fusion.corpus import Document, Rows, Tokens
from fusion.digests import config_digest, model_digest, tokenizer_digest, weights_digest
from fusion.errors import FusionError

META = "meta.json"
FORMAT = 1
LONGEST = 2048  # tokens of context, whatever the model could take
FORWARD = 8192  # tokens of one forward pass
BLOCK = 16  # forward passes between two notes of what is done


@dataclass(frozen=True)
class Store:
    """Row i belongs to token i of the corpus as the model's own tokenizer cuts it; first tokens have no row.

    ids, log_probs [n, k] in falling probability; tail [n] probability; true [n] log-probability, natural logarithms.
    """

    folder: Path
    meta: dict[str, Any]
    ids: UInt[np.ndarray, "n k"]
    log_probs: Float[np.ndarray, "n k"]
    tail: Float[np.ndarray, " n"]
    true: Float[np.ndarray, " n"]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a transformers folder. Raises CheckpointError when there is none."""
    tokenizer_files(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer, from a transformers folder. Raises CheckpointError when one is missing."""
    tokenizer = load_tokenizer(folder)
    Checkpoint(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval(), tokenizer


def identify(model: Path, documents: list[Document], top_k: int) -> dict[str, Any]:
    """All that decides the content of a store."""
    tokenizer = tokenizer_digest(model)
    return {
        "format": FORMAT,
        "model": model_digest(weights_digest(Checkpoint(model)), config_digest(model), tokenizer),
        "tokenizer": tokenizer,
        "corpus": corpus.digest(documents),
        "top_k": top_k,
    }


def open_store(folder: Path, expected: dict[str, Any]) -> Store:
    """A finished store. Raises FusionError when it is none, unfinished, or of another model, tokenizer or corpus."""
    meta = _read_meta(folder, expected)
    if meta is None or meta["done"] < meta["rows"]:
        raise FusionError(f"{folder}: holds no finished store of a teacher")
    return _open(folder, meta, "r")


def write_store(model: Path, documents: list[Document], top_k: int, folder: Path, progress: Any) -> Store:
    """Run a model over documents and keep what it says in `folder`, or go on where a killed run stopped.

    Documents longer than the model's context are read in consecutive pieces. Raises FusionError for a store in `folder`
    that was made with another model, tokenizer, corpus or k, and for a vocabulary of no more than k tokens.
    """
    expected = identify(model, documents, top_k)
    meta = _read_meta(folder, expected)
    if meta is not None and meta["done"] == meta["rows"]:
        return _open(folder, meta, "r")
    live, tokenizer = load(model)
    tokens = corpus.encode(tokenizer, documents)
    rows = _rows(tokens, tokenizer, _context(live, tokens))
    if meta is None:
        vocabulary = live.get_output_embeddings().weight.shape[0]
        if vocabulary <= top_k:
            raise FusionError(f"{model}: has {vocabulary} tokens; top_k must be less, and is {top_k}")
        meta = {**expected, "tokens": len(tokens.ids), "vocabulary": vocabulary, "rows": len(rows.packed), "done": 0}
        folder.mkdir(parents=True, exist_ok=True)
        _open(folder, meta, "w+")
        _write_meta(folder, meta)
    store = _open(folder, meta, "r+")
    for done in _fill(store, live, rows):
        for array in (store.ids, store.log_probs, store.tail, store.true):
            array.flush()  # type: ignore[attr-defined]
        meta["done"] = done
        _write_meta(folder, meta)
        progress(done, meta["rows"])
    return _open(folder, meta, "r")


def _context(model: Any, tokens: Tokens) -> int:
    """The longest document, as far as the model takes it."""
    longest = int(np.diff(tokens.starts).max(initial=2))
    return max(2, min(longest, getattr(model.config, "max_position_embeddings", None) or LONGEST, LONGEST))


def _rows(tokens: Tokens, tokenizer: Any, context: int) -> Rows:
    pieces = corpus.cut(tokens, context, "all")
    return Rows(
        tokens=tokens,
        pieces=pieces,
        packed=corpus.pack_once(pieces.length, context),
        predicted=np.ones(len(tokens.ids), bool),
        context=context,
        pad=tokenizer.eos_token_id,
        about=lambda index: {"index": torch.from_numpy(index)},
    )


def _fill(store: Store, model: Any, rows: Rows) -> Iterator[int]:
    """Write rows block by block; yields how many are done."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    batch = max(1, FORWARD // rows.context)
    since = 0
    for start in range(store.meta["done"], len(rows.packed), batch):
        end = min(start + batch, len(rows.packed))
        _forward(store, model, rows(range(start, end)), device)
        since += 1
        if since == BLOCK or end == len(rows.packed):
            since = 0
            yield end


def _forward(store: Store, model: Any, batch: dict[str, Any], device: torch.device) -> None:
    with torch.inference_mode():
        outputs = model(
            input_ids=batch["input_ids"].to(device), position_ids=batch["position_ids"].to(device), use_cache=False
        )
        logits = outputs.logits.flatten(0, 1).index_select(0, batch["at"].to(device)).float()
        log_probs, ids, tail, true = summarise(logits, batch["target"].to(device), store.meta["top_k"])
    at = batch["index"].numpy()
    store.ids[at] = ids.cpu().numpy().astype(store.ids.dtype)
    store.log_probs[at] = log_probs.cpu().numpy().astype(store.log_probs.dtype)
    store.tail[at] = tail.cpu().numpy()
    store.true[at] = true.cpu().numpy()


def summarise(
    logits: Float[Tensor, "n vocabulary"], target: Int[Tensor, " n"], top_k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-probabilities and ids of the k most probable tokens, the tail's probability, the target's log-probability."""
    log_sum = logits.logsumexp(-1, keepdim=True)
    top, ids = logits.topk(top_k, -1)
    # From the tail's own logits: 1 minus the top's probabilities would lose all digits of a small tail.
    tail = (logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True) - log_sum).exp()
    true = logits.gather(-1, target[:, None]) - log_sum
    return top - log_sum, ids, tail.squeeze(-1), true.squeeze(-1)


def _arrays(meta: dict[str, Any]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    n, k = meta["tokens"], meta["top_k"]
    ids = np.uint16 if meta["vocabulary"] <= 1 << 16 else np.uint32
    return {
        "ids": (ids, (n, k)),
        "log_probs": (np.float16, (n, k)),
        "tail": (np.float32, (n,)),
        "true": (np.float32, (n,)),
    }


def _open(folder: Path, meta: dict[str, Any], mode: Any) -> Store:
    arrays = {}
    for name, (dtype, shape) in _arrays(meta).items():
        file = folder / f"{name}.npy"
        if mode == "w+":
            arrays[name] = np.lib.format.open_memmap(file, mode, dtype, shape)
        else:
            arrays[name] = np.load(file, mmap_mode=mode)
    return Store(folder, meta, **arrays)


def _read_meta(folder: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    file = folder / META
    if not file.is_file():
        return None
    meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    other = [name for name, value in expected.items() if meta.get(name) != value]
    if other:
        raise FusionError(
            f"{folder}: holds a teacher's store that was made with another {' and '.join(other)}; "
            "give another folder, or delete this one"
        )
    return meta


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    partial = folder / f"{META}.partial"
    partial.write_text(json.dumps(meta, indent=1), encoding="utf-8")
    os.replace(partial, folder / META)
