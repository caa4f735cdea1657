"""Job -> model, through the engine: trained or fused. A merge has no station here: evaluation makes it live."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fusion import statistics, teachers
from fusion.builders import BUILDERS
from fusion.builders.builder import Work
from fusion.calibration import Collect
from fusion.corpus import Document
from fusion.digests import folder_digests
from fusion.jsonl import Joined, read_jsonl
from fusion.merge import write
from fusion.methods import METHODS
from fusion.modelref import Folder, ModelRef
from fusion.params import build as make_params
from harness import pocket
from harness.errors import UsageError
from harness.store import file_digest

Progress = Callable[[int, int], None]
Text = tuple[Sequence[str], Sequence[str], int]  # corpora, their digests as planned, the seed of generated ones


def train(
    spec: Mapping[str, Any], parent: ModelRef | None, out: Path, scratch: Path, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Train a model as a job's spec says. Returns (report with digests and machine, model digest)."""
    trainer = pocket.TRAINERS[spec["trainer"]]
    params = make_params(trainer.Params, spec["params"])
    folder = folder_of(parent, scratch / "parent") if parent else None
    report = trainer.run(params, folder, spec["seed"], out, scratch, progress)
    return _identified(report, out)


def read_text(
    spec: Mapping[str, Any],
    models: Sequence[ModelRef],
    text: Text,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """What models, together where they are several, say of corpora: a store. Returns what it is known by."""
    folders = [folder_of(ref, scratch / f"model-{i}") for i, ref in enumerate(models)]
    # `out` is another one at each try, `scratch` is not.
    store = teachers.write_store(folders, joined(text), spec["top_k"], scratch / "store", progress)
    shutil.move(store.folder, out)
    return dict(store.meta)


def fuse(
    spec: Mapping[str, Any],
    target: ModelRef,
    teachers: Sequence[ModelRef],
    stores: Sequence[Path],
    text: Text,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> tuple[dict[str, Any], str]:
    """Train a target on corpora, by its teachers' distributions or by itself. Returns as `train` does."""
    builder = BUILDERS[spec["method"]]
    work = Work(
        params=make_params(builder.Params, spec["params"]),
        target=folder_of(target, scratch / "target"),
        teachers=tuple(folder_of(ref, scratch / f"teacher-{i}") for i, ref in enumerate(teachers)),
        documents=joined(text),
        stores=tuple(stores),
        seed=spec["seed"],
        out=out,
        scratch=scratch,
        progress=progress,
    )
    return _identified(builder.run(work), out)


def read_data(
    spec: Mapping[str, Any],
    models: Sequence[ModelRef],
    text: Text,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """What a data-guided merge needs to know of its models, in folders "0", "1", ... of `out`, in their order."""
    names, digests, seed = text
    settings = Collect(**{**spec["settings"], "device": spec["device"]})
    folders = {str(i): folder_of(ref, scratch / f"model-{i}") for i, ref in enumerate(models)}
    texts = {str(i): joined(((n,), (d,), seed)) for i, (n, d) in enumerate(zip(names, digests, strict=True))}
    # Only what depends on the merge has its parameters in the job's spec.
    how = (
        (make_params(METHODS["regmean++"].Params, spec["params"]), spec["weights"])
        if "params" in spec
        else (None, None)
    )
    return dict(statistics.collect_all(spec["kind"], folders, texts, out, how, settings, progress))


def joined(text: Text) -> Sequence[Document]:
    """The documents of one corpus, or of several after each other.

    Raises UsageError where a file is no longer what was planned with: what is made of it would be kept under its name.
    """
    names, digests, seed = text
    for name, digest in zip(names, digests, strict=True):
        if not name.startswith("pocket/") and file_digest(Path(name)) != digest:
            raise UsageError(f"corpus {name} has changed since this run was planned; run again")
    texts = [documents(name, seed) for name in names]
    return texts[0] if len(texts) == 1 else Joined(texts)


def documents(corpus: str, seed: int) -> Sequence[Document]:
    """The documents of `pocket/<name>`, generated, or of a .jsonl file."""
    if corpus.startswith("pocket/"):
        return pocket.corpus(corpus, seed)
    return read_jsonl(Path(corpus))


def folder_of(ref: ModelRef, out: Path) -> Path:
    """A folder that holds the model: its own, or `out` with a merge written for this job."""
    if isinstance(ref, Folder) and ref.adapter is None and not ref.pickled:
        return Path(ref.path)
    shutil.rmtree(out, ignore_errors=True)  # what a killed try left
    write(ref, out)
    return out


def _identified(report: Mapping[str, Any], out: Path) -> tuple[dict[str, Any], str]:
    digests = folder_digests(out)
    machine = {"threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return {**report, "digests": digests, "machine": machine}, digests["model"]
