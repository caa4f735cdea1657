"""The recipes of the comparison, as mergekit's users write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A model in a recipe is written {family}/{member}; the test puts the folder in its place.
Document = dict[str, Any]
# Methods of additions and masks alone, in which each step is rounded in one way only.
EXACT = frozenset({"task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "passthrough", "nearswap", "ram"}) | {
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
}
WEIGHTS = {"a": {"weight": 0.7}, "b": {"weight": 0.4}, "c": {"weight": 0.5}}
HALF = {name: {"weight": weight["weight"], "density": 0.5} for name, weight in WEIGHTS.items()}
GRADIENT = [0.1, 0.9, 0.3]
ZEROED = [{"filter": "o_proj", "value": 0}, {"filter": "down_proj", "value": 0}, {"value": 1}]
BY_NAME = [
    {"filter": "self_attn", "value": [0.2, 0.8]},
    {"filter": "mlp", "value": 0.6},
    {"filter": "embed_tokens", "value": 0.25},
    {"value": 0.5},
]


@dataclass(frozen=True)
class Case:
    """One recipe. `exact`: every bit must agree. `tokenizer`: the result has a tokenizer of its own making."""

    name: str
    document: Document
    exact: bool
    seed: int = 42
    tokenizer: bool = False


def _document(method: str, models: Mapping[str, Any], base: str | None, family: str, shared: Document) -> Document:
    listed = [
        {"model": f"{{{family}/{name}}}"} | ({"parameters": dict(own)} if own else {}) for name, own in models.items()
    ]
    return (
        {"merge_method": method, "models": listed}
        | ({"base_model": f"{{{family}/{base}}}"} if base else {})
        | ({"parameters": shared} if shared else {})
        | {"dtype": "float32"}
    )


def _case(
    name: str,
    models: Mapping[str, Any],
    base: str | None = "base",
    family: str = "plain",
    more: Document | None = None,
    seed: int = 42,
    tokenizer: bool = False,
    **shared: Any,
) -> Case:
    """`name` is the method, and after a blank what is special about the case."""
    method = name.split()[0]
    document = _document(method, models, base, family, {key.rstrip("_"): value for key, value in shared.items()})
    merged = {key: value for key, value in (document | (more or {})).items() if value is not None}
    return Case(name, merged, method in EXACT, seed, tokenizer)


def _own(**parameters: tuple[Any, Any, Any]) -> dict[str, dict[str, Any]]:
    """Each of the three models with its value of every parameter."""
    return {name: {key: values[i] for key, values in parameters.items()} for i, name in enumerate(("a", "b", "c"))}


def _arithmetic() -> list[Case]:
    same = _own(weight=(1, 1, 1))
    return [
        _case("task_arithmetic", WEIGHTS),
        _case("task_arithmetic normalized", WEIGHTS, normalize=True),
        _case("task_arithmetic lambda", WEIGHTS, lambda_=0.3),
        _case("task_arithmetic lambda by gradient", WEIGHTS, lambda_=GRADIENT),
        _case("task_arithmetic lambda by name", WEIGHTS, lambda_=BY_NAME),
        _case("task_arithmetic negative", _own(weight=(1.2, -0.7, 0.1)), normalize=True, lambda_=1.5),
        _case("task_arithmetic weights that cancel", _own(weight=(1, -1, 0)), normalize=True),
        _case("task_arithmetic one model of weight 0", {"a": {"weight": 0}}),
        _case("task_arithmetic gradient", _own(weight=(GRADIENT, [1, 0], 0.5))),
        _case("task_arithmetic by name", _own(weight=(BY_NAME, 0.3, [{"filter": "q_proj", "value": 1}, {"value": 0}]))),
        _case("task_arithmetic tied", WEIGHTS, family="tied", lambda_=0.5),
        _case("task_arithmetic bf16", WEIGHTS, family="bf16"),
        _case("task_arithmetic edges", same, family="edges"),
        _case("task_arithmetic written as bf16", WEIGHTS, more={"out_dtype": "bfloat16"}),
        _case("task_arithmetic without dtype", WEIGHTS, more={"dtype": None}),
        _case("task_arithmetic bf16 without dtype", WEIGHTS, family="bf16", more={"dtype": None}),
        _case("task_arithmetic cast to bf16", WEIGHTS, more={"dtype": "bfloat16"}),
        _case("task_arithmetic weight for all", {"a": {}, "b": {}}, weight=0.5),
        _case("task_arithmetic base among the models", {"base": {}, **WEIGHTS}),
        _case("linear", WEIGHTS, base=None),
        _case("linear sum", _own(weight=(0.5, -0.25, 0.5)), base=None, normalize=False),
        _case("linear gradient", _own(weight=(GRADIENT, 0.5, [1, 2])), base=None),
        _case("linear by name", _own(weight=(BY_NAME, 0.5, 1)), base=None),
        _case("linear one model", {"b": {"weight": 3}}, base=None),
        _case("linear bf16", WEIGHTS, base=None, family="bf16"),
        _case("linear bf16 without dtype", WEIGHTS, base=None, family="bf16", more={"dtype": None}),
        _case("linear tied", same, base=None, family="tied"),
        _case("linear far", same, base=None, family="far"),
    ]


def _trimmed() -> list[Case]:
    """ties and breadcrumbs: what is kept goes by magnitude."""
    found = []
    for method in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        found += [
            _case(method, HALF),
            _case(f"{method} plain sum", HALF, normalize=False, lambda_=0.8),
            _case(f"{method} normalized", HALF, normalize=True),
            _case(f"{method} rescaled", HALF, rescale=True),
            _case(f"{method} int8_mask", HALF, int8_mask=True),
            _case(f"{method} densities 0 and 1", _own(weight=(1, 1, 0.5), density=(0, 1, 0.3))),
            _case(f"{method} density 0", _own(weight=(1, 1, 1), density=(0, 0, 0))),
            _case(f"{method} density 1", _own(weight=(1, 1, 1), density=(1, 1, 1))),
            _case(f"{method} next to nothing", _own(weight=(1, 1, 1), density=(0.001, 0.02, 0.999))),
            _case(f"{method} negative weights", _own(weight=(1, -0.5, -1), density=(0.4, 0.6, 0.8))),
            _case(f"{method} weight 0", _own(weight=(0, 0.5, 1), density=(0.4, 0.6, 0.8))),
            _case(f"{method} gradients", _own(weight=(1, GRADIENT, 0.5), density=([1, 0.2], 0.5, GRADIENT))),
            _case(f"{method} by name", _own(weight=(1, 1, 1), density=(BY_NAME, 0.7, BY_NAME))),
            _case(f"{method} one model", {"a": {"weight": 1, "density": 0.2}}),
            _case(f"{method} tied", HALF, family="tied"),
            _case(f"{method} edges", HALF, family="edges"),
            _case(f"{method} bf16", HALF, family="bf16"),
            _case(f"{method} equal magnitudes", HALF, family="magnitudes"),
            _case(f"{method} density for all", WEIGHTS, density=0.35),
        ]
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        gammas = _own(weight=(1, 1, 1), density=(0.7, 0.5, 0.9), gamma=(0, 0.1, 0.3))
        found += [_case(f"{method} gamma", gammas), _case(f"{method} gamma 0", HALF, gamma=0)]
    return found


def _random() -> list[Case]:
    """DARE and DELLA: what is kept is drawn."""
    found = []
    for method in ("dare_linear", "dare_ties", "della", "della_linear"):
        found += [
            _case(method, HALF),
            _case(f"{method} seed 7", HALF, seed=7),
            _case(f"{method} not rescaled", HALF, rescale=False),
            _case(f"{method} normalized", HALF, normalize=True),
            _case(f"{method} plain sum", HALF, normalize=False, lambda_=0.8),
            _case(f"{method} densities", _own(weight=(1, 0.5, 0.7), density=(0.2, 0.5, 0.8))),
            _case(f"{method} density 1", _own(weight=(1, 0.5, 0.7), density=(1, 0.5, 1))),
            _case(f"{method} negative weights", _own(weight=(1, -0.5, -1), density=(0.4, 0.6, 0.8))),
            _case(f"{method} weight 0", _own(weight=(0, 0.5, 1), density=(0.4, 0.6, 0.8))),
            _case(f"{method} gradients", _own(weight=(1, GRADIENT, 0.5), density=([0.8, 0.2], 0.5, 0.4))),
            _case(f"{method} by name", _own(weight=(1, 1, 1), density=(BY_NAME, 0.7, 0.5))),
            _case(f"{method} one model", {"c": {"weight": 1, "density": 0.3}}),
            _case(f"{method} tied", HALF, family="tied"),
            _case(f"{method} edges", HALF, family="edges"),
            _case(f"{method} bf16", HALF, family="bf16"),
            _case(f"{method} equal magnitudes", HALF, family="magnitudes"),
        ]
    for method in ("dare_linear", "dare_ties"):
        found += [
            _case(f"{method} density 0", _own(weight=(1, 1, 0.5), density=(0, 0.5, 0))),
            _case(f"{method} next to nothing", _own(weight=(1, 1, 1), density=(0.001, 0.02, 0.999))),
        ]
    for method in ("della", "della_linear"):
        wide = _own(weight=(1, 1, 1), density=(0.5, 0.6, 0.4), epsilon=(0.3, 0.05, 0.39))
        found += [_case(f"{method} epsilon", wide), _case(f"{method} epsilon 0", HALF, epsilon=0)]
    return found


def _angles() -> list[Case]:
    """Methods that follow the sphere rather than the straight line."""
    pair = {"a": {"weight": 0.3}, "b": {"weight": 0.7}}
    return [
        _case("slerp", {"base": {}, "a": {}}, t=0.5),
        _case("slerp without the base among the models", {"a": {}}, t=0.3),
        _case("slerp base last", {"a": {}, "base": {}}, t=0.3),
        _case("slerp far", {"base": {}, "a": {}}, family="far", t=0.3),
        _case("slerp far gradient", {"base": {}, "b": {}}, family="far", t=GRADIENT),
        _case("slerp far by name", {"base": {}, "b": {}}, family="far", t=BY_NAME),
        _case("slerp far t 0", {"base": {}, "b": {}}, family="far", t=0),
        _case("slerp far t 1", {"base": {}, "b": {}}, family="far", t=1),
        _case("slerp far t 1.5", {"base": {}, "b": {}}, family="far", t=1.5),
        _case("slerp bf16", {"base": {}, "a": {}}, family="bf16", t=0.4),
        _case("slerp edges", {"base": {}, "a": {}}, family="edges", t=0.4),
        _case("nuslerp", pair, base=None),
        _case("nuslerp far", pair, base=None, family="far"),
        _case("nuslerp with base", pair),
        _case("nuslerp with base, far", pair, family="far"),
        _case("nuslerp with base, edges", pair, family="edges"),
        _case("nuslerp columns", pair, base=None, family="far", nuslerp_flatten=False),
        _case("nuslerp rows", pair, base=None, family="far", nuslerp_flatten=False, nuslerp_row_wise=True),
        _case("nuslerp columns with base", pair, nuslerp_flatten=False),
        _case("nuslerp rows with base", pair, nuslerp_flatten=False, nuslerp_row_wise=True),
        _case("nuslerp gradient", {"a": {"weight": GRADIENT}, "b": {"weight": 0.5}}, base=None, family="far"),
        _case("nuslerp weights that cancel", {"a": {"weight": 0}, "b": {"weight": 0}}, base=None, family="far"),
        _case("multislerp", WEIGHTS, base=None, family="far"),
        _case("multislerp with base", WEIGHTS),
        _case("multislerp with base, far", WEIGHTS, family="far"),
        _case("multislerp two models", pair, base=None, family="far"),
        _case("multislerp one model", {"a": {"weight": 0.5}}, base=None),
        _case("multislerp as given", WEIGHTS, base=None, family="far", normalize_weights=False),
        _case("multislerp eps", WEIGHTS, base=None, family="far", eps=1e-4),
        _case("multislerp gradient", _own(weight=(GRADIENT, 0.5, 1)), base=None, family="far"),
        _case("karcher", {"a": {}, "b": {}, "c": {}}, base=None),
        _case("karcher far", {"a": {}, "b": {}, "c": {}}, base=None, family="far"),
        _case("karcher two steps", {"a": {}, "b": {}, "c": {}}, base=None, family="far", max_iter=2, tol=1e-9),
        _case("karcher coarse", {"a": {}, "b": {}}, base=None, family="far", tol=0.1),
        _case("karcher edges", {"base": {}, "a": {}, "b": {}}, base=None, family="edges"),
    ]


def _others() -> list[Case]:
    three: dict[str, Any] = {"a": {}, "b": {}, "c": {}}
    return [
        _case("model_stock", three),
        _case("model_stock two models", {"a": {}, "b": {}}),
        _case("model_stock base among the models", {"base": {}, **three}),
        _case("model_stock row by row", three, filter_wise=True),
        _case("model_stock far", three, family="far"),
        _case("model_stock bf16", three, family="bf16"),
        _case("model_stock edges", three, family="edges"),
        _case("sce", three),
        _case("sce half", three, select_topk=0.5),
        _case("sce gradient", three, select_topk=[0.2, 1.0]),
        _case("sce by name", three, select_topk=BY_NAME),
        _case("sce none", three, select_topk=0.0),
        _case("sce one model", {"a": {}}, select_topk=0.5),
        _case("sce light", three, family="light", select_topk=0.5),
        _case("sce far", three, family="far", select_topk=0.3),
        _case("sce edges", three, family="edges", select_topk=0.5),
        _case("sce bf16", three, family="bf16", select_topk=0.5),
        _case("sce int8_mask", three, select_topk=0.5, int8_mask=True),
        _case("ram", three),
        _case("ram epsilon", three, epsilon=0.01),
        _case("ram edges", three, family="edges"),
        _case("ram bf16", three, family="bf16"),
        _case("ramplus_tl", three),
        _case("ramplus_tl edges", three, family="edges"),
        _case("ramplus_tl r and alpha", three, family="edges", r=0.4, alpha=1.5, epsilon=0.004),
        _case("ramplus_tl by name", three, r=BY_NAME, epsilon=0.01),
        _case("nearswap", {"a": {}}, t=0.01),
        _case("nearswap gradient", {"a": {}}, t=[0.001, 0.05]),
        _case("nearswap base among the models", {"base": {}, "a": {}}, t=0.002),
        _case("nearswap edges", {"a": {}}, family="edges", t=0.01),
        _case("nearswap t 0", {"a": {}}, family="edges", t=0.0),
        _case("nearswap bf16", {"b": {}}, family="bf16", t=0.01),
        _case("arcee_fusion", {"a": {}}),
        _case("arcee_fusion far", {"b": {}}, family="far"),
        _case("arcee_fusion edges", {"a": {}}, family="edges"),
        _case("arcee_fusion bf16", {"a": {}}, family="bf16"),
        _case("passthrough", {"a": {}}, base=None),
        _case("passthrough scale", {"a": {"scale": 0.5}}, base=None),
        _case("passthrough scale by name", {"a": {"scale": BY_NAME}}, base=None),
        _case("passthrough bf16", {"a": {}}, base=None, family="bf16"),
    ]


def _source(model: str, first: int, stop: int, **parameters: Any) -> Document:
    own = {"parameters": parameters} if parameters else {}
    return {"model": f"{{plain/{model}}}", "layer_range": [first, stop], **own}


def _stack(name: str, *slices: Document | list[Document], base: str | None = None, **shared: Any) -> Case:
    """A recipe in slices: each a list of sources, or sources with parameters."""
    method = name.split()[0]
    written = [part if isinstance(part, dict) else {"sources": part} for part in slices]
    document = _document(method, {}, base, "plain", {key.rstrip("_"): value for key, value in shared.items()})
    del document["models"]
    return Case(f"{name} (slices)", document | {"slices": written}, method in EXACT)


def _slices() -> list[Case]:
    whole = [_source("a", 0, 12, weight=0.5), _source("b", 0, 12, weight=0.7)]
    shifted = [_source("a", 0, 6, weight=0.6), _source("b", 3, 9, weight=[0.2, 0.4])]
    shifted_up = [_source("base", 0, 6), _source("a", 3, 9, weight=0.6, density=0.5)]
    shifted_down = [_source("b", 6, 12, weight=0.4, density=0.5), _source("base", 1, 7)]
    again = [_source("a", 5, 6, scale=ZEROED)]
    halves = [
        {"sources": [_source("base", 0, 5), _source("a", 0, 5)], "parameters": {"t": 0.2}},
        {"sources": [_source("base", 5, 12), _source("a", 5, 12)], "parameters": {"t": GRADIENT}},
    ]
    low = [_source("a", 0, 4, weight=0.5, density=0.4), _source("b", 0, 4, weight=1, density=0.4)]
    high = [_source("a", 4, 12, weight=[0.2, 1], density=0.7), _source("b", 4, 12, weight=0.3, density=[0.2, 0.8])]
    parts = [[_source("base", 0, 4), *low], [_source("base", 4, 12), *high]]
    return [
        _stack("passthrough two models", [_source("a", 0, 8)], [_source("b", 4, 12)]),
        _stack("passthrough layers twice", [_source("a", 0, 8)], [_source("a", 4, 8)], [_source("a", 8, 12)]),
        _stack("passthrough new blocks", [_source("a", 0, 6)], again, [_source("a", 6, 12)]),
        _stack("passthrough fewer layers", [_source("a", 0, 3)], [_source("a", 10, 12)]),
        _stack("linear whole", whole),
        _stack("linear shifted", shifted, [_source("c", 11, 12, weight=1), _source("a", 11, 12, weight=1)]),
        _stack("slerp", [_source("base", 0, 12), _source("a", 0, 12)], base="base", t=BY_NAME),
        _stack("slerp t by slice", *halves, base="base"),
        *(
            _stack(f"{method} parts", *parts, base="base")
            for method in ("task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs")
        ),
        _stack("ties out of order", parts[1], parts[0], base="base", lambda_=0.9),
        _stack("dare_ties out of order", parts[1], parts[0], base="base"),
        _stack("dare_linear twice", parts[0], parts[0], base="base"),
        _stack("dare_linear shifted", shifted_up, shifted_down, base="base"),
    ]


def _vocabularies() -> list[Case]:
    """Models whose tokenizers differ: a adds <x> and <y> to the base's, b adds <y> and <z>."""
    merged: dict[str, Any] = {"family": "tokens", "tokenizer": True}
    pair = {"a": {"weight": 0.6}, "b": {"weight": 0.8}}
    rule = {"tokens": {"<x>": {"source": "{tokens/a}"}, "<y>": {"source": "{tokens/b}", "force": True}}}
    zero = {"tokens": {"<z>": {"source": {"kind": "zero"}, "force": True}}}
    other = {"tokens": {"<z>": {"source": {"kind": "model_token", "model": "{tokens/a}", "token": "t5"}}}}
    return [
        _case("linear union", pair, base=None, more={"tokenizer_source": "union"}, **merged),
        _case("linear tokens of one", pair, base=None, more={"tokenizer_source": "{tokens/b}"}, **merged),
        _case("task_arithmetic union", pair, more={"tokenizer_source": "union"}, **merged),
        _case("task_arithmetic base", pair, more={"tokenizer_source": "base"}, **merged),
        _case("task_arithmetic rows", pair, more={"tokenizer": {"source": "union", **rule}}, **merged),
        _case("task_arithmetic zero row", pair, more={"tokenizer": {"source": "union", **zero}}, **merged),
        _case("task_arithmetic another row", pair, more={"tokenizer": {"source": "union", **other}}, **merged),
        _case(
            "task_arithmetic padded",
            pair,
            more={"tokenizer": {"source": "union", "pad_to_multiple_of": 16}},
            **merged,
        ),
        _case("ties union", HALF, more={"tokenizer_source": "union"}, **merged),
    ]


def _large() -> list[Case]:
    """One tensor of more than a million elements."""
    three: dict[str, Any] = {"a": {}, "b": {}, "c": {}}
    return [
        _case("linear large", WEIGHTS, base=None, family="large"),
        _case("slerp large", {"base": {}, "c": {}}, family="large", t=0.3),
        _case("multislerp large", WEIGHTS, family="large"),
        _case("karcher large", three, base=None, family="large"),
        _case("model_stock large", three, family="large"),
        _case("sce large", three, family="large", select_topk=0.4),
        _case("ramplus_tl large", three, family="large", epsilon=0.005),
        _case("arcee_fusion large", {"c": {}}, family="large"),
        _case("arcee_fusion large, seed 7", {"c": {}}, family="large", seed=7),
        *(_case(f"{method} large", HALF, family="large") for method in ("ties", "breadcrumbs", "dare_ties", "della")),
    ]


CASES = [
    *_arithmetic(),
    *_trimmed(),
    *_random(),
    *_angles(),
    *_others(),
    *_slices(),
    *_vocabularies(),
    *_large(),
]
