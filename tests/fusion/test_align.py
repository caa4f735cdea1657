"""Identical predictions of two tokenizations."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fusion import align, vocabulary

SAME = np.arange(100)


def ends(lengths: list[int]) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64)


def test_identical_predictions_share_beginning_and_bytes() -> None:
    # the | cat| un|happy| EOS   against   t|he| cat| unhappy| EOS
    target = np.asarray([10, 20, 30, 31, 0])
    source = np.asarray([11, 12, 20, 40, 0])
    found = align.align(target, ends([3, 4, 3, 5, 0]), source, ends([1, 2, 4, 8, 0]), SAME)
    assert found.source.tolist() == [-1, 2, -1, -1, 4]
    assert found.boundary.tolist() == [False, True, True, False, True]


def test_the_map_says_which_tokens_are_the_same() -> None:
    mapping = np.full(100, -1)
    mapping[[5, 6]] = [50, -1]
    found = align.align(np.asarray([1, 50, 51]), ends([1, 1, 1]), np.asarray([2, 5, 6]), ends([1, 1, 1]), mapping)
    assert found.source.tolist() == [-1, 1, -1]
    assert found.boundary.tolist() == [False, True, True]


def test_a_bos_predicts_the_first_token_and_an_added_space_does_not_hide_it() -> None:
    # BOS | ▁ | ab   against   BOS | ab
    found = align.align(np.asarray([1, 7]), ends([0, 2]), np.asarray([1, 3, 7]), ends([0, 0, 2]), SAME)
    assert found.source.tolist() == [-1, 2]


@pytest.mark.parametrize("target", [[], [1]])
def test_texts_without_a_prediction(target: list[int]) -> None:
    found = align.align(np.asarray(target, np.int64), ends([1] * len(target)), np.asarray([1]), ends([1]), SAME)
    assert found.source.tolist() == [-1] * len(target)


cuts = st.lists(st.integers(1, 39), unique=True).map(sorted)


@given(cuts, cuts, st.binary(min_size=40, max_size=40))
def test_as_a_search_over_all_pairs_finds(target_cuts: list[int], source_cuts: list[int], text: bytes) -> None:
    text = bytes(byte % 2 for byte in text)
    pieces = [[text[a:b] for a, b in zip([0, *at], [*at, 40], strict=True)] for at in (target_cuts, source_cuts)]
    ids = {piece: i for i, piece in enumerate(sorted({*pieces[0], *pieces[1]}))}
    (target, target_ends), (source, source_ends) = (
        (np.asarray([ids[piece] for piece in part]), ends([len(piece) for piece in part])) for part in pieces
    )
    found = align.align(target, target_ends, source, source_ends, np.arange(len(ids)))
    for j in range(1, len(target)):
        same = [s for s in range(1, len(source)) if source_ends[s - 1] == target_ends[j - 1]]
        assert found.boundary[j] == bool(same)
        wanted = [s for s in same if pieces[1][s] == pieces[0][j]]
        assert found.source[j] == (wanted[0] if wanted else -1)


@pytest.mark.skipif("FUSE_BENCH_DATA" not in os.environ, reason="FUSE_BENCH_DATA names no folder with tokenizers/")
def test_llama_and_neox_on_real_text() -> None:
    data = Path(os.environ["FUSE_BENCH_DATA"])
    text = (data / "code" / "humaneval.jsonl").read_text(encoding="utf-8")[:20_000]
    llama = AutoTokenizer.from_pretrained(data / "tokenizers" / "llama2")
    neox = PreTrainedTokenizerFast(tokenizer_file=str(data / "tokenizers" / "neox" / "tokenizer.json"))
    vocabs = [vocabulary.read_vocabulary(tokenizer) for tokenizer in (llama, neox)]
    ids = [np.asarray(tokenizer(text).input_ids, np.int64) for tokenizer in (llama, neox)]
    at = [vocabulary.byte_ends(vocab, i, text) for vocab, i in zip(vocabs, ids, strict=True)]
    mapping = vocabulary.exact_map(vocabs[1], vocabs[0])
    found = align.align(ids[0], at[0], ids[1], at[1], mapping)
    # The notes measured 85 to 90 % shared boundaries on prose, code and documents.
    assert 0.7 < found.boundary.mean() < 0.95
    assert 0.5 < (found.source >= 0).mean() <= found.boundary.mean()
