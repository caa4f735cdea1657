"""Which tensors of which models make each tensor of a merge, and with what weights and parameters.

Layers are found by their names, so no list of architectures is needed: `<prefix>.<number>.<rest>`, where the prefix
with the most tensors is the stack of layers. A recipe with slices builds a new stack from runs of the models' layers.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fusion.checkpoint import OUTPUT_HEADS, Source
from fusion.errors import MismatchError, RecipeError
from fusion.methods.method import Method
from fusion.params import build_at, is_varied, value_at
from fusion.recipe import Recipe, Slice, Span

NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
# Stacks that are not a model's main one, however many tensors they have.
SENSES = re.compile(r"vision|visual|image|audio|speech")
# What comes before the layers; all else that is in none comes after them.
BEFORE = re.compile(r"embed|wte|wpe|tok_")
# The number of layers in the configs of transformers.
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
# Lists that may be as long as there are layers and are not about layers.
NOT_LAYERS = re.compile(r"^rope|_token_ids?$|^architectures$|labels?$|^attn_factors$")


@dataclass(frozen=True)
class Part:
    """What goes into one tensor of the result: parents by name with the tensor of each, and the method's arguments."""

    models: tuple[str, ...]
    names: tuple[str, ...]
    base: tuple[str, str] | None
    weights: tuple[float, ...] | None
    params: Any


@dataclass(frozen=True)
class _Made:
    """A tensor of a sliced result: the slice, its depth there, and the tensor's name in each source and the base."""

    piece: int
    depth: float
    names: tuple[str, ...]
    base: str | None


class Layout:
    """The tensors of a merge.

    With slices: the result's layers are numbered anew, tensors before the stack (embeddings) are merged from the first
    slice's models with its parameters, those after it from the last slice's. `depth`, by which gradients go, runs from
    0 to 1 over each slice's own layers (1 where it is a single one), and is 0 outside the layers.

    Raises RecipeError for layers that a model does not have, and MismatchError that names every tensor that the slices
    use and that a model lacks or has in another shape than the donor; tensors that no slice uses may differ.
    """

    def __init__(self, recipe: Recipe, sources: Mapping[str, Source], method: Method) -> None:
        self.recipe, self._method, self._sources = recipe, method, sources
        self._donor = recipe.models[0] if recipe.base is None else recipe.base
        self._first = sources[self._donor]
        self._layers = layers_of(self._first.names())
        self._count = len(set(self._layers.values()))
        self._pieces = recipe.slices or (Slice((), None, recipe.weights, recipe.params, recipe.own),)
        self._fixed = [None if _is_varied(piece) else self._arguments(piece, "", 0.0) for piece in self._pieces]
        self._made = self._sliced() if recipe.slices else {}

    def names(self) -> list[str]:
        """The tensors of the result, sorted."""
        return sorted(self._made) if self._made else self._first.names()

    def part(self, name: str) -> Part:
        """How one tensor of the result is made."""
        recipe = self.recipe
        if not self._made:
            weights, params = self._fixed[0] or self._arguments(self._pieces[0], name, self._depth(name))
            base = None if recipe.base is None else (recipe.base, name)
            return Part(recipe.models, (name,) * len(recipe.models), base, weights, params)
        made = self._made[name]
        piece = self._pieces[made.piece]
        weights, params = self._fixed[made.piece] or self._arguments(piece, name, made.depth)
        base = None if piece.base is None or made.base is None else (piece.base.model, made.base)
        return Part(tuple(span.model for span in piece.sources), made.names, base, weights, params)

    def like(self, name: str) -> tuple[str, str]:
        """The parent, and its tensor, whose shape and dtype the result's tensor has: the base's, else the first's."""
        if not self._made:
            return self._donor, name
        made = self._made[name]
        lead = _lead(self._pieces[made.piece])
        return lead.model, made.names[0] if made.base is None else made.base

    def left_out(self) -> list[str]:
        """The parents' tensors that no slice uses, as "model: tensor", sorted."""
        if not self._made:
            return []
        used = {pair for name in self._made for pair in self._pairs(name)}
        every = [(model, name) for model, source in self._parents().items() for name in source.names()]
        return sorted(f"{model}: {name}" for model, name in every if (model, name) not in used)

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The donor's config with the number of layers and the lists with one entry a layer as the result has them.

        Raises RecipeError where it does not say how many layers there are, or has none for one that a slice takes.
        """
        if not self._made:
            return dict(config)
        if config.get("is_encoder_decoder"):
            raise RecipeError("slices are of one stack of layers, and this model has an encoder and a decoder")
        inner = config.get("text_config")
        if isinstance(inner, Mapping):
            return {**config, "text_config": self._config(inner)}
        return self._config(config)

    def _config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        counts = [key for key in COUNTS if config.get(key) == self._count]
        if not counts:
            raise RecipeError(
                f"the config of '{self._donor}' does not say that it has {self._count} layers (looked for "
                f"{', '.join(COUNTS)}): the number of layers of the result cannot be written there"
            )
        order = [layer for piece in self._pieces for layer in range(_lead(piece).start, _lead(piece).stop)]
        result = {**config, **dict.fromkeys(counts, len(order))}
        for key, value in config.items():
            if isinstance(value, list) and len(value) == self._count and not NOT_LAYERS.search(key):
                if max(order) >= self._count:
                    raise RecipeError(
                        f"'{key}' of '{self._donor}' has no entry for layer {max(order)} of another model"
                    )
                result[key] = [value[layer] for layer in order]
        return result

    def _depth(self, name: str) -> float:
        if name not in self._layers:
            return 0.0
        return self._layers[name] / (self._count - 1) if self._count > 1 else 1.0

    def _arguments(self, piece: Slice, name: str, depth: float) -> tuple[tuple[float, ...] | None, Any]:
        count = len(piece.sources) or len(self.recipe.models)
        own = piece.own or ({},) * count
        weights = piece.weights
        given = None if weights is None else tuple(float(value_at(w, name, depth, 1.0)) for w in weights)
        return given, build_at(self._method.Params, piece.params, own, name, depth)

    def _parents(self) -> dict[str, Source]:
        names = [*([] if self.recipe.base is None else [self.recipe.base]), *self.recipe.models]
        return {name: self._sources[name] for name in names}

    def _pairs(self, name: str) -> list[tuple[str, str]]:
        """The parents' tensors that make one tensor of a sliced result, each with its parent."""
        made = self._made[name]
        piece = self._pieces[made.piece]
        pairs = [(span.model, source) for span, source in zip(piece.sources, made.names, strict=True)]
        return pairs if made.base is None or piece.base is None else [(piece.base.model, made.base), *pairs]

    @cached_property
    def _stacks(self) -> dict[str, "_Stack"]:
        return {name: _Stack(source) for name, source in self._parents().items()}

    def _sliced(self) -> dict[str, _Made]:
        problems = [p for piece in self._pieces for span in _spans(piece) for p in self._span_problems(span)]
        if problems:
            raise RecipeError("these slices cannot be cut:\n  " + "\n  ".join(dict.fromkeys(problems)))
        made = dict(self._outside())
        number = 0
        for i, piece in enumerate(self._pieces):
            lead = _lead(piece)
            for offset in range(lead.stop - lead.start):
                depth = offset / (lead.stop - lead.start - 1) if lead.stop - lead.start > 1 else 1.0
                stack = self._stacks[lead.model]
                for rest in stack.rests(lead.start + offset):
                    names = tuple(self._stacks[s.model].name(s.start + offset, rest) for s in piece.sources)
                    base = None if piece.base is None else stack.name(piece.base.start + offset, rest)
                    made[f"{self._stacks[self._donor].prefix}.{number}.{rest}"] = _Made(i, depth, names, base)
                number += 1
        self._made = made
        self._check()
        return made

    def _outside(self) -> Iterator[tuple[str, _Made]]:
        """The tensors in no layer: from the first slice's models before the layers, from the last's after them."""
        for i, before in ((0, True), (len(self._pieces) - 1, False)):
            piece = self._pieces[i]
            for name in self._stacks[_lead(piece).model].outside:
                if (BEFORE.search(name) is not None and name not in OUTPUT_HEADS) == before:
                    yield name, _Made(i, 0.0, (name,) * len(piece.sources), None if piece.base is None else name)

    def _span_problems(self, span: Span) -> list[str]:
        stack = self._stacks[span.model]
        if stack.count == 0:
            return [f"{span.model} has no tensors that are numbered as layers are (PREFIX.NUMBER.REST)"]
        if span.stop > stack.count:
            return [f"{span.model} has {stack.count} layers: [{span.start}, {span.stop}] goes beyond the last"]
        return [f"{span.model} has no layer {k}" for k in range(span.start, span.stop) if not stack.rests(k)]

    def _check(self) -> None:
        """Raises MismatchError with every tensor that the slices use and that does not fit."""
        donor = dict.fromkeys(self._first.names())
        lacking = [name for name in self._stacks[self._donor].outside if name not in self._made]
        lines = [f"{name} of {self._donor} is in no model of the slice that it would be taken from" for name in lacking]
        known = {model: frozenset(source.names()) for model, source in self._parents().items()}
        for name in self._made:
            shape = self._sources[self.like(name)[0]].shape(self.like(name)[1])
            for model, source in self._pairs(name):
                if source not in known[model]:
                    lines.append(f"{model}: {source} is missing")
                    continue
                found = self._sources[model].shape(source)
                wanted = self._first.shape(source) if source in donor else shape
                lines += [] if found == wanted else [f"{model}: {source} is {list(found)} instead of {list(wanted)}"]
        lines += self._extra()
        if lines:
            lines = list(dict.fromkeys(lines))
            raise MismatchError(
                f"these slices cannot be put together: {len(lines)} tensors do not fit\n  "
                + "\n  ".join(lines)
                + "\nuse models of one architecture, one width and one vocabulary"
            )

    def _extra(self) -> list[str]:
        """Tensors that a source has in a layer of a slice and that the slice's first model has not."""
        lines = []
        for piece in self._pieces:
            lead = _lead(piece)
            for span in _spans(piece):
                stack = self._stacks[span.model]
                for layer in range(span.start, span.stop):
                    wanted = self._stacks[lead.model].rests(layer - span.start + lead.start)
                    extra = [rest for rest in stack.rests(layer) if rest not in wanted]
                    lines += [f"{span.model}: {stack.name(layer, rest)} is extra" for rest in extra]
        return lines


class _Stack:
    """A model's layers, and what lies outside them."""

    def __init__(self, source: Source) -> None:
        layers = layers_of(source.names())
        self.prefix = next((NUMBERED.match(name)[1] for name in layers), "")  # type: ignore[index]
        self.outside = [name for name in source.names() if name not in layers]
        self._rests: dict[int, dict[str, None]] = {}
        for name, layer in layers.items():
            self._rests.setdefault(layer, {})[name.removeprefix(f"{self.prefix}.{layer}.")] = None
        self.count = max(self._rests, default=-1) + 1

    def name(self, layer: int, rest: str) -> str:
        return f"{self.prefix}.{layer}.{rest}"

    def rests(self, layer: int) -> dict[str, None]:
        return self._rests.get(layer, {})


def layers_of(names: Sequence[str]) -> dict[str, int]:
    """The number of the layer that each tensor is in; a tensor outside the stack of layers is left out."""
    found = {name: match for name in names if (match := NUMBERED.match(name))}
    stacks = Counter(match[1] for match in found.values())
    if not stacks:
        return {}
    stack = min(stacks, key=lambda prefix: (SENSES.search(prefix) is not None, -stacks[prefix], prefix))
    return {name: int(match[2]) for name, match in found.items() if match[1] == stack}


def _spans(piece: Slice) -> list[Span]:
    return [*piece.sources, *([] if piece.base is None else [piece.base])]


def _lead(piece: Slice) -> Span:
    """The source that a slice's tensors are like: the base's, else the first."""
    return piece.sources[0] if piece.base is None else piece.base


def _is_varied(piece: Slice) -> bool:
    own = [value for mine in piece.own for value in mine.values()]
    return any(map(is_varied, [*piece.params.values(), *(piece.weights or ()), *own]))
