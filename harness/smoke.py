"""`run --smoke`: a suite rehearsed with tiny models before hours are spent on real ones.

Every given model is replaced by a tiny random one of its architecture and tokenizer (of the hub only config and
tokenizer are fetched), each training takes two steps on sixteen documents, and each task has two samples. The jobs are
the suite's own. What comes out says nothing of the models: it lies in a run folder of its own and is marked, and since
scores belong to weights, no real result ever takes it up.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from fusion.checkpoint import read_config, tokenizer_files
from fusion.errors import FusionError
from fusion.jsonl import read_jsonl
from fusion.tiny import write_tiny
from harness import hub, pocket
from harness.errors import UsageError
from harness.spec import Candidate, Group, Model, Source, Suite, Trained
from harness.store import digest_of

SAMPLES, STEPS, DOCUMENTS, CONTEXT = 2, 2, 16, 128
VERSION = 1


def rehearsal(suite: Suite, folder: Path) -> Suite:
    """The suite with everything made small; `folder` keeps the tiny models and the first documents of its corpora.

    Raises UsageError for a model whose config or tokenizer is not to be had or whose architecture cannot be made tiny.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return replace(
        suite,
        digest=digest_of(["smoke", VERSION, suite.digest]),
        models={name: _model(model, suite, folder) for name, model in suite.models.items()},
        groups=tuple(_group(group) for group in suite.groups),
        kinship_texts=_beginning(suite.kinship_texts, suite.seed, folder) if suite.kinship_texts else None,
        mlflow=None,
        smoke=True,
    )


def _group(group: Group) -> Group:
    return replace(group, limit=SAMPLES, batch_size=min(SAMPLES, group.batch_size), samples=min(SAMPLES, group.samples))


def _model(model: Model, suite: Suite, folder: Path) -> Model:
    if isinstance(model, Source):
        return Source(model.name, str(_tiny(model, folder)), dtype=model.dtype, chat=model.chat)
    if isinstance(model, Trained):
        return replace(model, params=_short(model.params))
    corpora = tuple(_beginning(corpus, suite.seed, folder) for corpus in model.corpora)
    params = _short(model.params) if model.kind == "fused" else model.params
    return replace(model, params=params, corpora=corpora, calibration=_fewer(model))


def _short(params: Mapping[str, Any]) -> dict[str, Any]:
    """A training of two steps on short rows, whatever else it says."""
    small = {"steps": STEPS, "epochs": None, "batch_size": SAMPLES, "context": CONTEXT}
    return {**params, **{key: value for key, value in small.items() if key in params}}


def _fewer(model: Candidate) -> Mapping[str, Any]:
    most = {"sequences": DOCUMENTS, "context": CONTEXT}
    return {
        key: min(value, most[key]) if value is not None and key in most else value
        for key, value in model.calibration.items()
    }


def _tiny(model: Source, folder: Path) -> Path:
    """The tiny model that stands in for a given one; the same again for the same config and tokenizer."""
    donor = Path(model.origin)
    if not donor.is_dir():
        donor = hub.download(model, weights=False)
    try:
        key = hashlib.sha256(json.dumps([VERSION, model.name, model.dtype, read_config(donor)]).encode())
        for file in tokenizer_files(donor):
            key.update(file.read_bytes())
        out = folder / f"{model.name}-{key.hexdigest()[:16]}"
        if not out.is_dir():
            being_written = Path(tempfile.mkdtemp(dir=folder))
            try:
                write_tiny(donor, being_written, model.name, model.dtype)
                os.rename(being_written, out)
            finally:
                shutil.rmtree(being_written, ignore_errors=True)
    except FusionError as error:
        raise UsageError(f"model '{model.name}' cannot be rehearsed: {error}") from error
    return out


def _beginning(corpus: str, seed: int, folder: Path) -> str:
    """The first documents of a corpus, as a file."""
    given: Iterator[Mapping[str, str]]
    if corpus.startswith("pocket/"):
        given = iter(pocket.corpus(corpus, seed))
    elif Path(corpus).is_file():
        given = iter(read_jsonl(Path(corpus)))
    else:
        raise UsageError(f"there is no corpus {corpus}: it is a .jsonl file of documents that you make")
    text = "".join(json.dumps(dict(document), ensure_ascii=False) + "\n" for document in islice(given, DOCUMENTS))
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    path.write_text(text, encoding="utf-8")
    return str(path)
