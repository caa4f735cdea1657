import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusion.checkpoint import Checkpoint, check_finite, check_same, tokenizer_files
from fusion.digests import config_digest, model_digest, tokenizer_digest, weights_digest
from fusion.errors import CheckpointError, MismatchError
from tests.fusion.models import Memory, save_llama, save_plain, tiny_llama

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a.weight": torch.randn(4, generator=torch.Generator().manual_seed(0)),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
}


def test_it_gives_what_was_saved(tmp_path: Path) -> None:
    source = Checkpoint(save_plain(tmp_path / "m", TENSORS))
    assert source.names() == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert source.dtype(name) == tensor.dtype
        assert torch.equal(source.tensor(name), tensor)


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "m", TENSORS)
    Checkpoint(folder).tensor("a.weight").fill_(9.0)
    assert torch.equal(Checkpoint(folder).tensor("a.weight"), TENSORS["a.weight"])


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = tiny_llama(0)
    one = Checkpoint(save_llama(tmp_path / "one", model))
    many = Checkpoint(save_llama(tmp_path / "many", model, shard="4KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert many.names() == one.names()
    assert weights_digest(many) == weights_digest(one)


def test_tied_weights_are_named_once_even_where_both_are_stored(tmp_path: Path) -> None:
    embedding = torch.randn(8, 4)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(4)}
    copied = {**tensors, "lm_head.weight": embedding.clone()}
    plain = Checkpoint(save_plain(tmp_path / "plain", tensors, {"tie_word_embeddings": True}))
    stored = Checkpoint(save_plain(tmp_path / "stored", copied, {"tie_word_embeddings": True}))
    untied = Checkpoint(save_plain(tmp_path / "untied", copied, {"tie_word_embeddings": False}))
    differs = Checkpoint(
        save_plain(tmp_path / "differs", {**tensors, "lm_head.weight": embedding + 1}, {"tie_word_embeddings": True})
    )
    assert stored.names() == plain.names()
    assert weights_digest(stored) == weights_digest(plain)
    assert "lm_head.weight" in untied.names()
    assert "lm_head.weight" in differs.names()


def test_the_digest_sees_names_dtypes_shapes_and_bytes_but_not_order() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    digest = weights_digest(Memory(base))
    assert digest.startswith("sha256:")
    assert weights_digest(Memory(dict(reversed(base.items())))) == digest
    for other in (
        {"a": base["b"], "b": base["a"]},
        {**base, "a": torch.tensor([[1.0, 2.0]])},
        {**base, "a": base["a"].view(torch.int32)},
        {**base, "a": torch.tensor([1.0, 2.0 + 2**-22])},
        {"a": base["a"]},
    ):
        assert weights_digest(Memory(other)) != digest


def test_the_config_digest_ignores_bookkeeping_only(tmp_path: Path) -> None:
    def digest(name: str, config: dict[str, object], generation: dict[str, object] | None = None) -> str:
        folder = save_plain(tmp_path / name, {"a": torch.ones(1)}, config)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return config_digest(folder)

    plain = digest("a", {"rope_theta": 1e4, "_name_or_path": "x", "transformers_version": "4"})
    assert digest("b", {"transformers_version": "5", "rope_theta": 1e4}) == plain
    assert digest("c", {"rope_theta": 5e5}) != plain
    assert digest("d", {"rope_theta": 1e4}, {"eos_token_id": 2}) != plain
    assert digest("e", {"rope_theta": 1e4, "dtype": "bfloat16"}) != plain, "it is what the model computes in"


def test_the_tokenizer_digest_follows_content_not_where_it_was_saved(tmp_path: Path) -> None:
    digests = []
    for name, about, template in (("a", "x", "t"), ("b", "y", "t"), ("c", "x", "other")):
        folder = save_plain(tmp_path / name, {"a": torch.ones(1)})
        (folder / "tokenizer_config.json").write_text(json.dumps({"name_or_path": about, "eos_token": "</s>"}))
        (folder / "chat_template.jinja").write_text(template)
        digests.append(tokenizer_digest(folder))
    assert digests[0] == digests[1] != digests[2]
    assert model_digest("w", "c", digests[0]) != model_digest("w", "c", digests[2])


def fault(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    return str(caught.value)


def test_missing_folder_and_missing_config(tmp_path: Path) -> None:
    assert f"no model folder at {tmp_path / 'none'}" in fault(tmp_path / "none")
    folder = save_plain(tmp_path / "m", TENSORS)
    (folder / "config.json").unlink()
    assert "has no config.json" in fault(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "LoRA adapter: write base+adapter" in fault(folder)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    folder = save_plain(tmp_path / "m", TENSORS)
    (folder / "config.json").write_text(text)
    assert "config.json" in fault(folder)


@pytest.mark.parametrize("kept", [0, 5, 30, -1, -20])
def test_truncated_weights_name_the_file_and_what_to_do(tmp_path: Path, kept: int) -> None:
    folder = save_plain(tmp_path / "m", TENSORS)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert re.search(rf"{re.escape(str(file))} is \d+ bytes.*copy or download it again", fault(folder))


def test_corrupt_headers(tmp_path: Path) -> None:
    def with_header(text: str, data: bytes = b"") -> str:
        raw = text.encode()
        file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        return fault(folder)

    folder = save_plain(tmp_path / "m", TENSORS)
    file = folder / "model.safetensors"
    assert "header that cannot be read" in with_header("not json")
    assert "F7 is not supported" in with_header('{"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}', b"1234")
    assert "cannot be F32 [2]" in with_header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"1234")
    assert "gaps or overlap" in with_header(
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', b"12345678"
    )
    assert "header that cannot be read" in with_header('{"a": {"dtype": "F32"}}')
    assert "truncated" in with_header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"123456")


def test_a_shard_that_the_index_names_is_missing(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m", tiny_llama(0), shard="4KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert re.search(rf"lacks {shard.name}, which model.safetensors.index.json names", fault(folder))


def test_an_index_that_names_a_tensor_no_shard_has(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m", tiny_llama(0), shard="4KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    assert "ghost" in fault(folder)
    index.write_text("{}")
    assert "has no 'weight_map'" in fault(folder)
    index.unlink()
    assert "restore the index" in fault(folder)


def test_pickled_weights_are_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "m", TENSORS)
    (folder / "model.safetensors").unlink()
    assert "holds no weights: looked for model.safetensors" in fault(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert re.search(r"pickled weights \(pytorch_model.bin\).*save_pretrained", fault(folder))


def test_one_file_of_another_name_is_taken(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "m", TENSORS)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert Checkpoint(folder).names() == sorted(TENSORS)


def test_a_missing_tokenizer_names_the_folder_and_the_files_looked_for(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "m", TENSORS)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(folder)) + r" has no tokenizer: looked for tokenizer.json"):
        tokenizer_files(folder)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    source = Checkpoint(save_plain(tmp_path / "m", TENSORS))
    with pytest.raises(CheckpointError, match="no tensor 'c'"):
        source.tensor("c")


def test_every_mismatched_tensor_of_every_model_is_named() -> None:
    one = torch.ones(2, 3)
    sources = {
        "base": Memory({"a": one, "b": one, "c": one, "d": one}),
        "same": Memory({"a": one, "b": one.bfloat16(), "c": one, "d": one}),
        "math": Memory({"a": torch.ones(3, 2), "b": one, "d": one}),
        "code": Memory({"a": one, "b": torch.ones(2), "c": one, "d": one.int(), "e": one}),
    }
    with pytest.raises(MismatchError) as caught:
        check_same(sources)
    text = str(caught.value)
    for line in (
        "5 tensors differ from 'base'",
        "math: c is missing",
        "math: a is [3, 2] instead of [2, 3]",
        "code: e [2, 3] is extra",
        "code: b is [2] instead of [2, 3]",
        "code: d is torch.int32 instead of torch.float32",
    ):
        assert line in text
    assert "same" not in text


def test_a_nan_is_named_and_large_numbers_are_not_mistaken_for_one() -> None:
    with pytest.raises(CheckpointError, match="math: tensor w holds 1 NaN and 2 infinite of 4 values"):
        check_finite(torch.tensor([1.0, float("nan"), float("inf"), -float("inf")]), "w", "math")
    check_finite(torch.full((4,), 3e38), "w", "math")
    check_finite(torch.tensor([1, 2]), "w", "math")


def test_a_folder_saved_by_another_tool(tmp_path: Path) -> None:
    """A header with metadata, odd widths and tensors in any order, as safetensors itself writes them."""
    folder = save_plain(tmp_path / "m", TENSORS)
    save_file({"x": torch.ones(3, dtype=torch.uint8), "y": torch.ones(2)}, folder / "model.safetensors", {"by": "me"})
    source = Checkpoint(folder)
    assert torch.equal(source.tensor("y"), torch.ones(2))
