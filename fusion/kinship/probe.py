"""Kinship of models by what they make of texts: each model reads them once, then pairs are compared from what was kept.

    write_probe(model, documents, folder, measures, seed, progress)          # for each model
    rows = relate(models, documents, {name: folder, ...}, measures)          # for all pairs

A probe holds of one model what the measures need: its features (`hidden.py`), a sparse store of what it expects next
(`teachers.py`), what it says by itself (`continuations.py`). Any causal language model that transformers loads can be
compared with any other. On a GPU, as on a CPU, features and continuations are computed in float32.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from fusion import corpus, teachers
from fusion.corpus import Document
from fusion.digests import folder_digests
from fusion.errors import FusionError, RecipeError
from fusion.kinship import continuations, data_kernel, hidden, next_token
from fusion.kinship.behaviour import BEHAVIOUR
from fusion.kinship.probed import Divergence, Pair, Probed
from fusion.kinship.representation import REPRESENTATION, cka_by_layer
from fusion.params import did_you_mean
from fusion.training import Progress

MEASURES = {name: measure for name, measure in {**REPRESENTATION, **BEHAVIOUR}.items() if measure.needs == "texts"}
# Which part of a probe each measure needs.
PARTS = {"cka": "features", "data_kernel": "features", "js": "said", "cross_likelihood": "continuations"}

META, FEATURES, READ, SAID, CONTINUATIONS = "probe.json", "features.npy", "read.npy", "said", "continuations.jsonl"
FORMAT = 1
TOP_K = 10
# A text has moved where its q-value is at most this: of those said to have moved, so many have not.
MOVED = 0.05
SEED = 0  # of the data kernel's test


@dataclass(frozen=True)
class _Probe:
    """A finished probe, as far as it is needed."""

    name: str
    model: Path
    folder: Path

    def features(self) -> Float[np.ndarray, "layers texts width"]:
        found: np.ndarray = np.load(self.folder / FEATURES, mmap_mode="r")
        return found

    def read(self) -> Bool[np.ndarray, " texts"]:
        found: np.ndarray = np.load(self.folder / READ)
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def write_probe(
    model: Path,
    documents: Sequence[Document],
    folder: Path,
    measures: Collection[str],
    seed: int,
    progress: Progress,
) -> None:
    """Let a model read documents and keep in `folder` what the measures need; what is there already is not made again.

    The same model, documents and seed give the same bytes. A store of next tokens goes on where a killed run stopped,
    the other parts begin again. progress(done, total) counts documents, once for each part.

    Raises RecipeError for a measure that is not computed from texts; FusionError for a probe in `folder` of another
    model, text or seed, for hidden states or logits that are not finite, and as `hidden.write_features`,
    `teachers.write_store` and `continuations.write_continuations` do.
    """
    _check(measures)
    if not documents:
        raise FusionError("no document to compare models by")
    meta = _meta(folder, {**_identity(model, documents), "seed": seed})
    parts = [part for part in dict.fromkeys(PARTS[name] for name in measures) if part not in meta["parts"]]
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        _WRITE[part](model, documents, folder, seed, _nth(progress, number, len(parts)))
        meta["parts"] = sorted({*meta["parts"], part})
        partial = folder / f"{META}.partial"
        partial.write_text(json.dumps(meta, indent=1), encoding="utf-8")
        os.replace(partial, folder / META)


def _features(model: Path, documents: Sequence[Document], folder: Path, seed: int, progress: Progress) -> None:
    live, tokenizer = _load(model)
    partial = folder / f"{FEATURES}.partial"
    read = hidden.write_features(live, tokenizer, documents, partial, progress)
    np.save(folder / READ, read)
    os.replace(partial, folder / FEATURES)


def _said(model: Path, documents: Sequence[Document], folder: Path, seed: int, progress: Progress) -> None:
    teachers.write_store([model], documents, TOP_K, folder / SAID, progress)


def _continuations(model: Path, documents: Sequence[Document], folder: Path, seed: int, progress: Progress) -> None:
    live, tokenizer = _load(model)
    partial = folder / f"{CONTINUATIONS}.partial"
    continuations.write_continuations(live, tokenizer, documents, partial, seed, progress)
    os.replace(partial, folder / CONTINUATIONS)


_WRITE: dict[str, Callable[[Path, Sequence[Document], Path, int, Progress], None]] = {
    "features": _features,
    "said": _said,
    "continuations": _continuations,
}


def _load(model: Path) -> tuple[Any, Any]:
    live, tokenizer = teachers.load(model)
    return live.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _identity(model: Path, documents: Sequence[Document]) -> dict[str, Any]:
    return {"format": FORMAT, "model": folder_digests(model)["model"], "corpus": corpus.digest(documents)}


def _meta(folder: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """What is known of a probe, once it is known to be the expected one; of none, the expected one without parts."""
    file = folder / META
    if not file.is_file():
        return {**expected, "parts": []}
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name, value in expected.items() if meta.get(name) != value]
        whole = set(meta["parts"]) <= set(_WRITE)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FusionError(f"{file}: is damaged; delete {folder}, so that it is made again") from error
    if other or not whole:
        raise FusionError(
            f"{folder}: holds a probe that was made with another {' and '.join(other) or 'format'}; "
            "give another folder, or delete this one"
        )
    return meta


def _nth(progress: Progress, number: int, parts: int) -> Progress:
    """One part of several, which all count the same documents."""
    return lambda done, total: progress(number * total + done, parts * total)


def _check(measures: Collection[str]) -> None:
    for name in measures:
        if name not in MEASURES:
            raise RecipeError(f"'{name}' is no measure of texts: {did_you_mean(name, MEASURES)}")


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def relate(
    models: Mapping[str, Path], documents: Sequence[Document], probes: Mapping[str, Path], measures: Collection[str]
) -> list[dict[str, Any]]:
    """All pairs of models by the given measures, in the models' order, from the probes of all of them.

    A row: {"a", "b", measure: value, ...}; a value that is undefined is None, and the row then has a "status" that says
    why. With cka, "layers": {"0": {"cka": value}, ...} by the layers of the shallower model, from the input on. With
    data_kernel, "moved": the numbers, from 1, of the documents that lie elsewhere with the one model than with the
    other (`data_kernel.item_test`, q at most .05). With either, "texts": how many documents all models
    have features of. With js, "aligned": the share of positions compared.

    Raises RecipeError for fewer than two models and for a measure that is not computed from texts; FusionError for a
    probe that is missing, unfinished or of another model or text.
    """
    _check(measures)
    if len(models) < 2:
        raise RecipeError(f"kinship compares models pair by pair: got {len(models)}, give two or more")
    found = [_open(name, model, documents, probes, measures) for name, model in models.items()]
    facts, read = _facts(found, documents, measures)
    rows = []
    for a, b in combinations(range(len(found)), 2):
        values = {name: measure.value(facts, a, b) for name, measure in MEASURES.items() if name in measures}
        row: dict[str, Any] = {"a": found[a].name, "b": found[b].name, **values}
        undefined = [name for name, value in values.items() if value is None]
        if undefined:
            row["status"] = "; ".join(f"{name}: {_why(name, found, facts, a, b)}" for name in undefined)
        rows.append(row | _details(facts, read, measures, a, b))
    return rows


def _open(
    name: str, model: Path, documents: Sequence[Document], probes: Mapping[str, Path], measures: Collection[str]
) -> _Probe:
    """A probe that is known to be of this model and text, and to have what the measures need."""
    if name not in probes:
        raise FusionError(f"{name}: has no probe; make one with write_probe")
    meta = _meta(probes[name], _identity(model, documents))
    lacking = [measure for measure in measures if PARTS[measure] not in meta["parts"]]
    if lacking:
        raise FusionError(
            f"{name}: {probes[name]} holds no finished probe for {', '.join(lacking)}; make it with write_probe"
        )
    return _Probe(name, model, probes[name])


def _facts(
    probes: Sequence[_Probe], documents: Sequence[Document], measures: Collection[str]
) -> tuple[Probed, Bool[np.ndarray, " texts"]]:
    """What the measures take, and which texts all models have features of."""
    pairs = list(combinations(range(len(probes)), 2))
    read = np.ones(len(documents), bool)
    if {"cka", "data_kernel"} & set(measures):
        read = np.logical_and.reduce([probe.read() for probe in probes])
    last = [np.asarray(probe.features()[-1][read]) for probe in probes] if "data_kernel" in measures else []
    layers = _layers(probes, read, pairs) if "cka" in measures else {}
    divergence = _divergence(probes, documents, pairs) if "js" in measures else {}
    crossed = _crossed(probes) if "cross_likelihood" in measures else np.zeros((0, 0))
    return Probed(layers, last, divergence, crossed), read


def _layers(
    probes: Sequence[_Probe], read: Bool[np.ndarray, " texts"], pairs: Sequence[Pair]
) -> dict[Pair, list[float | None]]:
    return {(a, b): cka_by_layer(probes[a].features()[:, read], probes[b].features()[:, read]) for a, b in pairs}


def _divergence(
    probes: Sequence[_Probe], documents: Sequence[Document], pairs: Sequence[Pair]
) -> dict[Pair, Divergence]:
    said = []
    for probe in probes:
        store = teachers.open_store(probe.folder / SAID, [probe.model], documents, TOP_K)
        said.append(next_token.said(store, teachers.load_tokenizer(probe.model), documents))
    return {(a, b): next_token.divergence(said[a], said[b]) for a, b in pairs}


def _crossed(probes: Sequence[_Probe]) -> Float[np.ndarray, "models models"]:
    """bits[i, j]: bits per byte of what model j says, read by model i; one model is in memory at a time."""
    said = [continuations.read_continuations(probe.folder / CONTINUATIONS) for probe in probes]
    return np.asarray([list(_reads(probe, said)) for probe in probes], np.float64)


def _reads(probe: _Probe, said: Sequence[Sequence[continuations.Continuation]]) -> Iterator[float]:
    live, tokenizer = _load(probe.model)
    for own in said:
        yield continuations.bits_per_byte(probe.name, live, tokenizer, own)


def _details(
    facts: Probed, read: Bool[np.ndarray, " texts"], measures: Collection[str], a: int, b: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "cka" in measures:
        found["layers"] = {str(layer): {"cka": value} for layer, value in enumerate(facts.layers[a, b])}
    if "data_kernel" in measures:
        first, second = data_kernel.knn_graph(facts.last[a]), data_kernel.knn_graph(facts.last[b])
        if first is not None and second is not None:
            moved = data_kernel.item_test(first, second, SEED).q <= MOVED
            found["moved"] = (np.flatnonzero(read)[moved] + 1).tolist()
    if {"cka", "data_kernel"} & set(measures):
        found["texts"] = int(read.sum())
    if "js" in measures:
        found["aligned"] = facts.divergence[a, b].aligned
    return found


def _why(measure: str, probes: Sequence[_Probe], facts: Probed, a: int, b: int) -> str:
    """Why a measure is undefined for a pair."""
    if measure == "cka":
        return "needs 4 texts of two tokens or more, and features that differ between them"
    if measure == "data_kernel":
        return f"needs {data_kernel.TEXTS} texts of two tokens or more, and features that are not zero"
    if measure == "js":
        return "no position where both tokenizers cut the texts alike"
    silent = [f"'{probes[model].name}'" for model in (a, b) if not np.isfinite(facts.bits[model, model])]
    return f"{' and '.join(silent)} said nothing after any text"
