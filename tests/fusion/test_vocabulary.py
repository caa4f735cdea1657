"""Tokens as bytes, and the exact map between two tokenizers."""

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2TokenizerFast

from fusion import train, vocabulary
from fusion.errors import FusionError

TEXTS = ["The  cat's “naïve” 中文 — 42\n\tx = {'a': [1, 2]}\n\n", " leading", "", "\n", "🙂 ok\r\n"]


def bpe(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    return train.train_tokenizer(texts, size)


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
    vocab = vocabulary.read_vocabulary(tokenizer)
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
    vocab = vocabulary.read_vocabulary(tokenizer)
    assert vocab.tokens[258:] == (b" ", b"a", b"b", "é".encode())
    assert vocab.fallback.sum() == 256
    ids = np.asarray(tokenizer("ab é中").input_ids, np.int64)
    ends = vocabulary.byte_ends(vocab, ids, "ab é中")
    assert ends.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]  # the added space ends at byte 0


def test_exact_map_meets_by_bytes_and_by_role_and_prefers_real_tokens() -> None:
    source = vocabulary.read_vocabulary(bpe(["ab ab ab"], 262))
    target = vocabulary.read_vocabulary(sentencepiece(["▁", "a", "b", "ab"]))
    mapping = vocabulary.exact_map(source, target)
    by_bytes = {token: int(mapping[i]) for i, token in enumerate(source.tokens) if token}
    assert by_bytes[b"a"] == 259 and by_bytes[b"ab"] == 261 and by_bytes[b" "] == 258
    assert by_bytes[b"c"] == 2 + ord("c")  # only as a byte
    assert by_bytes[b" ab"] == -1
    assert mapping[source.roles["eos"]] == 1 and mapping[source.roles["pad"]] == -1
    shares = vocabulary.shares(mapping, source)
    assert shares["unmapped"] == pytest.approx(2 / len(source.tokens)) and sum(shares.values()) == 1
    back = vocabulary.exact_map(target, source)
    assert back[2 + ord("a")] == back[259] >= 0


def test_a_token_with_two_roles_maps_as_eos() -> None:
    source = bpe(["ab"], 258)
    source.bos_token = source.eos_token
    target = sentencepiece(["a"], bos_token="<unk>")
    mapping = vocabulary.exact_map(vocabulary.read_vocabulary(source), vocabulary.read_vocabulary(target))
    assert mapping[source.eos_token_id] == target.eos_token_id


def test_a_tokenizer_that_is_not_exact_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(FusionError, match=r"bytes exactly \(decoder WordPiece\)"):
        vocabulary.read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    tokenizer.decoder = None
    with pytest.raises(FusionError, match="decoder none"):
        vocabulary.read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_a_text_that_is_not_given_back_is_refused() -> None:
    tokenizer = bpe(["ab"], 258)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    vocab = vocabulary.read_vocabulary(tokenizer)
    with pytest.raises(FusionError, match=r"at byte 3: 'ab AB' became 'ab ab'"):
        vocabulary.byte_ends(vocab, np.asarray(tokenizer("ab AB").input_ids, np.int64), "ab AB")


# ---------------------------------------------------------------------------------------------------------------------
# Real tokenizers


@pytest.fixture(scope="module")
def real() -> dict[str, PreTrainedTokenizerFast]:
    if "FUSE_BENCH_DATA" not in os.environ:
        pytest.skip("FUSE_BENCH_DATA does not name a folder with tokenizers/{gpt2,llama2,mistral,neox,qwen15}")
    folder = Path(os.environ["FUSE_BENCH_DATA"]) / "tokenizers"
    end = "<|endoftext|>"
    qwen = folder / "qwen15"
    return {
        **{
            name: PreTrainedTokenizerFast(tokenizer_file=str(folder / name / "tokenizer.json"), eos_token=end)
            for name in ("gpt2", "neox")
        },
        **{name: AutoTokenizer.from_pretrained(folder / name) for name in ("llama2", "mistral")},
        "qwen15": Qwen2TokenizerFast(vocab=str(qwen / "vocab.json"), merges=str(qwen / "merges.txt")),
    }


def test_real_tokenizers_give_texts_back_byte_by_byte(real) -> None:
    for tokenizer in real.values():
        vocab = vocabulary.read_vocabulary(tokenizer)
        for text in TEXTS:
            ids = np.asarray(tokenizer(text).input_ids, np.int64)
            ends = vocabulary.byte_ends(vocab, ids, text)
            assert (np.diff(ends) >= 0).all()
            assert ends.max(initial=0) == len(text.encode())


def test_neox_to_llama_maps_as_many_tokens_as_the_notes_counted(real) -> None:
    neox, llama = (vocabulary.read_vocabulary(real[name]) for name in ("neox", "llama2"))
    mapping = vocabulary.exact_map(neox, llama)
    # 21,828 of the 50,254 tokens of the model itself, 20 added runs of spaces apart.
    own = [i for i in range(50_254) if i not in real["neox"].added_tokens_decoder]
    assert (mapping[own] >= 0).sum() == 21_828
    of = {token: i for i, token in enumerate(neox.tokens)}
    assert llama.tokens[mapping[of[b"\n"]]] == b"\n" and mapping[of[b"100"]] == -1
    assert mapping[real["neox"].eos_token_id] == real["llama2"].eos_token_id
