"""New models and tokenizers: random weights from sizes, and a byte-level BPE from texts."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusion.errors import TrainingError

END = "<|endoftext|>"
PAD = "<|pad|>"


def _llama(sizes: Mapping[str, int], common: dict[str, Any]) -> Any:
    return transformers.LlamaConfig(
        intermediate_size=sizes.get("mlp", sizes["width"] * 8 // 3 // 16 * 16), **_shape(sizes), **common
    )


def _gpt_neox(sizes: Mapping[str, int], common: dict[str, Any]) -> Any:
    return transformers.GPTNeoXConfig(intermediate_size=sizes.get("mlp", 4 * sizes["width"]), **_shape(sizes), **common)


def _gpt2(sizes: Mapping[str, int], common: dict[str, Any]) -> Any:
    return transformers.GPT2Config(
        n_embd=sizes["width"],
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        n_positions=sizes["context"],
        n_inner=sizes.get("mlp", 4 * sizes["width"]),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **common,
    )


def _shape(sizes: Mapping[str, int]) -> dict[str, int]:
    return {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "max_position_embeddings": sizes["context"],
    }


ARCHITECTURES: dict[str, Callable[[Mapping[str, int], dict[str, Any]], Any]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
}


def new_model(architecture: str, sizes: Mapping[str, int], tokenizer: Any, seed: int) -> Any:
    """A causal language model with random float32 weights, tied embeddings and no dropout.

    `sizes`: width, layers, heads, context, and optionally mlp (default 8/3 width for llama, 4 width for the others).
    Raises TrainingError for an architecture that ARCHITECTURES does not hold or a size that is missing.
    """
    if architecture not in ARCHITECTURES:
        raise TrainingError(f"architecture {architecture!r}: unknown; known: {', '.join(sorted(ARCHITECTURES))}")
    missing = [name for name in ("width", "layers", "heads", "context") if name not in sizes]
    if missing:
        raise TrainingError(f"architecture {architecture}: sizes lack {', '.join(missing)}")
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    common = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **special}
    config = ARCHITECTURES[architecture](sizes, common)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig(**special)
    return model


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every digit a token of its own, an EOS, a padding token, nothing added to a text.

    `vocab_size` counts all tokens; the 256 bytes and the two special ones are always among them.
    """
    if vocab_size < 258:
        raise TrainingError(f"vocab_size {vocab_size}: at least 258 are needed, for 256 bytes and two special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
