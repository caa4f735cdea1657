"""Packed documents: which models keep them apart, and the same documents one a row."""

import pytest
import torch
import transformers

from fusion import corpus, packing
from tests.fusion.models import tiny_llama

LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": transformers.LlamaConfig(vocab_size=40, max_position_embeddings=32, **LLAMA),
    "gpt2": transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2),
    "gpt_neox": transformers.GPTNeoXConfig(vocab_size=40, max_position_embeddings=32, **LLAMA),
    "bloom": transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
    "mpt": transformers.MptConfig(vocab_size=40, d_model=16, n_layers=2, n_heads=2, max_seq_len=32),
    "rwkv": transformers.RwkvConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, context_length=32),
    # Takes position_ids, and lets documents see each other all the same.
    "opt": transformers.OPTConfig(
        vocab_size=40,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    ),
}
APART = ("llama", "gpt2", "gpt_neox")


def model(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()


def rows(seed: int = 3) -> corpus.Rows:
    """Rows of 12 tokens over documents of 2 to 9, whose first token (and in some the second) is not predicted."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (60,), generator=rng).int().numpy()
    starts = torch.tensor([0, 9, 11, 16, 20, 23, 31, 40, 42, 49, 53, 60]).numpy()
    tokens = corpus.Tokens(ids=ids, answer=torch.rand(60, generator=rng).numpy() > 0.3, starts=starts)
    return corpus.make_rows(tokens, 12, "answers", 6, 0, pad=0, about=lambda index: {"index": torch.from_numpy(index)})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_tried_for_keeping_documents_apart(name: str) -> None:
    assert packing.packs(model(name)) is (name in APART)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_leaks_in_one_layer_only_is_found_out(dtype: torch.dtype) -> None:
    leaking = tiny_llama(0, num_hidden_layers=4).to(dtype)
    assert packing.packs(leaking)
    attention = leaking.model.layers[3].self_attn
    whole = attention.forward
    attention.forward = lambda *args, **more: whole(*args, **{**more, "attention_mask": None})
    assert not packing.packs(leaking)


def test_positions_that_are_not_heeded_are_found_out() -> None:
    heedless = model("gpt2")
    embed = heedless.transformer.wpe.forward
    heedless.transformer.wpe.forward = lambda position: embed(torch.arange(position.shape[1])[None])
    assert not packing.packs(heedless)


def test_the_trial_leaves_the_model_as_it_was() -> None:
    tried = model("llama").train()
    before = {name: weight.clone() for name, weight in tried.state_dict().items()}
    packing.packs(tried)
    assert tried.training
    assert all(torch.equal(weight, before[name]) for name, weight in tried.state_dict().items())


def test_the_shortest_row_a_model_can_have() -> None:
    assert packing.packs(tiny_llama(0, max_position_embeddings=2))


@pytest.mark.parametrize("name", CONFIGS)
def test_unpacked_documents_are_what_they_are_alone(name: str) -> None:
    tried, batch = model(name), packing.unpack(rows()(range(6)))
    with torch.inference_mode():
        logits = packing.forward(tried, batch["input_ids"], attention_mask=batch["attention_mask"]).flatten(0, 1)
        alone = [
            tried(input_ids=row[None, : int(mask.sum())], use_cache=False).logits[0]
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
    length = batch["input_ids"].shape[1]
    for at, found in zip(batch["at"].tolist(), logits[batch["at"]], strict=True):
        torch.testing.assert_close(found, alone[at // length][at % length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", APART)
def test_packed_and_unpacked_predict_the_same(name: str) -> None:
    tried, batch = model(name), rows()(range(6))
    alone = packing.unpack(batch)
    with torch.inference_mode():
        packed = packing.forward(tried, batch["input_ids"], position_ids=batch["position_ids"])
        unpacked = packing.forward(tried, alone["input_ids"], attention_mask=alone["attention_mask"])
    found = unpacked.flatten(0, 1)[alone["at"]]
    torch.testing.assert_close(found, packed.flatten(0, 1)[batch["at"]], rtol=1e-4, atol=1e-5)


def test_unpacking_keeps_what_is_predicted_and_drops_what_is_not() -> None:
    batch = rows()(range(6))
    alone = packing.unpack(batch)
    assert "position_ids" not in alone
    assert torch.equal(alone["target"], batch["target"]) and torch.equal(alone["index"], batch["index"])
    assert torch.equal(alone["input_ids"].flatten()[alone["at"]], batch["input_ids"].flatten()[batch["at"]])
    mask = alone["attention_mask"]
    assert bool((mask[:, :-1] >= mask[:, 1:]).all())
    # No row without a prediction, and none longer than the longest document.
    assert set((alone["at"] // mask.shape[1]).tolist()) == set(range(len(mask)))
    assert mask.shape[1] == int(mask.sum(1).max()) <= 9


def test_a_batch_that_predicts_nothing_still_has_a_document() -> None:
    batch = rows()(range(2))
    batch["at"], batch["target"] = batch["at"][:0], batch["target"][:0]
    alone = packing.unpack(batch)
    assert alone["input_ids"].shape[0] == 1 and len(alone["at"]) == 0
