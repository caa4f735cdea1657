"""What data-guided merging knows of each model's data: made once a model and corpus, kept in a folder, read by tensor.

A folder holds safetensors files (one a decoder layer) and statistics.json, written last:
kind, key (digest of all that decides the content), models, corpora (digests), settings, sequences, tokens, bytes,
tensors ({name: {file, key, ...}}), and without (matrices of the model of which nothing is known: embeddings, heads
tied to them, weights that are no linear layer's).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fusion.calibration import FORMAT, META, Collect, statistics_key
from fusion.corpus import Document
from fusion.errors import FusionError
from fusion.fisher_information import collect_fisher
from fusion.grams import collect_grams, unpack
from fusion.methods.fisher import Fisher
from fusion.methods.regmean import Gram
from fusion.prefix import collect_prefix
from fusion.training import Progress

__all__ = [
    "KINDS",
    "Collect",
    "Statistics",
    "collect",
    "collect_all",
    "collect_prefix",
    "open_statistics",
    "statistics_key",
]

KINDS = ("gram", "gram++", "fisher")


def collect(
    kind: str, model: Path, documents: Sequence[Document], out: Path, settings: Collect, progress: Progress
) -> dict[str, Any]:
    """Make the statistics of a model on a corpus, in a folder that is empty or absent: "gram" or "fisher".

    ("gram++" needs all models at once: `collect_prefix`.) The report is what statistics.json holds, with `tensors` as
    a number, and apart under "wall" what depends on the machine. Nothing is left in `out` where it fails.
    Raises FusionError for another kind, and what `collect_grams` and `collect_fisher` raise.
    """
    makers = {"gram": collect_grams, "fisher": collect_fisher}
    if kind not in makers:
        raise FusionError(f"statistics of kind {kind!r} are not made of one model; those are: {', '.join(makers)}")
    return makers[kind](model, documents, out, settings, progress)


def collect_all(
    kind: str,
    models: Mapping[str, Path],
    corpora: Mapping[str, Sequence[Document]],
    out: Path,
    how: tuple[Any, Sequence[float] | None],
    settings: Collect,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """The statistics of some models, in `out/<model>`: "gram++" of all together, any other kind of one model alone.

    how: the method's parameters and weights, which "gram++" merges its prefix with. Returns each model's report.
    """
    if kind == "gram++":
        params, weights = how
        return collect_prefix(models, corpora, out, params, weights, settings, progress)
    ((name, model),) = models.items()
    return {name: collect(kind, model, corpora[name], out / name, settings, progress)}


class Statistics:
    """A finished folder. Nothing is read before a tensor is asked for."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about
        self.kind: str = about["kind"]
        self.key: str = about["key"]

    def of(self, tensor: str) -> Gram | Fisher | None:
        """What is known of the model's data for this tensor; None where nothing is (see `without` in the folder)."""
        entry = self.about["tensors"].get(tensor)
        if entry is None:
            return None
        try:
            with safe_open(self.folder / entry["file"], framework="pt") as file:
                found = file.get_tensor(entry["key"])
        except (OSError, SafetensorError) as error:
            raise FusionError(f"{self.folder / entry['file']}: cannot be read ({error}); collect it again") from error
        if self.kind == "fisher":
            return Fisher(found, entry["scale"])
        return Gram(unpack(found), entry["tokens"], entry["transposed"])


def open_statistics(folder: Path) -> Statistics:
    """Statistics that were collected. Raises FusionError for a folder that holds none, or unfinished ones."""
    file = folder / META
    if not file.is_file():
        raise FusionError(f"{folder}: holds no finished statistics (no {META}); collect them again")
    about = json.loads(file.read_text(encoding="utf-8"))
    if about.get("format") != FORMAT:
        raise FusionError(
            f"{folder}: holds statistics of format {about.get('format')}, not {FORMAT}; collect them again"
        )
    return Statistics(folder, about)
