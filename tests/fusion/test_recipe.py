import json
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import RecipeError
from fusion.modelref import Delta, Folder, Routed, from_json, open_ref, to_json
from fusion.recipe import Recipe, Slice, Span, check_recipe, checked, in_order
from fusion.recipe_file import read_recipe


def messages(*args: Any) -> list[str]:
    return [problem.message for problem in check_recipe(*args)[1]]


def test_defaults_are_filled_in() -> None:
    values, problems = check_recipe("slerp", ["a", "b"], None, None, {})
    assert problems == []
    assert values == {"t": 0.5}


def test_every_problem_at_once() -> None:
    _, problems = check_recipe("ties", ["a", "a"], {"c": 1.0, "a": float("nan")}, None, {"densty": 1, "lambda": "x"})
    assert [(problem.key, problem.message) for problem in problems] == [
        (("densty",), "unknown parameter 'densty'"),
        (("lambda",), "'lambda' is 'x'; expected number"),
        ((), "ties needs a base"),
        (("models",), "model 'a' is named twice"),
        (("models", "c"), "a weight for 'c', which is no model here"),
        (("models", "a"), "the weight of 'a' is nan; expected a finite number"),
    ]
    assert problems[0].hint == "did you mean 'density'?"


def test_an_unknown_method_has_a_hint() -> None:
    _, [problem] = check_recipe("slurp", ["a", "b"], None, None, {})
    assert problem.key == ("method",)
    assert problem.hint == "did you mean 'slerp'?"


@pytest.mark.parametrize(
    ("method", "models", "weights", "base", "params", "message"),
    [
        ("slerp", ["a"], None, None, {}, "slerp takes 2 models, got 1"),
        ("slerp", ["a", "b", "c"], None, None, {}, "slerp takes 2 models, got 3"),
        ("slerp", ["a", "b"], [1.0, 2.0], None, {}, "slerp takes no weights"),
        ("slerp", ["a", "b"], None, None, {"t": 1.5}, "'t' is 1.5; allowed: [0.0, 1.0]"),
        ("slerp", ["a", "b"], None, None, {"t": [0, 1.5]}, "'t' is 1.5; allowed: [0.0, 1.0]"),
        ("linear", [], None, None, {}, "linear takes 1 or more models, got 0"),
        ("linear", ["a", "b"], None, "base", {}, "linear takes no base"),
        ("linear", ["a", "b"], [1.0], None, {}, "1 weights for 2 models"),
        ("linear", ["a"], [[]], None, {}, "the weight of 'a' is an empty list; expected numbers, or {filter, value}"),
        ("task_arithmetic", ["a"], None, None, {}, "task_arithmetic needs a base"),
        ("ties", ["a"], None, "base", {"density": -0.1}, "'density' is -0.1; allowed: [0.0, 1.0]"),
        ("ties", ["a"], None, "base", {"trim": "layer"}, "'trim' is 'layer'; expected global | tensor"),
    ],
)
def test_one_problem(method: str, models: list[str], weights: Any, base: Any, params: Any, message: str) -> None:
    assert messages(method, models, weights, base, params) == [message]


def test_weights_that_sum_to_nothing_are_refused_unless_they_vary() -> None:
    assert "sum to 0" in messages("linear", ["a", "b"], [1.0, -1.0], None, {})[0]
    assert messages("linear", ["a", "b"], [[1.0, 0.5], -1.0], None, {}) == []


def test_what_a_model_has_for_itself_must_be_one_by_model() -> None:
    _, problems = check_recipe("slerp", ["a", "b"], None, None, {}, own=[{}, {"t": 0.5, "lamda": 1}])
    assert [(problem.key, problem.message) for problem in problems] == [
        (("models", 1, "lamda"), "unknown parameter 'lamda'"),
        (("models", 1, "t"), "'t' is one for all models"),
    ]


def test_weights_by_name_come_in_the_models_order() -> None:
    assert in_order(["b", "a", "c"], {"a": 2, "b": 0.5}) == (0.5, 2.0, 1.0)
    assert in_order(["a"], None) is None


SLICES = (
    Slice((Span("a", 0, 2), Span("b", 2, 4)), Span("base", 1, 3), (1.0, [0.0, 1.0]), {"lambda": 1.0}, ({}, {})),
    Slice((Span("a", 1, 2), Span("a", 0, 1)), Span("base", 0, 1), None, {"lambda": [{"filter": "mlp", "value": 2.0}]}),
)


def test_a_recipe_survives_json() -> None:
    for weights in (None, (1.0, [{"filter": None, "value": 2.0}])):
        recipe = Recipe("ties", ("a", "b"), "base", weights, {"density": [0.5, 1.0]}, 3, "bfloat16", ({}, {"d": 1.0}))
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    recipe = Recipe("task_arithmetic", ("a", "b"), "base", None, {"lambda": 1.0}, slices=SLICES)
    rest = {"tokenizer": {"source": "union"}, "corpora": {"a": "a.jsonl"}, "calibration": {"sequences": 2}}
    recipe = Recipe(**{**vars(recipe), **rest, "compat": "mergekit", "allow_unrelated": True, "chat_template": "x"})
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_refs_survive_json() -> None:
    recipe = Recipe("linear", ("a",), None, None, {})
    parents = (("a", Folder("x", "lora")), ("b", Delta(recipe, (("a", Folder("y")),))))
    delta = Delta(recipe, parents, (("a", "statistics"),))
    for ref in (delta, Routed((("code", delta), ("math", Folder("z"))))):
        assert from_json(json.loads(json.dumps(to_json(ref)))) == ref


def test_a_routed_model_is_not_opened_as_one() -> None:
    with pytest.raises(RecipeError, match=r"one model a group \(code, math\), not one"):
        open_ref(Routed((("code", Folder("x")), ("math", Folder("y")))))


def slices_fault(**change: Any) -> str:
    given = {"models": ("a", "b"), "base": "base", "weights": None, "params": {}, "slices": SLICES, **change}
    with pytest.raises(RecipeError) as caught:
        checked(Recipe("task_arithmetic", **given), {"a": 0, "b": 0, "base": 0})
    return str(caught.value)


def test_the_slices_of_a_recipe_are_checked() -> None:
    fine = checked(Recipe("task_arithmetic", ("a", "b"), "base", None, {}, slices=SLICES), {"a": 0, "b": 0, "base": 0})
    assert fine.params["lambda"] == 1.0
    assert [part.params["lambda"] for part in fine.slices] == [1.0, [{"filter": "mlp", "value": 2.0}]]
    odd = Slice((Span("a", 2, 2), Span("c", 0, 3)), Span("b", 0, 1), (1.0,), {"lamda": 1.0})
    text = slices_fault(slices=(SLICES[0], odd))
    for message in (
        "slice 2: unknown parameter 'lamda' (did you mean 'lambda'?)",
        "slice 2: 1 weights for 2 models",
        "slice 2: a layers [2, 2] are none",
        "slice 2: its sources differ in their number of layers: a 0, c 3, b 1",
        "slice 2: its base is 'b' and the recipe's 'base'",
        "slice 2: 'c' is not among the recipe's models",
    ):
        assert message in text
    assert "slice 1: task_arithmetic needs a base" in slices_fault(slices=(Slice((Span("a", 0, 1),), None, None, {}),))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    for name in ("base", "math", "code", "lora"):
        (tmp_path / name).mkdir()
    for name in ("base", "math", "code"):
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str, **options: Any) -> Delta:
    ref = read_recipe(written(folder, text), **options)
    assert isinstance(ref, Delta)
    return ref


def fault(folder: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(folder, text))
    return str(caught.value)


def test_a_recipe_file(world: Path) -> None:
    ref = read(world, "method: task_arithmetic\nbase: base\nmodels: {./math: 0.7, code: 1}\nlambda: 3e-1\n")
    params = check_recipe("task_arithmetic", ["math"], None, "base", {"lambda": 0.3})[0]
    assert ref.recipe == Recipe("task_arithmetic", ("./math", "code"), "base", (0.7, 1.0), params)
    assert dict(ref.parents) == {
        "base": Folder(str(world / "base")),
        "./math": Folder(str(world / "math")),
        "code": Folder(str(world / "code")),
    }
    text = f"method: linear\nmodels: [{world / 'math'}, code]\nseed: 4\ndtype: bfloat16\nchat_template: '{{{{ x }}}}'\n"
    ref = read(world, text)
    names = (str(world / "math"), "code")
    assert ref.recipe == Recipe(
        "linear", names, None, None, {"normalize": True}, 4, "bfloat16", chat_template="{{ x }}"
    )


def test_options_override_the_file(world: Path) -> None:
    text = "method: linear\nmodels: [math, code]\nseed: 4\n"
    recipe = read(world, text, seed=9, compat="mergekit", allow_unrelated=True).recipe
    assert (recipe.seed, recipe.compat, recipe.allow_unrelated) == (9, "mergekit", True)
    recipe = read(world, text + "compat: mergekit\nallow_unrelated: true\n").recipe
    assert (recipe.seed, recipe.compat, recipe.allow_unrelated) == (4, "mergekit", True)
    assert "4:9: mergekit has no fisher" in fault(world, text.replace("linear", "fisher") + "compat: mergekit\n")


def test_numbers_that_vary(world: Path) -> None:
    text = "method: ties\nbase: base\nmodels: {math: [0, 1], code: [{filter: mlp, value: [0.1, 0.2]}, {value: 2}]}\n"
    recipe = read(world, text + "lambda: [{filter: attn, value: 0.5}]\n").recipe
    several = [{"filter": "mlp", "value": [0.1, 0.2]}, {"filter": None, "value": 2.0}]
    assert recipe.weights == ([0.0, 1.0], several)
    assert recipe.params["lambda"] == [{"filter": "attn", "value": 0.5}]


def test_adapters(world: Path) -> None:
    based = Folder(str(world / "base"), str(world / "lora"))
    assert dict(read(world, "method: linear\nmodels: [base+lora, code]\n").parents)["base+lora"] == based
    assert dict(read(world, "method: linear\nmodels: [lora, code]\n").parents)["lora"] == based
    text = "method: task_arithmetic\nbase: base\nmodels: {base: {adapter: ./lora, weight: 2}, code: {}}\n"
    ref = read(world, text)
    assert ref.recipe.models == ("base+./lora", "code")
    assert ref.recipe.weights == (2.0, 1.0)
    assert dict(ref.parents)["base+./lora"] == based
    assert "2:16: 'lora' is a LoRA adapter itself" in fault(world, "method: linear\nmodels: [math, lora+lora]\n")
    (world / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/name"}')
    assert "was trained on 'org/name', which is no folder here: write BASE+lora" in fault(
        world, "method: linear\nmodels: [lora]\n"
    )
    assert "math is no LoRA adapter" in fault(world, "method: linear\nmodels: [code+math]\n")


def test_folders_may_have_the_signs_of_the_grammar_in_their_names(world: Path) -> None:
    (world / "c++").mkdir()
    (world / "a@b").mkdir()
    assert read(world, "method: linear\nmodels: [c++, a@b]\n").recipe.models == ("c++", "a@b")


def test_slices(world: Path) -> None:
    ref = read(
        world,
        "method: task_arithmetic\nbase: base\nlambda: 0.5\nslices:\n"
        "- sources: [{model: math, layer_range: [0, 2], weight: 2}, {model: code, layer_range: [1, 3]},\n"
        "            {model: base, layer_range: [0, 2]}]\n"
        "- {sources: [{model: code, layer_range: [2, 3]}], lambda: [{filter: mlp, value: 1}]}\n",
    )
    first, second = ref.recipe.slices
    assert ref.recipe.models == ("math", "code")
    assert (first.sources, first.base) == ((Span("math", 0, 2), Span("code", 1, 3)), Span("base", 0, 2))
    assert (first.weights, first.params["lambda"]) == ((2.0, 1.0), 0.5)
    # A base that a slice does not list lends the layers that all its sources are taken from.
    assert (second.sources, second.base, second.weights) == ((Span("code", 2, 3),), Span("base", 2, 3), None)
    assert second.params["lambda"] == [{"filter": "mlp", "value": 1.0}, {"filter": None, "value": 0.5}]
    assert checked(ref.recipe, dict(ref.parents)).slices == ref.recipe.slices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slices: []", "'slices' is []; expected a list of {sources"),
        ("slices: [3]", "2:10: a slice needs 'sources'"),
        ("slices: [{sources: [math]}]", "2:21: 'math' is no source"),
        ("slices: [{sources: [{model: math}, {model: code, layer_range: [0, 1]}]}]", "'layer_range' is missing"),
        ("slices: [{sources: [{model: math, layer_range: [0, x]}]}]", "'layer_range' is [0, 'x']; expected [first"),
        ("slices: [{sources: [{model: math, layer_range: [true, 2]}]}]", "'layer_range' is [True, 2]"),
        ("slices: [{sources: [{model: math, layer_range: [-1, 2]}, {model: code, layer_range: [0, 3]}]}]", "are none"),
        ("slices: [{sources: [{model: math, layer_range: [0, 2]}]}]", "2:20: slerp takes 2 models, got 1"),
        ("models: [math, code]\nslices: []", "2:1: 'models' and 'slices' exclude each other"),
        (
            "slices: [{sources: [{model: math, layer_range: [0, 2]}, {model: code, layer_range: [1, 2]}], x: 1}]",
            "its sources differ in their number of layers: math 2, code 1",
        ),
        (
            "slices: [{sources: [{model: math, layer_range: [0, 2]}, {model: math, layer_range: [0, 2]}]}]",
            "the same layers of the same model are named twice",
        ),
    ],
)
def test_a_bad_slice(world: Path, text: str, message: str) -> None:
    assert message in fault(world, f"method: slerp\n{text}\n")


def test_a_base_whose_layers_are_not_clear(world: Path) -> None:
    text = "method: ties\nbase: base\nslices: [{sources: [{model: math, layer_range: [0, 2]}, "
    text += "{model: code, layer_range: [1, 3]}]}]\n"
    assert "3:20: which layers of the base 'base' are meant is not said (list {model: base" in fault(world, text)


def test_the_tokenizer(world: Path) -> None:
    text = "method: linear\nmodels: [math, code]\ntokenizer: "
    assert read(world, text + "union\n").recipe.tokenizer == {"source": "union"}
    assert read(world, text + "./code\n").recipe.tokenizer == {"source": "code"}
    other = read(world, text + "base/.\n")
    assert other.recipe.tokenizer == {"source": "base/."}
    assert dict(other.parents)["base/."] == Folder(str(world / "base"))
    block = {
        "source": "union",
        "pad_to_multiple_of": 8,
        "tokens": {
            "<a>": {"source": "./math", "force": True},
            "<b>": {"source": {"kind": "zero"}},
            "<c>": {"source": {"kind": "model_token", "model": "./code", "token_id": 3}},
        },
    }
    tokens = read(world, text + json.dumps(block)).recipe.tokenizer
    assert tokens is not None
    assert tokens["tokens"]["<a>"] == {"source": "math", "force": True}
    assert tokens["tokens"]["<c>"]["source"]["model"] == "code"


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("[a]", "'tokenizer' is ['a']; expected union"),
        ("{sorce: a}", "3:13: unknown key 'sorce' (did you mean 'source'?)"),
        ("{pad_to_multiple_of: 0}", "'pad_to_multiple_of' is 0; expected 1 or more"),
        ("{tokens: [a]}", "'tokens' is ['a']"),
        ("{tokens: {a: b}}", "the rule of token 'a' is 'b'"),
        ("{tokens: {a: {source: base}}}", "rows can come only from a model of the merge, not 'base'"),
        ("{tokens: {a: {source: {kind: one}}}}", "'kind' is 'one'; expected zero or model_token"),
        ("{tokens: {a: {source: {kind: model_token, model: math}}}}", "needs either 'token' or 'token_id'"),
        ("{tokens: {a: {forse: 1}}}", "unknown key 'forse'"),
        ("{tokens: {a: {force: 3}}}", "'force' is 3; expected true or false"),
    ],
)
def test_a_bad_tokenizer(world: Path, tokenizer: str, message: str) -> None:
    assert message in fault(world, f"method: linear\nmodels: [math, code]\ntokenizer: {tokenizer}\n")


def test_every_problem_of_a_file_with_its_place(world: Path) -> None:
    text = fault(
        world,
        "method: ties\nmodels: {math: {weight: x, lambda: 1, densty: 2}, code: {adapter: nix}}\n"
        "density: 2\nlamda: 1\ndtype: fp16\nseed: x\ncompat: axolotl\nallow_unrelated: 1\nchat_template: [a]\n",
    )
    assert text.splitlines()[0] == f"{world / 'recipe.yaml'}:"
    places = [line.split(": ")[0].strip() for line in text.splitlines()[1:]]
    assert places == sorted(places, key=lambda place: [int(part) for part in place.split(":")])
    for line in (
        "1:1: ties needs a base (base: the model that the others were trained from)",
        "2:25: the weight of 'math' is 'x'; expected number",
        "2:28: 'lambda' is one for all models (write it once, beside 'method')",
        "2:39: unknown parameter 'densty' (did you mean 'density'?)",
        "is no LoRA adapter: it has no adapter_config.json",
        "3:10: 'density' is 2.0; allowed: [0.0, 1.0]",
        "4:1: unknown parameter 'lamda' (did you mean 'lambda'?)",
        "5:8: 'dtype' is 'fp16'; expected float32, bfloat16, float16",
        "6:7: 'seed' is 'x'; expected a whole number from 0",
        "7:9: 'compat' is 'axolotl'; expected mergekit",
        "8:18: 'allow_unrelated' is 1; expected true or false",
        "9:16: 'chat_template' is ['a']",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "holds list where a recipe"),
        ("", "is empty"),
        ("method: [\n", "is not valid YAML"),
        ("method: linear\nmethod: ties\n", "is not valid YAML"),
        ("method: linear\n", "1:1: 'models' is missing"),
        ("method: linear\nmodels: 3\n", "2:9: 'models' is 3"),
        ("method: linear\nmodels: [1, math]\n", "2:10: 1 is not the path of a model"),
        ("method: linear\nmodels: {null: 1, [a]: 2}\n", "there is no model folder"),
        ("? [a]\n: 1\n3: 2\nmethod: linear\nmodels: [math]\n", "3:1: unknown parameter '3'"),
        ("method: linear\nmodels: {math: x}\n", "2:16: the weight of 'math' is 'x'; expected number"),
        ("method: linear\nmodels: {math: .nan}\n", "the weight of 'math' is nan"),
        ("method: slerp\nmodels: {math: 1, code: 1}\n", "2:16: slerp takes no weights"),
        ("method: slerp\nmodels: [math]\n", "slerp takes 2 models, got 1"),
        ("models: [math]\n", "unknown method ''"),
        ("method: ties\nbase: 3\nmodels: [math]\n", "2:7: 3 is not the path of a model"),
        ("method: linear\nmodels: [math, ./math]\n", "model 'math' is named twice"),
        ("method: linear\nmodels: [math, nix/]\n", "there is no model folder"),
        ("method: linear\nmodels: [org/name]\n", "if 'org/name' is a name on the Hugging Face Hub, download it"),
        ("method: linear\nmodels: [math@main]\n", "asks for revision 'main'"),
        ("method: linear\nmodels: [math]\ncorpora: {math: a.jsonl}\n", "3:1: linear is not guided by data"),
        ("method: linear\nmodels: [math]\ncorpora: 3\n", "3:10: 'corpora' is 3"),
        ("method: linear\nmodels: [math]\n---\nmethod: linear\n", "holds 2 documents"),
        ("a: &a [*a]\nmethod: linear\nmodels: [math]\n", "unknown parameter 'a'"),
        ("method: linear\nmodels: !!python/name:os.system\n", "'models' is"),
        ("method: linear\nmodels: [math]\nx: " + "[" * 5000, ""),
    ],
)
def test_a_bad_file(world: Path, text: str, message: str) -> None:
    assert message in fault(world, text)


def test_aliases_within_aliases_are_not_followed_for_ever(world: Path) -> None:
    lines = ["a: &a [" + "1," * 10 + "]", *(f"{y}: &{y} [" + f"*{x}," * 10 + "]" for x, y in ("ab", "bc", "cd", "de"))]
    assert "more than 100000 parts" in fault(world, "\n".join([*lines, "method: linear", "models: [math]"]))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.yaml: No such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        read_recipe(tmp_path / "binary.yaml")


def test_methods_that_are_guided_by_data(world: Path) -> None:
    for name in ("math", "code"):
        (world / f"{name}.jsonl").write_text("")
    text = "method: regmean\nmodels: [./math, code]\n"
    recipe = read(world, text + "corpora: {math: math.jsonl, code: code.jsonl}\ncalibration: {sequences: 3}\n").recipe
    assert recipe.corpora == {"./math": str(world / "math.jsonl"), "code": str(world / "code.jsonl")}
    assert recipe.calibration == {"sequences": 3}
    wrong = fault(world, text + "corpora: {math: nix.jsonl, base: math.jsonl}\ncalibration: {sequence: 3, seed: 1}\n")
    for message in (
        "there is no corpus",
        "regmean needs a corpus for 'code'",
        "3:28: a corpus for 'base', which is no model here",
        "unknown parameter 'sequence' (did you mean 'sequences'?)",
        "'seed' is not a setting of the text",
    ):
        assert message in wrong
