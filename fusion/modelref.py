"""How a job names a model: a folder, or a merge that is not built. Refs cross processes; weights do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusion.checkpoint import Checkpoint, Source
from fusion.errors import RecipeError
from fusion.methods.apply import Merge
from fusion.recipe import Folder, Recipe

__all__ = ["Delta", "Folder", "ModelRef", "from_json", "open_ref", "to_json"]


@dataclass(frozen=True)
class Delta:
    """A merge that is computed when it is read. `parents` are by the recipe's names, the base included."""

    recipe: Recipe
    parents: tuple[tuple[str, "ModelRef"], ...]


ModelRef = Folder | Delta


def to_json(ref: ModelRef) -> dict[str, Any]:
    """A JSON object, tagged with its type, from which `from_json` makes an equal ref."""
    if isinstance(ref, Folder):
        return {"type": "folder", "path": ref.path}
    parents = [[name, to_json(parent)] for name, parent in ref.parents]
    return {"type": "delta", "recipe": ref.recipe.to_json(), "parents": parents}


def from_json(content: Mapping[str, Any]) -> ModelRef:
    """The ref that `to_json` wrote. Raises RecipeError for a type that is not known."""
    if content.get("type") == "folder":
        return Folder(content["path"])
    if content.get("type") == "delta":
        parents = tuple((name, from_json(parent)) for name, parent in content["parents"])
        return Delta(Recipe.from_json(content["recipe"]), parents)
    raise RecipeError(f"unknown type of model reference: {content.get('type')!r}; known: folder, delta")


def open_ref(ref: ModelRef) -> Source:
    """The model's tensors, one at a time: of a folder by mmap, of a merge computed when asked for.

    Raises CheckpointError, MismatchError or RecipeError when the model cannot be had.
    """
    if isinstance(ref, Folder):
        return Checkpoint(ref.path)
    return Merge(ref.recipe, {name: open_ref(parent) for name, parent in ref.parents})
