"""What a recipe file's data-guided merge needs to know of each model's data, kept between calls."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from fusion import statistics
from fusion.calibration import META, Collect, statistics_key
from fusion.digests import folder_digests
from fusion.jsonl import read_jsonl
from fusion.methods import METHODS
from fusion.modelref import Delta
from fusion.params import build_at
from harness.build import folder_of
from harness.store import file_digest


def with_data(ref: Delta, cache: Path, device: str) -> Delta:
    """The merge with what its method needs to know of each model's data: read now, or found in the cache."""
    recipe = ref.recipe
    kind = METHODS[recipe.method].statistics
    assert kind is not None
    settings = Collect(**{**recipe.calibration, "seed": recipe.seed, "device": device})
    params = build_at(METHODS[recipe.method].Params, recipe.params, [{}] * len(recipe.models), "", 0.0)
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
            names = dict(zip(group, map(str, range(len(group))), strict=True))
            folders |= {i: place / name for i, name in names.items()}
            if not all((folders[i] / META).is_file() for i in group):
                shutil.rmtree(place, ignore_errors=True)
                read = {name: read_jsonl(texts[i]) for i, name in names.items()}
                given = {name: models[i] for i, name in names.items()}
                statistics.collect_all(kind, given, read, place, (params, recipe.weights), settings, _quiet)
    return replace(ref, statistics=tuple((name, str(folders[str(i)])) for i, name in enumerate(recipe.models)))


def _quiet(done: int, of: int) -> None:
    """Progress that nobody watches."""
