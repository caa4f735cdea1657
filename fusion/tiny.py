"""Tiny models with random weights in the place of real ones: their architecture and tokenizer, a few small layers.

For rehearsing a run before it costs anything. Models that become the same tiny architecture become kin: they share
random weights and differ by a little noise of their own, so what refuses strangers can be rehearsed, too.
"""

import shutil
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from fusion.checkpoint import GENERATION_CONFIG, tokenizer_files
from fusion.errors import FusionError

HEAD = 16  # values of an attention head: rotary embeddings need an even part of it
HEADS = 4
WIDEST = 64  # what is not the hidden size is at most this wide
LAYERS = 2
EXPERTS = 4
NOISE = 0.1  # of a tensor's own spread

KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
EXPERT_COUNTS = {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS,
                 "moe_num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_top_k": 2}  # fmt: skip
WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "moe_intermediate_size",
          "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank")  # fmt: skip
HEAD_WIDTHS = ("head_dim", "rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


def write_tiny(donor: Path, out: Path, name: str, dtype: str | None = None) -> None:
    """Write to `out` a model folder that stands in for the model in `donor`, of which config and tokenizer are read.

    name: whose noise it has, so that two models of one folder differ. dtype: a torch dtype's name; else the config's.
    Raises FusionError where the architecture cannot be made small, CheckpointError for a folder without tokenizer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    files = tokenizer_files(donor)
    try:
        config = AutoConfig.from_pretrained(donor, local_files_only=True)
        shrink(config)
        wanted = str(dtype or config.dtype or "float32").removeprefix("torch.")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _draw(model, name)
        model = model.to(getattr(torch, wanted))
        with torch.no_grad():
            finite = model.eval()(torch.tensor([[1, 2, 3, 0]])).logits.isfinite().all()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FusionError(f"{donor}: no tiny model of its architecture can be made ({reason})") from error
    if not finite:
        raise FusionError(f"{donor}: a tiny model of its architecture gives no finite numbers")
    model.save_pretrained(out)
    for file in files:
        (out / file.relative_to(donor)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / file.relative_to(donor))
    if (donor / GENERATION_CONFIG).is_file():
        shutil.copyfile(donor / GENERATION_CONFIG, out / GENERATION_CONFIG)


def shrink(config: Any) -> None:
    """Make a transformers config small, in place: layers, heads, experts and widths, but not vocabulary or context."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    _fewer_layers(config, layers)
    width = _heads(config)
    limits = {**EXPERT_COUNTS, **dict.fromkeys(WIDTHS, WIDEST), **dict.fromkeys(HEAD_WIDTHS, HEAD)}
    for key, most in limits.items():
        # What a config computes from the rest (Falcon's head_dim) cannot be set, and need not be.
        if isinstance(getattr(config, key, None), int) and not isinstance(getattr(type(config), key, None), property):
            setattr(config, key, min(most, getattr(config, key)))
    for key, value in vars(config).items():
        # OPT's projection of the embeddings, and others that must be as wide as the layers are.
        if key.endswith(("_dim", "_size")) and value == hidden and "position" not in key and key != "vocab_size":
            setattr(config, key, width)
    config.hidden_size = width


def _heads(config: Any) -> int:
    """Fewer attention heads, in the same ratio of queries to keys; the hidden size that fits them."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return HEADS * HEAD
    parts: list[Any] = [config, *(part for part in vars(config).values() if hasattr(part, "kv_n_heads"))]
    places = [(part, key) for part in parts for key in (*KEY_HEADS, "kv_n_heads") if _counts(part, key)]
    keys = getattr(*places[0]) if places else heads
    ratio = heads // gcd(heads, keys)
    few = 2 if 1 < keys < heads and ratio < HEADS else 1
    total = min(heads, few * ratio if keys < heads else HEADS)
    for part, key in places:
        setattr(part, key, few if keys < heads else total)
    config.num_attention_heads = total
    return total * HEAD


def _counts(part: Any, key: str) -> bool:
    return isinstance(getattr(part, key, None), int) and not isinstance(getattr(part, key), bool)


def _fewer_layers(config: Any, layers: int) -> None:
    """The first layers, as many as it takes to have one of each kind."""
    by_layer: Mapping[str, list[Any]] = {
        key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == layers
    }
    few = min(layers, LAYERS)
    for value in by_layer.values():
        few = max([few, *(value.index(kind) + 1 for kind in value)])
    for key, value in by_layer.items():
        setattr(config, key, value[:few])
    config.num_hidden_layers = few


def _draw(model: Any, name: str) -> None:
    """Weights that depend on the tensor's name, whatever its architecture's own order of drawing, and noise."""
    with torch.no_grad():
        for key, weights in model.named_parameters():
            spread = float(weights.std()) if weights.numel() > 1 and weights.std() > 0 else 0.02
            if weights.ndim > 1:
                weights.copy_(spread * _normal(weights.shape, key))
            weights.add_(NOISE * spread * _normal(weights.shape, f"{name} {key}"))


def _normal(shape: torch.Size, seed: str) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(seed.encode())))
