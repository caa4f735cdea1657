"""What statistics are made from and where they go: calibration text in batches, and a folder that is whole or nothing.

A statistics folder holds safetensors files and, written last, statistics.json: what it was made from, and which file
holds what is known of which tensor.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor

from fusion import corpus
from fusion.checkpoint import Checkpoint
from fusion.corpus import Document
from fusion.errors import FusionError, TrainingError
from fusion.params import param

META = "statistics.json"
FORMAT = 1
BATCH = 4096  # tokens of one forward pass


@dataclass(frozen=True)
class Collect:
    """How much text is read, and where. `seed` draws the sequences, and the labels where a statistic samples some."""

    sequences: int = param(256, low=1, help="sequences of calibration text; all of it where there is less")
    context: int = param(256, low=2, help="most tokens of a sequence; longer documents are cut")
    seed: int = 0
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        """All that can change a statistic."""
        place = torch.device(self.device).type
        return {"sequences": self.sequences, "context": self.context, "seed": self.seed, "device": place}


@dataclass(frozen=True)
class Text:
    """Calibration text as a model's tokenizer cuts it. `numbers` says which piece of the corpus a sequence is."""

    sequences: list[Int[Tensor, " _"]]
    numbers: list[int]

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    def batches(self) -> list[Int[Tensor, "_ _"]]:
        """All sequences, those of one length side by side: there is no padding that could enter a statistic."""
        by_length: dict[int, list[Tensor]] = {}
        for sequence in self.sequences:
            by_length.setdefault(len(sequence), []).append(sequence)
        found = []
        for length, alike in sorted(by_length.items()):
            rows = max(1, BATCH // length)
            found += [torch.stack(alike[start : start + rows]) for start in range(0, len(alike), rows)]
        return found


def read(tokenizer: Any, documents: Sequence[Document], settings: Collect, model: Any) -> Text:
    """The calibration text: `settings.sequences` pieces of the corpus, in a seeded order.

    A document is closed by an EOS and cut into pieces of at most `settings.context` tokens, fewer where the model has
    fewer positions. Raises TrainingError for a corpus without a token to predict.
    """
    tokens = corpus.encode(tokenizer, documents)
    limit = getattr(model.config, "max_position_embeddings", None) or settings.context
    pieces = corpus.cut(tokens, min(settings.context, limit), "all")
    if not len(pieces.start):
        raise TrainingError(f"empty calibration corpus: {len(tokens)} documents, and no token in them to predict")
    order = np.random.default_rng(settings.seed).permutation(len(pieces.start))[: settings.sequences].tolist()
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    return Text([ids[pieces.start[i] : pieces.start[i] + pieces.length[i]] for i in order], order)


def stored_names(model: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """The name under which the checkpoint stores each parameter of the model that was loaded from it.

    Checkpoints come with and without the name of the model's body, and the library renames some tensors on loading:
    those are known by what they hold. Parameters that are stored in another form, as several tensors or transposed,
    are left out, and so are all but one of those that are tied.
    """
    prefix = getattr(model, "base_model_prefix", "")
    stored = dict.fromkeys(checkpoint.names())
    found: dict[str, str] = {}
    renamed = []
    for name, parameter in model.named_parameters():
        candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        match = next((candidate for candidate in candidates if candidate in stored), None)
        if match is None:
            renamed.append((name, parameter))
        else:
            found[name] = match
            del stored[match]
    by_content: dict[Any, list[str]] = {}
    for name in stored if renamed else ():
        by_content.setdefault(_beginning(checkpoint.tensor(name)), []).append(name)
    for name, parameter in renamed:
        matches = by_content.get(_beginning(parameter), [])
        if len(matches) == 1 and torch.equal(checkpoint.tensor(matches[0]).to(parameter), parameter):
            found[name] = matches[0]
    return found


def _beginning(tensor: Tensor) -> tuple[Any, ...]:
    return (*tensor.shape, *tensor.detach().reshape(-1)[:64].float().tolist())


class Writer:
    """A statistics folder in the making. `tensors` says of each tensor which file and key hold what is known of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, dict[str, Any]] = {}
        self.bytes = 0

    def add(self, file: str, content: Mapping[str, Tensor], about: Mapping[str, Mapping[str, Any]]) -> None:
        """One file. about: for each tensor of the model that it is about, the key, and what a reader needs to know."""
        if not content:
            return
        path = self.folder / file
        save_file({key: tensor.cpu().contiguous() for key, tensor in content.items()}, path)
        _sync(path)
        self.bytes += path.stat().st_size
        self.tensors.update({name: {"file": file, **entry} for name, entry in about.items()})

    def finish(self, source: "Made", started: float) -> dict[str, Any]:
        """Make the folder whole: nothing may follow. Returns the report; started: by time.perf_counter()."""
        stored = {name: len(source.checkpoint.shape(name)) for name in source.checkpoint.names()}
        about = {
            **source.about(),
            "bytes": self.bytes,
            "tensors": self.tensors,
            "without": [name for name, axes in stored.items() if name not in self.tensors and axes > 1],
        }
        partial = self.folder / f"{META}.partial"
        partial.write_text(json.dumps({"format": FORMAT, **about}, indent=1), encoding="utf-8")
        _sync(partial)
        os.replace(partial, self.folder / META)
        _sync(self.folder)
        return {**about, "tensors": len(self.tensors), "wall": {"seconds": time.perf_counter() - started}}


@dataclass(frozen=True)
class Made:
    """What statistics were made from. `models` and `corpora` are digests, in order; `how` is for RegMean++'s prefix."""

    kind: str
    checkpoint: Checkpoint
    text: Text
    settings: Collect
    models: tuple[str, ...]
    corpora: tuple[str, ...]
    how: Mapping[str, Any] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """As JSON, with the key."""
        return {
            "kind": self.kind,
            "key": statistics_key(self.kind, self.models, self.corpora, self.settings, self.how),
            "models": list(self.models),
            "corpora": list(self.corpora),
            "settings": self.settings.identity(),
            "how": dict(self.how),
            "sequences": len(self.text.sequences),
            "tokens": self.text.tokens,
        }


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """A folder to write statistics to; what was written is removed where they do not get finished.

    Raises FusionError when the folder holds something already.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FusionError(f"{folder} exists and is not empty: give another folder for the statistics, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield Writer(folder)
    finally:
        if not (folder / META).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def statistics_key(
    kind: str,
    models: Sequence[str],
    corpora: Sequence[str],
    settings: Collect,
    how: Mapping[str, Any] | None = None,
) -> str:
    """What decides the content of statistics, in one digest: the digests of models and corpora, and the settings.

    how: for "gram++" the prefix's parameters and weights.
    """
    content = [FORMAT, kind, list(models), list(corpora), settings.identity(), dict(how or {})]
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
