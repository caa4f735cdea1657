"""A recipe applied to models: the merged model, computed one tensor at a time when it is asked for."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor

from fusion.adapter import Adapted
from fusion.checkpoint import Checkpoint, Source, check_finite, check_same, read_config
from fusion.embeddings import common_vocabulary, laid_over
from fusion.errors import MismatchError, RecipeError
from fusion.layout import Layout, Part
from fusion.methods import METHODS
from fusion.methods.call import BLOCK, Block, Blocks, Place, T, Visit
from fusion.packed import check_plain
from fusion.recipe import Recipe, checked, torch_dtype
from fusion.stream import in_order, one_thread
from fusion.tokens import tokenizer_folder

if TYPE_CHECKING:
    from fusion.statistics import Statistics

# On a GPU the start of an operation costs more than a small block takes.
GPU_BLOCK = 1 << 24


class Merge:
    """The model that a recipe makes of its parents, as a Source. Nothing is computed before a tensor is asked for.

    Arithmetic is in float32 on one thread a tensor whatever the parents hold; each tensor is cast once, at the end, to
    the recipe's dtype, else to that of the base, else to that of the first model. Config and tokenizer come from the
    base, else from the first model. Tensors of integers and booleans are copied, and must be equal in all parents.

    threads: how many tensors are made side by side where all are gone through; it changes no byte. device: where the
    arithmetic is done; random numbers are drawn on the CPU all the same. Tensors may be asked for by several threads.

    Raises RecipeError when the recipe does not fit its method or parents, and MismatchError that names every tensor
    that the parents do not share.
    """

    def __init__(
        self,
        recipe: Recipe,
        parents: Mapping[str, Source],
        threads: int = 1,
        device: str = "cpu",
        statistics: Mapping[str, Path] | None = None,
    ) -> None:
        self.recipe = checked(recipe, parents)
        self.ledger: dict[str, dict[str, Any]] = {}
        self._method = METHODS[recipe.method]
        # The base leads, where there is one: what the result takes over unmerged comes from the first.
        named = list(recipe.models if recipe.base is None else dict.fromkeys((recipe.base, *recipe.models)))
        self.first = parents[named[0]]
        self.donor: Path = self.first.donor
        check_plain({name: parents[name] for name in named}, "merged")
        sources = {name: parents[name] for name in named}
        # A model that only lends its tokenizer is a parent, too, and none of its weights are merged.
        lenders = {name: parent for name, parent in parents.items() if recipe.tokenizer and name not in sources}
        self.vocabulary = common_vocabulary({**sources, **lenders}, named[0], recipe.tokenizer, recipe.base)
        if self.vocabulary is not None:
            sources = {name: self.vocabulary.sources[name] for name in named}
        self._sources = sources
        if not recipe.slices:
            check_same(self._sources)
        self._layout = Layout(self.recipe, self._sources, self._method)
        self._dtype = torch_dtype(recipe.dtype)
        self._threads, self._devices = threads, _devices(device)
        self._statistics = self._opened(statistics or {})
        compat = self._method.compat if recipe.compat == "mergekit" else None
        self._merge = self._method.merge if compat is None else compat.merge
        self._unit = self._method.unit if compat is None else "tensor"
        self._survey = self._method.survey if compat is None else None
        self._prepare = self._method.prepare if compat is None else compat.prepare
        self._state: Any = None
        self._prepared = self._prepare is None
        self._lock = threading.RLock()
        self._last = threading.local()
        for name in self._layout.left_out():
            self.ledger[name] = {"action": "left out: in a layer that no slice uses"}

    def config(self) -> dict[str, Any]:
        """The donor's config.json, with what the merge changes in it."""
        config = self._layout.config(config_of(self.first))
        return config if self.vocabulary is None else laid_over(config, self.vocabulary.config_changes)

    @property
    def tokenizer(self) -> Path:
        """The folder of the result's tokenizer."""
        return tokenizer_folder(self.first) if self.vocabulary is None else self.vocabulary.tokenizer

    def tokenizers(self) -> list[Path]:
        """The folders of the models' tokenizers, the base's first."""
        return [tokenizer_folder(source) for source in self._sources.values()]

    def names(self) -> list[str]:
        return self._layout.names()

    def shape(self, name: str) -> tuple[int, ...]:
        model, tensor = self._layout.like(name)
        return self._sources[model].shape(tensor)

    def dtype(self, name: str) -> torch.dtype:
        model, tensor = self._layout.like(name)
        source = self._sources[model]
        # A LoRA's tensors are read in float32 so that the merge loses nothing; what is written is as its base is.
        stored = (source.base if isinstance(source, Adapted) else source).dtype(tensor)
        return self._dtype if self._dtype is not None and stored.is_floating_point else stored

    def tensor(self, name: str) -> Tensor:
        part = self._layout.part(name)
        if not self._stored(name).is_floating_point:
            return self._common(part, name)
        self._get_ready()
        with one_thread():
            return self._merged(part, name)

    def _stored(self, name: str) -> torch.dtype:
        model, tensor = self._layout.like(name)
        return self._sources[model].dtype(tensor)

    def _opened(self, statistics: Mapping[str, Path]) -> "dict[str, Statistics]":
        """What is known of each model's data, where the method needs it."""
        if self._method.statistics is None:
            return {}
        from fusion.statistics import open_statistics  # brings transformers, seconds that most merges do not need

        lost = [name for name in self.recipe.models if name not in statistics]
        if lost:
            raise RecipeError(f"{self._method.name} reads text of each model: no statistics of {', '.join(lost)}")
        if self._method.statistics == "fisher" and self.vocabulary is not None:
            raise RecipeError(
                f"{self._method.name} weighs every row of a vocabulary, and these models have different ones: bring "
                "them to one first, each by a recipe with `method: passthrough` and `tokenizer:`"
            )
        return {name: open_statistics(statistics[name]) for name in self.recipe.models}

    def _merged(self, part: Part, name: str) -> Tensor:
        blocks = self._blocks(part, name)
        at = self._place(part, name, self.ledger.setdefault(name, {"action": "merged"}))
        if self._survey is not None:
            at = replace(at, found=self._survey(blocks, part.weights, part.params, at))
        out = torch.empty(self.shape(name), dtype=self.dtype(name))
        flat = out.reshape(-1)
        for start, models, base in blocks():
            here = at if start == 0 else replace(at, start=start)
            merged = self._merge(models, base, part.weights, part.params, here).reshape(-1)
            flat[start : start + merged.numel()] = merged
            _check_range(flat[start : start + merged.numel()], merged, name)
        return out

    def _place(self, part: Part, name: str, entry: dict[str, Any]) -> Place:
        return Place(
            tensor=name,
            models=part.models,
            seed=self.recipe.seed,
            shape=self.shape(name),
            sources=(*part.names, *([part.base[1]] if part.base else [])),
            state=self._state,
            statistics=tuple(
                self._statistics[model].of(source) for model, source in zip(part.models, part.names, strict=True)
            )
            if self._statistics
            else (),
            note=entry.__setitem__,
        )

    def _get_ready(self) -> None:
        with self._lock:
            if not self._prepared and self._prepare is not None:
                name = next((n for n in self.names() if self._stored(n).is_floating_point), None)
                if name is not None:
                    self._state = self._prepare(self._pass, self._layout.part(name).params)
                self._prepared = True

    def _pass(self, visit: Visit[T]) -> Iterator[tuple[str, T]]:
        def look(name: str) -> tuple[str, T]:
            part = self._layout.part(name)
            at = self._place(part, name, {})
            return name, visit(self._blocks(part, name), part.weights, part.params, at)

        names = [name for name in self.names() if self._stored(name).is_floating_point]
        yield from in_order(look, names, self._threads)

    def _blocks(self, part: Part, name: str) -> Blocks:
        device = self._devices[crc32(name.encode()) % len(self._devices)]
        return partial(self._read, part, device, _cutter(self._unit, self.shape(name), device))

    def _read(self, part: Part, device: str, cut: Callable[[Tensor], Iterator[Tensor]]) -> Iterator[Block]:
        """The blocks of one tensor in float32, each checked for what is no number."""
        pairs = [*zip(part.models, part.names, strict=True), *([part.base] if part.base else [])]
        cuts = [cut(self._tensor(model, source)) for model, source in pairs]
        start = 0
        for pieces in zip(*cuts, strict=True):
            found = [piece.to(device, torch.float32) for piece in pieces]
            for (model, source), tensor in zip(pairs, found, strict=True):
                check_finite(tensor, source, model)
            base = found.pop() if part.base else None
            yield Block(start, found, base)
            start += pieces[0].numel()

    def _tensor(self, model: str, name: str) -> Tensor:
        """A tensor of a model; of one that is computed the last is remembered, as several passes ask for it."""
        source = self._sources[model]
        if isinstance(source, Checkpoint):
            return source.tensor(name)
        last: dict[str, tuple[str, Tensor]] = self._last.__dict__
        if last.get(model, ("",))[0] != name:
            last[model] = (name, source.tensor(name))
        return last[model][1]

    def _common(self, part: Part, name: str) -> Tensor:
        """A tensor of integers or booleans: copied, since there is no arithmetic that would keep its meaning."""
        pairs = [*zip(part.models, part.names, strict=True), *([part.base] if part.base else [])]
        tensors = [self._sources[model].tensor(source) for model, source in pairs]
        differ = [
            model for (model, _), tensor in zip(pairs, tensors, strict=True) if not torch.equal(tensor, tensors[0])
        ]
        if differ:
            raise MismatchError(
                f"{name} holds {tensors[0].dtype}, which cannot be merged, and differs in {', '.join(differ)} from "
                f"{pairs[0][0]}: use models that agree on it"
            )
        self.ledger[name] = {"action": "copied"}
        return tensors[0]


def config_of(source: Source) -> dict[str, Any]:
    """A model's config.json as it is to be written."""
    if isinstance(source, Merge):
        return source.config()
    return laid_over(read_config(source.donor), source.config_changes if isinstance(source, Adapted) else {})


def reshapes(source: Source) -> bool:
    """Whether a model has another config or tokenizer than lies in its donor's folder."""
    return tokenizer_folder(source) != source.donor or config_of(source) != read_config(source.donor)


def _devices(device: str) -> list[str]:
    """Where tensors are merged: on all GPUs in turn where `cuda` names none of them. Raises RecipeError."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise RecipeError(f"device '{device}' is none; expected cpu, cuda or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"device '{device}': torch sees no GPU here (fuse-bench doctor); use cpu")
    if device == "cuda":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [device]


def _cutter(unit: str, shape: tuple[int, ...], device: str) -> Callable[[Tensor], Iterator[Tensor]]:
    """How a tensor is cut into blocks."""
    size = BLOCK if device == "cpu" else GPU_BLOCK
    if unit == "tensor":
        return lambda tensor: iter((tensor,))
    if unit == "elements":
        return lambda tensor: iter(tensor.reshape(-1).split(size))
    rows = 1 if len(shape) < 2 else shape[0]
    width = math.prod(shape) // max(rows, 1)
    return lambda tensor: iter(tensor.reshape(rows, width).split(max(1, size // max(width, 1))))


def _check_range(result: Tensor, merged: Tensor, name: str) -> None:
    """Raises RecipeError where a result has left its dtype's range."""
    if not math.isfinite(result.sum(dtype=torch.float32).item()) and not torch.isfinite(result.float()).all():
        raise RecipeError(
            f"the merge overflows {str(result.dtype).removeprefix('torch.')} in {name} (largest magnitude "
            f"{merged.abs().max().item():.3g}): lower the weights or lambda, or set dtype: bfloat16 or float32"
        )
