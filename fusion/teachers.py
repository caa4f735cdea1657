"""What models say about a corpus, kept sparse: one pass writes a store, every fusion of these models and text reads it.

For each token that a model predicts the store holds its k most probable next tokens with their log-probabilities, the
log-probability of all others together (the tail), and the log-probability of the token that did come; all in natural
logarithms. Several models that share one vocabulary can be read as one: by the mean of their logits (Lin et al.,
"Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020, arXiv:2006.07242, algorithm 1).

Ids take ceil(log2(vocabulary)) bits, the true token's log-probability 4 bytes, other numbers 2: 49 bytes a token for
k = 10 and 152,000 tokens. The corpus is read block by block and the store grows at its end, so neither needs to fit
into memory.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Float32, Int

from fusion import bits, corpus
from fusion.checkpoint import Checkpoint, tokenizer_files
from fusion.corpus import Document, Tokens
from fusion.digests import config_digest, model_digest, tokenizer_digest, weights_digest
from fusion.errors import FusionError
from fusion.reading import Reader
from fusion.tokens import same_tokens
from fusion.training import Progress

META = "meta.json"
TOP = "top.bin"
TRUE = "true.bin"
FORMAT = 2
STRETCH = 1 << 17  # tokens of whole documents between two notes of what is done


@dataclass(frozen=True)
class Store:
    """Row i belongs to token i of the corpus as the model's own tokenizer cuts it; rows of first tokens are all zero.

    true [tokens]: log-probability of the token that came. meta: what the store is known by (`models`, `dtype`,
    `tokenizer`, `corpus`, `top_k`) and holds (`tokens`, `documents`, `vocabulary`: outputs of the model's head, which
    may be more than the tokenizer has).
    """

    folder: Path
    meta: dict[str, Any]
    true: Float32[np.ndarray, " tokens"]
    rows: np.ndarray  # [tokens] of `_row`

    def top(
        self, index: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
        """ids and log-probabilities of the k most probable tokens, in falling order, and the tail's log-probability."""
        rows = self.rows[index]
        ids = bits.unpack(rows["ids"], self.meta["top_k"], bits.width(self.meta["vocabulary"]))
        return ids, rows["log_probs"].astype(np.float64), rows["log_tail"].astype(np.float64)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a transformers folder. Raises CheckpointError when there is none."""
    tokenizer_files(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer, from a transformers folder. Raises CheckpointError when one is missing."""
    tokenizer = load_tokenizer(folder)
    return _load(folder, torch.float32), tokenizer


def _load(folder: Path, dtype: torch.dtype) -> Any:
    Checkpoint(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Stores


def open_store(folder: Path, models: Sequence[Path], documents: Sequence[Document], top_k: int) -> Store:
    """A finished store. Raises FusionError when it is none, unfinished, damaged, or of anything else than it should."""
    meta = _read_meta(folder, _identity(models, documents, top_k, _device()))
    if meta is None or meta["done"] < meta["documents"]:
        raise FusionError(f"{folder}: holds no finished store of a teacher")
    return _open(folder, meta)


def finished(folder: Path) -> bool:
    """Whether a folder holds a store that is read to its end, of whatever it may be."""
    if not (folder / META).is_file():
        return False
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    return bool(meta["done"] == meta["documents"])


def write_store(
    models: Sequence[Path], documents: Sequence[Document], top_k: int, folder: Path, progress: Progress
) -> Store:
    """Run models over documents and keep what they say in `folder`, or go on where a killed run stopped.

    Documents longer than a model's context, or 2,048 tokens, are read in consecutive pieces. Models that do not keep
    packed documents apart read one document a row. On a GPU models are read in their checkpoint's own dtype, on a CPU
    in float32, where a resumed pass ends in the same bytes as an unbroken one. A forward pass that does not fit into
    memory is made again with half of the rows. progress(done, total) counts documents.

    Raises FusionError for a store in `folder` that was made otherwise or is damaged, models that do not share one
    tokenizer and vocabulary, a vocabulary of no more than k tokens, logits that are not finite (what was done before
    is kept), and a single row that does not fit into memory; TrainingError as `corpus.encode` does.
    """
    device = _device()
    expected = _identity(models, documents, top_k, device)
    meta = _read_meta(folder, expected)
    if meta is None or meta["done"] < meta["documents"]:
        reader = Reader({str(model): _load(model, _dtype(model, device)).to(device) for model in models}, top_k)
        if meta is None:
            state = {"vocabulary": reader.vocabulary, "documents": len(documents), "done": 0, "tokens": 0}
            meta = {**expected, **state, "batch_halved": 0}
            _create(folder, meta)
        for first, last, tokens in _stretches(load_tokenizer(models[0]), documents, meta["done"]):
            _append(folder, meta, *_packed(reader, meta, tokens, first))
            meta |= {"done": last, "tokens": meta["tokens"] + len(tokens.ids)}
            meta["batch_halved"] = max(meta["batch_halved"], reader.halved)
            _write_meta(folder, meta)
            progress(last, len(documents))
    return _open(folder, meta)


def _identity(
    models: Sequence[Path], documents: Sequence[Document], top_k: int, device: torch.device
) -> dict[str, Any]:
    """All that decides the content of a store, short of the last digits."""
    for other in models[1:]:
        if not same_tokens(models[0], other):
            raise FusionError(
                f"{models[0]} and {other}: their tokenizers differ; the mean of logits is of models that share one "
                "(fusellm fuses models of any tokenizers)"
            )
    if not documents:
        raise FusionError("empty corpus: no document for a teacher to read")
    return {
        "format": FORMAT,
        "models": [
            model_digest(weights_digest(Checkpoint(model)), config_digest(model), tokenizer_digest(model))
            for model in models
        ],
        "dtype": [str(_dtype(model, device)).removeprefix("torch.") for model in models],
        "tokenizer": tokenizer_digest(models[0]),
        "corpus": corpus.digest(documents),
        "top_k": top_k,
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(model: Path, device: torch.device) -> torch.dtype:
    """On a GPU that of most of the checkpoint's tensors."""
    checkpoint = Checkpoint(model)
    stored = Counter(dtype for name in checkpoint.names() if (dtype := checkpoint.dtype(name)).is_floating_point)
    return torch.float32 if device.type == "cpu" or not stored else stored.most_common(1)[0][0]


def _row(meta: dict[str, Any]) -> np.dtype[Any]:
    packed = bits.row_bytes(meta["top_k"], bits.width(meta["vocabulary"]))
    return np.dtype([("ids", "u1", (packed,)), ("log_probs", "<f2", (meta["top_k"],)), ("log_tail", "<f2")])


def _sizes(meta: dict[str, Any]) -> dict[str, int]:
    """The bytes that each file holds."""
    return {TOP: meta["tokens"] * _row(meta).itemsize, TRUE: meta["tokens"] * 4}


def _create(folder: Path, meta: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _sizes(meta):
        (folder / name).write_bytes(b"")
    _write_meta(folder, meta)


def _append(folder: Path, meta: dict[str, Any], rows: np.ndarray, true: Float32[np.ndarray, " n"]) -> None:
    """Write behind what `meta` counts; what a killed run wrote there is written over."""
    for (name, size), array in zip(_sizes(meta).items(), (rows, true), strict=True):
        with (folder / name).open("r+b") as file:
            file.truncate(size)
            file.seek(size)
            file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _open(folder: Path, meta: dict[str, Any]) -> Store:
    true = np.memmap(folder / TRUE, "<f4", mode="r")
    return Store(folder, meta, true, np.memmap(folder / TOP, _row(meta), mode="r"))


def _read_meta(folder: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of a store, once it is known to be the expected one and its files to be whole; None without one."""
    file = folder / META
    if not file.is_file():
        return None
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name, value in expected.items() if meta.get(name) != value]
        sizes = {} if other else _sizes(meta)
        whole = bool(other) or meta["done"] < meta["documents"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FusionError(f"{file}: is damaged; delete {folder}, so that it is made again") from error
    if other:
        raise FusionError(
            f"{folder}: holds a teacher's store that was made with another {' and '.join(other)}; "
            "give another folder, or delete this one"
        )
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if found < size or (found > size and not whole):
            held = f"holds {found:,} bytes" if found >= 0 else "is missing"
            raise FusionError(f"{folder / name}: {held}, expected {size:,}; delete {folder}, so that it is made again")
    return meta


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    partial = folder / f"{META}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / META)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _packed(
    reader: Reader, meta: dict[str, Any], tokens: Tokens, first: int
) -> tuple[np.ndarray, Float32[np.ndarray, " n"]]:
    """What is said of a stretch, as rows of the store."""
    rows, true = np.zeros(len(tokens.ids), _row(meta)), np.zeros(len(tokens.ids), "<f4")
    for said in reader.read(tokens, first):
        rows["ids"][said.index] = bits.pack(said.ids, bits.width(meta["vocabulary"]))
        rows["log_probs"][said.index], rows["log_tail"][said.index] = said.log_probs, said.log_tail
        true[said.index] = said.true
    return rows, true


def _stretches(tokenizer: Any, documents: Sequence[Document], done: int) -> Iterator[tuple[int, int, Tokens]]:
    """Runs of whole documents, of about STRETCH tokens: first document, end, and tokens. The same from wherever."""
    begin = done - done % corpus.DOCUMENTS
    for _, tokens in corpus.encode_blocks(tokenizer, documents, begin):
        first = 0
        while first < len(tokens):
            start = tokens.starts[first]
            last = max(first + 1, int(np.searchsorted(tokens.starts, start + STRETCH, "right")) - 1)
            if begin + first >= done:
                own = slice(start, tokens.starts[last])
                stretch = Tokens(tokens.ids[own], tokens.answer[own], tokens.starts[first : last + 1] - start)
                yield begin + first, begin + last, stretch
            first = last
        begin += len(tokens)
