"""What to merge, by which method, with which parameters: our own YAML -> one Recipe.

    method: ties
    base: ./base                     # a model is a folder, relative to the recipe's
    models: {./math: 0.7, ./code: 1} # or a list: [./math, ./code]
    density: 0.3                     # the method's parameters; `fuse-bench methods` lists them
    dtype: bfloat16                  # of the result; default: the base's, else the first model's
    seed: 17
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fusion.errors import RecipeError
from fusion.methods import METHODS, Method
from fusion.params import Problem, build, did_you_mean, fill

OUTPUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What only a mergekit recipe has at its top level.
MERGEKIT_KEYS = ("merge_method", "base_model", "slices", "modules", "parameters", "tokenizer_source", "out_dtype")
OWN_KEYS = ("method", "base", "models", "dtype", "seed")


@dataclass(frozen=True)
class Recipe:
    """A merge, by the names of its parents. `weights` follow `models`; `params` are complete, by their YAML names."""

    method: str
    models: tuple[str, ...]
    base: str | None
    weights: tuple[float, ...] | None
    params: Mapping[str, Any]
    seed: int = 0
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `recipe_from_json` makes an equal recipe."""
        weights = None if self.weights is None else list(self.weights)
        return {**asdict(self), "models": list(self.models), "weights": weights, "params": dict(self.params)}


def recipe_from_json(content: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_json` wrote."""
    weights = content["weights"]
    fixed = {"models": tuple(content["models"]), "weights": None if weights is None else tuple(weights)}
    return Recipe(**{**content, **fixed})
