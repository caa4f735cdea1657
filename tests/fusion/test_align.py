"""Predictions that two tokenizations share, by bytes and by edit distance."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import vocabulary
from fusion.align import Alignment, Cut, aligner
from fusion.errors import FusionError
from fusion.vocabulary import Map, Vocabulary, read_tokenizer, vocabulary_map
from tests.fusion import plain_align

EOS, BOS = "</s>", "<s>"


def hand_made(tokens: Sequence[str], mark: str = "▁", roles: Sequence[str] = ("eos", "bos")) -> Vocabulary:
    """EOS, BOS, then tokens, spelt with a mark for each space."""
    by_role = {"eos": 0, "bos": 1}
    content = (None, None, *[token.encode() for token in tokens])
    lengths = np.asarray([len(token or b"") for token in content])
    pieces = (EOS, BOS, *[token.replace(" ", mark) for token in tokens])
    known = {role: by_role[role] for role in roles}
    return Vocabulary("hand", content, lengths, np.zeros(len(content), bool), known, pieces)


def cut(vocab: Vocabulary, tokens: Sequence[str]) -> Cut:
    spelt = {EOS: 0, BOS: 1} | {(token or b"").decode(): i for i, token in enumerate(vocab.tokens) if i > 1}
    ids = np.asarray([spelt[token] for token in tokens], np.int64)
    return Cut(ids, np.cumsum(vocab.lengths[ids]))


def align(
    how: str, target: Sequence[str], source: Sequence[str], compat: str | None = None, mark: str = "▁", **images: str
) -> Alignment:
    """Two cuts, by vocabularies of the tokens in them; images: of source tokens, where not the map's own."""
    ours, theirs = (
        hand_made(sorted(set(tokens) - {EOS, BOS}), spelling) for tokens, spelling in ((target, "▁"), (source, mark))
    )
    mapping = vocabulary_map(theirs, ours, how, compat)
    for token, image in images.items():
        mapping.ids[cut(theirs, [token]).ids] = cut(ours, [image]).ids
    return aligner(how, theirs, ours, mapping, compat)(cut(ours, target), cut(theirs, source))


# ---------------------------------------------------------------------------------------------------------------------
# By bytes


def test_identical_predictions_share_beginning_and_bytes() -> None:
    found = align("bytes", ["the", " cat", " un", "happy", EOS], ["t", "he", " cat", " unhappy", EOS])
    assert found.source.tolist() == [-1, 2, -1, -1, 4]
    assert found.boundary.tolist() == [False, True, True, False, True]


def test_the_map_says_which_tokens_are_the_same() -> None:
    found = align("bytes", ["a", "b", "c"], ["a", "x", "y"], x="b")
    assert found.source.tolist() == [-1, 1, -1]
    assert found.boundary.tolist() == [False, True, True]


def test_a_bos_predicts_the_first_token_and_an_added_space_does_not_hide_it() -> None:
    vocab = hand_made([" ", "ab"])
    with_space = Cut(np.asarray([1, 2, 3]), np.asarray([0, 0, 2]))
    without = Cut(np.asarray([1, 3]), np.asarray([0, 2]))
    call = aligner("bytes", vocab, vocab, vocabulary_map(vocab, vocab, "bytes"))
    assert call(without, with_space).source.tolist() == [-1, 2]
    assert call(with_space, without).source.tolist() == [-1, -1, 1]
    assert call(with_space, with_space).source.tolist() == [-1, 1, 2]


def test_a_target_token_that_repeats_anothers_bytes_is_the_same_token() -> None:
    # <0x61> beside "a": the map gives "a", the text is cut into the byte.
    target = Vocabulary("t", (b"a", b"a"), np.asarray([1, 1]), np.asarray([True, False]), {}, ("<0x61>", "a"))
    source = hand_made(["a"])
    call = aligner("bytes", source, target, vocabulary_map(source, target, "bytes"))
    ends = np.asarray([1, 2])
    assert call(Cut(np.asarray([1, 0]), ends), Cut(np.asarray([2, 2]), ends)).source.tolist() == [-1, 1]


@pytest.mark.parametrize("how", ["bytes", "min_ed", "exact"])
@pytest.mark.parametrize("compat", [None, "fusellm-v1"])
def test_texts_without_a_prediction(how: str, compat: str | None) -> None:
    if how == "bytes" and compat:
        vocab = hand_made(["a"])
        with pytest.raises(FusionError, match="min_ed or exact"):
            aligner(how, vocab, vocab, Map(np.arange(3), np.ones(3, bool)), compat)
        return
    for target in ([], ["a"], [EOS], [BOS, EOS], ["a", "b", EOS]):
        for source in ([], ["a"], [EOS], [BOS, EOS]):
            found = align(how, target, source, compat)
            assert len(found.source) == len(found.boundary) == len(target)
            assert (found.source[:1] == -1).all() and not found.boundary[:1].any()


def test_a_text_that_one_side_does_not_give_back_is_aligned_nowhere_by_bytes() -> None:
    vocab = hand_made(["a", "b"])
    whole = cut(vocab, ["a", "b", EOS])
    blind = Cut(whole.ids, None)
    for how, wanted in (("bytes", [-1, -1, -1]), ("min_ed", [-1, 1, 2])):
        call = aligner(how, vocab, vocab, vocabulary_map(vocab, vocab, how))
        assert call(whole, blind).source.tolist() == call(blind, whole).source.tolist() == wanted


cuts = st.lists(st.integers(1, 39), unique=True).map(sorted)


@settings(deadline=None, max_examples=60)
@given(cuts, cuts, st.binary(min_size=40, max_size=40))
def test_as_a_search_over_all_pairs_finds(target_cuts: list[int], source_cuts: list[int], text: bytes) -> None:
    letters = "".join("ab"[byte % 2] for byte in text)
    target, source = (
        [letters[a:b] for a, b in zip([0, *at], [*at, 40], strict=True)] for at in (target_cuts, source_cuts)
    )
    found = align("bytes", target, source)
    for j in range(1, len(target)):
        same = [s for s in range(1, len(source)) if source_cuts[s - 1] == target_cuts[j - 1]]
        assert found.boundary[j] == bool(same)
        wanted = [s for s in same if source[s] == target[j]]
        assert found.source[j] == (wanted[0] if wanted else -1)


# ---------------------------------------------------------------------------------------------------------------------
# By edit distance


def test_what_follows_a_mapped_token_is_taught() -> None:
    # " happy" goes to " unhappy", the nearest; "t" and "he" lie beside "the", which so has two.
    target, source = ["the", " cat", " unhappy", "ly", EOS], ["t", "he", " cat", " happy", "ly", EOS]
    found = align("min_ed", target, source)
    assert found.source.tolist() == [-1, -1, 3, 4, 5]
    assert found.boundary.tolist() == [False, False, True, True, True]
    found = align("exact", target, source)
    assert found.source.tolist() == [-1, -1, 3, -1, 5]
    assert found.boundary.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("how", ["min_ed", "exact"])
@pytest.mark.parametrize(
    ("before", "their_before", "first"), [([], [], -1), ([BOS], [], -1), ([], [BOS], -1), ([BOS], [BOS], 1)]
)
def test_eos_and_the_first_token_with_and_without_bos(how, before, their_before, first) -> None:
    text = ["a", " b", " c"]
    found = align(how, [*before, *text, EOS], [*their_before, *text, EOS])
    shift = len(their_before)
    # BOS (if any), the first token, and the others, each from its like.
    wanted = [*([-1] * len(before)), first, 1 + shift, 2 + shift, 3 + shift]
    assert found.source.tolist() == wanted
    assert found.boundary.tolist() == [at >= 0 for at in wanted]
    assert align(how, [*before, EOS], [*their_before, EOS]).source.tolist() == [
        *([-1] * len(before)), 1 if first == 1 else -1,
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["min_ed", "exact"])
def test_the_end_teaches_no_text_and_text_no_end(how) -> None:
    # One is cut off before its EOS: what it predicts after "b" is a token, the other's is the end.
    assert align(how, ["a", "b", EOS], ["a", "b"]).source.tolist() == [-1, 1, -1]
    assert align(how, ["a", "b"], ["a", "b", EOS]).source.tolist() == [-1, 1]
    found = align(how, ["a", "b", "b", EOS], ["a", "b", EOS])
    assert found.source.tolist() == [-1, 1, -1, 2]


def test_an_end_of_another_role_is_not_taught() -> None:
    target, source = hand_made(["a"]), hand_made(["a"], roles=("bos",))
    call = aligner("exact", source, target, vocabulary_map(source, target, "exact"))
    assert call(cut(target, ["a", "a", EOS]), cut(source, ["a", "a", EOS])).source.tolist() == [-1, 1, -1]


def plain_rows(target: list[bytes], source: list[bytes], image: list[bytes | None]) -> list[int]:
    """For each target token of a text without special tokens the source token that predicts it."""
    with_letters = [[token.decode("latin-1").replace(" ", "") for token in tokens] for tokens in (target, source)]
    found = [-1] * len(target)
    for i, near in enumerate(plain_align.beside(*with_letters)[:-1]):
        if len(near) == 1 and near[0] + 1 < len(source) and image[near[0]] == target[i]:
            found[i + 1] = near[0] + 1
    return found


words = st.lists(st.sampled_from(["a", " a", "b", " ab", "ab", "aab", " ", "é"]), min_size=1, max_size=14)


@settings(deadline=None, max_examples=80)
@given(words, words, st.sampled_from(["min_ed", "exact"]))
def test_as_the_plain_programme_aligns(target: list[str], source: list[str], how: str) -> None:
    ours, theirs = hand_made(sorted({*target})), hand_made(sorted({*source}))
    mapping = vocabulary_map(theirs, ours, how)
    own, other = cut(ours, target), cut(theirs, source)
    image = [ours.tokens[i] if i >= 0 else None for i in mapping.ids[other.ids]]
    wanted = plain_rows([token.encode() for token in target], [token.encode() for token in source], image)
    assert aligner(how, theirs, ours, mapping)(own, other).source.tolist() == wanted


# ---------------------------------------------------------------------------------------------------------------------
# As published


def published(target: list[str], source: list[str], how: str, ours: Vocabulary, theirs: Vocabulary) -> list[int]:
    """What the plain transcription of the published code teaches each of the target's tokens."""
    marks = vocabulary.space_mark(ours), vocabulary.space_mark(theirs)
    mapping = vocabulary_map(theirs, ours, how, "fusellm-v1")
    spelt = vocabulary.respelt(theirs, ours)
    image = {piece: ours.pieces[i] for piece, i in zip(spelt, mapping.ids, strict=True) if i >= 0}
    rows = plain_align.published_rows(target, source, marks, image, how == "min_ed")
    return [-1] + [row + 1 if 0 <= row < len(source) - 1 else -1 for row in rows[:-1]]


@settings(deadline=None, max_examples=80)
@given(words, words, st.sampled_from(["min_ed", "exact"]), st.sampled_from(["Ġ", "▁"]), st.booleans())
def test_the_published_rows_come_out_of_compat(
    target: list[str], source: list[str], how: str, mark: str, bos: bool
) -> None:
    target, source = [*([BOS] if bos else []), *target, EOS], [*source, EOS]
    ours = hand_made(sorted({" ", *target} - {EOS, BOS}))
    theirs = hand_made(sorted({" ", *source} - {EOS, BOS}), mark)
    own, other = cut(ours, target), cut(theirs, source)
    call = aligner(how, theirs, ours, vocabulary_map(theirs, ours, how, "fusellm-v1"), "fusellm-v1")
    pieces = [[vocab.pieces[i] for i in one.ids] for vocab, one in ((ours, own), (theirs, other))]
    assert call(own, other).source.tolist() == published(*pieces, how, ours, theirs)


def test_a_first_word_without_a_mark_gets_one_from_byte_level_sources_alone() -> None:
    target = [" the", " cat", EOS]
    assert align("exact", target, ["the", " cat", EOS], "fusellm-v1", "Ġ").source.tolist() == [-1, 1, 2]
    assert align("exact", target, ["the", " cat", EOS], "fusellm-v1", "▁").source.tolist() == [-1, -1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Real tokenizers


@pytest.fixture(scope="module")
def real() -> tuple[dict[str, Vocabulary], dict[str, Cut]]:
    if "FUSE_BENCH_DATA" not in os.environ:
        pytest.skip("FUSE_BENCH_DATA names no folder with tokenizers/ and code/humaneval.jsonl")
    data = Path(os.environ["FUSE_BENCH_DATA"])
    rows = [json.loads(line) for line in (data / "code" / "humaneval.jsonl").read_text().splitlines()[:6]]
    text = "\n\n".join(row["prompt"] + row["canonical_solution"] for row in rows)
    tokenizers = {name: read_tokenizer(data / "tokenizers" / name) for name in ("llama2", "neox")}
    vocabs = {name: vocabulary.read_vocabulary(tokenizer) for name, tokenizer in tokenizers.items()}
    cuts = {}
    for name, tokenizer in tokenizers.items():
        ids = np.asarray([*tokenizer(text).input_ids, tokenizer.eos_token_id])
        cuts[name] = Cut(ids, vocabulary.byte_ends(vocabs[name], ids, text))
    return vocabs, cuts


def test_bytes_on_real_text(real) -> None:
    vocabs, cuts = real
    mapping = vocabulary_map(vocabs["neox"], vocabs["llama2"], "bytes")
    found = aligner("bytes", vocabs["neox"], vocabs["llama2"], mapping)(cuts["llama2"], cuts["neox"])
    # The notes measured 85 to 90 % shared boundaries on prose, code and documents.
    assert 0.7 < found.boundary.mean() < 0.95
    assert 0.5 < (found.source >= 0).mean() <= found.boundary.mean()
    itself = aligner("bytes", vocabs["llama2"], vocabs["llama2"], vocabulary_map(*[vocabs["llama2"]] * 2, "bytes"))
    assert itself(cuts["llama2"], cuts["llama2"]).source.tolist() == [-1, *range(1, len(cuts["llama2"].ids))]


@pytest.mark.parametrize(("source", "target"), [("neox", "llama2"), ("llama2", "neox")])
def test_edit_distances_on_real_text_are_the_plain_programmes(real, source: str, target: str) -> None:
    vocabs, cuts = real
    theirs, ours = vocabs[source], vocabs[target]
    few = {name: Cut(one.ids[:120], None) for name, one in cuts.items()}
    has_bytes = {name: [i for i in one.ids.tolist() if vocabs[name].tokens[i]] for name, one in few.items()}
    mapping = vocabulary_map(theirs, ours, "exact")
    found = aligner("exact", theirs, ours, mapping)(few[target], few[source])
    tokens = [[vocabs[name].tokens[i] for i in has_bytes[name]] for name in (target, source)]
    image = [ours.tokens[i] if i >= 0 else None for i in mapping.ids[has_bytes[source]]]
    wanted = np.asarray(plain_rows(*tokens, image))
    shift, their_shift = (len(few[name].ids) - len(has_bytes[name]) for name in (target, source))
    assert found.source[shift:].tolist() == np.where(wanted >= 0, wanted + their_shift, -1).tolist()
    pieces = [[vocabs[name].pieces[i] for i in few[name].ids] for name in (target, source)]
    call = aligner("exact", theirs, ours, vocabulary_map(theirs, ours, "exact", "fusellm-v1"), "fusellm-v1")
    assert call(few[target], few[source]).source.tolist() == published(*pieces, "exact", ours, theirs)
    assert (np.asarray(published(*pieces, "exact", ours, theirs)) >= 0).mean() > 0.4
