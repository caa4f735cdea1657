"""The store of what a model says about a corpus."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion import corpus, teachers, train
from fusion.errors import CheckpointError, FusionError

DOCUMENTS = [{"text": f"{a} and {b} is {a}{b}"} for a in ("red", "blue", "1") for b in ("two", "three", "4")] * 2
DOCUMENTS += [{"text": "a long one " * 6}, {"prompt": "red is", "answer": " blue"}, {"text": ""}]


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train.train_tokenizer([corpus.text_of(document) for document in DOCUMENTS], 270)
    sizes = {"width": 16, "layers": 2, "heads": 2, "context": 32}
    train.new_model("gpt_neox", sizes, tokenizer, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory) -> teachers.Store:
    return teachers.write_store(model, DOCUMENTS, 5, tmp_path_factory.mktemp("store"), nothing)


def test_the_store_says_what_the_model_says(model: Path, store: teachers.Store) -> None:
    live, tokenizer = teachers.load(model)
    tokens = corpus.encode(tokenizer, DOCUMENTS)
    pieces = corpus.cut(tokens, 32, "all")
    assert len(pieces.start) > len(DOCUMENTS) - 1  # the long one is read in pieces
    for start, length in zip(pieces.start, pieces.length, strict=True):
        ids = torch.tensor(tokens.ids[start : start + length].astype("int64"))
        with torch.inference_mode():
            log_probs = live(ids[None]).logits[0, :-1].log_softmax(-1)
        rows = slice(start + 1, start + length)
        true = log_probs.gather(-1, ids[1:, None])[:, 0]
        assert np.allclose(store.true[rows], true, atol=1e-4)
        top = log_probs.gather(-1, torch.from_numpy(store.ids[rows].astype("int64")))
        assert np.allclose(store.log_probs[rows], top, atol=5e-3)
        assert np.allclose(top, log_probs.topk(5).values, atol=1e-5)
        assert np.allclose(store.tail[rows], 1 - top.exp().sum(-1), atol=1e-5)


def test_a_small_tail_keeps_its_digits() -> None:
    logits = torch.tensor([[40.0, 20.0, 0.0, 1.0]])
    _, ids, tail, true = teachers.summarise(logits, torch.tensor([2]), 2)
    assert ids.tolist() == [[0, 1]]
    assert float(tail[0]) == pytest.approx(float(np.exp(-40) + np.exp(-39)), rel=1e-5)
    assert float(true[0]) == pytest.approx(-40)


def test_a_store_takes_at_most_50_bytes_a_token(model: Path, tmp_path: Path) -> None:
    store = teachers.write_store(model, DOCUMENTS, 10, tmp_path, nothing)
    assert sum(array[0].nbytes for array in (store.ids, store.log_probs, store.tail, store.true)) <= 50


class Stopped(Exception):
    pass


def test_a_stopped_pass_goes_on_where_it_was(
    model: Path, store: teachers.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "FORWARD", 64)
    monkeypatch.setattr(teachers, "BLOCK", 2)

    def stop(done: int, total: int) -> None:
        if done >= total // 2:
            raise Stopped

    with pytest.raises(Stopped):
        teachers.write_store(model, DOCUMENTS, 5, tmp_path, stop)
    with pytest.raises(FusionError, match="no finished store"):
        teachers.open_store(tmp_path, teachers.identify(model, DOCUMENTS, 5))
    seen: list[int] = []
    again = teachers.write_store(model, DOCUMENTS, 5, tmp_path, lambda done, total: seen.append(done))
    assert again.meta["rows"] // 2 < seen[0] < seen[-1] == again.meta["rows"]
    assert (again.ids == store.ids).all()
    assert np.allclose(again.true, store.true, atol=1e-5)


def test_a_finished_store_is_read_without_the_model(model: Path, store: teachers.Store, monkeypatch) -> None:
    monkeypatch.setattr(teachers, "load", None)
    again = teachers.write_store(model, DOCUMENTS, 5, store.folder, nothing)
    assert (again.log_probs == store.log_probs).all()


@pytest.mark.parametrize("key", ["model", "tokenizer", "corpus", "top_k"])
def test_a_store_of_something_else_is_refused(model: Path, tmp_path: Path, key: str) -> None:
    teachers.write_store(model, DOCUMENTS, 5, tmp_path, nothing)
    meta = json.loads((tmp_path / teachers.META).read_text())
    (tmp_path / teachers.META).write_text(json.dumps({**meta, key: "other"}))
    with pytest.raises(FusionError, match=f"made with another {key};"):
        teachers.write_store(model, DOCUMENTS, 5, tmp_path, nothing)


def test_another_corpus_is_refused(model: Path, store: teachers.Store) -> None:
    with pytest.raises(FusionError, match="made with another corpus;"):
        teachers.write_store(model, DOCUMENTS[1:], 5, store.folder, nothing)


def test_top_k_beyond_the_vocabulary(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="top_k must be less, and is 5000"):
        teachers.write_store(model, DOCUMENTS, 5000, tmp_path, nothing)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        teachers.load(tmp_path)
