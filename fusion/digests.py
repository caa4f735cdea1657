"""Who a model is: SHA-256 over its weights, its config and its tokenizer, whatever the order or the sharding."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoint import (
    DTYPE_NAMES,
    GENERATION_CONFIG,
    Checkpoint,
    Source,
    read_config,
    read_json,
    tokenizer_files,
)

# Bookkeeping that a library writes on saving and that changes no output.
CONFIG_BOOKKEEPING = ("_name_or_path", "transformers_version", "_from_model_config")
TOKENIZER_BOOKKEEPING = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "is_local", "local_files_only")


def tensor_digest(name: str, tensor: Tensor) -> str:
    """SHA-256 over a tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([name, DTYPE_NAMES[tensor.dtype], list(tensor.shape)]).encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes in row-major order, without a copy where it is contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def join_digests(digests: Iterable[str]) -> str:
    """One digest of all tensors' digests, whatever their order."""
    return _sha256("\n".join(sorted(digests)).encode())


def weights_digest(source: Source) -> str:
    """The identity of a model's weights: names, dtypes, shapes and bytes, whatever the order or the sharding."""
    return join_digests(tensor_digest(name, source.tensor(name)) for name in source.names())


def config_digest(folder: Path) -> str:
    """The identity of config.json and generation_config.json, without the keys that change no output."""
    generation = folder / GENERATION_CONFIG
    both = {
        "config": _without(read_config(folder), CONFIG_BOOKKEEPING),
        "generation": _without(read_json(generation), CONFIG_BOOKKEEPING) if generation.is_file() else None,
    }
    return _sha256(json.dumps(both, sort_keys=True).encode())


def tokenizer_digest(folder: Path) -> str:
    """The identity of the tokenizer's files. Raises CheckpointError when the folder has no tokenizer."""
    lines = []
    for file in tokenizer_files(folder):
        content = file.read_bytes()
        if file.name == "tokenizer_config.json":
            content = json.dumps(_without(read_json(file), TOKENIZER_BOOKKEEPING), sort_keys=True).encode()
        lines.append(f"{file.relative_to(folder).as_posix()} {_sha256(content)}")
    return _sha256("\n".join(lines).encode())


def model_digest(weights: str, config: str, tokenizer: str) -> str:
    """A model's identity: what scores belong to."""
    return _sha256("\n".join([weights, config, tokenizer]).encode())


def folder_digests(folder: Path) -> dict[str, str]:
    """The digests "weights", "config", "tokenizer" and "model" of a model folder. Raises CheckpointError."""
    return source_digests(Checkpoint(folder))


def source_digests(source: Source) -> dict[str, str]:
    """The same of any source that has its donor's config and tokenizer."""
    parts = {
        "weights": weights_digest(source),
        "config": config_digest(source.donor),
        "tokenizer": tokenizer_digest(getattr(source, "tokenizer", source.donor)),
    }
    return {**parts, "model": model_digest(**parts)}


def _without(content: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(content, dict):
        return {key: _without(value, keys) for key, value in content.items() if key not in keys}
    return [_without(value, keys) for value in content] if isinstance(content, list) else content


def _sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
