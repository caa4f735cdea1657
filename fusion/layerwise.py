"""A causal model run layer by layer over a whole corpus, whatever its architecture.

The decoder layers are the list of modules that is as long as the config says. The model is run once a batch with each
layer replaced by a recorder of its arguments (masks, position embeddings); then each layer is run over all batches
before the next, so that at any time one layer is at work and only hidden states are kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusion.errors import FusionError

HIDDEN = "hidden_states"


class _EnoughError(Exception):
    """All that was wanted of a forward pass has been seen."""


@dataclass
class Batch:
    """Rows of token ids, the hidden states before the next layer to run, and each layer's other arguments."""

    ids: Int[Tensor, "rows length"]
    hidden: Float[Tensor, "rows length width"]
    calls: list["Call"]


@dataclass(frozen=True)
class Call:
    """The arguments of a layer beside the hidden states, which come first or by their name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: bool


class Decoder:
    """A live causal model in eval mode, taken apart into what is before its layers, the layers, and what is after.

    Raises FusionError for a model that does not consist of layers that each take what the one before gave.
    """

    def __init__(self, model: Any, ids: Int[Tensor, "rows length"], device: str) -> None:
        """ids: a little text, on which running layer by layer is checked against running the model."""
        self.model = model
        self.prefix, self.layers = find_layers(model)
        self.device = torch.device(device)
        self._packed = [0] * len(self.layers)  # length of the tuple that a layer gives; 0: it gives a tensor
        self._check(ids)

    def open(self, ids: Int[Tensor, "rows length"]) -> Batch:
        """Run what is before the layers and record what each layer would be called with."""
        calls: list[Call] = []
        first: list[Tensor] = []

        def record(index: int, *args: Any, **kwargs: Any) -> Any:
            hidden, call = _taken_apart(args, kwargs)
            first.append(hidden)
            calls.append(call)
            if len(calls) == len(self.layers):
                raise _EnoughError
            return self._packed_as(index, hidden)

        with self._replaced(record):
            self._forward(ids)
        return Batch(ids, first[0], calls)

    @torch.no_grad()
    def step(self, index: int, batch: Batch) -> Float[Tensor, "rows length width"]:
        """The hidden states behind a layer, on the CPU; `batch` holds those before it and is left as it is."""
        call = batch.calls[index]
        hidden = batch.hidden.to(self.device)
        args, kwargs = _moved(call.args, self.device), _moved(call.kwargs, self.device)
        if call.named:
            out = self.layers[index](*args, **{**kwargs, HIDDEN: hidden})
        else:
            out = self.layers[index](hidden, *args, **kwargs)
        found: Tensor = out[0] if self._packed[index] else out
        return found.cpu()

    def close(self, batch: Batch) -> None:
        """Run all that is not in a layer, the hidden states behind the last layer given, up to the output head."""

        def replay(index: int, *args: Any, **kwargs: Any) -> Any:
            return self._packed_as(index, batch.hidden)

        head = self.model.get_output_embeddings()
        stop = None if head is None else head.register_forward_pre_hook(_stop)
        try:
            with self._replaced(replay):
                self._forward(batch.ids)
        finally:
            if stop is not None:
                stop.remove()

    @contextmanager
    def at_work(self, index: int) -> Iterator[nn.Module]:
        """The layer on the device, and back on the CPU afterwards."""
        layer = self.layers[index].to(self.device)
        try:
            yield layer
        finally:
            layer.to("cpu")

    @torch.no_grad()
    def _forward(self, ids: Int[Tensor, "rows length"]) -> None:
        with suppress(_EnoughError):
            self.model(input_ids=ids, use_cache=False)

    @contextmanager
    def _replaced(self, stand_in: Callable[..., Any]) -> Iterator[None]:
        for index, layer in enumerate(self.layers):
            layer.forward = partial(stand_in, index)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _packed_as(self, index: int, hidden: Tensor) -> Any:
        length = self._packed[index]
        return (hidden, *(None,) * (length - 1)) if length else hidden

    def _check(self, ids: Int[Tensor, "rows length"]) -> None:
        """Learn what the layers give, and make sure that they can be run one by one."""
        seen: list[tuple[int, Any]] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _args, out, index=index: seen.append((index, out)))
            for index, layer in enumerate(self.layers)
        ]
        try:
            with torch.no_grad():
                self.model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        if [index for index, _ in seen] != list(range(len(self.layers))):
            raise self._unfit(f"calls its layers in the order {[index for index, _ in seen]}")
        for index, out in seen:
            self._packed[index] = len(out) if isinstance(out, tuple) else 0
        batch = self.open(ids)
        for index in range(len(self.layers)):
            with self.at_work(index):
                batch.hidden = self.step(index, batch)
            out = seen[index][1]
            expected = out[0] if self._packed[index] else out
            if batch.hidden.shape != expected.shape or not torch.allclose(batch.hidden, expected, 1e-3, 1e-3):
                raise self._unfit(f"gives layer {index} something else than what the layer before it gave")

    def _unfit(self, what: str) -> FusionError:
        return FusionError(
            f"{type(self.model).__name__}: {what}, so it cannot be run layer by layer, as Gram matrices need it; "
            "use a data-free method for this architecture"
        )


def find_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder layers and their name: the outermost list of as many modules as the config has layers.

    Raises FusionError unless there is exactly one.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise FusionError(
            f"{type(model).__name__}: has {len(outer)} lists of {count} modules ({', '.join(outer) or 'none'}), where "
            "one was expected: its decoder layers; use a data-free method for this architecture"
        )
    return outer[0], lists[outer[0]]


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _EnoughError


def _taken_apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    if args:
        return args[0], Call(args[1:], kwargs, named=False)
    return kwargs[HIDDEN], Call((), {name: value for name, value in kwargs.items() if name != HIDDEN}, named=True)


def _moved(value: Any, device: torch.device) -> Any:
    """The value with every tensor in it on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(inner, device) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(inner, device) for inner in value)
    return value
