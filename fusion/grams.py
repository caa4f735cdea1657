"""Gram matrices of what a model's linear layers are given, for RegMean: in float64, one decoder layer at a time."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fusion import corpus, teachers
from fusion.calibration import Collect, Made, Text, Writer, read, stored_names, writing
from fusion.checkpoint import Checkpoint
from fusion.corpus import Document
from fusion.digests import folder_digests
from fusion.errors import FusionError
from fusion.layerwise import Batch, Decoder
from fusion.methods.regmean import Gram
from fusion.training import Progress

OUTSIDE = "outside"
# Text on which running layer by layer is compared with running the model.
TRIAL = 16


class Inputs:
    """Sums X'X over what linear layers are given; layers that are given the same tensor share one sum."""

    def __init__(self, linears: Mapping[str, nn.Module], device: torch.device) -> None:
        self.sums: dict[str, Float[Tensor, "d d"]] = {}
        self.rows: dict[str, int] = {}
        self.owner: dict[str, str] = {}
        self._device = device
        # The inputs of the batch under way; kept, so that no other tensor gets the address of one of them.
        self._seen: dict[Any, tuple[str, Tensor]] = {}
        self._hooks = [module.register_forward_pre_hook(self._hook(name)) for name, module in linears.items()]

    def next_batch(self) -> None:
        """No tensor of the batch before is that of another layer from here on."""
        self._seen.clear()

    def remove(self) -> None:
        """Leave the layers as they were found."""
        for hook in self._hooks:
            hook.remove()

    def grams(self, linears: Mapping[str, nn.Module], tokens: int) -> dict[str, Gram]:
        """The Gram of each layer that was given anything, per token of the corpus."""
        for matrix in self.sums.values():
            matrix.div_(tokens)
        return {
            name: Gram(self.sums[owner], self.rows[owner], isinstance(linears[name], Conv1D))
            for name, owner in self.owner.items()
        }

    def _hook(self, name: str) -> Callable[..., None]:
        return lambda _module, args: self._see(name, args[0])

    def _see(self, name: str, given: Tensor) -> None:
        if not given.numel():
            return
        # The version tells apart what a tensor held before and after it was written to.
        same = (given.data_ptr(), given.shape, given.stride(), given._version)
        owner, _ = self._seen.setdefault(same, (name, given))
        if self.owner.setdefault(name, owner) != owner:
            raise FusionError(f"{name}: shares its input with {owner} in some batches and with others in others")
        if owner == name:
            self._add(name, given.reshape(-1, given.shape[-1]).to(self._device, torch.float64))

    def _add(self, name: str, x: Float[Tensor, "n d"]) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=self._device)
            self.rows[name] = 0
        self.sums[name].addmm_(x.T, x)
        self.rows[name] += len(x)


class Live:
    """A live model taken apart, and its linear layers by the names under which the checkpoint stores their weights.

    A weight that is used in several places, as by an output head tied to the embedding, is no linear layer's here.
    """

    def __init__(self, model: Any, stored: Mapping[str, str], trial: Text, device: str) -> None:
        self.decoder = Decoder(model, trial.sequences[0][None, :TRIAL], device)
        uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        self._linears: dict[str, dict[str, nn.Module]] = {}
        for name, module in model.named_modules():
            weight = stored.get(f"{name}.weight")
            if isinstance(module, nn.Linear | Conv1D) and weight is not None and uses[id(module.weight)] == 1:
                self._linears.setdefault(self.group(name), {})[weight] = module

    def group(self, name: str) -> str:
        """Where a live module or parameter belongs: one group a decoder layer, one for all else."""
        inside = f"{self.decoder.prefix}."
        return layer_group(int(name.removeprefix(inside).split(".")[0])) if name.startswith(inside) else OUTSIDE

    def grams(self, group: str, run: Callable[[Batch], Any], batches: Sequence[Batch], tokens: int) -> dict[str, Gram]:
        """The Grams of a group's layers, by weight, per token of the corpus, from running all batches."""
        linears = self._linears.get(group, {})
        if group == OUTSIDE and not linears:
            return {}
        inputs = Inputs(linears, self.decoder.device)
        try:
            for batch in batches:
                run(batch)
                inputs.next_batch()
        finally:
            inputs.remove()
        return inputs.grams(linears, tokens)


def layer_group(index: int) -> str:
    """The group of a decoder layer, which is also its file without the ending."""
    return f"layer-{index:05d}"


def collect_grams(
    model: Path, documents: Sequence[Document], out: Path, settings: Collect, progress: Progress
) -> dict[str, Any]:
    """Write the Gram matrices of every linear layer of a model on a corpus (RegMean; see fusion/methods/regmean.py).

    Every token of a sequence counts, in evaluation mode and float32; the sums are in float64. Memory holds the model,
    the hidden states of the corpus and one layer's Grams. Returns the report that `statistics.collect` describes.
    Raises FusionError for an architecture that cannot be run layer by layer, TrainingError for an empty corpus,
    CheckpointError as `teachers.load` does.
    """
    started = time.perf_counter()
    with writing(out) as writer:
        model_live, tokenizer = teachers.load(model)
        text = read(tokenizer, documents, settings, model_live)
        live = Live(model_live, stored_names(model_live, Checkpoint(model)), text, settings.device)
        batches = [live.decoder.open(ids) for ids in text.batches()]
        count = len(live.decoder.layers)
        for index in range(count):
            with live.decoder.at_work(index):
                grams = live.grams(layer_group(index), partial(_advance, live.decoder, index), batches, text.tokens)
            add_grams(writer, layer_group(index), grams)
            progress(index + 1, count + 1)
        add_grams(writer, OUTSIDE, live.grams(OUTSIDE, live.decoder.close, batches, text.tokens))
        digests = (folder_digests(model)["model"],), (corpus.digest(documents),)
        report = writer.finish(Made("gram", Checkpoint(model), text, settings, *digests), started)
        progress(count + 1, count + 1)
        return report


def _advance(decoder: Decoder, index: int, batch: Batch) -> None:
    batch.hidden = decoder.step(index, batch)


def add_grams(writer: Writer, group: str, grams: Mapping[str, Gram]) -> None:
    """Write a group's Grams; one that layers share is written once."""
    keys: dict[int, str] = {}
    packed = {}
    about = {}
    for name, gram in grams.items():
        key = keys.setdefault(id(gram.matrix), name)
        if key == name:
            packed[name] = pack(gram.matrix)
        about[name] = {"key": key, "tokens": gram.tokens, "transposed": gram.transposed}
    writer.add(f"{group}.safetensors", packed, about)


def pack(matrix: Float[Tensor, "d d"]) -> Float[Tensor, " packed"]:
    """The upper triangle of a symmetric matrix, row by row: half the bytes."""
    return torch.cat([matrix[i, i:] for i in range(len(matrix))])


def unpack(packed: Float[Tensor, " packed"]) -> Float[Tensor, "d d"]:
    """The symmetric matrix that was packed."""
    width = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    matrix = packed.new_empty(width, width)
    start = 0
    for i in range(width):
        row = packed[start : start + width - i]
        matrix[i, i:] = row
        matrix[i:, i] = row
        start += width - i
    return matrix
