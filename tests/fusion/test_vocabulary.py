"""Tokens as bytes, the maps between two vocabularies, and tokenizers in the forms they come in."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fusion import new_model, vocabulary
from fusion.errors import FusionError, RoundTripError
from fusion.vocabulary import Vocabulary, read_tokenizer, read_vocabulary, vocabulary_map
from tests.fusion import plain_align

TEXTS = ["The  cat's “naïve” 中文 — 42\n\tx = {'a': [1, 2]}\n\n", " leading", "", "\n", "🙂 ok\r\n"]


def bpe(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    return new_model.train_tokenizer(texts, size)


def sentencepiece(pieces: list[str], **more) -> PreTrainedTokenizerFast:
    """A BPE in sentencepiece's spelling: <unk>, </s>, 256 bytes, then pieces without merges."""
    names = ["<unk>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *pieces]
    tokenizer = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", **more)


def test_byte_level_tokens_are_the_bytes_of_the_text() -> None:
    tokenizer = bpe(["the cat é 中 the cat"] * 3, 300)
    vocab = read_vocabulary(tokenizer)
    assert {token for token in vocab.tokens if token and len(token) == 1} == {bytes([b]) for b in range(256)}
    assert vocab.roles == {"eos": 0, "pad": 1}
    assert vocab.tokens[:2] == (None, None)
    for text in TEXTS:
        ids = np.asarray(tokenizer(text).input_ids, np.int64)
        assert b"".join(vocab.tokens[i] for i in ids) == text.encode()
        ends = vocabulary.byte_ends(vocab, ids, text)
        assert list(ends[-1:]) == [len(text.encode())][: len(ids)]


def test_sentencepiece_tokens_are_bytes_with_and_without_fallback() -> None:
    tokenizer = sentencepiece(["▁", "a", "b", "é"])
    vocab = read_vocabulary(tokenizer)
    assert vocab.tokens[258:] == (b" ", b"a", b"b", "é".encode())
    assert vocab.fallback.sum() == 256
    ids = np.asarray(tokenizer("ab é中").input_ids, np.int64)
    ends = vocabulary.byte_ends(vocab, ids, "ab é中")
    assert ends.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]  # the added space ends at byte 0


def test_exact_map_meets_by_bytes_and_by_role_and_prefers_real_tokens() -> None:
    source = read_vocabulary(bpe(["ab ab ab"], 262))
    target = read_vocabulary(sentencepiece(["▁", "a", "b", "ab"]))
    found = vocabulary_map(source, target, "bytes")
    mapping = found.ids
    by_bytes = {token: int(mapping[i]) for i, token in enumerate(source.tokens) if token}
    assert by_bytes[b"a"] == 259 and by_bytes[b"ab"] == 261 and by_bytes[b" "] == 258
    assert by_bytes[b"c"] == 2 + ord("c")  # only as a byte
    assert by_bytes[b" ab"] == -1
    assert mapping[source.roles["eos"]] == 1 and mapping[source.roles["pad"]] == -1
    shares = vocabulary.shares(found, source)
    assert shares["unmapped"] == pytest.approx(2 / len(source.tokens)) and shares["approximate"] == 0
    assert sum(shares.values()) == pytest.approx(1)
    back = vocabulary_map(target, source, "exact").ids
    assert back[2 + ord("a")] == back[259] >= 0


def test_a_token_with_two_roles_maps_as_eos() -> None:
    source = bpe(["ab"], 258)
    source.bos_token = source.eos_token
    target = sentencepiece(["a"], bos_token="<unk>")
    mapping = vocabulary_map(read_vocabulary(source), read_vocabulary(target), "bytes")
    assert mapping.ids[source.eos_token_id] == target.eos_token_id


def test_a_tokenizer_that_is_not_exact_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(FusionError, match=r"bytes exactly \(decoder WordPiece\)"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    tokenizer.decoder = None
    with pytest.raises(FusionError, match="decoder none"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_a_text_that_is_not_given_back_is_refused() -> None:
    tokenizer = bpe(["ab"], 258)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    vocab = read_vocabulary(tokenizer)
    with pytest.raises(RoundTripError, match=r"at byte 3: 'ab AB' became 'ab ab'"):
        vocabulary.byte_ends(vocab, np.asarray(tokenizer("ab AB").input_ids, np.int64), "ab AB")
    # What looks alike is told apart.
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    text = "cafe\u0301 ﬁ"
    with pytest.raises(RoundTripError, match=r"at byte 3: 'cafe\\u0301 \\ufb01' became 'caf\\xe9 fi'"):
        vocabulary.byte_ends(vocab, np.asarray(tokenizer(text).input_ids, np.int64), text)


# ---------------------------------------------------------------------------------------------------------------------
# Other tokenizers


def unigram(texts: list[str], folder: Path) -> Path:
    """A unigram as `tokenizers` trains it, in a tokenizer.json alone."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["</s>", "<s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def ends_of(tokenizer, vocab: Vocabulary, text: str) -> list[int]:
    return vocabulary.byte_ends(vocab, np.asarray(tokenizer(text).input_ids, np.int64), text).tolist()


def test_a_unigram_gives_back_what_its_normaliser_leaves(tmp_path) -> None:
    tokenizer = read_tokenizer(unigram(["the cat sat on the mat"] * 20, tmp_path))
    vocab = read_vocabulary(tokenizer)
    assert vocab.roles == {"eos": 0, "bos": 1, "unk": 2}
    assert vocab.tokens[:3] == (None, None, None) and not vocab.fallback.any()
    assert ends_of(tokenizer, vocab, "the  cat")[-1] == 8
    with pytest.raises(RoundTripError, match=r"at byte 4: 'the \\ufb00' became 'the '"):
        ends_of(tokenizer, vocab, "the \ufb00")
    # Without byte fallback what no token spells is lost, and said to be.
    with pytest.raises(RoundTripError, match=r"at byte 4: 'the \\u4e2d' became 'the '"):
        ends_of(tokenizer, vocab, "the 中")


def test_an_unknown_token_that_is_not_special_stands_for_nothing(tmp_path) -> None:
    for model in (
        models.Unigram([("?", 0.0), ("▁", -1.0), ("a", -1.0)], 0),
        models.BPE({"?": 0, "▁": 1, "a": 2}, [], unk_token="?"),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.save(str(tmp_path / "one.json"))
        tokenizer = read_tokenizer(tmp_path / "one.json")
        vocab = read_vocabulary(tokenizer)
        assert vocab.tokens == (None, b" ", b"a") and vocab.pieces == ("?", "▁", "a")
        with pytest.raises(RoundTripError):
            ends_of(tokenizer, vocab, "a b")


def test_added_tokens_are_what_they_decode_to() -> None:
    tokenizer = sentencepiece(["▁", "a", "▁▁"])
    tokenizer.add_tokens(["▁▁"])  # as Gemma lists its runs of spaces
    vocab = read_vocabulary(tokenizer)
    assert vocab.tokens[260] == b"  " == tokenizer.decode([259, 260])[1:].encode()
    level = bpe(["ab"], 258)
    level.add_tokens(["é "])
    assert read_vocabulary(level).tokens[-1] == "é ".encode()


def test_a_prefix_space_and_a_prepended_mark_end_at_byte_0() -> None:
    level = bpe(["ab ab"], 262)
    level.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert ends_of(level, read_vocabulary(level), "ab") == [2]
    piece = sentencepiece(["▁", "a", "b"])
    piece.backend_tokenizer.pre_tokenizer = None
    piece.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    piece.backend_tokenizer.post_processor = processors.TemplateProcessing("</s> $A", special_tokens=[("</s>", 1)])
    assert ends_of(piece, read_vocabulary(piece), "a b") == [0, 0, 1, 2, 3]


def test_a_normaliser_that_joins_spaces_is_found_out() -> None:
    tokenizer = sentencepiece(["▁", "a"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    with pytest.raises(RoundTripError, match="byte 2: 'a  a' became 'a a'"):
        ends_of(tokenizer, read_vocabulary(tokenizer), "a  a")


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def hand_made(
    tokens: list[bytes | None], pieces: list[str | None], fallback: tuple[int, ...] = (), **roles
) -> Vocabulary:
    there = np.zeros(len(tokens), bool)
    there[list(fallback)] = True
    lengths = np.asarray([len(token or b"") for token in tokens])
    return Vocabulary("hand", tuple(tokens), lengths, there, roles, tuple(pieces))


def spelt(*tokens: str) -> Vocabulary:
    """EOS, the byte fallback <0x41>, then sentencepiece tokens."""
    more = [token.encode() for token in tokens]
    pieces = [token.replace(" ", "▁") for token in tokens]
    return hand_made([None, b"A", *more], ["</s>", "<0x41>", *pieces], (1,), eos=0)


def test_min_ed_takes_the_nearest_by_bytes_and_of_equals_the_lowest_id() -> None:
    source = spelt("cat", "cats", " unhappy", "é", "€", "", "xyzzy")
    target = spelt("", "bats", "cat", "cuts", " happy", "è", "e", "cat")
    found = vocabulary_map(source, target, "min_ed")
    # EOS and A are exact; "cats" is 1 from bats, cat and cuts; "é" and "è" share a byte; "€" shares none with "cat".
    assert found.ids.tolist() == [0, 1, 4, 3, 6, 7, 4, -1, plain(source, target, 8)]
    assert found.exact.tolist() == [True, True, True, False, False, False, False, False, False]


def plain(source: Vocabulary, target: Vocabulary, i: int) -> int:
    """The nearest of the target's tokens with bytes, byte fallbacks apart."""
    able = [k for k, token in enumerate(target.tokens) if token and not target.fallback[k]]
    strings = [(target.tokens[k] or b"").decode("latin-1") for k in able]
    return able[plain_align.nearest((source.tokens[i] or b"").decode("latin-1"), strings)]


def test_special_tokens_and_byte_fallbacks_are_never_approximate() -> None:
    source = hand_made([None, None, b"B", b"AB"], ["</s>", "<extra>", "<0x42>", "AB"], (2,), eos=0)
    found = vocabulary_map(source, spelt("zzzz"), "min_ed")
    assert found.ids.tolist() == [0, -1, -1, 2]  # "A" is nearer to "AB", but a byte fallback
    only_bytes = vocabulary_map(source, spelt(), "min_ed")
    assert only_bytes.ids.tolist() == [0, -1, -1, -1]


def test_special_tokens_without_a_role_meet_by_spelling() -> None:
    source = hand_made([None, None, None, b"<x>"], ["</s>", "<|im_start|>", "<x>", "y"], eos=0)
    target = hand_made([None, None, None, b"<x>"], ["<|im_start|>", "<eos>", "<pad>", "z"], eos=1, pad=2)
    assert vocabulary_map(source, target, "bytes").ids.tolist() == [1, 0, -1, 3]
    # A spelling is no role: the target's "<|im_start|>" is its EOS.
    target = hand_made([None, None], ["<|im_start|>", "<x>"], eos=0)
    assert vocabulary_map(source, target, "bytes").ids.tolist() == [0, -1, 1, -1]


def test_shares_by_types_and_by_use() -> None:
    source, target = spelt("cat", "cats", ""), spelt("cat")
    found = vocabulary_map(source, target, "min_ed")
    assert vocabulary.shares(found, source) == {"exact": 3 / 5, "approximate": 1 / 5, "unmapped": 1 / 5}
    use = np.asarray([1, 0, 0, 7, 0])
    assert vocabulary.shares(found, source, use) == {"exact": 1 / 8, "approximate": 7 / 8, "unmapped": 0}
    assert vocabulary.shares(found, source, np.zeros(5, np.int64)) == {}


def test_the_published_rule_compares_spellings() -> None:
    source = hand_made([None, b" cat", b"\n", b"A"], ["<|endoftext|>", "Ġcat", "Ċ", "A"], eos=0)
    target = spelt(" cat", " ", "<|end")
    found = vocabulary_map(source, target, "min_ed", "fusellm-v1")
    assert found.ids.tolist() == [4, 2, 3, 3] and found.exact.tolist() == [False, True, False, False]
    assert vocabulary_map(source, target, "exact", "fusellm-v1").ids.tolist() == [-1, 2, -1, -1]
    with pytest.raises(FusionError, match="min_ed or exact"):
        vocabulary_map(source, target, "bytes", "fusellm-v1")


# ---------------------------------------------------------------------------------------------------------------------
# Real tokenizers


DATA = os.environ.get("FUSE_BENCH_DATA")
# Of the map that was published with Fusion-X (ZLKong/LLM_Integration, vocab_mapping/llama_pythia.json), which FuseLLM's
# own code made: 50,277 strings of GPT-NeoX to strings of Llama-2, as JSON with sorted keys and no spaces.
PUBLISHED = "79a10fa3487620688b53efee7e8aa9ec6c4b4f47b2f4f11d49a7424153149fea"


@pytest.fixture(scope="module")
def real() -> dict[str, PreTrainedTokenizerFast]:
    if DATA is None:
        pytest.skip("FUSE_BENCH_DATA does not name a folder with tokenizers/{gpt2,llama2,mistral,neox,qwen15}")
    names = ("gpt2", "neox", "llama2", "mistral", "qwen15")
    return {name: read_tokenizer(Path(DATA) / "tokenizers" / name) for name in names}


@pytest.fixture(scope="module")
def vocabs(real) -> dict[str, Vocabulary]:
    return {name: read_vocabulary(tokenizer) for name, tokenizer in real.items()}


def test_roles_are_found_where_the_files_tell_them(vocabs) -> None:
    roles = {name: vocab.roles for name, vocab in vocabs.items()}
    assert roles["gpt2"] == {"eos": 50256} and roles["neox"] == {"eos": 0, "pad": 1}
    assert roles["llama2"] == roles["mistral"] == {"eos": 2, "bos": 1, "unk": 0}
    assert roles["qwen15"]["eos"] == 151643


def test_vocabularies_and_merges_alone_are_split_as_their_tokens_were(real, tmp_path) -> None:
    assert len(real["qwen15"]("2024").input_ids) == 4
    state = json.loads((Path(DATA) / "tokenizers" / "gpt2" / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    alone = read_tokenizer(tmp_path)
    for text in TEXTS:
        assert alone(text).input_ids == real["gpt2"](text).input_ids
    assert alone.eos_token_id == 50256


def test_real_tokenizers_give_texts_back_byte_by_byte(real, vocabs) -> None:
    for name, tokenizer in real.items():
        for text in TEXTS:
            ends = np.asarray(ends_of(tokenizer, vocabs[name], text), np.int64)
            assert (np.diff(ends) >= 0).all()
            assert ends.max(initial=0) == len(text.encode())


def test_neox_to_llama_maps_as_many_tokens_as_the_notes_counted(real, vocabs) -> None:
    neox, llama = vocabs["neox"], vocabs["llama2"]
    mapping = vocabulary_map(neox, llama, "bytes").ids
    # 21,828 of the 50,254 tokens of the model itself, 20 added runs of spaces apart.
    own = [i for i in range(50_254) if i not in real["neox"].added_tokens_decoder]
    assert (mapping[own] >= 0).sum() == 21_828
    of = {token: i for i, token in enumerate(neox.tokens)}
    assert llama.tokens[mapping[of[b"\n"]]] == b"\n" and mapping[of[b"100"]] == -1
    assert mapping[real["neox"].eos_token_id] == real["llama2"].eos_token_id


def test_min_ed_of_real_vocabularies_is_the_plain_search(vocabs) -> None:
    neox, llama = vocabs["neox"], vocabs["llama2"]
    part = slice(20_000, 20_400)
    some = hand_made(list(neox.tokens[part]), list(neox.pieces[part]))
    found = vocabulary_map(some, llama, "min_ed")
    exact = vocabulary_map(some, llama, "exact").ids
    assert (found.ids >= 0).all() and (found.ids[found.exact] == exact[exact >= 0]).all()
    for i in np.flatnonzero(~found.exact)[:3].tolist():
        assert found.ids[i] == plain(some, llama, i)


def test_the_published_map_comes_out_of_the_published_rule(vocabs) -> None:
    neox, llama = vocabs["neox"], vocabs["llama2"]
    found = vocabulary_map(neox, llama, "min_ed", "fusellm-v1")
    ours = {piece: llama.pieces[i] for piece, i in zip(vocabulary.respelt(neox, llama), found.ids, strict=True)}
    assert len(ours) == 50_277 and int(found.exact.sum()) == 20_362
    assert ours["Ċ"] == "▁" and ours["<|endoftext|>"] == "Context" and ours["▁unhappy"] == "▁happy"
    canonical = json.dumps(ours, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(canonical).hexdigest() == PUBLISHED


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_paths_without_a_tokenizer_are_refused(tmp_path) -> None:
    with pytest.raises(FusionError, match="nowhere: no such file or folder; a tokenizer is a tokenizer.json file"):
        read_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FusionError, match="no tokenizer in this folder.*vocab.json and merges.txt"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FusionError, match="no tokenizer in this folder"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    with pytest.raises(
        FusionError, match="sentencepiece model alone \\(tokenizer.model\\); save it as a fast one|no tokenizer"
    ):
        read_tokenizer(tmp_path)
    for text in ("", "{}", "\x00" * 9, '{"model": {"type": "Nothing"}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(FusionError, match="its tokenizer cannot be loaded"):
            read_tokenizer(tmp_path)
        with pytest.raises(FusionError, match="tokenizer.json: its tokenizer cannot be loaded"):
            read_tokenizer(tmp_path / "tokenizer.json")


def test_what_a_config_states_stands(tmp_path) -> None:
    tokenizer = bpe(["ab"], 260)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</s>", "<s>"]})
    tokenizer.eos_token = "</s>"
    tokenizer.save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path).eos_token == "</s>"
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "tokenizer.json", alone)
    assert read_tokenizer(alone).bos_token == "<s>"
