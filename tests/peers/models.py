"""Seeded Llama-shaped folders on which two tools can be compared: a base and three models that descend from it.

Twelve layers, so that layer 10 sorts before layer 2; embeddings of more than 65,536 elements, so that they are cut into
blocks; an odd width in the feed-forward part, so that nothing divides evenly.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

MEMBERS = ("base", "a", "b", "c")
LAYERS, HIDDEN, INNER, KEYS, VOCABULARY = 12, 16, 21, 8, 4201


def _fine_tuned(name: str, base: Tensor, member: int, generator: torch.Generator) -> Tensor:
    """A task vector with a heavy tail: the mean magnitude of what is kept then depends on which elements those are."""
    noise = torch.randn(base.shape, generator=generator)
    return 0.006 * member * noise * noise.abs()


def _light(name: str, base: Tensor, member: int, generator: torch.Generator) -> Tensor:
    """Task vectors so small that their mean squares sum to less than 1e-6."""
    return (2e-4, 6e-4, 2e-5)[member - 1] * torch.randn(base.shape, generator=generator)


def _far(name: str, base: Tensor, member: int, generator: torch.Generator) -> Tensor:
    """Task vectors as long as the base: wide angles between the models."""
    return 0.06 * torch.randn(base.shape, generator=generator)


def _edges(name: str, base: Tensor, member: int, generator: torch.Generator) -> Tensor:
    """No change at all, opposite changes, and mostly zeros, each in layers of its own."""
    delta = _fine_tuned(name, base, member, generator)
    if ".layers.3." in name or (".layers.4." in name and member == 3):
        return torch.zeros_like(base)
    if ".layers.5." in name:
        # On a grid that sums of two stay on, so that the task vectors are opposite to the last bit.
        return (_pattern(name, base.shape) * 2**22).round() / 2**22 * (1, -1, 2)[member - 1]
    if ".layers.6." in name:
        return delta * (torch.rand(base.shape, generator=generator) < 0.05)
    return delta


def _pattern(name: str, shape: torch.Size) -> Tensor:
    """A change that depends on the tensor alone, so that several models share it."""
    return 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode())))


def _tied_magnitudes(name: str, base: Tensor, member: int, generator: torch.Generator) -> Tensor:
    """Four magnitudes in all, so that any threshold lies among equals; sums of them are exact."""
    steps = torch.randint(1, 5, base.shape, generator=generator) * 2.0**-8
    return steps * torch.randint(0, 2, base.shape, generator=generator).mul(2).sub(1)


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; `keys` is the width of its keys and values."""

    layers: int
    hidden: int
    inner: int
    keys: int
    vocabulary: int
    heads: int
    tied: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        square, keys = (self.hidden, self.hidden), (self.keys, self.hidden)
        attention = dict(zip("qkvo", (square, keys, keys, square), strict=True))
        layer: dict[str, tuple[int, ...]] = {
            **{f"self_attn.{part}_proj": shape for part, shape in attention.items()},
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }
        rows = (self.vocabulary, self.hidden)
        stack = {f"model.layers.{i}.{part}.weight": s for i in range(self.layers) for part, s in layer.items()}
        head = {} if self.tied else {"lm_head.weight": rows}
        return {"model.embed_tokens.weight": rows, **stack, "model.norm.weight": (self.hidden,), **head}

    def config(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.keys * self.heads // self.hidden,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }


def save_folder(folder: Path, tensors: dict[str, Tensor], shape: Shape, added: tuple[str, ...] = ()) -> None:
    """Write weights, config and a tokenizer of one word a row, followed by the added tokens."""
    folder.mkdir(parents=True)
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = str(next(iter(stored.values())).dtype).removeprefix("torch.")
    config = shape.config() | {"vocab_size": shape.vocabulary + len(added), "torch_dtype": dtype}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0"}
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", _tokenizer(shape.vocabulary, added)),
        ("tokenizer_config.json", settings),
    ):
        (folder / name).write_text(json.dumps(content))


@dataclass(frozen=True)
class Family:
    """How the models of one folder differ from their base, and how they are stored."""

    change: Callable[[str, Tensor, int, torch.Generator], Tensor] = _fine_tuned
    dtype: torch.dtype = torch.float32
    tied: bool = False
    vocabulary: int = VOCABULARY
    added: tuple[tuple[str, ...], ...] = ((), (), (), ())
    seed: int = 11
    layers: int = LAYERS

    @property
    def shape(self) -> Shape:
        return Shape(self.layers, HIDDEN, INNER, KEYS, self.vocabulary, heads=2, tied=self.tied)


FAMILIES = {
    "plain": Family(),
    "tied": Family(tied=True, seed=12),
    "bf16": Family(dtype=torch.bfloat16, seed=13),
    "edges": Family(change=_edges, seed=14),
    "light": Family(change=_light, seed=15),
    "far": Family(change=_far, seed=16),
    "magnitudes": Family(change=_tied_magnitudes, seed=17, vocabulary=61),
    # Embeddings of more than 2^20 elements, beyond which mergekit works in chunks or by samples.
    "large": Family(vocabulary=70_001, tied=True, layers=2, seed=19),
    "tokens": Family(vocabulary=61, added=((), ("<x>", "<y>"), ("<y>", "<z>"), ()), seed=18),
}


def write(family: Family, folder: Path) -> dict[str, Path]:
    """Write the base and its three descendants as folders, and return those by name."""
    generator = torch.Generator().manual_seed(family.seed)
    base = {
        name: torch.randn(shape, generator=generator) * 0.06 + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in family.shape.tensors().items()
    }
    if family.change in (_edges, _tied_magnitudes):
        # On a coarse grid, base + delta - base gives the very delta back.
        base = {name: (tensor * 256).round() / 256 for name, tensor in base.items()}
    for member, name in enumerate(MEMBERS):
        tensors = {
            key: tensor if member == 0 else tensor + family.change(key, tensor, member, generator)
            for key, tensor in base.items()
        }
        _save(folder / name, tensors, family, family.added[member], generator)
    return {name: folder / name for name in MEMBERS}


def _save(
    folder: Path, tensors: dict[str, Tensor], family: Family, added: tuple[str, ...], generator: torch.Generator
) -> None:
    rows = len(added)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        if key in tensors and rows:
            tensors[key] = torch.cat([tensors[key], torch.randn(rows, HIDDEN, generator=generator) * 0.06])
    save_folder(folder, {key: tensor.to(family.dtype) for key, tensor in tensors.items()}, family.shape, added)


def _tokenizer(vocabulary: int, added: tuple[str, ...]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary + i, "content": token, **flags} for i, token in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(vocabulary)}, "unk_token": "t0"},
    }
