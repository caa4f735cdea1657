"""Fused targets, against a transcription in plain Python over hand-made tokenizers and hand-made stores."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion import corpus, fused, mixing, new_model, teachers
from fusion.errors import FusionError, RecipeError
from fusion.fused import Source
from tests.fusion.plain_fused import (
    DOCUMENTS,
    SOURCES,
    TARGET,
    Made,
    Plain,
    byte_level,
    document_weights,
    how,
    make_sources,
    make_store,
    transcribe,
)


def nothing(done: int, total: int) -> None:
    pass


def compare(found: fused.Fused, wanted: list[Any], fallback: str) -> None:
    assert len(found.ids) == len(wanted)
    for row, expected in enumerate(wanted):
        taught, said = expected or (False, {})
        weight = expected is not None and (taught or fallback == "next_token")
        assert (found.taught[row], found.weight[row]) == (taught, weight), row
        got = {int(i): float(p) for i, p in zip(found.ids[row], found.probs[row], strict=True) if p > 0}
        assert got == pytest.approx(said if weight else {}, rel=6e-4, abs=4e-8), row
        assert list(found.probs[row]) == sorted(found.probs[row], reverse=True)
        tail = 1 - sum(said.values()) if weight else 0
        assert float(found.tail[row]) == pytest.approx(tail, rel=6e-4, abs=4e-8)
        filled = found.probs[row] == 0
        assert (found.ids[row][filled] == found.ids[row][0]).all()


OURS = [
    {"fusion": fusion, "per": per, "fallback": fallback, "alignment": alignment, "loss": loss}
    for fusion in ("min_ce", "avg_ce")
    for per in ("document", "block", "token")
    for fallback, alignment, loss in (
        ("next_token", "bytes", "all"),
        ("drop", "bytes", "answers"),
        ("next_token", "min_ed", "answers"),
        ("drop", "exact", "all"),
    )
]
PUBLISHED = [
    {"fusion": fusion, "per": per, "alignment": alignment, "fallback": fallback, "compat": "fusellm-v1"}
    for fusion in ("min_ce", "avg_ce")
    for per in ("document", "block")
    for alignment, fallback in (("min_ed", "next_token"), ("exact", "next_token"), ("exact", "drop"))
]


CASES = [(True, given) for given in OURS + PUBLISHED] + [(False, given) for given in OURS[::5] + PUBLISHED[::4]]


@pytest.mark.parametrize(
    ("self_", "given"), CASES, ids=["-".join(map(str, (self_, *given.values()))) for self_, given in CASES]
)
def test_as_the_transcription_has_it(self_: bool, given: dict[str, Any], tmp_path: Path) -> None:
    chosen = how(**given)
    sources = SOURCES[0 if self_ else 1 :]
    found, report = fused.fuse(TARGET, sources, DOCUMENTS, chosen, tmp_path, nothing)
    wanted = transcribe(sources, chosen)
    compare(found, wanted, chosen.fallback)
    rows = [row for row in wanted if row is not None]
    taught = sum(taught for taught, _ in rows) / len(rows)
    assert 0.2 < taught <= 1
    assert report["positions"] == len(rows) and report["aligned"] == pytest.approx(taught)
    left = {"fallback": 1 - taught, "dropped": 0.0}
    if chosen.fallback == "drop":
        left = {"dropped": 1 - taught, "fallback": 0.0}
    assert {name: report[name] for name in left} == pytest.approx(left)
    assert any("known defects, for comparison only" in line for line in report["warnings"]) == bool(chosen.compat)


def test_the_made_up_world_has_all_that_can_happen() -> None:
    """Else the transcription proves little."""
    near, far = (Plain(source, how(), DOCUMENTS) for source in SOURCES[1:])
    assert len(set(far.map.values())) < len(far.map)  # collisions: "a" and <0x61>
    outputs = near.store.meta["vocabulary"]
    assert len(near.map) < outputs - 2  # unmapped tokens, and outputs that no token has
    assert far.map[1] == 0 and 0 not in far.map  # EOS by role; the target has no BOS
    aligned = [row is not None for document in far.documents for row in document["aligned"][1:]]
    assert any(aligned) and not all(aligned)
    last = [document["aligned"][-1] for document in far.documents]
    assert sum(row is not None for row in last) > len(last) / 2  # EOS is taught
    assert any(row is not None for document in far.documents for row in document["aligned"][1:2])


@pytest.mark.parametrize("per", ["document", "token"])
def test_blocks_change_no_byte(per: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = how(fusion="avg_ce", per=per)
    whole, report = fused.fuse(TARGET, SOURCES, DOCUMENTS, chosen, tmp_path / "whole", nothing)
    monkeypatch.setattr(fused, "BLOCK", 5)
    monkeypatch.setattr(corpus, "DOCUMENTS", 3)
    seen: list[tuple[int, int]] = []
    parts, again = fused.fuse(TARGET, SOURCES, DOCUMENTS, chosen, tmp_path / "parts", lambda *done: seen.append(done))
    for name in ("ids", "probs", "tail", "weight", "taught"):
        assert getattr(whole, name).tobytes() == getattr(parts, name).tobytes()
    for name, about in report["sources"].items():
        for key, value in about.items():
            assert again["sources"][name][key] == (value if key == "models" else pytest.approx(value))
    assert seen == sorted(seen) and seen[-1] == (1000, 1000) and len(seen) > 8
    assert not list((tmp_path / "parts").glob("heard.*"))


def test_a_target_takes_44_bytes(tmp_path: Path) -> None:
    found, _ = fused.fuse(TARGET, make_sources(k=10), DOCUMENTS, how(top_k=10), tmp_path, nothing)
    arrays = (found.ids, found.probs, found.tail, found.weight, found.taught)
    assert sum(array[0].nbytes for array in arrays) == 10 * (found.ids.itemsize + 2) + 4
    assert found.ids.dtype == np.uint8
    assert np.min_scalar_type(65_535) == np.uint16


def test_the_target_as_its_only_source_gives_back_its_own_distribution(tmp_path: Path) -> None:
    own = SOURCES[:1]
    found, report = fused.fuse(TARGET, own, DOCUMENTS, how(), tmp_path, nothing)
    counted = np.asarray(found.taught)
    assert report["aligned"] == 1 == report["sources"]["target"]["aligned"]
    said = own[0].store.said["ids"][counted]
    probs = np.where(said < len(TARGET), np.exp(own[0].store.said["log_probs"][counted]), 0)  # outputs without a token
    assert found.probs[counted].sum(-1) == pytest.approx(probs.sum(-1), rel=2e-3)
    assert (found.ids[counted][:, 0] == np.take_along_axis(said, probs.argmax(-1)[:, None], -1)[:, 0]).all()
    assert report["sources"]["target"]["vocabulary"] == {"exact": 1, "approximate": 0, "unmapped": 0}
    assert report["sources"]["target"]["models"] == ["digest-0"]


def test_the_report_counts_what_the_sources_did(tmp_path: Path) -> None:
    sources = SOURCES
    _, report = fused.fuse(TARGET, sources, DOCUMENTS, how(), tmp_path, nothing)
    plain = [Plain(source, how(), DOCUMENTS) for source in sources]
    lengths = np.diff(corpus.encode(TARGET, DOCUMENTS).starts).tolist()
    weights = document_weights(plain, how(), lengths)
    for i, (source, own) in enumerate(zip(sources, plain, strict=True)):
        about = report["sources"][source.name]
        known = [w for w in weights if any(w)]
        assert about["weight"] == pytest.approx(sum(w[i] for w in known) / len(known))
        spread = sum(w[i] * (n - 1) for w, n in zip(weights, lengths, strict=True))
        assert about["weight_of_positions"] == pytest.approx(spread / report["positions"])
        aligned = sum(row is not None for document in own.documents for row in document["aligned"])
        assert about["aligned"] == pytest.approx(aligned / report["positions"])
        assert about["aligned"] <= about["boundary"] <= 1
        ratios = [bits / size for bits, size in map(own.total, range(len(DOCUMENTS))) if size]
        assert about["bits_per_byte"] == pytest.approx(sum(ratios) / len(ratios))
        named = [0.0, 0.0]
        for row in (row for document in own.documents for row in document["counted"]):
            ids, log_probs, _ = (part[0].tolist() for part in source.store.top([row]))
            for token, log_prob in zip(ids, log_probs, strict=True):
                named[token not in own.map] += math.exp(log_prob)
        assert about["unmapped_mass"] == pytest.approx(named[1] / sum(named))
        assert sum(about["used"].values()) == pytest.approx(1)
    assert report["unreadable"] == {} and report["warnings"] == []


def test_loss_on_answers_without_an_answer(tmp_path: Path) -> None:
    """Only the EOS is left, which has no bytes to compare sources by."""
    documents = [{"prompt": "ab a", "answer": ""}, {"text": ""}]
    found, report = fused.fuse(TARGET, make_sources(documents), documents, how(loss="answers"), tmp_path, nothing)
    assert report["aligned"] == 1 and report["positions"] == found.weight.sum() == 1
    assert "bits_per_byte" not in report["sources"]["near"]
    single = [{"text": ""}]
    found, report = fused.fuse(TARGET, make_sources(single), single, how(), tmp_path, nothing)
    assert report["positions"] == 0 and "aligned" not in report


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_documents_that_are_not_given_back_are_left_out_and_counted(tmp_path: Path) -> None:
    documents = [*DOCUMENTS, {"text": "ab c ba"}, {"text": "ab é ba"}]
    # NEAR knows no é; FAR spells it in bytes; the target knows neither.
    sources = make_sources(documents)
    found, report = fused.fuse(TARGET, sources, documents, how(), tmp_path, nothing)
    assert report["unreadable"]["target"]["documents"] == report["unreadable"]["near"]["documents"] == 1
    assert report["unreadable"]["near"]["first"].startswith("document 9: tokenizer near: does not give back")
    assert "far" not in report["unreadable"]
    last = corpus.encode(TARGET, documents).starts[-2]
    # The target is aligned with itself whatever its tokenizer drops; nobody else is.
    assert found.taught[last + 1 :].all()
    found, report = fused.fuse(TARGET, sources[1:], documents, how(), tmp_path, nothing)
    assert not found.taught[last:].any() and found.weight[last + 1 :].all()
    found, report = fused.fuse(
        TARGET, sources[1:], documents, how(alignment="min_ed", fusion="avg_ce"), tmp_path, nothing
    )
    assert found.taught[last:].any() and report["unreadable"]["target"]["documents"] == 1


def test_more_than_half_of_the_documents_must_be_given_back(tmp_path: Path) -> None:
    documents = [{"text": "ab é"}, {"text": "é ba"}, {"text": "ba"}]
    sources = make_sources(documents)
    with pytest.raises(
        FusionError, match="the target: .* does not give back 2 of 3 documents .*; document 1: tokenizer"
    ):
        fused.fuse(TARGET, sources, documents, how(), tmp_path, nothing)
    _, report = fused.fuse(TARGET, sources[:1], documents, how(), tmp_path, nothing)
    assert report["aligned"] == 1


def test_a_source_that_says_little_in_the_targets_tokens(tmp_path: Path) -> None:
    other = byte_level([("a", "b"), ("Ġ", "c"), ("c", "c"), ("Ġc", "c"), ("c", "a")], "other")
    store = make_store(other, DOCUMENTS, 5)
    kept = np.where(np.isin(store.said["ids"], [6, 7, 8]), 8, store.said["ids"])
    for share, mass in ((0.0, 0.05), (0.3, 0.7), (0.05, 0.95)):
        # The first id has an image or the mass that is named goes to one that has none.
        ids = np.tile([1, 7, 8], (len(kept), 1))
        log_probs = np.log(np.tile([1 - mass, mass - 0.01, 0.01], (len(kept), 1)))
        said = {"ids": ids, "log_probs": log_probs, "log_tail": np.full(len(kept), -9.0)}
        source = Source("other", Made(store.folder, store.meta, store.true, store.rows, said), other)
        if mass > 0.9:
            with pytest.raises(FusionError, match="other: 95% of what it says has no image .* over 90%"):
                fused.fuse(TARGET, [source], DOCUMENTS, how(), tmp_path, nothing)
            continue
        _, report = fused.fuse(TARGET, [source], DOCUMENTS, how(), tmp_path, nothing)
        assert report["sources"]["other"]["unmapped_mass"] == pytest.approx(mass)
        assert any("70% of what it says has no image" in line for line in report["warnings"]) == bool(share)


def test_a_source_that_is_hardly_aligned_is_warned_of(tmp_path: Path) -> None:
    documents = [{"text": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab" * 2}]
    merges = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa"), ("aaaaaaaa", "aaaaaaaa")]
    long = byte_level(merges, "long")
    source = Source("long", make_store(long, documents, 1), long)
    _, report = fused.fuse(TARGET, [source], documents, how(), tmp_path, nothing)
    assert any("long: aligned at only" in line for line in report["warnings"])


def test_what_cannot_be_fused_is_refused(tmp_path: Path) -> None:
    sources = SOURCES
    with pytest.raises(RecipeError, match="per: token is ours"):
        fused.fuse(TARGET, sources, DOCUMENTS, how(per="token", compat="fusellm-v1"), tmp_path, nothing)
    with pytest.raises(FusionError, match="nothing to fuse: 0 documents and 3 sources"):
        fused.fuse(TARGET, sources, [], how(), tmp_path, nothing)
    for documents in (DOCUMENTS[:-1], [*DOCUMENTS, {"text": "ab"}]):
        with pytest.raises(FusionError, match="cuts the text into another number"):
            fused.fuse(TARGET, sources, documents, how(), tmp_path, nothing)


# ---------------------------------------------------------------------------------------------------------------------
# The rules by themselves


def test_choose_takes_the_least_or_weighs_by_it() -> None:
    out = np.inf
    scores = np.asarray([[1.0, 2.0, 1.0, out, out], [2.0, 1.0, 1.0, 3.0, out]])
    assert mixing.choose(scores, "min_ce").tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 1, 0]]
    low = 1 / (1 + math.e)
    assert mixing.choose(scores, "avg_ce")[0] == pytest.approx([1 - low, low, 0.5, 0, 0])
    assert mixing.choose(scores, "avg_ce")[1] == pytest.approx([low, 1 - low, 0.5, 1, 0])


def test_the_published_weights_are_nearly_uniform_and_see_no_small_difference() -> None:
    scores = mixing.published_scores(np.asarray([[1.0, 1.501, np.inf], [2.0, 1.5, 1.0]]))
    assert mixing.choose(scores, "avg_ce")[:, 0] == pytest.approx([0.557, 0.443], abs=2e-3)
    assert mixing.choose(scores, "min_ce").tolist() == [[1, 1, 0], [0, 0, 1]]  # a tie goes to the first


def test_mix_sums_equal_ids_and_keeps_the_best() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        probs = rng.random((200, 5)) * (rng.random((200, 5)) > 0.3)
        weight = rng.random(200) * (rng.random(200) > 0.3)
        parts.append((weight, rng.integers(0, 12, (200, 5)), probs / 5))
    ids, probs, tail = mixing.mix(parts, 4)
    for row in range(200):
        total = sum(weight[row] for weight, _, _ in parts)
        summed: dict[int, float] = {}
        for weight, i, p in parts:
            for token, mass in zip(i[row].tolist(), p[row].tolist(), strict=True):
                summed[token] = summed.get(token, 0.0) + (weight[row] / total if total else 0.0) * mass
        best = sorted(summed.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
        best = [(token, mass) for token, mass in best if mass > 0]
        assert ids[row, : len(best)].tolist() == [token for token, _ in best]
        assert probs[row].tolist() == pytest.approx([mass for _, mass in best] + [0.0] * (4 - len(best)))
        assert tail[row] == pytest.approx(1 - probs[row].sum())


# ---------------------------------------------------------------------------------------------------------------------
# Two models with two tokenizers


def test_models_that_were_read(tmp_path: Path) -> None:
    texts = [corpus.text_of(document) for document in DOCUMENTS] * 3
    sources = []
    for number, (architecture, size) in enumerate([("llama", 264), ("gpt_neox", 261)]):
        folder = tmp_path / architecture
        tokenizer = new_model.train_tokenizer(texts, size)
        sizes = {"width": 16, "layers": 1, "heads": 2, "context": 32}
        new_model.new_model(architecture, sizes, tokenizer, number).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        store = teachers.write_store([folder], DOCUMENTS, 5, tmp_path / f"store-{number}", nothing)
        sources.append(Source(architecture, store, teachers.load_tokenizer(folder)))
    tokenizer = sources[0].tokenizer
    for per in ("document", "token"):
        found, report = fused.fuse(
            tokenizer, sources, DOCUMENTS, how(fusion="avg_ce", per=per, top_k=5), tmp_path / "fused", nothing
        )
        assert report["aligned"] == 1
        assert 0.3 < report["sources"]["gpt_neox"]["aligned"] < 1
        total = found.probs.astype(float).sum(-1) + found.tail
        assert np.allclose(total[found.weight], 1, atol=2e-3)
    alone, _ = fused.fuse(tokenizer, sources[:1], DOCUMENTS, how(top_k=5), tmp_path / "alone", nothing)
    rows = np.flatnonzero(alone.taught)
    ids, log_probs, log_tail = sources[0].store.top(rows)
    assert (np.sort(alone.ids[rows], -1) == np.sort(ids, -1)).all()  # equal probabilities come in the order of ids
    assert np.allclose(alone.probs[rows], np.exp(log_probs), rtol=3e-3)
    assert np.allclose(alone.tail[rows], np.exp(log_tail), rtol=3e-3)
