"""Architectures whose tensors have other names or shapes in files than in memory: loaded as transformers loads them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MixtralConfig

from fusion.digests import folder_digests
from fusion.errors import MismatchError
from fusion.merge import write
from fusion.modelref import Delta, Folder
from fusion.recipe import Recipe
from harness.evaluate import LiveModel
from tests.harness.test_evaluate import SMALL, write_tokenizer

COMMON = {**SMALL, "vocab_size": 300, "max_position_embeddings": 96, "bos_token_id": 0, "eos_token_id": 1}
CONFIGS = {
    # embed_out in files, lm_head in memory
    "neox": GPTNeoXConfig(**COMMON, tie_word_embeddings=False),
    # experts one by one in files, joined in memory
    "mixtral": MixtralConfig(**COMMON, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2),
}
TOKENS = torch.arange(2, 40)[None]


def write_random(folder: Path, name: str, seed: int) -> Folder:
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder)
    write_tokenizer(folder)
    return Folder(str(folder))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_models_and_merges_answer_as_transformers_loads_them(name: str, tmp_path: Path) -> None:
    a, b = (write_random(tmp_path / key, name, seed) for key, seed in (("a", 1), ("b", 2)))
    stored = load_file(tmp_path / "a" / "model.safetensors")
    live = LiveModel("cpu")
    digests = live.load(a)
    assert set(stored) != set(live.lm.model.state_dict()), "else the case is not the one that is tested"
    assert digests == {**folder_digests(tmp_path / "a")}
    torch.testing.assert_close(logits(live.lm.model), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "a")))
    merge = Delta(Recipe("linear", ("a", "b"), None, (0.5, 0.5), {}, allow_unrelated=True), (("a", a), ("b", b)))
    found = live.load(merge)
    written = write(merge, tmp_path / "merged")
    assert found["model"] == written["digest"]
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(logits(live.lm.model), expected)
    assert live.load(b) == folder_digests(tmp_path / "b"), "and the next one"


def test_a_tensor_that_is_missing_is_an_error_and_no_random_number(tmp_path: Path) -> None:
    write_random(tmp_path / "a", "neox", 1)
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    del tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(MismatchError, match=r"gpt_neox\.layers\.1\.mlp\.dense_h_to_4h\.weight is missing"):
        LiveModel("cpu").load(Folder(str(tmp_path / "a")))
