"""The jobs that compare models with each other: task vectors against their base, and what models make of texts."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from fusion.checkpoint import Source
from fusion.corpus import Document
from fusion.errors import MismatchError
from fusion.kinship.probe import relate, write_probe
from fusion.kinship.shared import in_common, misfits
from fusion.kinship.weights import kinship
from fusion.lineage import lineage, to_json
from fusion.modelref import ModelRef, open_ref
from harness.build import Progress, Text, folder_of, joined


def by_weights(spec: Mapping[str, Any], models: Mapping[str, ModelRef], base: ModelRef) -> dict[str, Any]:
    """{"pairs": one row for each two models, "lineage": what each shares with the base}.

    Of vocabularies that differ the tokens are compared that all have. A model that cannot be compared with the base
    even so keeps the others from nothing: its pairs say why.
    """
    origin = open_ref(base)
    opened = {name: open_ref(ref) for name, ref in models.items()}
    differing = misfits(opened, origin)
    odd = {name: why for name, why in differing.items() if not _but_for_tokens(opened[name], origin)}
    fit = {name: source for name, source in opened.items() if name not in odd}
    common = len(differing) > len(odd)
    pairs = kinship(fit, origin, spec["measures"], by=("layer", "kind"), common=common) if len(fit) > 1 else []
    known = {(row["a"], row["b"]): row for row in pairs}
    rows = [known.get((a, b)) or _not_compared(a, b, odd) for a, b in combinations(models, 2)]
    return {"pairs": rows, "lineage": to_json({name: lineage(source, origin) for name, source in opened.items()})}


def _but_for_tokens(model: Source, base: Source) -> bool:
    """Whether a model is as its base but for rows of its vocabulary."""
    try:
        return in_common({"base": base, "model": model})[1].tensors == 0
    except MismatchError:
        return False


def _not_compared(a: str, b: str, odd: Mapping[str, str]) -> dict[str, Any]:
    return {"a": a, "b": b, "status": "; ".join(f"'{name}' {odd[name]}" for name in (a, b) if name in odd)}


def probe(
    spec: Mapping[str, Any], model: ModelRef, text: Text, out: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """What one model makes of the texts, written to `out`."""
    documents = _first(text, spec["documents"])
    folder = folder_of(model, scratch / "model")
    write_probe(folder, documents, out, spec["measures"], spec["seed"], progress)
    return {"documents": len(documents)}


def by_texts(
    spec: Mapping[str, Any], models: Mapping[str, ModelRef], probes: Sequence[Path], text: Text, scratch: Path
) -> dict[str, Any]:
    """{"pairs": one row for each two models}, from the probes of all."""
    folders = {name: folder_of(ref, scratch / f"model-{i}") for i, (name, ref) in enumerate(models.items())}
    documents = _first(text, spec["documents"])
    found = dict(zip(models, probes, strict=True))
    return {"pairs": relate(folders, documents, found, spec["measures"])}


def _first(text: Text, count: int) -> list[Document]:
    documents = joined(text)
    return [documents[i] for i in range(min(count, len(documents)))]
