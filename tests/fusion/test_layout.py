import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.errors import MismatchError, RecipeError
from fusion.layout import Layout, layers_of
from fusion.methods import METHODS
from fusion.methods.apply import Merge
from fusion.modelref import Delta, Folder, open_ref
from fusion.recipe import Recipe, Slice, Span, check_recipe
from tests.fusion.models import Memory, logits, save_llama, tiny_llama

ROW = METHODS["linear"]
BETWEEN = METHODS["slerp"]
VECTORS = METHODS["ties"]
PLAIN = check_recipe("linear", ["a"], None, None, {})[0]
TIES = check_recipe("ties", ["a"], None, "base", {})[0]


def model(layers: int, width: int = 2, start: float = 0.0, **more: int) -> Memory:
    """A toy: an embedding, layers of two tensors, a norm and a head; each tensor's first number tells it apart."""
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", *more]
    names += [f"model.layers.{i}.{rest}" for i in range(layers) for rest in ("attn.q.weight", "mlp.up.weight")]
    sizes = {name: more.get(name, width) for name in names}
    return Memory({name: torch.full((sizes[name],), start + i) for i, name in enumerate(names)})


def sliced(*slices: Slice, models: tuple[str, ...] = ("a", "b"), base: str | None = None, **rest: Any) -> Recipe:
    method = "linear" if base is None else "ties"
    params = slices[0].params
    return Recipe(method, models, base, None, params, slices=slices, **rest)


def one(name: str, start: int, stop: int, params: dict[str, Any] | None = None) -> Slice:
    return Slice((Span(name, start, stop),), None, None, params or PLAIN)


def test_layers_are_the_largest_numbered_stack() -> None:
    names = ["x.0.a", "x.1.a", "y.0.a", "y.1.a", "y.1.b.0.c", "z"]
    assert layers_of(names) == {"y.0.a": 0, "y.1.a": 1, "y.1.b.0.c": 1}
    assert layers_of(["a", "b.c"]) == {}
    # A model that sees has more tensors in its eyes than in its language model.
    names = ["vision_tower.layers.0.a", "vision_tower.layers.0.b", "language_model.layers.0.a"]
    assert layers_of(names) == {"language_model.layers.0.a": 0}


def test_without_slices_the_names_are_the_parents() -> None:
    sources = {"a": model(3), "b": model(3)}
    layout = Layout(Recipe("linear", ("a", "b"), None, (1.0, 3.0), PLAIN), sources, ROW)
    assert layout.names() == sources["a"].names()
    part = layout.part("lm_head.weight")
    assert (part.models, part.names, part.base) == (("a", "b"), ("lm_head.weight",) * 2, None)
    assert part.weights == (1.0, 3.0)
    assert layout.like("lm_head.weight") == ("a", "lm_head.weight")
    assert layout.left_out() == []
    assert layout.config({"num_hidden_layers": 3}) == {"num_hidden_layers": 3}
    based = Layout(Recipe("ties", ("a",), "b", None, TIES), sources, VECTORS)
    assert based.part("lm_head.weight").base == ("b", "lm_head.weight")
    assert based.like("lm_head.weight") == ("b", "lm_head.weight")


def test_gradients_and_filters_without_slices() -> None:
    sources = {"a": model(3), "b": model(3)}
    weights = ([0.0, 1.0], [{"filter": "mlp", "value": [2.0, 4.0, 8.0]}, {"filter": "norm", "value": 5.0}])
    layout = Layout(Recipe("linear", ("a", "b"), None, weights, PLAIN), sources, ROW)
    assert layout.part("model.layers.0.attn.q.weight").weights == (0.0, 1.0)
    assert layout.part("model.layers.1.attn.q.weight").weights == (0.5, 1.0)
    assert layout.part("model.layers.1.mlp.up.weight").weights == (0.5, 4.0)
    assert layout.part("model.layers.2.mlp.up.weight").weights == (1.0, 8.0)
    # Outside the layers a gradient has its first value, before and after them.
    assert layout.part("model.embed_tokens.weight").weights == (0.0, 1.0)
    assert layout.part("model.norm.weight").weights == (0.0, 5.0)
    single = Layout(Recipe("linear", ("a",), None, ([0.0, 1.0],), PLAIN), {"a": model(1)}, ROW)
    assert single.part("model.layers.0.mlp.up.weight").weights == (1.0,)


def test_a_stack_of_slices() -> None:
    sources = {"a": model(4), "b": model(3, start=100.0)}
    layout = Layout(sliced(one("a", 0, 3), one("b", 1, 3), one("a", 2, 3)), sources, ROW)
    layers = [f"model.layers.{i}.{rest}" for i in range(6) for rest in ("attn.q.weight", "mlp.up.weight")]
    assert layout.names() == sorted(["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", *layers])
    came = {name: (layout.part(name).models[0], layout.part(name).names[0]) for name in layout.names()}
    assert came["model.embed_tokens.weight"] == ("a", "model.embed_tokens.weight")
    assert came["lm_head.weight"] == ("a", "lm_head.weight")
    assert [came[f"model.layers.{i}.attn.q.weight"] for i in range(6)] == [
        ("a", "model.layers.0.attn.q.weight"),
        ("a", "model.layers.1.attn.q.weight"),
        ("a", "model.layers.2.attn.q.weight"),
        ("b", "model.layers.1.attn.q.weight"),
        ("b", "model.layers.2.attn.q.weight"),
        ("a", "model.layers.2.attn.q.weight"),
    ]
    # Everything of every parent is used or accounted for.
    assert layout.left_out() == [
        "a: model.layers.3.attn.q.weight",
        "a: model.layers.3.mlp.up.weight",
        *(f"b: {name}" for name in sorted(sources["b"].names()) if "layers.0" in name or "layers" not in name),
    ]
    assert layout.like("model.layers.3.mlp.up.weight") == ("b", "model.layers.1.mlp.up.weight")


def test_what_comes_after_the_layers_is_the_last_slices() -> None:
    sources = {"a": model(2), "b": model(2, start=100.0)}
    layout = Layout(sliced(one("a", 0, 1), one("b", 1, 2)), sources, ROW)
    assert layout.part("model.embed_tokens.weight").models == ("a",)
    assert layout.part("model.norm.weight").models == ("b",)
    assert layout.part("lm_head.weight").models == ("b",)


def test_depth_runs_over_each_slice() -> None:
    def between(start: int, stop: int, t: list[float]) -> Slice:
        return Slice((Span("a", start, stop), Span("b", start, stop)), None, None, {"t": t})

    recipe = sliced(between(0, 3, [0.0, 1.0]), between(3, 4, [0.2, 0.4]))
    layout = Layout(replace(recipe, method="slerp"), {"a": model(4), "b": model(4)}, BETWEEN)
    found = [layout.part(f"model.layers.{i}.mlp.up.weight").params.t for i in range(4)]
    assert found == [0.0, 0.5, 1.0, 0.4]
    assert layout.part("model.embed_tokens.weight").params.t == 0.0
    assert layout.part("model.norm.weight").params.t == 0.2


def test_the_layers_of_the_base_and_of_each_source() -> None:
    piece = Slice((Span("a", 0, 2), Span("b", 1, 3)), Span("base", 2, 4), (1.0, [2.0, 3.0]), TIES, ({}, {}))
    sources = {"a": model(2), "b": model(3), "base": model(4)}
    layout = Layout(sliced(piece, base="base"), sources, VECTORS)
    part = layout.part("model.layers.1.mlp.up.weight")
    assert part.models == ("a", "b")
    assert part.names == ("model.layers.1.mlp.up.weight", "model.layers.2.mlp.up.weight")
    assert part.base == ("base", "model.layers.3.mlp.up.weight")
    assert part.weights == (1.0, 3.0)
    assert layout.like("model.layers.1.mlp.up.weight") == ("base", "model.layers.3.mlp.up.weight")
    assert layout.part("model.norm.weight").base == ("base", "model.norm.weight")


def test_more_than_ten_layers_keep_their_order() -> None:
    layout = Layout(sliced(one("a", 0, 12), one("a", 10, 12), models=("a",)), {"a": model(12)}, ROW)
    assert layout.part("model.layers.13.mlp.up.weight").names == ("model.layers.11.mlp.up.weight",)


def test_layers_that_are_not_there() -> None:
    with pytest.raises(RecipeError, match=r"(?s)a has 2 layers: \[1, 4\] goes beyond.*b has 3 layers: \[0, 9\]"):
        Layout(sliced(one("a", 1, 4), one("b", 0, 9)), {"a": model(2), "b": model(3)}, ROW)
    with pytest.raises(RecipeError, match="a has no tensors that are numbered"):
        Layout(sliced(one("a", 0, 1), models=("a",)), {"a": Memory({"x": torch.zeros(1)})}, ROW)
    gap = {"h.0.w": torch.zeros(1), "h.2.w": torch.zeros(1)}
    with pytest.raises(RecipeError, match="a has no layer 1"):
        Layout(sliced(one("a", 0, 3), models=("a",)), {"a": Memory(gap)}, ROW)


def test_all_that_does_not_fit_is_named_at_once() -> None:
    a, b = model(2), model(2, **{"model.layers.1.extra": 3, "model.layers.0.mlp.up.weight": 5})
    del b.tensors["model.layers.1.attn.q.weight"]
    both = Slice((Span("a", 0, 2), Span("b", 0, 2)), None, None, PLAIN)
    with pytest.raises(MismatchError) as caught:
        Layout(sliced(both), {"a": a, "b": b}, ROW)
    assert str(caught.value).splitlines()[1:-1] == [
        "  b: model.layers.0.mlp.up.weight is [5] instead of [2]",
        "  b: model.layers.1.attn.q.weight is missing",
        "  b: model.layers.1.extra is extra",
    ]
    # The same model fits where only what it shares is used.
    del b.tensors["model.layers.1.extra"]
    b.tensors["model.layers.1.attn.q.weight"] = torch.zeros(2)
    Layout(sliced(one("a", 0, 1), one("b", 1, 2)), {"a": a, "b": b}, ROW)
    wide = model(2, width=4)
    with pytest.raises(MismatchError, match=r"b: model\.layers\.1\.mlp\.up\.weight is \[4\] instead of \[2\]"):
        Layout(sliced(one("a", 0, 1), one("b", 1, 2), one("a", 1, 2)), {"a": a, "b": wide}, ROW)
    tied = model(2)
    del tied.tensors["lm_head.weight"]
    with pytest.raises(MismatchError, match=r"lm_head\.weight of a is in no model of the slice"):
        Layout(sliced(one("a", 0, 1), one("b", 1, 2)), {"a": a, "b": tied}, ROW)


def test_the_config_of_a_stack() -> None:
    layout = Layout(sliced(one("a", 0, 2), one("a", 1, 3), models=("a",)), {"a": model(3)}, ROW)
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["full", "sliding", "linear"],
        "eos_token_id": [1, 2, 3],
        "rope_scaling": {"factor": 1},
        "hidden_size": 3,
        "heads": [1, 2],
    }
    assert layout.config(config) == {
        **config,
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "sliding", "linear"],
    }
    nested = {"vision_config": {"num_hidden_layers": 3}, "text_config": {"n_layer": 3}}
    assert layout.config(nested) == {**nested, "text_config": {"n_layer": 4}}
    with pytest.raises(RecipeError, match="does not say that it has 3 layers"):
        layout.config({"num_hidden_layers": 5})
    with pytest.raises(RecipeError, match="an encoder and a decoder"):
        layout.config({"num_layers": 3, "is_encoder_decoder": True})
    deeper = Layout(sliced(one("a", 0, 1), one("b", 3, 4)), {"a": model(3), "b": model(4)}, ROW)
    with pytest.raises(RecipeError, match="'layer_types' of 'a' has no entry for layer 3"):
        deeper.config(config)


def test_a_deeper_model_computes_with_the_layers_it_was_given(tmp_path: Path) -> None:
    """Layers [0, 1, 1, 2] of a Llama, against transformers with the same layers put there by hand."""
    from transformers import LlamaConfig, LlamaForCausalLM

    whole = tiny_llama(1, num_hidden_layers=3)
    save_llama(tmp_path / "a", whole)
    recipe = sliced(one("a", 0, 2), one("a", 1, 3), models=("a",))
    source = open_ref(Delta(recipe, (("a", Folder(str(tmp_path / "a"))),)))
    assert isinstance(source, Merge)
    config = Layout(source.recipe, {"a": open_ref(Folder(str(tmp_path / "a")))}, ROW).config(whole.config.to_dict())
    deep = LlamaForCausalLM(LlamaConfig.from_dict(config)).eval()
    missing, unexpected = deep.load_state_dict({n: source.tensor(n) for n in source.names()}, strict=False)
    assert (set(missing), unexpected) == ({"lm_head.weight"}, [])
    deep.tie_weights()
    layers = [whole.model.layers[i] for i in (0, 1, 1, 2)]
    hand = tiny_llama(2, num_hidden_layers=4)
    state = whole.state_dict()
    for i, layer in enumerate(layers):
        hand.model.layers[i].load_state_dict(layer.state_dict())
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        hand.state_dict()[name].copy_(state[name])
    assert torch.equal(logits(deep), logits(hand))


def test_a_slice_over_all_layers_is_the_plain_merge() -> None:
    torch.manual_seed(0)
    sources = {name: Memory({k: torch.randn(5) for k in model(3).names()}) for name in ("a", "b")}
    plain = Merge(Recipe("slerp", ("a", "b"), None, None, {"t": [0.1, 0.9]}), sources)
    piece = Slice((Span("a", 0, 3), Span("b", 0, 3)), None, None, {"t": [0.1, 0.9]})
    recipe = Recipe("slerp", ("a", "b"), None, None, {"t": 0.5}, slices=(piece,))
    stacked = Merge(recipe, sources)
    assert stacked.names() == plain.names()
    for name in plain.names():
        assert torch.equal(stacked.tensor(name), plain.tensor(name))
        assert not torch.equal(plain.tensor(name), sources["a"].tensor(name))
        assert math.isfinite(float(plain.tensor(name).sum()))
