"""The model card of a merge: what was merged, how, from what, by which versions, and what became of every tensor."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from fusion.checkpoint import Source
from fusion.digests import weights_digest
from fusion.lineage import Lineage, to_json
from fusion.methods import METHODS
from fusion.methods.apply import Merge
from fusion.modelref import Delta, ModelRef, open_ref

FILE = "README.md"
LIBRARIES = ("fuse-bench", "torch", "safetensors")


def parents(ref: ModelRef) -> dict[str, str]:
    """The digest of each given model's weights, by its name in the recipe; those of earlier stages, too."""
    if not isinstance(ref, Delta):
        return {}
    found: dict[str, str] = {}
    for name, parent in ref.parents:
        found |= parents(parent) if isinstance(parent, Delta) else {name: weights_digest(open_ref(parent))}
    return found


def about(source: Source, digests: Mapping[str, str], kin: Mapping[str, Lineage]) -> dict[str, Any]:
    """What the card and the JSON report say of a merge that is written."""
    ledger = dict(sorted(source.ledger.items())) if isinstance(source, Merge) else {}
    vocabulary = source.vocabulary.report() if isinstance(source, Merge) and source.vocabulary is not None else None
    return {
        "parents": dict(digests),
        "lineage": to_json(kin),
        "ledger": ledger,
        **({} if vocabulary is None else {"vocabulary": vocabulary}),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def text(ref: Delta, found: Mapping[str, Any]) -> str:
    """The card in markdown, with the front matter that the Hugging Face hub reads."""
    stages = list(_stages(ref))
    method = METHODS[ref.recipe.method]
    lines = ["---", "library_name: transformers", "tags:", "- merge", "- fuse-bench", "---", "", "# A merged model", ""]
    lines += [f"Made by fuse-bench {found['versions']['fuse-bench']} with `{method.name}`: {method.formula}", ""]
    lines += [f"Source of the method: {method.paper}.", "", "## Parents", ""]
    lines += [
        "| model | SHA-256 of its weights | cosine to the base | relative distance |",
        "| --- | --- | --: | --: |",
    ]
    lines += [_parent(name, digest, found["lineage"].get(name)) for name, digest in found["parents"].items()]
    lines += ["", "## Recipe", ""]
    for stage in stages:
        lines += ["```json", json.dumps(stage.recipe.to_json(), indent=1, ensure_ascii=False), "```", ""]
    lines += ["## Tensors", "", *_ledger(found["ledger"])]
    if "vocabulary" in found:
        lines += ["", "## Vocabulary", "", "```json", json.dumps(found["vocabulary"], indent=1), "```"]
    lines += ["", "## Versions", "", *(f"- {name} {number}" for name, number in found["versions"].items())]
    return "\n".join(lines) + "\n"


def _stages(ref: ModelRef) -> Iterator[Delta]:
    """The merges that a merge is made of, the first to be made first."""
    if isinstance(ref, Delta):
        for _, parent in ref.parents:
            yield from _stages(parent)
        yield ref


def _parent(name: str, digest: str, kin: Mapping[str, Any] | None) -> str:
    numbers = ("", "") if kin is None or kin["cosine"] is None else (f"{kin['cosine']:.4f}", f"{kin['distance']:.4f}")
    return f"| {name} | `{digest}` | {numbers[0]} | {numbers[1]} |"


def _ledger(ledger: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every tensor, those that differ only in a number in one line."""
    kinds = Counter((re.sub(r"\b\d+\b", "*", name), entry["action"]) for name, entry in ledger.items())
    lines = ["| tensors | count | what was done |", "| --- | --: | --- |"]
    return lines + [f"| `{name}` | {count} | {action} |" for (name, action), count in kinds.items()]
