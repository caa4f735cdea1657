"""EMR-Merging's compact model on disk: one elected task vector, and for each task one bit an entry and one scale.

A folder of

    elected.safetensors   tau, by tensor, in the base's dtype
    masks.safetensors     by tensor, (tasks, bytes): bit j of byte b is entry 8 b + j of the tensor in row-major order
    emr.json              tasks with their rescalers, the groups they answer for, and the weights digest of the base

Both the signs of a task's mask and the order of arithmetic are those of fusion/methods/emr.py, so that a task's model
is the merge of method `emr` but for tau's rounding to the base's dtype: where that is float32, to the bit.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import safe_open
from torch import Tensor

from fusion.checkpoint import Source, check_finite, check_same, header, read_json
from fusion.digests import tensor_bytes, weights_digest
from fusion.errors import CheckpointError, MismatchError, RecipeError
from fusion.merge import make_room
from fusion.methods.call import BLOCK, Block
from fusion.methods.emr import Norms, block_norms, elect, rescalers
from fusion.modelref import Delta, open_ref
from fusion.stream import in_order

ELECTED = "elected.safetensors"
MASKS = "masks.safetensors"
ABOUT = "emr.json"
FORMAT = 1


def write_emr(ref: Delta, out: Path, routes: Mapping[str, str] | None = None, threads: int = 1) -> dict[str, Any]:
    """Write the compact model of a merge by `emr`, whatever its task, to a folder, which must be empty or absent.

    routes: which task answers for which group, to be kept beside it. One pass over the models; at most `threads` + 1
    tensors are in memory at a time. Returns what emr.json says.
    Raises CheckpointError when `out` holds something, MismatchError that names every tensor that is not shared, and
    RecipeError for a merge by another method, of slices, or of several vocabularies.
    """
    recipe = ref.recipe
    if recipe.method != "emr" or recipe.base is None or recipe.slices or recipe.tokenizer:
        raise RecipeError("a compact file is of whole models merged by emr, with one base and the base's tokenizer")
    make_room(out)
    parents = {name: open_ref(parent) for name, parent in ref.parents}
    base, models = parents[recipe.base], {name: parents[name] for name in recipe.models}
    check_same({recipe.base: base, **models})
    names = _merged(base, models)
    out.mkdir(parents=True, exist_ok=True)
    try:
        norms = _write(base, models, names, out, threads)
        if recipe.params.get("rescaler") == "code":
            norms = {name: mine / max(math.prod(base.shape(name)), 1) for name, mine in norms.items()}
        scales = rescalers(sum((norms[name] for name in sorted(names)), np.zeros((len(models), 2))))
        about = {
            "format": FORMAT,
            "base": weights_digest(base),
            "rescaler": recipe.params.get("rescaler", "paper"),
            "tasks": dict(zip(models, scales, strict=True)),
            "routes": dict(routes or {}),
        }
        # Last, since a folder without it is no model.
        (out / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        for file in (ELECTED, MASKS, ABOUT):
            (out / file).unlink(missing_ok=True)
        raise
    return about


class EmrFile:
    """The folder that `write_emr` wrote, and the base: one model a task.

    Raises CheckpointError when there is no such folder, and MismatchError when `base` is not the one it was made from.
    """

    def __init__(self, folder: str | Path, base: Source) -> None:
        self.base = base
        about = read_json(Path(folder) / ABOUT)
        if about.get("format") != FORMAT:
            raise CheckpointError(f"{folder} is of format {about.get('format')}; this version reads {FORMAT}")
        digest = weights_digest(base)
        if digest != about["base"]:
            raise MismatchError(
                f"{folder} was made from another base, of weights {about['base']}; the one given is {digest}"
            )
        self.tasks: dict[str, float] = about["tasks"]
        self.routes: dict[str, str] = about["routes"]
        self._elected = safe_open(Path(folder) / ELECTED, "pt")
        self._masks = safe_open(Path(folder) / MASKS, "pt")

    def task(self, name: str) -> "Source":
        """The model of one task, computed tensor by tensor. Raises CheckpointError for a task that is not there."""
        if name not in self.tasks:
            raise CheckpointError(f"no task '{name}' in this EMR model; its tasks: {', '.join(self.tasks)}")
        return _Task(self, name)

    def tensor(self, task: str, name: str) -> Tensor:
        """One tensor of a task's model, in the base's dtype."""
        base = self.base.tensor(name)
        if not base.is_floating_point():
            return base
        row = list(self.tasks).index(task)
        bits = self._masks.get_slice(name)[row : row + 1].reshape(-1).numpy()
        mask = torch.from_numpy(np.unpackbits(bits, bitorder="little", count=base.numel()))
        tau = self._elected.get_tensor(name).reshape(-1)
        result = torch.empty_like(base)
        parts = (flat.reshape(-1).split(BLOCK) for flat in (result, tau, mask, base))
        for into, t, m, b in zip(*parts, strict=True):
            # The first product is a tensor of its own: tau is a view of the file.
            into.copy_((t.float() * m).mul_(self.tasks[task]).add_(b.float()))
        return result


class _Task:
    """One task's model as a Source."""

    def __init__(self, file: EmrFile, task: str) -> None:
        self._file, self._task = file, task
        self.donor = file.base.donor

    def names(self) -> list[str]:
        return self._file.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._file.base.dtype(name)

    def tensor(self, name: str) -> Tensor:
        return self._file.tensor(self._task, name)


def _write(base: Source, models: Mapping[str, Source], names: list[str], out: Path, threads: int) -> dict[str, Norms]:
    """Write tau and the masks of these tensors; gives the tasks' norms in each."""
    norms: dict[str, Norms] = {}
    with (out / ELECTED).open("wb") as elected, (out / MASKS).open("wb") as masks:
        elected.write(header((name, base.dtype(name), base.shape(name)) for name in names))
        masks.write(header((name, torch.uint8, (len(models), _bytes(base, name))) for name in names))
        made = in_order(lambda name: _compact(base, models, name), names, threads)
        for name, (tau, bits, mine) in zip(names, made, strict=True):
            elected.write(tensor_bytes(tau))
            masks.write(tensor_bytes(bits))
            norms[name] = mine
    return norms


def _merged(base: Source, models: Mapping[str, Source]) -> list[str]:
    """The tensors with a task vector, those of wide dtypes first, so that each starts at a multiple of its width.

    Raises MismatchError where a tensor of integers or booleans, which has none, is not the same in all models.
    """
    names = []
    for name in base.names():
        if base.dtype(name).is_floating_point:
            names.append(name)
            continue
        differ = [model for model, source in models.items() if not torch.equal(source.tensor(name), base.tensor(name))]
        if differ:
            raise MismatchError(
                f"{name} holds {base.dtype(name)}, which cannot be merged, and differs from the base in "
                f"{', '.join(differ)}: use models that agree on it"
            )
    return sorted(names, key=lambda name: (-base.dtype(name).itemsize, name))


def _compact(
    base: Source, models: Mapping[str, Source], name: str
) -> tuple[Tensor, UInt8[Tensor, "tasks bytes"], Norms]:
    """tau of one tensor in the base's dtype, the tasks' masks as bits, and the tasks' norms in the tensor."""
    tau = torch.empty(base.shape(name), dtype=base.dtype(name))
    bits = torch.empty(len(models), _bytes(base, name), dtype=torch.uint8)
    norms = np.zeros((len(models), 2))
    for block in _blocks(base, models, name):
        assert block.base is not None
        stop = block.start + block.base.numel()
        part, masks = elect(block.models, block.base)
        tau.reshape(-1)[block.start : stop] = part
        for row, mask in zip(bits, masks, strict=True):
            packed = np.packbits(mask.numpy().astype(bool), bitorder="little")
            row[block.start // 8 : -(-stop // 8)] = torch.from_numpy(packed)
        norms += block_norms(block, part, masks)
    return tau, bits, norms


def _blocks(base: Source, models: Mapping[str, Source], name: str) -> Iterator[Block]:
    sources = {**models, "base": base}
    pieces = [source.tensor(name).reshape(-1).split(BLOCK) for source in sources.values()]
    for i, stored in enumerate(zip(*pieces, strict=True)):
        found = [piece.float() for piece in stored]
        for model, tensor in zip(sources, found, strict=True):
            check_finite(tensor, name, model)
        yield Block(i * BLOCK, found[:-1], found[-1])


def _bytes(source: Source, name: str) -> int:
    return -(-math.prod(source.shape(name)) // 8)
