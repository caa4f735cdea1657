"""How a job names a model: a folder, a merge that is not built, or several that answer together.

Refs cross processes; weights do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusion.checkpoint import Checkpoint, Source
from fusion.errors import RecipeError
from fusion.methods.apply import Merge
from fusion.pickled import Pickled
from fusion.recipe import Recipe

SAFE = "*.safetensors"


@dataclass(frozen=True)
class Folder:
    """A model on disk: the path of a transformers folder (config.json, *.safetensors, tokenizer).

    `adapter` is the path of a LoRA folder (peft's adapter_config.json and its weights) that is added to it. `pickled`
    allows weights that can run code when they are read, where there are no others.
    """

    path: str
    adapter: str | None = None
    pickled: bool = False


@dataclass(frozen=True)
class Delta:
    """A merge that is computed when it is read. `parents` are by the recipe's names, the base included.

    `statistics` is what is known of each model's data, by the model's name: the path of a statistics folder.
    """

    recipe: Recipe
    parents: tuple[tuple[str, "ModelRef"], ...]
    statistics: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Routed:
    """One model a group of tasks: `routes` says which model answers for which group."""

    routes: tuple[tuple[str, "ModelRef"], ...]


@dataclass(frozen=True)
class Ensemble:
    """Models that answer together, combined at their outputs (see fusion/ensemble.py): there are no weights of it.

    models: by the names that messages call them. dtypes: what each is run in. weights: None, or one for each model, of
    a `combine` that takes some. domains: the file of a routed one's densities, None as long as they are not fitted.
    """

    models: tuple[tuple[str, "ModelRef"], ...]
    dtypes: tuple[str, ...]
    combine: str
    weights: tuple[float, ...] | None = None
    domains: str | None = None


ModelRef = Folder | Delta | Routed | Ensemble


def to_json(ref: ModelRef) -> dict[str, Any]:
    """A JSON object, tagged with its type, from which `from_json` makes an equal ref."""
    if isinstance(ref, Folder):
        adapter = {} if ref.adapter is None else {"adapter": ref.adapter}
        return {"type": "folder", "path": ref.path, **adapter, **({"pickled": True} if ref.pickled else {})}
    if isinstance(ref, Routed):
        return {"type": "routed", "routes": [[group, to_json(route)] for group, route in ref.routes]}
    if isinstance(ref, Ensemble):
        models = [[name, to_json(model)] for name, model in ref.models]
        found = {"weights": None if ref.weights is None else list(ref.weights), "domains": ref.domains}
        given = {key: value for key, value in found.items() if value is not None}
        return {"type": "ensemble", "models": models, "dtypes": list(ref.dtypes), "combine": ref.combine, **given}
    parents = [[name, to_json(parent)] for name, parent in ref.parents]
    statistics = {"statistics": [list(pair) for pair in ref.statistics]} if ref.statistics else {}
    return {"type": "delta", "recipe": ref.recipe.to_json(), "parents": parents, **statistics}


def from_json(content: Mapping[str, Any]) -> ModelRef:
    """The ref that `to_json` wrote. Raises RecipeError for a type that is not known."""
    if content.get("type") == "folder":
        return Folder(content["path"], content.get("adapter"), content.get("pickled", False))
    if content.get("type") == "routed":
        return Routed(tuple((group, from_json(route)) for group, route in content["routes"]))
    if content.get("type") == "ensemble":
        weights = content.get("weights")
        return Ensemble(
            tuple((name, from_json(model)) for name, model in content["models"]),
            tuple(content["dtypes"]),
            content["combine"],
            None if weights is None else tuple(weights),
            content.get("domains"),
        )
    if content.get("type") == "delta":
        parents = tuple((name, from_json(parent)) for name, parent in content["parents"])
        statistics = tuple((model, path) for model, path in content.get("statistics", ()))
        return Delta(Recipe.from_json(content["recipe"]), parents, statistics)
    raise RecipeError(
        f"unknown type of model reference: {content.get('type')!r}; known: folder, delta, routed, ensemble"
    )


def with_pickles(ref: ModelRef) -> ModelRef:
    """The same model, its pickled weights allowed wherever a folder has no others."""
    if isinstance(ref, Folder):
        return replace(ref, pickled=True)
    if isinstance(ref, Routed):
        return replace(ref, routes=tuple((group, with_pickles(route)) for group, route in ref.routes))
    if isinstance(ref, Ensemble):
        return replace(ref, models=tuple((name, with_pickles(model)) for name, model in ref.models))
    return replace(ref, parents=tuple((name, with_pickles(parent)) for name, parent in ref.parents))


def open_ref(ref: ModelRef, threads: int = 1, device: str = "cpu") -> Source:
    """The model's tensors, one at a time: of a folder by mmap, of a merge computed when asked for.

    threads, device: how a merge is computed (see Merge). Raises CheckpointError, MismatchError or RecipeError when the
    model cannot be had; RecipeError too for a routed model, which is as many models as it has routes, and an ensemble.
    """
    if isinstance(ref, Folder):
        source = Pickled(ref.path) if ref.pickled and not any(Path(ref.path).glob(SAFE)) else Checkpoint(ref.path)
        if ref.adapter is None:
            return source
        from fusion.adapter import Adapted

        return Adapted(source, Path(ref.adapter))
    if isinstance(ref, Routed):
        routes = ", ".join(group for group, _ in ref.routes)
        raise RecipeError(f"a routed model is one model a group ({routes}), not one: open one of its routes")
    if isinstance(ref, Ensemble):
        names = ", ".join(name for name, _ in ref.models)
        raise RecipeError(f"an ensemble is several models ({names}) that answer together, not one: open one of them")
    parents = {name: open_ref(parent, threads, device) for name, parent in ref.parents}
    if ref.statistics:
        statistics = {model: Path(path) for model, path in ref.statistics}
        return Merge(ref.recipe, parents, threads=threads, device=device, statistics=statistics)
    return Merge(ref.recipe, parents, threads=threads, device=device)
