"""Where a model's tensors go, one at a time: into a folder that transformers loads, or into a model that is live."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion import card, chat
from fusion.adapter import Adapted
from fusion.checkpoint import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    SINGLE,
    Source,
    header,
    read_json,
    tokenizer_files,
)
from fusion.digests import config_digest, join_digests, model_digest, tensor_bytes, tensor_digest, tokenizer_digest
from fusion.embeddings import laid_over
from fusion.errors import CheckpointError, MismatchError
from fusion.lineage import Lineage, check_kin
from fusion.methods.apply import Merge, config_of
from fusion.modelref import Delta, ModelRef, open_ref
from fusion.stream import aside, in_order, one_thread
from fusion.tokens import tokenizer_folder

# In a folder as long as it is being written: what a killed write leaves may be written over.
PARTIAL = ".partial"


@dataclass(frozen=True)
class Shard:
    """One file to be written: its name, its tensors in the order of their bytes, and how many bytes they are."""

    file: str
    tensors: tuple[str, ...]
    size: int


# Tensors are made side by side on one thread each: more would only wait for one another.
@one_thread()
def write(
    ref: ModelRef, out: Path, shard_bytes: float = 5e9, threads: int = 1, device: str = "cpu", check: bool = False
) -> dict[str, Any]:
    """Write a model to a folder, which must be empty or absent, and give its identity.

    At most `threads` + 1 tensors are in memory at a time. check: look first whether a merge's models are kin.
    Returns {"digest" (of the model), "weights", "config", "tokenizer" (digests), "tensors", "bytes", "shards", and of a
    merge "parents" (their weights' digests), "lineage" and "ledger" (what was done with each tensor)}.
    Raises CheckpointError when `out` holds something or cannot be written (what was written by then is removed), and
    LineageError when the models are strangers.
    """
    make_room(out)
    kin = check_lineage(ref) if check else {}
    source = open_ref(ref, threads, device)
    tokenizer_files(tokenizer_folder(source))
    existed = out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PARTIAL).touch()
        parents = aside(lambda: card.parents(ref))
        weights = _write_weights(source, out, shard_bytes, threads)
        about = card.about(source, parents.result(), kin) if isinstance(ref, Delta) else {}
        _write_beside(source, out)
        if isinstance(ref, Delta):
            (out / card.FILE).write_text(card.text(ref, about), encoding="utf-8")
        # Last, since a folder without it is no model: a reader never takes a half-written one for whole.
        _write_config(source, out)
        (out / PARTIAL).unlink()
    except BaseException as error:
        _remove(out, existed)
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write the model to {out}: {error.strerror or error}") from error
        raise
    digests = {"weights": weights.pop("digest"), "config": config_digest(out), "tokenizer": tokenizer_digest(out)}
    return {"digest": model_digest(**digests), **digests, **weights, **about}


def check_lineage(ref: ModelRef) -> dict[str, Lineage]:
    """What each model of a merge shares with its base (without one: with the first), stage by stage.

    Raises LineageError when one of them shares nothing, unless the recipe allows it.
    """
    if not isinstance(ref, Delta):
        return {}
    found: dict[str, Lineage] = {}
    for _, parent in ref.parents:
        found |= check_lineage(parent)
    recipe = ref.recipe
    if recipe.allow_unrelated:
        return found
    merged = (*recipe.models, recipe.base)
    sources = {name: open_ref(parent) for name, parent in ref.parents if name in merged}
    return found | check_kin(sources, recipe.base or recipe.models[0])


def load_into(model: nn.Module, source: Source) -> str:
    """Copy a model's tensors into a live model of the same architecture and give their weights digest.

    One tensor is in memory at a time, cast to the live model's dtype and device; tied weights are copied once. The
    digest is that of the source, as `write` would give it. Raises MismatchError that names every tensor that only one
    of the two has or that differs in shape; the model is then unchanged.
    """
    targets = _targets(model, source)
    with torch.no_grad():
        return join_digests(_copy_tensor(source, name, targets.get(name)) for name in source.names())


def _write_weights(source: Source, out: Path, shard_bytes: float, threads: int) -> dict[str, Any]:
    shards = _shards(source, shard_bytes)
    digests: list[str] = []
    for shard in shards:
        digests += _write_shard(source, shard, out / shard.file, threads)
    size = sum(shard.size for shard in shards)
    if len(shards) > 1:
        files = {name: shard.file for shard in shards for name in shard.tensors}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
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


def _write_shard(source: Source, shard: Shard, path: Path, threads: int) -> list[str]:
    """Header first, since shapes and dtypes are known, then each tensor's bytes as it is made; gives their digests."""

    def make(name: str) -> tuple[memoryview, str]:
        tensor = source.tensor(name)
        return tensor_bytes(tensor), tensor_digest(name, tensor)

    digests = []
    with path.open("wb") as file:
        file.write(header((name, source.dtype(name), source.shape(name)) for name in shard.tensors))
        for content, digest in in_order(make, shard.tensors, threads):
            file.write(content)
            digests.append(digest)
    return digests


def _size(source: Source, name: str) -> int:
    return math.prod(source.shape(name)) * source.dtype(name).itemsize


def _write_beside(source: Source, out: Path) -> None:
    """What a model's folder holds beside weights and config: the tokenizer and the generation config."""
    folder = tokenizer_folder(source)
    for file in tokenizer_files(folder):
        _copy(file, out / file.relative_to(folder))
    if isinstance(source, Merge) and source.recipe.chat_template is not None:
        template = chat.chosen(source.recipe.chat_template, source.tokenizers())
        if template is not None:
            chat.write(template, out)
    generation = source.donor / GENERATION_CONFIG
    if generation.is_file():
        vocabulary = source.vocabulary if isinstance(source, Merge) else None
        changes = {} if vocabulary is None else vocabulary.generation_changes
        _write_json(out / GENERATION_CONFIG, laid_over(read_json(generation), changes), like=generation)


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(file.read_bytes())


def _write_config(source: Source, out: Path) -> None:
    """The donor's config as the merge changes it, with its dtype corrected where the weights are written in another."""
    given = source.donor / CONFIG
    config = config_of(source)
    written, stored = _float_dtypes(source), _float_dtypes(_origin(source))
    if written != stored and len(written) == 1:
        dtype = str(next(iter(written))).removeprefix("torch.")
        config = {**_with_dtype(config, dtype), "dtype": dtype}
    _write_json(out / CONFIG, config, like=given)


def _write_json(path: Path, content: Mapping[str, Any], like: Path) -> None:
    """The content, as the very bytes of `like` where it says the same."""
    same = content == read_json(like)
    path.write_bytes(like.read_bytes() if same else (json.dumps(content, indent=2) + "\n").encode())


def _origin(source: Source) -> Source:
    """The given model whose config.json a model has."""
    if isinstance(source, Merge):
        return _origin(source.first)
    return source.base if isinstance(source, Adapted) else source


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


def make_room(out: Path) -> None:
    """Raises CheckpointError unless a model may be written to `out`; what a killed write has left there is removed."""
    if out.is_dir() and (out / PARTIAL).exists():
        _remove(out, existed=True)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty: give another folder, or remove it first")


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
