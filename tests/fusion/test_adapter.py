"""LoRA adapters read with their base, against W + s B A written out in float64 and against peft itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fusion.adapter import Adapted, adapter_base, is_adapter
from fusion.checkpoint import Checkpoint
from fusion.errors import CheckpointError, MismatchError
from tests.fusion.models import Memory, save_llama, save_plain, tiny_llama

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
EMBED = "model.embed_tokens.weight"
PREFIX = "base_model.model."


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def base_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {
        f"{Q}.weight": (6, 4),
        f"{Q}.bias": (6,),
        f"{DOWN}.weight": (4, 4),
        EMBED: (10, 4),
        "lm_head.weight": (10, 4),
        "model.norm.weight": (4,),
    }
    return {name: normal(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


def lora(module: str, out: int, into: int, rank: int = 2, seed: int = 50) -> dict[str, Tensor]:
    a, b = normal(rank, into, seed=seed), normal(out, rank, seed=seed + 1)
    return {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}


def save_adapter(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 2, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def product(tensors: dict[str, Tensor], module: str) -> Tensor:
    a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"].double() for side in "AB")
    return b @ a


def adapted(tmp_path: Path, tensors: dict[str, Tensor], base: dict[str, Tensor] | None = None, **config: object):
    return Adapted(Memory(base or base_tensors()), save_adapter(tmp_path / "adapter", tensors, **config))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 3}}, 1.5),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 3, "q_proj": 5}}, 1.5),
        ({"alpha_pattern": {"proj": 3}}, 4.0),  # the end of a name, not of a word
        ({"rank_pattern": {r".*\.0\..*q_proj": 2}, "r": 64}, 4.0),
    ],
)
def test_the_product_is_added_with_the_scale_of_its_module(tmp_path: Path, config: dict, scale: float) -> None:
    tensors = lora(Q, 6, 4)
    model = adapted(tmp_path, tensors, **config)
    base = base_tensors()
    close(model.tensor(f"{Q}.weight"), base[f"{Q}.weight"].double() + scale * product(tensors, Q))
    untouched = [name for name in base if name != f"{Q}.weight"]
    assert all(torch.equal(model.tensor(name), base[name]) for name in untouched)
    assert model.names() == sorted(base) and model.config_changes == {}


def test_a_low_precision_base_is_read_in_float32_unless_asked_otherwise(tmp_path: Path) -> None:
    tensors = {name: tensor * 0.01 for name, tensor in lora(Q, 6, 4).items()}
    base = base_tensors(torch.bfloat16)
    model = adapted(tmp_path, tensors, base)
    wanted = base[f"{Q}.weight"].double() + 4 * product(tensors, Q)
    assert model.dtype(f"{Q}.weight") == model.tensor(f"{Q}.weight").dtype == torch.float32
    close(model.tensor(f"{Q}.weight"), wanted)
    assert model.dtype(EMBED) == torch.bfloat16
    rounded = Adapted(Memory(base), tmp_path / "adapter", precise=False)
    assert torch.equal(rounded.tensor(f"{Q}.weight"), model.tensor(f"{Q}.weight").bfloat16())


def test_transposed_matrices_embeddings_and_magnitudes(tmp_path: Path) -> None:
    """Conv1D stores (in, out); an embedding's factors make (width, rows); DoRA has a norm for each output."""
    base = {"h.0.c_fc.weight": normal(4, 6), "h.0.c_proj.weight": normal(4, 4, seed=2), "wte.weight": normal(10, 4)}
    tensors = {**lora("h.0.c_fc", 6, 4), **lora("h.0.c_proj", 4, 4, seed=60)}
    table = {"A": normal(2, 10, seed=70), "B": normal(4, 2, seed=71)}
    tensors |= {f"{PREFIX}wte.lora_embedding_{side}": tensor for side, tensor in table.items()}
    tensors[f"{PREFIX}h.0.c_fc.lora_magnitude_vector"] = normal(6, seed=80).abs()
    tensors[f"{PREFIX}wte.lora_magnitude_vector.weight"] = normal(4, seed=81).abs()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "config.json").write_text('{"tie_word_embeddings": false}')
    source = Memory(base, tmp_path / "memory")
    model = Adapted(source, save_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=True, use_dora=True))
    close(model.tensor("h.0.c_proj.weight"), base["h.0.c_proj.weight"].double() + 4 * product(tensors, "h.0.c_proj").T)
    wide = base["h.0.c_fc.weight"].double() + 4 * product(tensors, "h.0.c_fc").T
    magnitude = tensors[f"{PREFIX}h.0.c_fc.lora_magnitude_vector"].double()
    close(model.tensor("h.0.c_fc.weight"), wide * (magnitude / wide.norm(dim=0)))
    rows = base["wte.weight"].double() + 4 * (table["B"].double() @ table["A"].double()).T
    close(model.tensor("wte.weight"), rows * (tensors[f"{PREFIX}wte.lora_magnitude_vector.weight"] / rows.norm(dim=0)))


def test_a_square_matrix_is_refused_where_peft_forgot_how_it_is_stored(tmp_path: Path) -> None:
    base = {"h.0.c_fc.weight": normal(4, 6), "h.0.c_proj.weight": normal(4, 4, seed=2)}
    with pytest.raises(MismatchError, match="h.0.c_proj.weight is square, and fan_in_fan_out is false"):
        adapted(tmp_path, {**lora("h.0.c_fc", 6, 4), **lora("h.0.c_proj", 4, 4)}, base)


def test_whole_tensors_biases_and_names_without_the_body(tmp_path: Path) -> None:
    tensors = {
        f"{PREFIX}model.norm.weight": normal(4, seed=90),
        f"{PREFIX}{Q}.base_layer.bias": normal(6, seed=91),
        f"{PREFIX}{Q}.lora_B.bias": normal(6, seed=92),
        **lora(Q, 6, 4),
        f"{PREFIX}lm_head.modules_to_save.weight": normal(10, 4, seed=93),
        f"{PREFIX}transformer.h.0.weight": normal(3, seed=94),
    }
    model = adapted(tmp_path, tensors, {**base_tensors(), "h.0.weight": torch.zeros(3)})
    assert torch.equal(model.tensor("model.norm.weight"), tensors[f"{PREFIX}model.norm.weight"])
    assert torch.equal(model.tensor("lm_head.weight"), tensors[f"{PREFIX}lm_head.modules_to_save.weight"])
    assert torch.equal(model.tensor("h.0.weight"), tensors[f"{PREFIX}transformer.h.0.weight"])
    bias = tensors[f"{PREFIX}{Q}.base_layer.bias"].double() + 4 * tensors[f"{PREFIX}{Q}.lora_B.bias"].double()
    close(model.tensor(f"{Q}.bias"), bias)


def test_all_that_does_not_fit_is_named_at_once(tmp_path: Path) -> None:
    tensors = {
        **lora("model.layers.9.q_proj", 6, 4),
        **lora(Q, 6, 5),
        **lora(DOWN, 4, 4, rank=3),
        f"{PREFIX}model.norm.weight": normal(5),
        f"{PREFIX}lm_head.lora_A.weight": normal(2, 4),
        f"{Q}.lora_A.weight": normal(2, 4),
        f"{PREFIX}{EMBED.removesuffix('.weight')}.token_adapter.trainable_tokens_delta": normal(2, 4),
    }
    with pytest.raises(MismatchError) as caught:
        adapted(tmp_path, tensors)
    text = str(caught.value)
    for line in (
        "base_model.model.model.layers.9.q_proj.lora_A.weight [2, 4] has no place",
        "base_model.model.model.layers.9.q_proj.lora_B.weight [6, 2] has no place",
        f"{Q}.weight is [6, 4], the adapter's product [6, 2] x [2, 5]",
        f"{DOWN}.weight: factors [4, 3] x [3, 4] are not of rank 2",
        "base_model.model.model.norm.weight is [5] instead of [4]",
        "base_model.model.lm_head.lora_A.weight lacks its lora_B",
        f"  {Q}.lora_A.weight [2, 4] has no place",
        "trainable_tokens_delta [2, 4] has no place",
        "trained on some/base",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*moves a part of the base"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, config: dict, what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        adapted(tmp_path, lora(Q, 6, 4), **config)


def test_files_that_are_missing_damaged_or_pickled(tmp_path: Path) -> None:
    base = Memory(base_tensors())
    with pytest.raises(CheckpointError, match="no adapter_config.json"):
        Adapted(base, tmp_path)
    folder = save_adapter(tmp_path / "adapter", lora(Q, 6, 4))
    assert is_adapter(folder) and adapter_base(folder) == "some/base"
    assert not is_adapter(save_plain(tmp_path / "plain", base_tensors()))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Adapted(base, folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        Adapted(base, folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no adapter_model.safetensors"):
        Adapted(base, folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        adapter_base(folder)


def test_a_resized_vocabulary_must_be_resized_everywhere(tmp_path: Path) -> None:
    rows = {f"{PREFIX}{EMBED}": normal(12, 4), f"{PREFIX}lm_head.weight": normal(12, 4, seed=2)}
    model = adapted(tmp_path, rows)
    assert model.shape(EMBED) == model.tensor(EMBED).shape == (12, 4) and model.config_changes == {"vocab_size": 12}
    assert model.tokenizer == model.donor
    del rows["base_model.model.lm_head.weight"]
    folder = save_adapter(tmp_path / "half", rows)
    with pytest.raises(MismatchError, match="has 10 rows, its embedding 12"):
        Adapted(Memory(base_tensors()), folder)
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    assert Adapted(Memory(base_tensors()), tmp_path / "adapter").tokenizer == tmp_path / "adapter"


def test_a_tied_head_must_be_changed_like_its_embedding(tmp_path: Path) -> None:
    tied = {name: tensor for name, tensor in base_tensors().items() if name != "lm_head.weight"}
    base = Checkpoint(save_plain(tmp_path / "base", tied))
    a, b = normal(2, 10), normal(4, 2, seed=2)
    table = {f"{PREFIX}model.embed_tokens.lora_embedding_A": a, f"{PREFIX}model.embed_tokens.lora_embedding_B": b}
    head = {f"{PREFIX}lm_head.lora_A.weight": b.T.contiguous(), f"{PREFIX}lm_head.lora_B.weight": a.T.contiguous()}
    model = Adapted(base, save_adapter(tmp_path / "both", {**table, **head}))
    close(model.tensor(EMBED), tied[EMBED].double() + 4 * (b.double() @ a.double()).T)
    assert model.names() == base.names()
    unlike = {**head, f"{PREFIX}lm_head.lora_A.weight": normal(2, 4)}
    for name, tensors in (("table", table), ("head", head), ("unlike", {**table, **unlike})):
        with pytest.raises(MismatchError, match=f"ties its output head to {EMBED}"):
            Adapted(base, save_adapter(tmp_path / name, tensors))
    whole = {f"{PREFIX}{EMBED}": normal(12, 4), f"{PREFIX}lm_head.weight": normal(12, 4)}
    resized = Adapted(base, save_adapter(tmp_path / "whole", whole))
    assert torch.equal(resized.tensor(EMBED), whole[f"{PREFIX}{EMBED}"]) and resized.config_changes["vocab_size"] == 12


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    base = {**base_tensors(), f"{Q}.weight": torch.zeros(12, 1, dtype=torch.uint8)}
    with pytest.raises(MismatchError, match="torch.uint8 in the base: give the base before it was quantised"):
        adapted(tmp_path, lora(Q, 6, 4), base)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
        {"target_modules": ["q_proj", "v_proj", "embed_tokens"], "use_dora": True},
    ],
)
def test_it_is_the_model_that_peft_merges(tmp_path: Path, config: dict) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llama(0, tied=False)
    model.config._name_or_path = str(save_llama(tmp_path / "base", model))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **config))
    with torch.no_grad():
        for i, weight in enumerate(parameter for parameter in wrapped.parameters() if parameter.requires_grad):
            weight.add_(0.05 * normal(*weight.shape, seed=i))
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = wrapped.merge_and_unload().state_dict()
    ours = Adapted(Checkpoint(tmp_path / "base"), tmp_path / "adapter")
    assert ours.names() == sorted(merged)
    assert any(not torch.equal(ours.tensor(name), ours.base.tensor(name)) for name in ours.names())
    for name in ours.names():
        torch.testing.assert_close(ours.tensor(name), merged[name], rtol=1e-6, atol=1e-7)
