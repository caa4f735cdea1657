"""Where a model's tensors go, one at a time: into a folder that transformers loads, or into a model that is live."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from fusion.checkpoint import (
    CONFIG,
    DTYPE_NAMES,
    GENERATION_CONFIG,
    INDEX,
    SINGLE,
    Checkpoint,
    Source,
    config_digest,
    join_digests,
    model_digest,
    read_config,
    tensor_bytes,
    tensor_digest,
    tokenizer_digest,
    tokenizer_files,
)
from fusion.errors import CheckpointError, MismatchError
from fusion.modelref import ModelRef, open_ref


@dataclass(frozen=True)
class Shard:
    """One file to be written: its name, its tensors in the order of their bytes, and how many bytes they are."""

    file: str
    tensors: tuple[str, ...]
    size: int


def write(ref: ModelRef, out: Path, shard_bytes: float = 5e9) -> dict[str, Any]:
    """Write a model to a folder, which must be empty or absent, and give its identity.

    One tensor is in memory at a time. Returns {"digest" (of the model), "weights", "config", "tokenizer" (digests),
    "tensors", "bytes", "shards"}. Raises CheckpointError when `out` holds something or cannot be written; what was
    written by then is removed.
    """
    source = open_ref(ref)
    beside = _side_files(source.donor)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty: give another folder, or remove it first")
    existed = out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        weights = _write_weights(source, out, shard_bytes)
        for file in beside:
            target = out / file.relative_to(source.donor)
            target.parent.mkdir(exist_ok=True)
            _write_bytes(target, file.read_bytes())
        # Last, since a folder without it is no model: a reader never takes a half-written one for whole.
        _write_config(source, out)
        _sync_folder(out)
    except BaseException as error:
        _remove(out, existed)
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write the model to {out}: {error.strerror or error}") from error
        raise
    digests = {"weights": weights.pop("digest"), "config": config_digest(out), "tokenizer": tokenizer_digest(out)}
    return {"digest": model_digest(**digests), **digests, **weights}


def load_into(model: nn.Module, source: Source) -> str:
    """Copy a model's tensors into a live model of the same architecture and give their weights digest.

    One tensor is in memory at a time, cast to the live model's dtype and device; tied weights are copied once. The
    digest is that of the source, as `write` would give it. Raises MismatchError that names every tensor that only one
    of the two has or that differs in shape; the model is then unchanged.
    """
    targets = _targets(model, source)
    with torch.no_grad():
        return join_digests(_copy_tensor(source, name, targets.get(name)) for name in source.names())


def _write_weights(source: Source, out: Path, shard_bytes: float) -> dict[str, Any]:
    shards = _shards(source, shard_bytes)
    digests: list[str] = []
    for shard in shards:
        digests += _write_shard(source, shard, out / shard.file)
    size = sum(shard.size for shard in shards)
    if len(shards) > 1:
        files = {name: shard.file for shard in shards for name in shard.tensors}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
        _write_bytes(out / INDEX, json.dumps(index, indent=2).encode())
    return {
        "digest": join_digests(digests),
        "tensors": len(digests),
        "bytes": size,
        "shards": [shard.file for shard in shards],
    }


def _shards(source: Source, shard_bytes: float) -> list[Shard]:
    """Tensors by name, a new shard before one would grow past `shard_bytes`."""
    groups: list[list[str]] = [[]]
    sizes = [0]
    for name in source.names():
        size = _size(source, name)
        if groups[-1] and sizes[-1] + size > shard_bytes:
            groups.append([])
            sizes.append(0)
        groups[-1].append(name)
        sizes[-1] += size
    count = len(groups)
    files = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    # Wide dtypes first, so that every tensor starts at a multiple of its own width.
    ordered = [sorted(group, key=lambda name: (-source.dtype(name).itemsize, name)) for group in groups]
    return [Shard(*parts) for parts in zip(files, map(tuple, ordered), sizes, strict=True)]


def _write_shard(source: Source, shard: Shard, path: Path) -> list[str]:
    """Header first, since shapes and dtypes are known, then each tensor's bytes as it is made; gives their digests."""
    with path.open("wb") as file:
        file.write(_header(source, shard.tensors))
        digests = [_write_tensor(source, name, file) for name in shard.tensors]
        file.flush()
        os.fsync(file.fileno())
    return digests


# In a function of its own, so that the tensor is gone before the next is made.
def _write_tensor(source: Source, name: str, file: BinaryIO) -> str:
    tensor = source.tensor(name)
    file.write(tensor_bytes(tensor))
    return tensor_digest(name, tensor)


def _header(source: Source, names: Iterable[str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        stop = start + _size(source, name)
        header[name] = {
            "dtype": DTYPE_NAMES[source.dtype(name)],
            "shape": list(source.shape(name)),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _size(source: Source, name: str) -> int:
    return math.prod(source.shape(name)) * source.dtype(name).itemsize


def _side_files(donor: Path) -> list[Path]:
    """What a model's folder holds beside weights and config. Raises CheckpointError when there is no tokenizer."""
    generation = donor / GENERATION_CONFIG
    return [*tokenizer_files(donor), *([generation] if generation.is_file() else [])]


def _write_config(source: Source, out: Path) -> None:
    """The donor's config, with its dtype corrected where the weights are written in another."""
    donor = Checkpoint(source.donor)
    written, given = _float_dtypes(source), _float_dtypes(donor)
    if written == given or len(written) > 1:
        _write_bytes(out / CONFIG, (source.donor / CONFIG).read_bytes())
        return
    dtype = str(next(iter(written), torch.float32)).removeprefix("torch.")
    config = {**_with_dtype(read_config(source.donor), dtype), "dtype": dtype}
    _write_bytes(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _float_dtypes(source: Source) -> dict[torch.dtype, None]:
    dtypes = (source.dtype(name) for name in source.names())
    return dict.fromkeys(dtype for dtype in dtypes if dtype.is_floating_point)


def _with_dtype(config: Any, dtype: str) -> Any:
    """The config with every `dtype` and `torch_dtype` in it, nested ones too, set to `dtype`."""
    if not isinstance(config, dict):
        return config
    return {
        key: dtype if key in ("dtype", "torch_dtype") else _with_dtype(value, dtype) for key, value in config.items()
    }


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(out: Path, existed: bool) -> None:
    """Leave the place as it was found: nothing of ours in `out`, and no `out` if there was none."""
    for path in list(out.iterdir()) if out.is_dir() else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not existed and out.is_dir():
        out.rmdir()


def _targets(model: nn.Module, source: Source) -> dict[str, Tensor]:
    """Where each of the source's tensors goes in the live model. Raises MismatchError unless all fit exactly."""
    state = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    # Buffers that old checkpoints carry and that the architecture says it computes itself.
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    names = {name: _live_name(name, state, prefix) for name in source.names()}
    targets = {name: state[live] for name, live in names.items() if live is not None}
    filled = dict.fromkeys(target.data_ptr() for target in targets.values() if target.numel())
    lines = [
        f"{name} is not in the live model"
        for name, live in names.items()
        if live is None and not any(re.search(pattern, name) for pattern in ignored)
    ]
    lines += [
        f"{name} is {list(source.shape(name))} instead of {list(target.shape)}"
        for name, target in targets.items()
        if source.shape(name) != tuple(target.shape)
    ]
    lines += [f"{live} is missing" for live, place in state.items() if place.numel() and place.data_ptr() not in filled]
    if len(filled) < sum(target.numel() > 0 for target in targets.values()):
        lines.append("the live model ties weights that differ in this one")
    if lines:
        raise MismatchError(
            f"the model in {source.donor} does not fit the live {type(model).__name__}:\n  "
            + "\n  ".join(lines)
            + "\nload it from its folder with transformers instead"
        )
    return targets


def _copy_tensor(source: Source, name: str, target: Tensor | None) -> str:
    tensor = source.tensor(name)
    if target is not None:
        target.copy_(tensor)
    return tensor_digest(name, tensor)


def _live_name(name: str, state: dict[str, Tensor], prefix: str) -> str | None:
    """The live model's name of a stored tensor: checkpoints come with and without the name of the model's body."""
    candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return next((candidate for candidate in candidates if candidate in state), None)
