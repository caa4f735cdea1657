"""The JSON Schema of a suite file, made from the tables that check it."""

from collections.abc import Mapping
from typing import Any

from fusion.builders import BUILDERS
from fusion.calibration import Collect
from fusion.ensemble import COMBINE
from fusion.kinship import MEASURES
from fusion.methods import METHODS
from fusion.params import describe
from harness.candidates import ENSEMBLE
from harness.pocket import CORPORA, HELD_OUT, TRAINERS
from harness.problems import NAME
from harness.sandbox import LEVELS
from harness.spec import CHAT
from harness.suite import DTYPES, KEYS

NUMBERS = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 1}
NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1}
# A number of a merge may vary over the tensors: a gradient over the layers, or by parts of their names.
FILTERED = {
    "type": "object",
    "properties": {"filter": {"type": ["string", "null"]}, "value": {}},
    "required": ["value"],
    "additionalProperties": False,
}
VARIED = {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "number"}, FILTERED]}}
TYPES = {
    "number": "number",
    "integer": "integer",
    "text": "string",
    "true or false": "boolean",
    "null": "null",
    "mapping": "object",
}


def schema() -> dict[str, Any]:
    """A draft 2020-12 schema; editors complete and check suites with it."""
    parts = {
        "suite": {"type": "string", "pattern": NAME.pattern},
        "seed": {"type": "integer"},
        "models": _named({"oneOf": [_source(), *(_trained(name) for name in TRAINERS)]}),
        "candidates": _named(
            {"oneOf": [*(_merge(name) for name in METHODS), *(_fusion(name) for name in BUILDERS), _ensemble()]}
        ),
        "evaluate": _named({"oneOf": [_group(), _text()]}),
        "published": _named(_published()),
        "split": _closed({"dev": {"type": "number", "minimum": 0, "exclusiveMaximum": 1}}, ["dev"]),
        "kinship": _closed(
            {
                "base": {"type": "string"},
                "measures": {"type": "array", "items": {"enum": list(MEASURES)}},
                "texts": {"type": "string", "description": f"a .jsonl file of documents, or {', '.join(CORPORA)}"},
            }
        ),
        "track": _closed({"mlflow": {"type": "string"}}),
        "keep": {"enum": ["none", "best", "all"]},
        "sandbox": {"enum": ["any", *LEVELS]},
        "data": {"oneOf": [{"type": "string"}, _named({"oneOf": [{"type": "string"}, _named({"type": "string"})]})]},
        "trust_task_code": {"type": "boolean"},
        "chat": {"enum": list(CHAT)},
    }
    properties = {key: {**parts[key], "description": about} for key, about in KEYS.items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fuse-bench suite"}
    return {**head, **_closed(properties, ["suite", "models", "evaluate"])}


def _named(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value}


def _closed(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    closed = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return {**closed, "required": required} if required else closed


def _source() -> dict[str, Any]:
    keys: dict[str, Any] = {"from": {"type": "string"}, "revision": {"type": "string"}, "dtype": {"enum": list(DTYPES)}}
    keys |= {"adapter": {"type": "string"}, "allow_pickle": {"type": "boolean"}, "chat": {"enum": list(CHAT)}}
    return _closed(keys, ["from"])


def _trained(name: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"train": {"const": name}, "from": {"type": "string"}, "seed": {"type": "integer"}}
    keys["chat"] = {"enum": list(CHAT)}
    return _with_params(keys, TRAINERS[name].Params, ["train"])


def _merge(name: str) -> dict[str, Any]:
    row = METHODS[name]
    described = describe(row.Params)
    own = {p["name"]: _parameter(p, sweep=False, varied=True) for p in described if p["per_model"]}
    number = {"anyOf": [{"type": "number"}, VARIED]}
    part = {"anyOf": [number, _closed({"weight": number, **own})]}
    models = {"oneOf": [NAMES, {"type": "object", "additionalProperties": part}]}
    pairs = {**NAMES, "minItems": 2, "description": "in the place of models: one candidate for each two of these"}
    keys = {"method": {"const": name}, "models": models, "base": {"type": "string"}, "control": {"type": "string"}}
    keys["pairs"] = pairs
    keys |= {"allow_unrelated": {"type": "boolean"}, "tokenizer": {"type": "string"}}
    required = ["method"] + (["base"] if row.base == "required" else [])
    named = {"type": "object", "additionalProperties": {"type": "string"}}
    if row.random:
        keys["seeds"] = NUMBERS
    if row.statistics:
        keys |= {"corpora": named, "calibration": _with_params({}, Collect, [])}
        required.append("corpora")
    if row.routed:
        keys["route"] = named
        required.append("route")
    mine = {
        p["name"]: _parameter(p, sweep=True, varied=True) for p in described if not row.routed or p["name"] != "task"
    }
    closed = _closed({**keys, **mine}, required + [p["name"] for p in described if p["required"]])
    return {**closed, "oneOf": [{"required": ["models"]}, {"required": ["pairs"]}]}


def _ensemble() -> dict[str, Any]:
    weighted = {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}, "minProperties": 2}
    combine = {"enum": list(COMBINE)}
    swept = _closed({"sweep": {"type": "array", "items": combine, "minItems": 1}}, ["sweep"])
    keys: dict[str, Any] = {"method": {"const": ENSEMBLE}, "models": {"oneOf": [{**NAMES, "minItems": 2}, weighted]}}
    keys |= {"combine": {"anyOf": [combine, swept], "default": COMBINE[0]}, "control": {"type": "string"}}
    keys["corpora"] = {"type": "object", "additionalProperties": {"type": "string"}}
    return _closed(keys, ["method", "models"])


def _fusion(name: str) -> dict[str, Any]:
    # A control is none or the name of a model of the suite.
    keys = {"method": {"const": name}, "seeds": NUMBERS, "control": {"type": "string"}}
    roles = BUILDERS[name].roles
    keys |= {role.name: NAMES if role.many else {"type": "string"} for role in roles}
    required = [role.name for role in roles if role.default is None]
    return _with_params(keys, BUILDERS[name].Params, ["method", *required], sweep=True)


def _group() -> dict[str, Any]:
    tasks = {"oneOf": [{"type": "string"}, NAMES]}
    positive = {"type": "integer", "minimum": 1}
    drawn = {"samples": positive, "temperature": {"type": "number", "minimum": 0}}
    drawn["top_p"] = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    about = {"limit": positive, "batch_size": positive, "metric": {"type": "string"}, **drawn}
    return _closed({"tasks": tasks, **about}, ["tasks"])


def _text() -> dict[str, Any]:
    text = {"type": "string", "description": f"a .jsonl file of documents, or {HELD_OUT}"}
    positive = {"type": "integer", "minimum": 1}
    return _closed({"bits_per_byte": text, "limit": positive, "batch_size": positive}, ["bits_per_byte"])


def _published() -> dict[str, Any]:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    score = {**_closed({"value": share, "tasks": _named(share)}), "minProperties": 1}
    text = {"type": "string"}
    scores = {**_named(score), "minProperties": 1}
    return _closed({"source": text, "beside": text, "note": text, "scores": scores}, ["source", "scores"])


def _with_params(keys: Mapping[str, Any], params: type, required: list[str], *, sweep: bool = False) -> dict[str, Any]:
    described = describe(params)
    found = {p["name"]: _parameter(p, sweep) for p in described}
    return _closed({**keys, **found}, required + [p["name"] for p in described if p["required"]])


def _parameter(parameter: Mapping[str, Any], sweep: bool, varied: bool = False) -> dict[str, Any]:
    value: dict[str, Any]
    if parameter["choices"]:
        value = {"enum": parameter["choices"]}
    else:
        value = {"type": [TYPES.get(part, "string") for part in parameter["type"].split(" | ")]}
        limits = {"minimum": parameter["low"], "maximum": parameter["high"]}
        value |= {key: limit for key, limit in limits.items() if limit is not None}
        if varied and parameter["type"] in ("number", "integer"):
            value = {"anyOf": [value, VARIED]}
    about = {"description": parameter["help"], "default": parameter["default"]}
    if not sweep:
        return {**value, **about}
    swept = _closed({"sweep": {"type": "array", "items": value, "minItems": 1}}, ["sweep"])
    return {"anyOf": [value, swept], **about}
