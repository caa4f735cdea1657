"""A recipe applied to models: the merged model, computed one tensor at a time when it is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoint import Source, check_finite, check_same, one_thread
from fusion.errors import MismatchError, RecipeError
from fusion.methods import METHODS
from fusion.methods.call import Place, Visit
from fusion.params import build
from fusion.recipe import Recipe, checked, torch_dtype


class Merge:
    """The model that a recipe makes of its parents, as a Source. Nothing is computed before a tensor is asked for.

    Arithmetic is in float32 on one thread whatever the parents hold; each tensor is cast once, at the end, to the
    recipe's dtype, else to that of the base, else to that of the first model. Config and tokenizer come from the base,
    else from the first model. Tensors of integers and booleans are copied, and must be equal in all parents.

    Raises RecipeError when the recipe does not fit its method or parents, and MismatchError that names every tensor
    that the parents do not share.
    """

    def __init__(self, recipe: Recipe, parents: Mapping[str, Source]) -> None:
        self.recipe = checked(recipe, parents)
        self._method = METHODS[recipe.method]
        self._params = build(self._method.Params, self.recipe.params)
        # The base leads, where there is one: what the result takes over unmerged comes from the first.
        named = recipe.models if recipe.base is None else (recipe.base, *recipe.models)
        self._sources = {name: parents[name] for name in named}
        self._first = parents[named[0]]
        self._dtype = torch_dtype(recipe.dtype)
        check_same(self._sources)
        self._state: Any = None
        self._prepared = self._method.prepare is None
        self.donor: Path = self._first.donor

    def names(self) -> list[str]:
        return self._first.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._first.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        stored = self._first.dtype(name)
        return self._dtype if self._dtype is not None and stored.is_floating_point else stored

    def tensor(self, name: str) -> Tensor:
        if not self._first.dtype(name).is_floating_point:
            return self._common(name)
        with one_thread():
            self._prepare()
            models, base = self._inputs(name)
            at = Place(name, self.recipe.models, self.recipe.seed, self._state)
            merged = self._method.merge(models, base, self.recipe.weights, self._params, at)
            return _cast(merged, self.dtype(name), name)

    def _prepare(self) -> None:
        if not self._prepared and self._method.prepare is not None:
            self._state = self._method.prepare(self._pass, self._params)
            self._prepared = True

    def _pass(self, visit: Visit) -> None:
        for name in self.names():
            if self._first.dtype(name).is_floating_point:
                visit(name, *self._inputs(name))

    def _inputs(self, name: str) -> tuple[list[Tensor], Tensor | None]:
        """The tensor of every model, and of the base, in float32."""
        found = {model: source.tensor(name).float() for model, source in self._sources.items()}
        for model, tensor in found.items():
            check_finite(tensor, name, model)
        base = None if self.recipe.base is None else found[self.recipe.base]
        return [found[model] for model in self.recipe.models], base

    def _common(self, name: str) -> Tensor:
        tensor = self._first.tensor(name)
        differ = [model for model, source in self._sources.items() if not torch.equal(source.tensor(name), tensor)]
        if differ:
            raise MismatchError(
                f"{name} holds {tensor.dtype}, which cannot be merged, and differs in {', '.join(differ)}: "
                "use models that agree on it"
            )
        return tensor


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The result in its dtype. Raises RecipeError where it leaves that dtype's range."""
    result = tensor.to(dtype)
    if not torch.isfinite(result.sum(dtype=torch.float32)) and not torch.isfinite(result.float()).all():
        raise RecipeError(
            f"the merge overflows {str(dtype).removeprefix('torch.')} in {name} (largest magnitude "
            f"{tensor.abs().max().item():.3g}): lower the weights or lambda, or set dtype: bfloat16 or float32"
        )
    return result
