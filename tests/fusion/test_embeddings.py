"""Models with different vocabularies brought to one, row by row."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fusion import new_model
from fusion.checkpoint import Checkpoint, Source
from fusion.embeddings import Common, common_vocabulary, laid_over
from fusion.errors import CheckpointError, MismatchError, RecipeError
from fusion.methods.apply import Merge
from fusion.recipe import Recipe
from fusion.tokens import load_tokenizer, match, read_tokens, vocabulary_table
from tests.fusion.models import Memory, save_llama, tiny_llama

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def words(folder: Path, vocabulary: Sequence[str], special: Sequence[str] = (), eos: str = "</s>") -> Path:
    """A folder with a tokenizer of whole words, and a config that goes with it."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return save_fast(folder, tokenizer, eos, special)


def pieces(folder: Path, texts: Sequence[str], size: int) -> Path:
    """A folder with a byte-level BPE trained on some texts."""
    new_model.train_tokenizer(list(texts), size).save_pretrained(folder)
    return folder


def save_fast(folder: Path, tokenizer: Tokenizer, eos: str, special: Sequence[str]) -> Path:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    fast.save_pretrained(folder)
    eos_id = fast.eos_token_id
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(fast), "eos_token_id": eos_id, "pad": 1}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos_id, 0]}))
    return folder


def model(folder: Path, rows: int, seed: int = 0, **more: Tensor) -> Memory:
    """A model whose row r of the embedding is r + seed / 8, exact in every dtype; its head is minus that."""
    table = (torch.arange(rows) + seed / 8)[:, None].repeat(1, 3)
    return Memory({EMBED: table, HEAD: -table, "model.norm.weight": torch.ones(3), **more}, folder)


def rows_of(common: Common | None, name: str, tensor: str = EMBED) -> list[float]:
    assert common is not None
    return common.sources[name].tensor(tensor)[:, 0].tolist()


def common(sources: Mapping[str, Source], donor: str = "a", **more: object) -> Common:
    found = common_vocabulary(sources, donor, **more)
    assert found is not None
    return found


def merged(sources: Mapping[str, Source]) -> dict[str, Tensor]:
    merge = Merge(Recipe("ties", ("a", "b"), "base", (0.5, 0.75), {"density": 0.5}), sources)
    return {name: merge.tensor(name) for name in merge.names()}


def test_one_vocabulary_needs_nothing_and_loads_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = words(tmp_path / "a", ["<unk>", "</s>", "x", "y"])
    second = words(tmp_path / "b", ["<unk>", "</s>", "x", "y"])
    state = json.loads((second / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    (second / "tokenizer.json").write_text(json.dumps(state))
    monkeypatch.setitem(sys.modules, "transformers", None)
    sources = {"a": model(first, 4), "b": model(second, 4), "no tokenizer": model(tmp_path / "nowhere", 4)}
    for wish in (None, {"source": "union"}, {"source": "base"}, {"source": "b"}):
        assert common_vocabulary(sources, "a", wish) is None
    assert common_vocabulary({"a": Memory({"w": torch.ones(2)})}, "a") is None


def test_permuted_vocabularies_merge_to_the_same_model(tmp_path: Path) -> None:
    """The same three models, of which two have their rows in another order, give the same merge bit by bit."""
    vocabulary = [f"t{i}" for i in range(32)]
    plain: dict[str, Source] = {}
    moved: dict[str, Source] = {}
    for seed, name in enumerate(("base", "a", "b")):
        order = np.random.default_rng(seed).permutation(32) if name != "base" else np.arange(32)
        network = tiny_llama(seed, tied=False)
        plain[name] = Checkpoint(save_llama(tmp_path / "plain" / name, network))
        with torch.no_grad():
            for weight in (network.model.embed_tokens.weight, network.lm_head.weight):
                weight.copy_(weight[torch.from_numpy(order)].clone())
        folder = save_llama(tmp_path / "moved" / name, network)
        ordered = {vocabulary[place]: row for row, place in enumerate(order.tolist())}
        state = json.loads((folder / "tokenizer.json").read_text())
        state["model"]["vocab"] = ordered
        state["added_tokens"] = [{**token, "id": ordered[token["content"]]} for token in state["added_tokens"]]
        (folder / "tokenizer.json").write_text(json.dumps(state))
        moved[name] = Checkpoint(folder)
    wanted = merged(plain)
    found = common(moved, "base")
    assert found.report()["reordered"] == ["a", "b"] and found.report()["filled"] == {"base": {}, "a": {}, "b": {}}
    assert found.config_changes == found.generation_changes == {}
    for name, source in found.sources.items():
        assert all(torch.equal(source.tensor(tensor), plain[name].tensor(tensor)) for tensor in source.names())
    assert not torch.equal(moved["a"].tensor(EMBED), plain["a"].tensor(EMBED))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in merged(moved).items())


def test_the_donors_vocabulary_is_the_default_and_rows_are_filled_by_rule(tmp_path: Path) -> None:
    a = words(tmp_path / "a", ["<unk>", "</s>", "only a", "a and b", "all", "a and c"])
    b = words(tmp_path / "b", ["<unk>", "all", "a and b", "</s>", "only b"])
    c = words(tmp_path / "c", ["<unk>", "</s>", "all", "a and c", "only c"])
    sources = {"a": model(a, 6, 1), "b": model(b, 5, 2), "c": model(c, 5, 4)}
    found = common(sources)
    assert [rows.tolist() for rows in found.maps.values()] == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, -1, 2, 1, -1],
        [0, 1, -1, -1, 2, 3],
    ]
    lent = (5.125 + 3.5) / 2  # what a and c have for "a and c"
    assert rows_of(found, "a") == [0.125, 1.125, 2.125, 3.125, 4.125, 5.125]
    assert rows_of(found, "b") == [0.25, 3.25, 2.125, 2.25, 1.25, lent]
    assert rows_of(found, "c", HEAD) == [-0.5, -1.5, -2.125, -(3.125 + 2.25) / 2, -2.5, -3.5]
    assert torch.equal(found.sources["c"].tensor("model.norm.weight"), torch.ones(3))
    report = found.report()
    assert report["filled"] == {"a": {}, "b": {"owner": 1, "average": 1}, "c": {"owner": 1, "average": 1}}
    assert report["dropped"] == {"a": 0, "b": 1, "c": 1} and report["owners"] == {"a": 6, "b": 4, "c": 4}
    assert rows_of(common(sources, base="a"), "b")[5] == 5.125  # the base's row, not the mean
    out = tmp_path / "out"
    found.write_tokenizer(out)
    assert (out / "tokenizer.json").read_bytes() == (a / "tokenizer.json").read_bytes()


def test_a_union_keeps_every_model_its_tokens(tmp_path: Path) -> None:
    a = words(tmp_path / "a", ["<unk>", "</s>", "x"], ["<|a|>"])
    b = words(tmp_path / "b", ["<unk>", "x", "</s>", "y"], ["<|b|>"])
    fast = load_tokenizer(b)
    fast.add_tokens([AddedToken("not special", lstrip=True, special=False)])
    fast.save_pretrained(b)
    sources = {"a": model(a, 8, 1), "b": model(b, 6, 2)}  # a has four rows of padding
    found = common(sources, wish={"source": "union"})
    assert found.rows == 8 and found.report()["added"] == 3 and found.report()["padding"] == 1
    assert found.maps["a"].tolist() == [0, 1, 2, 3, -1, -1, -1, 7]
    assert found.maps["b"].tolist() == [0, 2, 1, -1, 3, 4, 5, -1]
    assert rows_of(found, "a") == [0.125, 1.125, 2.125, 3.125, 3.25, 4.25, 5.25, 7.125]
    assert rows_of(found, "b") == [0.25, 2.25, 1.25, 3.125, 3.25, 4.25, 5.25, 7.125]
    found.write_tokenizer(tmp_path / "out")
    written = load_tokenizer(tmp_path / "out")
    assert written("x y not special<|b|> <|a|>").input_ids == [2, 4, 6, 5, 3]
    assert written.added_tokens_decoder[6].lstrip and not written.added_tokens_decoder[6].special
    assert written.added_tokens_decoder[5].special and written.eos_token_id == 1
    exact = common(sources, wish={"source": "union", "pad_to_multiple_of": 7})
    assert exact.rows == 7 and exact.report()["padding"] == 0
    assert common(sources, wish={"source": "union", "pad_to_multiple_of": 5}).rows == 10


def test_a_union_can_be_a_models_tokenizer_in_turn(tmp_path: Path) -> None:
    """The result of one merge, with its union's rows and tokenizer, is one of the models of the next."""
    a, b = words(tmp_path / "a", ["<unk>", "</s>", "x"]), words(tmp_path / "b", ["<unk>", "</s>", "y"])
    c = words(tmp_path / "c", ["<unk>", "z", "y", "</s>"])
    first = common({"a": model(a, 3, 1), "b": model(b, 3, 2)}, wish={"source": "union"})
    stage = model(a, 4, 4)
    stage.tokenizer = first.tokenizer  # type: ignore[attr-defined]
    second = common({"stage": stage, "c": model(c, 4)}, "stage", wish={"source": "union"})
    assert second.maps["stage"].tolist() == [0, 1, 2, 3, -1] and second.maps["c"].tolist() == [0, 3, -1, 2, 1]
    second.write_tokenizer(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out")("x y z").input_ids == [2, 3, 4]


def test_a_union_of_byte_level_tokenizers_cuts_text_into_the_new_tokens(tmp_path: Path) -> None:
    a = pieces(tmp_path / "a", ["the cat sat on the mat, the cat"] * 5, 280)
    b = pieces(tmp_path / "b", ["größer größer und größte café 中文 中文"] * 5, 300)
    first, second = read_tokens(a), read_tokens(b)
    sources = {"a": model(a, len(first.spelt), 1), "b": model(b, len(second.spelt), 2)}
    found = common(sources, wish={"source": "union"})
    found.write_tokenizer(tmp_path / "out")
    written = load_tokenizer(tmp_path / "out")
    mine, theirs = load_tokenizer(a), load_tokenizer(b)
    text = "größer 中文"
    assert len(written(text).input_ids) == len(theirs(text).input_ids) < len(mine(text).input_ids)
    assert written("the cat sat").input_ids == mine("the cat sat").input_ids
    assert written.decode(written(text).input_ids) == text
    for name, own in (("a", mine.get_vocab()), ("b", theirs.get_vocab())):
        assert all(found.maps[name][i] == own.get(token, -1) for token, i in written.get_vocab().items())
    assert found.report()["unreachable"] == found.report()["unspellable"] == 0


def test_padding_of_one_tokenizer_to_two_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Llama 3.2's 128,256 rows and 128,320: no tokenizer is loaded for it, and the donor's rows are the result's."""
    folder = words(tmp_path / "a", ["<unk>", "</s>", "x"])
    sources = {"small": model(folder, 4, 1), "large": model(folder, 8, 2), "none": model(tmp_path / "lost", 8, 4)}
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        common(sources, "small")
    del sources["none"]
    monkeypatch.setitem(sys.modules, "transformers", None)
    cut = common(sources, "small")
    assert cut.rows == 4 and rows_of(cut, "large") == [0.25, 1.25, 2.25, 3.25]
    assert cut.report()["padding"] == 1 and cut.config_changes == {"vocab_size": 4}
    padded = common(sources, "large")
    assert rows_of(padded, "small") == [0.125, 1.125, 2.125, 3.125, 4.25, 5.25, 6.25, 7.25]
    assert padded.report()["filled"] == {"small": {"padding": 4}, "large": {}}
    assert padded.sources["large"] is sources["large"]
    exact = common(sources, "large", wish={"pad_to_multiple_of": 3})
    assert exact.rows == 3 and rows_of(exact, "large") == [0.25, 1.25, 2.25]
    wider = common(sources, "large", wish={"pad_to_multiple_of": 10})
    assert rows_of(wider, "large")[8:] == [0, 0] and wider.report()["filled"]["large"] == {"zero": 2}


def test_tokens_wished_for(tmp_path: Path) -> None:
    a = words(tmp_path / "a", ["<unk>", "</s>", "x", "mine"])
    b = words(tmp_path / "b", ["<unk>", "x", "</s>", "yours"])
    sources = {"a": model(a, 4, 1), "b": model(b, 4, 2)}
    wish = {
        "source": "union",
        "tokens": {
            "x": {"source": "b", "force": True},
            "</s>": {"source": {"kind": "model_token", "model": "a", "token": "mine"}},
            "mine": {"source": {"kind": "model_token", "model": "b", "token_id": 3}},
            "yours": {"source": {"kind": "zero"}, "force": True},
        },
    }
    found = common(sources, wish=wish)
    assert rows_of(found, "a") == [0.125, 1.125, 1.25, 3.125, 0]
    assert rows_of(found, "b") == [0.25, 2.25, 1.25, 3.25, 0]  # nothing forced </s>, which both have
    assert found.report()["filled"] == {"a": {"wish": 2}, "b": {"wish": 3}}


@pytest.mark.parametrize(
    ("wish", "what"),
    [
        ({"sauce": "base"}, "'sauce' is not a key"),
        ({"source": "c"}, "source 'c' is no model here"),
        ({"pad_to_multiple_of": 0}, "expected an integer of at least 1"),
        ({"tokens": {"x": {"source": "c"}}}, "source 'c' is no model"),
        ({"tokens": {"x": "a"}}, "'a' is not {source"),
        ({"tokens": {"x": {"source": "a", "force": 1}}}, "force is 1"),
        ({"tokens": {"x": {"source": {"kind": "mean"}}}}, "is not a model, {kind"),
        ({"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}}, "either a token or a token_id"),
        ({"tokens": {"x": {"source": {"kind": "model_token", "model": "c", "token": "x"}}}}, "model 'c' is no model"),
        ({"tokens": {"z": {"source": "a"}}}, "the result has no token 'z'"),
        ({"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token_id": 3}}}}, "a, which has no 3"),
    ],
)
def test_wishes_that_make_no_sense(tmp_path: Path, wish: dict, what: str) -> None:
    folder = words(tmp_path / "a", ["<unk>", "</s>", "x"])
    with pytest.raises(RecipeError, match=what):
        common({"a": model(folder, 3), "b": model(folder, 3)}, wish=wish)


def test_another_models_tokenizer_moves_the_ids_in_the_configs(tmp_path: Path) -> None:
    a = words(tmp_path / "a", ["<unk>", "</s>", "x"])
    b = words(tmp_path / "b", ["x", "y", "<unk>", "z", "</s>"])
    (a / "config.json").write_text(json.dumps({"text": {"vocab_size": 3, "bos_token_id": 1}, "eos_token_id": 1}))
    found = common({"a": model(a, 3), "b": model(b, 5)}, wish={"source": "b"})
    assert found.config_changes == {"text": {"vocab_size": 5, "bos_token_id": 4}, "eos_token_id": 4}
    assert found.generation_changes == {"eos_token_id": [4, 2]}
    over = laid_over({"text": {"vocab_size": 3, "layers": 2}, "eos_token_id": 1, "x": 0}, found.config_changes)
    assert over == {"text": {"vocab_size": 5, "layers": 2, "bos_token_id": 4}, "eos_token_id": 4, "x": 0}


def test_special_tokens_meet_by_content_and_then_by_role(tmp_path: Path) -> None:
    a = read_tokens(words(tmp_path / "a", ["u", "</s>", "x"]))
    b = read_tokens(words(tmp_path / "b", ["u", "x", "<end>", "</s>"], eos="<end>"))
    c = read_tokens(words(tmp_path / "c", ["u", "x", "<end>"], eos="<end>"))
    assert match(a, b).tolist() == [0, 3, 1]
    assert match(a, c).tolist() == [0, 2, 1]
    assert match(c, a).tolist() == [0, 2, 1]


def test_a_byte_that_one_tokenizer_falls_back_on_meets_the_token_in_use(tmp_path: Path) -> None:
    def spaced(name: str, more: list[str]) -> Path:
        names = ["<unk>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *more]
        bpe = models.BPE({token: i for i, token in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
        tokenizer = Tokenizer(bpe)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        return save_fast(tmp_path / name, tokenizer, "</s>", [])

    plain, more = read_tokens(spaced("plain", ["▁", "a"])), read_tokens(spaced("more", ["a", "b", "▁"]))
    levels = read_tokens(pieces(tmp_path / "levels", ["ab ab"], 262))
    found = match(plain, more)
    assert found[258:].tolist() == [260, 258] and found[2 + ord("b")] == 259 and found[2 + ord("a")] == 2 + ord("a")
    by_bytes = match(plain, levels)
    assert levels.content[by_bytes[2 + 0xE4]] == b"\xe4" and levels.content[by_bytes[258]] == b" "
    assert match(levels, plain)[levels.content.index(b"a")] == 259


def test_tokenizers_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a, b = words(tmp_path / "a", ["<unk>", "</s>"]), pieces(tmp_path / "b", ["ab"], 260)
    with pytest.raises(
        MismatchError, match="cannot compare the tokens of 'a' .WordLevel.* with those of 'b' .byte-level"
    ):
        common({"a": model(a, 2), "b": model(b, 260)})


def test_heads_tied_in_one_model_only_and_embeddings_that_nobody_knows(tmp_path: Path) -> None:
    a, b = words(tmp_path / "a", ["<unk>", "</s>"]), words(tmp_path / "b", ["</s>", "<unk>"])
    tied = Memory({EMBED: torch.ones(2, 3)}, b)
    with pytest.raises(
        MismatchError, match=r"tie their output head(.|\n)*a: lm_head.weight, model.embed(.|\n)*b: model"
    ):
        common({"a": model(a, 2), "b": tied})
    with pytest.raises(MismatchError, match="no token embedding is recognised in b"):
        common({"a": model(a, 2), "b": Memory({"table.weight": torch.ones(2, 3)}, b)})
    uneven = Memory({EMBED: torch.ones(4, 3), HEAD: torch.ones(2, 3)}, a)
    with pytest.raises(MismatchError, match="lm_head.weight has 2 rows, its embedding 4"):
        vocabulary_table(uneven)
    (tmp_path / "lost").mkdir()
    with pytest.raises(CheckpointError, match="lost has no tokenizer"):
        common({"a": model(tmp_path / "lost", 2), "b": model(b, 2)})


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        ({"transformer.wte.weight": (9, 4), "transformer.wpe.weight": (9, 4), "h.0.ln.bias": (9,)}, [0]),
        ({"gpt_neox.embed_in.weight": (9, 4), "embed_out.weight": (9, 4), "layers.0.mlp.weight": (9, 4)}, [0, 1]),
        ({"tok_embeddings.weight": (9, 4), "output.weight": (9, 4), "0.attention_output.weight": (9, 4)}, [0, 1]),
        ({"shared.weight": (9, 4), "lm_head.weight": (9, 4), "lm_head.bias": (9,)}, [0, 1, 2]),
        ({"embeddings.word_embeddings.weight": (9, 4), "embeddings.position_embeddings.weight": (5, 4)}, [0]),
        ({"model.embed_tokens.weight": (9, 4), "model.embed_tokens_per_layer.weight": (7, 4)}, [0]),
    ],
)
def test_vocabulary_tensors_are_known_by_name_and_rows(shapes: dict[str, tuple[int, ...]], names: list[int]) -> None:
    table = vocabulary_table(Memory({name: torch.zeros(shape) for name, shape in shapes.items()}))
    assert table is not None and table.rows == 9
    assert sorted(table.names) == sorted(list(shapes)[i] for i in names)


def test_the_config_decides_between_two_tables(tmp_path: Path) -> None:
    folder = words(tmp_path / "a", ["<unk>", "</s>"])
    source = Memory({"embed_tokens.weight": torch.zeros(2, 4), "char_embed.weight": torch.zeros(7, 4)}, folder)
    table = vocabulary_table(source)
    assert table is not None and table.names == ("embed_tokens.weight",)
    (folder / "config.json").write_text("{}")
    with pytest.raises(MismatchError, match="2 and 7 rows and its config's vocab_size is missing"):
        vocabulary_table(source)


def real(name: str) -> Path:
    if "FUSE_BENCH_DATA" not in os.environ:
        pytest.skip("FUSE_BENCH_DATA does not name a folder with tokenizers/{gpt2,llama2,mistral,neox,qwen15}")
    return Path(os.environ["FUSE_BENCH_DATA"]) / "tokenizers" / name


@pytest.mark.parametrize("pair", [("llama2", "mistral"), ("llama2", "neox"), ("neox", "llama2")])
def test_unions_of_real_tokenizers(tmp_path: Path, pair: tuple[str, str]) -> None:
    a, b = real(pair[0]), real(pair[1])
    mine, theirs = load_tokenizer(a), load_tokenizer(b)
    sources = {"a": model(a, len(mine)), "b": model(b, len(theirs), 1)}
    found = common(sources, wish={"source": "union"})
    found.write_tokenizer(tmp_path)
    written = load_tokenizer(tmp_path)
    assert len(written) == found.rows and found.maps["a"][: len(mine)].tolist() == list(range(len(mine)))
    vocabulary, here, there = written.get_vocab(), mine.get_vocab(), theirs.get_vocab()
    assert {token: vocabulary[token] for token in here} == here
    text = "The folk's naïve café, 中文字符 décor\n\n  x = {'a': 1}"
    assert written.decode(written(text).input_ids, skip_special_tokens=True).strip() == text
    if pair == ("llama2", "mistral"):
        new = [token for token in vocabulary if token not in here]
        assert len(new) > 7000 and all(found.maps["b"][vocabulary[token]] == there[token] for token in new)
