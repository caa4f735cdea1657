import json
from pathlib import Path

import pytest

from fusion.mergekit_values import FOREIGN
from fusion.methods import METHODS
from fusion.modelref import Delta
from fusion.recipe import Recipe, checked
from fusion.recipe_file import read_recipe


def read(folder: Path, text: str) -> Delta:
    (folder / "mergekit.yml").write_text(text)
    ref = read_recipe(folder / "mergekit.yml")
    assert isinstance(ref, Delta)
    return ref


# How many models each method's recipe lists beside the base.
LISTED = {"slerp": 1, "nearswap": 1, "arcee_fusion": 1, "passthrough": 1}


@pytest.mark.parametrize("method", [method for method in FOREIGN if method in METHODS])
def test_every_method_with_its_defaults(tmp_path: Path, method: str) -> None:
    """Each method of the table reads a recipe with nothing that can be left out, and gets mergekit's defaults."""
    for name in ("base", "math", "code"):
        (tmp_path / name).mkdir()
    foreign = FOREIGN[method]
    weight = ", parameters: {weight: 0.5}" if foreign.weight else ""
    models = ", ".join(f"{{model: {name}{weight}}}" for name in ("math", "code")[: LISTED.get(method, 2)])
    text = f"merge_method: {method}\nmodels: [{models}]\n"
    text += "" if foreign.base == "model" else "base_model: base\n"
    text += "parameters: {t: 0.5}\n" if "t" in foreign.shared else ""
    ref = read(tmp_path, text)
    for name, default in {**foreign.shared, **foreign.own}.items():
        if name in ref.recipe.params and name != "t":
            assert ref.recipe.params[name] == default
    assert checked(ref.recipe, dict(ref.parents)) == ref.recipe
    assert Recipe.from_json(ref.recipe.to_json()) == ref.recipe
    # Each default may be written out too.
    given = {name: value for name, value in {**foreign.shared, **foreign.own}.items() if name != "t"}
    given |= {"t": 0.5} if "t" in foreign.shared else {}
    spelt = text.replace("parameters: {t: 0.5}\n", "") + f"parameters: {json.dumps(given)}\n"
    assert read(tmp_path, spelt).recipe == ref.recipe
