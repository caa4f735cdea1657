"""What a recipe file's data-guided merge needs to know of each model's data, kept between calls."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fusion import statistics
from fusion.calibration import META, Collect, statistics_key
from fusion.corpus import read_jsonl
from fusion.digests import folder_digests
from fusion.methods import METHODS
from fusion.modelref import Delta
from fusion.params import build_at
from fusion.recipe import Recipe
from harness.build import folder_of
from harness.store import file_digest


def with_data(ref: Delta, cache: Path, device: str) -> Delta:
    """The merge with what its method needs to know of each model's data: read now, or found in the cache."""
    recipe = ref.recipe
    kind = METHODS[recipe.method].statistics
    assert kind is not None
    settings = Collect(**{**recipe.calibration, "seed": recipe.seed, "device": device})
    how = {"params": dict(recipe.params), "weights": recipe.weights} if kind == "gram++" else {}
    with tempfile.TemporaryDirectory(prefix="fuse-bench-") as scratch:
        parents = dict(ref.parents)
        models = {str(i): folder_of(parents[name], Path(scratch) / str(i)) for i, name in enumerate(recipe.models)}
        texts = {str(i): Path(recipe.corpora[name]) for i, name in enumerate(recipe.models)}
        digests = {i: (folder_digests(models[i])["model"], file_digest(texts[i])) for i in models}
        together = [list(models)] if kind == "gram++" else [[i] for i in models]
        folders: dict[str, Path] = {}
        for group in together:
            key = statistics_key(kind, [digests[i][0] for i in group], [digests[i][1] for i in group], settings, how)
            place = cache / key.removeprefix("sha256:")[:32]
            folders |= {i: place / i if kind == "gram++" else place for i in group}
            if not all((folders[i] / META).is_file() for i in group):
                _read(kind, {i: models[i] for i in group}, texts, place, settings, recipe)
    return replace(ref, statistics=tuple((name, str(folders[str(i)])) for i, name in enumerate(recipe.models)))


def _read(
    kind: str,
    models: Mapping[str, Path],
    texts: Mapping[str, Path],
    out: Path,
    settings: Collect,
    recipe: Recipe,
) -> None:
    """Read the corpora of some models; nothing is left in `out` unless all of it was read."""
    corpora = {i: read_jsonl(texts[i]) for i in models}
    shutil.rmtree(out, ignore_errors=True)
    if kind == "gram++":
        params = build_at(METHODS[recipe.method].Params, recipe.params, [{}] * len(models), "", 0.0)
        statistics.collect_prefix(models, corpora, out, params, recipe.weights, settings, _quiet)
    else:
        ((i, model),) = models.items()
        statistics.collect(kind, model, corpora[i], out, settings, _quiet)


def _quiet(done: int, of: int) -> None:
    """Progress that nobody watches."""
