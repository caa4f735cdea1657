"""Tiny models for tests: sources in memory, and transformers folders of a few thousand parameters."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


class Memory:
    """A Source whose tensors are given."""

    def __init__(self, tensors: Mapping[str, Tensor], donor: Path = Path("memory")) -> None:
        self.tensors = dict(tensors)
        self.donor = donor

    def names(self) -> list[str]:
        return sorted(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


def save_plain(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Path:
    """A folder that is a model for our engine, if not for transformers: weights, config and a tokenizer's files."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "toy"}))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return folder


def tiny_llama(seed: int, tied: bool = True, vocab: int = 32, **sizes: int) -> Any:
    """A Llama of 2 layers and width 16, seeded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, **sizes}
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocab, num_key_value_heads=1, tie_word_embeddings=tied, **shape)
    return LlamaForCausalLM(config).eval()


def save_llama(folder: Path, model: Any, dtype: torch.dtype = torch.float32, shard: str | None = None) -> Path:
    """The model with a tokenizer of its own in a transformers folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0", eos_token="t1")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model.to(dtype).save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
    fast.save_pretrained(folder)
    return folder


def logits(model: Any, length: int = 7) -> Tensor:
    """The model's logits of shape (1, length, vocabulary) on a fixed input."""
    with torch.no_grad():
        return model(torch.arange(length)[None] % model.config.vocab_size).logits
