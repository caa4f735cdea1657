"""mergekit's recipes as people publish them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import RecipeError
from fusion.methods import METHODS
from fusion.modelref import Delta, Folder
from fusion.params import PerModel, param
from fusion.recipe import Slice, Span
from fusion.recipe_file import read_recipe


@dataclass(frozen=True)
class Dare:
    """Parameters as mergekit's dare_ties has them."""

    density: PerModel = param(0.5, low=0.0, high=1.0, help="share")
    lambda_: float = param(1.0, help="scale")
    normalize: bool = param(False, help="mean or sum")
    steps: int = param(3, help="a whole number")


@dataclass(frozen=True)
class One:
    """Parameters as mergekit's passthrough has them."""

    scale: float = param(1.0, help="factor")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of models, and methods whose parameters are fixed here, whatever the table's own become."""
    vectors = replace(METHODS["ties"], check=None, compat=None)
    rows = {
        "dare_ties": replace(vectors, name="dare_ties", Params=Dare),
        "nearswap": replace(vectors, name="nearswap", Params=METHODS["slerp"].Params, models=(1, 1), weights=False),
        "passthrough": replace(METHODS["linear"], name="passthrough", Params=One, models=(1, 1), weights=False),
    }
    for name, row in rows.items():
        monkeypatch.setitem(METHODS, name, replace(row, check=None))
    for name in ("base", "math", "code", "lora"):
        (tmp_path / name).mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    return tmp_path


def read(folder: Path, text: str, **options: Any) -> Delta:
    (folder / "mergekit.yml").write_text(text)
    ref = read_recipe(folder / "mergekit.yml", **options)
    assert isinstance(ref, Delta)
    return ref


def fault(folder: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(folder, text)
    return str(caught.value)


LINEAR = (
    "merge_method: linear\nmodels: [{model: math, parameters: {weight: 1}}, {model: code, parameters: {weight: 1}}]\n"
)


def test_task_vectors_with_the_base_among_the_models(world: Path) -> None:
    ref = read(
        world,
        """\
models:
  - model: base # no parameters necessary for base model
  - model: math
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: code
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: dare_ties
base_model: base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""",
    )
    recipe = ref.recipe
    assert (recipe.method, recipe.models, recipe.base, recipe.dtype) == (
        "dare_ties",
        ("math", "code"),
        "base",
        "float16",
    )
    assert recipe.weights == (1.0, [{"filter": "mlp", "value": 0.5}, {"filter": None, "value": 0.0}])
    assert recipe.own == ({"density": [1.0, 0.7, 0.1]}, {"density": 0.33})
    assert recipe.params["normalize"] is True
    assert dict(ref.parents) == {name: Folder(str(world / name)) for name in ("base", "math", "code")}


def test_what_is_left_out_has_mergekits_default(world: Path) -> None:
    text = "merge_method: ties\nbase_model: base\nmodels: [{model: math, parameters: {weight: 1}}]\n"
    params = read(world, text).recipe.params
    assert params["density"] == 1.0
    assert params["lambda"] == 1.0
    assert read(world, text, compat="mergekit", seed=5).recipe.compat == "mergekit"
    assert read(world, text, compat="mergekit", seed=5).recipe.seed == 5
    params = read(world, text.replace("ties", "dare_ties")).recipe.params
    assert params == {"density": 1.0, "lambda": 1.0, "normalize": False, "steps": 3}


def test_a_source_wins_over_a_slice_and_a_slice_over_the_recipe(world: Path) -> None:
    ref = read(
        world,
        """\
merge_method: dare_ties
base_model: base
parameters: {weight: 0.1, density: 0.2, lambda: 0.3}
slices:
  - parameters:
      density: [{filter: mlp, value: 0.4}]
      lambda: 0.6
    sources:
      - {model: math, layer_range: [0, 2]}
      - model: code
        layer_range: [0, 2]
        parameters: {weight: 2, density: [{filter: attn, value: [0.5, 0.7]}]}
      - {model: base, layer_range: [0, 2]}
  - sources:
      - {model: math, layer_range: [2, 3]}
      - {model: base, layer_range: [3, 4]}
""",
    )
    first, second = ref.recipe.slices
    rest = [{"filter": "mlp", "value": 0.4}, {"filter": None, "value": 0.2}]
    assert first.sources == (Span("math", 0, 2), Span("code", 0, 2))
    assert first.base == Span("base", 0, 2)
    assert first.weights == (0.1, 2.0)
    assert first.own == ({"density": rest}, {"density": [{"filter": "attn", "value": [0.5, 0.7]}, *rest]})
    assert first.params["lambda"] == 0.6
    assert second.base == Span("base", 3, 4)
    assert second.params["density"] == 0.2
    assert second.params["lambda"] == 0.3


def test_slerp_as_it_is_published(world: Path) -> None:
    text = """\
slices:
  - sources:
      - model: code
        layer_range: [0, 32]
      - model: math
        layer_range: [0, 32]
merge_method: slerp
base_model: math
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: bfloat16
"""
    recipe = read(world, text).recipe
    # t = 0 is the base's end of the arc, whatever the order of the sources.
    assert recipe.models == ("math", "code")
    [part] = recipe.slices
    assert part.sources == (Span("math", 0, 32), Span("code", 0, 32))
    assert part.base is None
    assert part.params["t"][0] == {"filter": "self_attn", "value": [0.0, 0.5, 0.3, 0.7, 1.0]}
    text = "merge_method: slerp\nbase_model: base\nmodels: [{model: math}]\nparameters: {t: '5e-1'}\n"
    recipe = read(world, text).recipe
    assert (recipe.models, recipe.base, recipe.params) == (("base", "math"), None, {"t": 0.5})
    assert read(world, text.replace("{model: math}", "{model: math}, {model: base}")).recipe == recipe
    # Where a method of ours takes the base by itself, it gets it so.
    recipe = read(world, text.replace("slerp", "nearswap")).recipe
    assert (recipe.models, recipe.base) == (("math",), "base")


def test_a_frankenmerge(world: Path) -> None:
    recipe = read(
        world,
        """\
slices:
- sources:
  - model: math
    layer_range: [0, 16]
- sources:
  - model: code
    layer_range: [8, 24]
    parameters:
      scale:
        - filter: o_proj
          value: 0.0
        - value: 1.0
- sources:
  - model: math
    layer_range: [16, 32]
merge_method: passthrough
dtype: bfloat16
""",
    ).recipe
    assert recipe.models == ("math", "code")
    assert [part.sources for part in recipe.slices] == [
        (Span("math", 0, 16),),
        (Span("code", 8, 24),),
        (Span("math", 16, 32),),
    ]
    assert recipe.slices[0] == Slice((Span("math", 0, 16),), None, None, {"scale": 1.0}, ({},))
    assert recipe.slices[1].params["scale"][0] == {"filter": "o_proj", "value": 0.0}


def test_merges_of_merges(world: Path) -> None:
    text = """\
merge_method: linear
models:
  - {model: second, parameters: {weight: 0.5}}
  - {model: first, parameters: {weight: 0.5}}
dtype: float32
out_dtype: bfloat16
---
name: first
merge_method: task_arithmetic
base_model: base
models: [{model: math, parameters: {weight: 0.3}}]
---
name: second
merge_method: slerp
base_model: first
models: [{model: code}]
parameters: {t: 0.5}
"""
    ref = read(world, text, seed=3, allow_unrelated=True)
    assert (ref.recipe.method, ref.recipe.dtype, ref.recipe.seed) == ("linear", "bfloat16", 3)
    first, second = dict(ref.parents)["first"], dict(ref.parents)["second"]
    assert isinstance(first, Delta) and isinstance(second, Delta)
    assert second.recipe.models == ("first", "code")
    assert dict(second.parents)["first"] == first
    assert second.recipe.allow_unrelated and second.recipe.seed == 3
    assert "13:7: 'name' is 'first'" in fault(world, text.replace("name: second", "name: first"))
    lost = text.replace("model: first", "model: code").replace("base_model: first", "base_model: math")
    assert "9:1: no other document uses the merge 'first'" in fault(world, lost)
    assert "1:1: no other document uses this merge, which" in fault(world, lost.replace("name: first\n", "\n"))
    assert "these merges need each other: first, second" in fault(
        world, text.replace("base_model: base", "base_model: second")
    )
    # What is wrong with an earlier merge is said once, where it is.
    wrong = fault(world, text.replace("model: math", "model: nix"))
    assert len(wrong.splitlines()) == 2
    assert "11:" in wrong


def test_models_of_every_notation(world: Path) -> None:
    adapted = Folder(str(world / "base"), str(world / "lora"))
    text = "merge_method: linear\nmodels: [{model: base+lora, parameters: {weight: 1}}]\n"
    assert read(world, text).parents == (("base+lora", adapted),)
    text = text.replace("base+lora", "{model: {path: base, revision: null}, lora: {path: lora}}")
    assert read(world, text).parents == (("base+lora", adapted),)
    text = "merge_method: task_arithmetic\nbase_model: {model: {path: base}}\nmodels: [{model: base+lora}]\n"
    ref = read(world, text + "parameters: {weight: 1}\n")
    assert (ref.recipe.models, ref.recipe.base) == (("base+lora",), "base")
    text = "merge_method: linear\nmodels: [{model: {model: {path: base, revision: x}}}]\n"
    assert "2:39: 'revision' is not supported (download that revision" in fault(world, text)
    assert "asks for revision 'main'" in fault(world, "merge_method: linear\nmodels: [{model: base@main}]\n")


def test_tokenizers_and_templates(world: Path) -> None:
    assert read(world, LINEAR + "tokenizer_source: union\n").recipe.tokenizer == {"source": "union"}
    assert read(world, LINEAR + "tokenizer_source: ./code\n").recipe.tokenizer == {"source": "code"}
    block = "tokenizer: {source: union, tokens: {<x>: {source: code, force: true}}, pad_to_multiple_of: 64}\n"
    recipe = read(world, LINEAR + block + "chat_template: auto\n").recipe
    assert recipe.tokenizer == {
        "source": "union",
        "tokens": {"<x>": {"source": "code", "force": True}},
        "pad_to_multiple_of": 64,
    }
    assert recipe.chat_template == "auto"
    assert "exclude each other" in fault(world, LINEAR + block + "tokenizer_source: union\n")
    assert read(world, LINEAR + "tokenizer_source: base\n").recipe.tokenizer == {"source": "base"}
    assert "none is built in" in fault(world, LINEAR + "chat_template: chatml\n")
    assert "3:13: unknown key 'sauce'" in fault(world, LINEAR + "tokenizer: {sauce: union}\n")


def test_numbers_and_truths_as_yaml_1_1_has_them(world: Path) -> None:
    text = "merge_method: dare_ties\nbase_model: base\nmodels: [{model: math, parameters: {weight: '1e-5'}}]\n"
    recipe = read(world, text + "parameters: {normalize: yes, density: ['1e-1', 0.5]}\n").recipe
    assert recipe.weights == (1e-5,)
    assert recipe.params["normalize"] is True
    assert recipe.params["density"] == [0.1, 0.5]
    assert (
        read(world, text + "parameters: {normalize: 1.0, lambda: [{value: '2'}]}\n").recipe.params["normalize"] is True
    )
    assert "'normalize' is 'maybe'; expected true or false" in fault(world, text + "parameters: {normalize: maybe}\n")
    assert "'weight' is 'x'; expected number" in fault(world, text.replace("1e-5", "x"))
    # What our method does not know is accepted only as what it does anyway.
    assert read(world, text + "parameters: {rescale: true}\n").recipe == read(world, text).recipe
    assert "4:23: 'rescale: False' is not supported by dare_ties" in fault(world, text + "parameters: {rescale: no}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normalize: true\n", "3:1: 'normalize' has no effect here (write it under 'parameters')"),
        ("parameters: {noramlize: true}\n", "3:14: unknown parameter 'noramlize' (did you mean 'normalize'?)"),
        ("parameters: {densty: 1}\n", "3:14: unknown parameter 'densty'"),
        ("parameters: [1]\n", "3:13: 'parameters' is [1]"),
        ("dtyp: float16\n", "3:1: unknown key 'dtyp' (did you mean 'dtype'?)"),
        ("dtype: fp16\n", "3:8: 'dtype' is 'fp16'; expected float32"),
        ("dtype: fp16\nout_dtype: fp8\n", "4:12: 'dtype' is 'fp8'; expected float32"),
        ("modules: {}\n", "3:1: 'modules' is not supported (merge one part of the model at a time"),
        ("slices: []\n", "a recipe has either 'models' or 'slices'"),
        ("base_model: base\n", "3:13: the base_model 'base' is not among the models that linear merges"),
        ("method: linear\n", "3:1: unknown key 'method' (did you mean 'merge_method'?)"),
        ("base_model: org/name\n", "download it (hf download org/name --local-dir FOLDER)"),
    ],
)  # fmt: skip
def test_a_bad_key_of_a_recipe(world: Path, text: str, message: str) -> None:
    assert message in fault(world, LINEAR + text)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("[{model: math, parameters: {densty: 1, weight: 1}}]", "3:37: unknown parameter 'densty'"),
        ("[{model: math, parameters: {weight: 1, lambda: 2}}]", "3:48: 'lambda' is one for all models"),
        ("[{model: math, weight: 1}]", "3:24: 'weight' has no effect here (write it under 'parameters')"),
        ("[{model: math}]", "3:10: the parameter 'weight' of 'math' is missing"),
        ("[{model: math, parameters: {weight: [{filter: mlp, value: 1}]}}]", "no filter of 'weight' of 'math' is for"),
        ("[{model: math, parameters: {weight: []}}]", "'weight' is an empty list"),
        ("[{model: math, parameters: {weight: 1, density: 2}}]", "3:57: 'density' is 2.0; allowed: [0.0, 1.0]"),
        ("[math]", "3:10: 'math' names no model; expected {model: FOLDER}"),
        ("[{model: 3}]", "3:18: 3 is not the path of a model"),
        ("[{model: base}]", "dare_ties takes 1 or more models, got 0"),
        ("[{modle: math}]", "names no model"),
        ("[{model: {model: math, override_architecture: x}}]", "'override_architecture' is not supported"),
        ("[{model: math, parameters: {weight: 1}}, {model: math, parameters: {weight: 1}}]", "'math' is named twice"),
    ],
)
def test_a_bad_model(world: Path, models: str, message: str) -> None:
    assert message in fault(world, f"merge_method: dare_ties\nbase_model: base\nmodels: {models}\n")


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ("3", "'slices' is 3"),
        ("[{sources: []}]", "'sources' is []"),
        ("[a]", "'a' is no slice"),
        ("[{sources: [{model: math}, {model: base}]}]", "'layer_range' is missing"),
        ("[{sources: [{model: math, layer_range: [1]}]}]", "'layer_range' is [1]"),
        ("[{sources: [{model: math, layer_range: [0, 1]}], residual_weight: 1}]", "'residual_weight' is not supported"),
        ("[{sources: [{model: math, layer_range: [0, 1]}], t: 1}]", "3:58: 't' has no effect here"),
        ("[{sources: [{model: math, layer_range: [0, 1], t: 1}]}]", "3:56: 't' has no effect here"),
        ("[{sources: [{model: math, layer_range: [0, 1]}, {model: base, layer_range: [1, 3]}]}]", "math 1"),
        ("[{sources: [{model: math, layer_range: [0, 1]}], parameters: {t: 2}}]", "'t' is 2.0; allowed"),
        ("[{sources: [{model: math, layer_range: [0, 1]}]}]", "base_model 'base' is not among the models"),
    ],
)
def test_a_bad_slice(world: Path, slices: str, message: str) -> None:
    text = f"merge_method: slerp\nbase_model: base\nslices: {slices}\nparameters: {{t: 0.5}}\n"
    assert message in fault(world, text)


def test_a_missing_base_or_parameter(world: Path) -> None:
    assert "1:1: slerp needs a base_model" in fault(
        world, "merge_method: slerp\nmodels: [{model: math}, {model: code}]\n"
    )
    text = fault(world, "merge_method: slerp\nbase_model: math\nmodels: [{model: code}]\n")
    assert "1:1: the parameter 't' is missing" in text
    assert "unknown merge_method 'slurp' (did you mean 'slerp'?)" in fault(world, "merge_method: slurp\nmodels: []\n")
    assert "unknown merge_method ''" in fault(world, "base_model: math\nmodels: []\n")


def test_everything_wrong_in_every_document_at_once(world: Path) -> None:
    text = fault(
        world,
        """\
name: first
merge_method: dare_ties
base_model: base
models:
  - model: org/math
    parameters: {wieght: 1}
parameters: {lamda: 1}
---
merge_method: linear
models:
  - {model: first, parameters: {weight: x}}
tokenizer_sorce: union
""",
    )
    places = [line.split(": ")[0].strip() for line in text.splitlines()[1:]]
    assert places == ["5:12", "6:18", "7:14", "11:41", "12:1"]


def _models(folder: Path) -> None:
    for name in ("base", "math", "code"):
        (folder / name).mkdir()


def test_the_first_model_may_be_the_base_that_a_tokenizer_is_taken_from(tmp_path: Path) -> None:
    text = """
merge_method: slerp
base_model: math
models: [{model: math}, {model: code}]
parameters: {t: 0.4}
tokenizer_source: base
"""
    _models(tmp_path)
    assert read(tmp_path, text).recipe.tokenizer == {"source": "base"}


def test_a_density_that_varies_is_trimmed_tensor_by_tensor(tmp_path: Path) -> None:
    text = """
merge_method: ties
base_model: base
models:
  - {model: math, parameters: {density: [1, 0.7, 0.1], weight: 1}}
  - {model: code, parameters: {density: 0.5, weight: 1}}
"""
    _models(tmp_path)
    recipe = read(tmp_path, text).recipe
    assert recipe.params["trim"] == "tensor" and recipe.own[0]["density"] == [1, 0.7, 0.1]
    plain = text.replace("[1, 0.7, 0.1]", "0.7")
    assert read(tmp_path, plain).recipe.params["trim"] == "global"
