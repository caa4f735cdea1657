"""The store of what models say about a corpus."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fusion import bits, corpus, jsonl, new_model, reading, teachers
from fusion.errors import CheckpointError, FusionError

DOCUMENTS = [{"text": f"{a} and {b} is {a}{b}"} for a in ("red", "blue", "1") for b in ("two", "three", "4")] * 2
DOCUMENTS += [{"text": "a long one " * 6}, {"prompt": "red is", "answer": " blue"}, {"text": ""}]
FILES = (teachers.TOP, teachers.TRUE)


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return new_model.train_tokenizer([corpus.text_of(document) for document in DOCUMENTS], 270)


def save(folder: Path, tokenizer: Any, architecture: str = "gpt_neox", seed: int = 3) -> Path:
    sizes = {"width": 16, "layers": 2, "heads": 2, "context": 32}
    new_model.new_model(architecture, sizes, tokenizer, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teacher"), tokenizer)


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> teachers.Store:
    return teachers.write_store([model], DOCUMENTS, 5, tmp_path_factory.mktemp("store"), nothing)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, stretches and forward passes on a small corpus."""
    monkeypatch.setattr(corpus, "DOCUMENTS", 8)
    monkeypatch.setattr(teachers, "STRETCH", 60)
    monkeypatch.setattr(reading, "FORWARD", 64)
    monkeypatch.setattr(reading, "PART", 2000)


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def check_against_forward(models: list[Path], store: teachers.Store, context: int) -> None:
    """Every row of the store, from the models' forward passes over each piece of a document alone, in float64."""
    live = [teachers.load(model)[0] for model in models]
    tokens = corpus.encode(teachers.load_tokenizer(models[0]), DOCUMENTS)
    pieces = corpus.cut(tokens, context, "all")
    seen = np.zeros(len(tokens.ids), bool)
    for start, length in zip(pieces.start, pieces.length, strict=True):
        ids = torch.tensor(tokens.ids[start : start + length].astype("int64"))
        with torch.inference_mode():
            logits = torch.stack([one(ids[None], use_cache=False).logits[0, :-1].double() for one in live]).mean(0)
        log_probs = logits.log_softmax(-1)
        index = np.arange(start + 1, start + length)
        seen[index] = True
        top, best, tail = (torch.from_numpy(array) for array in (lambda a, b, c: (b, a, c))(*store.top(index)))
        assert np.allclose(store.true[index], log_probs.gather(-1, ids[1:, None])[:, 0], atol=1e-4)
        assert np.allclose(top, log_probs.gather(-1, best), atol=5e-3)
        assert np.allclose(log_probs.gather(-1, best), log_probs.topk(store.meta["top_k"]).values, atol=1e-5)
        assert np.allclose(tail.exp(), 1 - log_probs.gather(-1, best).exp().sum(-1), rtol=2e-3)
    first = tokens.starts[:-1]
    assert set(np.flatnonzero(~seen)) == set(first)
    assert not any(array.any() for array in (store.true[first], *store.top(first)))


def test_the_store_says_what_the_model_says(model: Path, store: teachers.Store) -> None:
    check_against_forward([model], store, 32)
    assert store.meta["tokens"] == len(store.true) == len(store.rows)


def _bloom(tokenizer: Any) -> Any:
    return transformers.BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=2, n_head=2)


def _mpt(tokenizer: Any) -> Any:
    # Rows of the head beyond the tokenizer, as checkpoints have them whose vocabulary is padded.
    return transformers.MptConfig(vocab_size=len(tokenizer) + 50, d_model=16, n_layers=2, n_heads=2, max_seq_len=32)


def _mamba(tokenizer: Any) -> Any:
    return transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", _bloom, _mpt, _mamba])
def test_any_architecture_is_read_as_each_document_alone(
    tokenizer: Any, tmp_path: Path, small: None, architecture: str | Callable[[Any], Any]
) -> None:
    model = tmp_path / "model"
    if isinstance(architecture, str):
        save(model, tokenizer, architecture)
    else:
        torch.manual_seed(1)
        transformers.AutoModelForCausalLM.from_config(architecture(tokenizer)).save_pretrained(model)
        tokenizer.save_pretrained(model)
    store = teachers.write_store([model], DOCUMENTS, 5, tmp_path / "store", nothing)
    check_against_forward([model], store, 32 if isinstance(architecture, str) or architecture is _mpt else 2048)
    assert store.meta["vocabulary"] == len(tokenizer) + 50 * (architecture is _mpt)


def test_several_models_are_read_by_the_mean_of_their_logits(
    tokenizer: Any, model: Path, tmp_path: Path, small: None
) -> None:
    other = save(tmp_path / "other", tokenizer, "llama", seed=5)
    store = teachers.write_store([model, other], DOCUMENTS, 5, tmp_path / "store", nothing)
    check_against_forward([model, other], store, 32)
    with pytest.raises(FusionError, match="made with another models and dtype;"):
        teachers.open_store(tmp_path / "store", [model], DOCUMENTS, 5)


def test_models_of_other_tokenizers_have_no_mean(tokenizer: Any, model: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", new_model.train_tokenizer(["no such text"], 270))
    with pytest.raises(FusionError, match="their tokenizers differ"):
        teachers.write_store([model, other], DOCUMENTS, 5, tmp_path / "store", nothing)


def test_models_of_other_vocabularies_have_no_mean(tokenizer: Any, model: Path, tmp_path: Path) -> None:
    other = transformers.AutoModelForCausalLM.from_pretrained(model)
    other.resize_token_embeddings(len(tokenizer) + 2)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(FusionError, match="as many outputs; .* has 270, .* has 272"):
        teachers.write_store([model, tmp_path / "other"], DOCUMENTS, 5, tmp_path / "store", nothing)


def test_a_tokenizer_of_another_model(tokenizer: Any, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    other = transformers.AutoModelForCausalLM.from_pretrained(model)
    other.resize_token_embeddings(260)
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(FusionError, match="gives id 2.., and there are 260 outputs"):
        teachers.write_store([tmp_path / "model"], DOCUMENTS, 5, tmp_path / "store", nothing)


def test_a_small_tail_keeps_its_digits() -> None:
    log_probs, ids, tail, true = reading.summarise(torch.tensor([[40.0, 20.0, 0.0, 1.0]]), torch.tensor([2]), 2)
    assert ids.tolist() == [[0, 1]] and log_probs.tolist() == [[0, -20]]
    assert float(tail[0]) == pytest.approx(float(np.log(np.exp(-40) + np.exp(-39))), rel=1e-6)
    assert float(true[0]) == pytest.approx(-40)


@pytest.mark.parametrize(("vocabulary", "size"), [(640, 39), (32_000, 45), (50_277, 46), (152_000, 49)])
def test_bytes_a_token(vocabulary: int, size: int) -> None:
    meta = {"vocabulary": vocabulary, "top_k": 10, "tokens": 1000}
    assert sum(teachers._sizes(meta).values()) == 1000 * size


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


class Stopped(Exception):
    pass


def failing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The at-th forward pass over the corpus fails."""
    calls = iter(range(1000))
    forward = reading.forward

    def fails(live: Any, ids: Any, **more: Any) -> Any:
        if "position_ids" in more and next(calls) == at:
            raise Stopped
        return forward(live, ids, **more)

    monkeypatch.setattr(reading, "forward", fails)


@pytest.mark.parametrize("at", [0, 1, 4, 6])
def test_a_pass_that_fails_goes_on_where_it_was(
    model: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = teachers.write_store([model], DOCUMENTS, 5, tmp_path / "whole", nothing)
    before: list[int] = []
    with monkeypatch.context() as broken, pytest.raises(Stopped):
        failing(broken, at)
        teachers.write_store([model], DOCUMENTS, 5, tmp_path / "store", lambda done, total: before.append(done))
    with pytest.raises(FusionError, match="no finished store"):
        teachers.open_store(tmp_path / "store", [model], DOCUMENTS, 5)
    after: list[int] = []
    again = teachers.write_store([model], DOCUMENTS, 5, tmp_path / "store", lambda done, total: after.append(done))
    assert (before or [0])[-1] < after[0] and after[-1] == len(DOCUMENTS)
    assert again.meta == whole.meta
    assert content(tmp_path / "store") == content(tmp_path / "whole")


@pytest.mark.parametrize("syncs", range(5))
def test_a_pass_that_stops_while_writing(
    model: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, syncs: int
) -> None:
    """Before the first note is whole, with one file of a stretch written, with both, and before its note is."""
    whole = teachers.write_store([model], DOCUMENTS, 5, tmp_path / "whole", nothing)
    calls = iter(range(1000))

    def stop(file: int) -> None:
        if next(calls) == syncs:
            raise Stopped

    with monkeypatch.context() as broken, pytest.raises(Stopped):
        broken.setattr(teachers.os, "fsync", stop)
        teachers.write_store([model], DOCUMENTS, 5, tmp_path / "store", nothing)
    again = teachers.write_store([model], DOCUMENTS, 5, tmp_path / "store", nothing)
    assert again.meta == whole.meta
    assert content(tmp_path / "store") == content(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.fusion.test_teachers import DOCUMENTS, corpus, reading, teachers
corpus.DOCUMENTS, teachers.STRETCH, reading.FORWARD, reading.PART = 8, 60, 64, 2000

def kill(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

teachers.write_store([Path(sys.argv[2])], DOCUMENTS, 5, Path(sys.argv[3]), kill)
"""


@pytest.mark.slow
def test_a_killed_pass_ends_in_the_same_bytes(model: Path, tmp_path: Path, small: None) -> None:
    whole = teachers.write_store([model], DOCUMENTS, 5, tmp_path / "whole", nothing)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(model), str(tmp_path / "store")]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    done: list[int] = []
    again = teachers.write_store([model], DOCUMENTS, 5, tmp_path / "store", lambda now, total: done.append(now))
    assert done[0] > len(DOCUMENTS) // 2
    assert again.meta == whole.meta
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_a_finished_store_is_read_without_the_model(model: Path, store: teachers.Store, monkeypatch) -> None:
    monkeypatch.setattr(teachers, "_load", None)
    for again in (
        teachers.write_store([model], DOCUMENTS, 5, store.folder, nothing),
        teachers.open_store(store.folder, [model], DOCUMENTS, 5),
    ):
        assert (again.rows == store.rows).all() and (again.true == store.true).all()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("key", ["models", "dtype", "tokenizer", "corpus", "top_k", "format"])
def test_a_store_of_something_else_is_refused(model: Path, store: teachers.Store, tmp_path: Path, key: str) -> None:
    folder = shutil.copytree(store.folder, tmp_path / "store")
    meta = json.loads((folder / teachers.META).read_text())
    (folder / teachers.META).write_text(json.dumps({**meta, key: "other"}))
    with pytest.raises(FusionError, match=f"made with another {key};"):
        teachers.write_store([model], DOCUMENTS, 5, folder, nothing)
    with pytest.raises(FusionError, match=f"made with another {key};"):
        teachers.open_store(folder, [model], DOCUMENTS, 5)


def test_another_corpus_is_refused(model: Path, store: teachers.Store) -> None:
    with pytest.raises(FusionError, match="made with another corpus;"):
        teachers.write_store([model], DOCUMENTS[1:], 5, store.folder, nothing)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [None, 0, 100, -1, 1])
def test_a_damaged_file_is_refused(
    model: Path, store: teachers.Store, tmp_path: Path, name: str, size: int | None
) -> None:
    folder = shutil.copytree(store.folder, tmp_path / "store")
    if size is None:
        (folder / name).unlink()
    else:
        os.truncate(folder / name, size if size in (0, 100) else (folder / name).stat().st_size + size)
    says = "is missing" if size is None else "holds .* bytes"
    for read in (
        lambda: teachers.open_store(folder, [model], DOCUMENTS, 5),
        lambda: teachers.write_store([model], DOCUMENTS, 5, folder, nothing),
    ):
        with pytest.raises(FusionError, match=rf"{name}: {says}, expected .*; delete"):
            read()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "done"])
def test_a_damaged_note_is_refused(model: Path, store: teachers.Store, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(store.folder, tmp_path / "store")
    if text == "done":
        meta = json.loads((folder / teachers.META).read_text())
        text = json.dumps({name: value for name, value in meta.items() if name != "done"})
    (folder / teachers.META).write_text(text)
    with pytest.raises(FusionError, match=r"meta\.json: is damaged; delete"):
        teachers.open_store(folder, [model], DOCUMENTS, 5)


def test_top_k_beyond_the_vocabulary(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="top_k must be less, and is 5000"):
        teachers.write_store([model], DOCUMENTS, 5000, tmp_path, nothing)


def test_a_corpus_of_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="empty corpus"):
        teachers.write_store([model], [], 5, tmp_path, nothing)


def test_a_corpus_with_nothing_to_predict(model: Path, tmp_path: Path) -> None:
    store = teachers.write_store([model], [{"text": ""}] * 3, 5, tmp_path, nothing)
    assert store.true.tolist() == [0, 0, 0]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        teachers.load(tmp_path)


def test_logits_that_are_not_finite(tokenizer: Any, model: Path, tmp_path: Path, small: None) -> None:
    """The model that gives them is named with the document; what came before it is kept."""
    spoilt = transformers.AutoModelForCausalLM.from_pretrained(model)
    # "long" occurs in one document alone.
    token = tokenizer("long")["input_ids"][0]
    number = next(i for i, d in enumerate(DOCUMENTS, 1) if token in tokenizer(corpus.text_of(d))["input_ids"])
    embedding = torch.nn.Parameter(spoilt.get_input_embeddings().weight.detach().clone())
    embedding.data[token] = torch.nan
    spoilt.config.tie_word_embeddings = False
    spoilt.get_input_embeddings().weight = embedding
    spoilt.save_pretrained(tmp_path / "spoilt")
    tokenizer.save_pretrained(tmp_path / "spoilt")
    models, done = [model, tmp_path / "spoilt"], [0]
    with pytest.raises(FusionError, match=f"spoilt: its logits are not finite at document {number} of the corpus"):
        teachers.write_store(models, DOCUMENTS, 5, tmp_path / "store", lambda now, total: done.append(now))
    assert 0 < done[-1] < number
    assert json.loads((tmp_path / "store" / teachers.META).read_text())["done"] == done[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def out_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Forward passes of more than `most` rows fail; returns the rows of those that were made."""
    made: list[int] = []
    forward = reading.forward

    def tight(live: Any, ids: Any, **more: Any) -> Any:
        if more and len(ids) > most:
            raise torch.OutOfMemoryError("out of memory")
        made.extend([len(ids)] if more else [])
        return forward(live, ids, **more)

    monkeypatch.setattr(reading, "forward", tight)
    return made


def test_a_batch_that_does_not_fit_is_halved(
    model: Path, store: teachers.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(reading, "FORWARD", 32 * 8)
    made = out_of_memory(monkeypatch, 2)
    with caplog.at_level(logging.WARNING):
        halved = teachers.write_store([model], DOCUMENTS, 5, tmp_path, nothing)
    assert halved.meta["batch_halved"] == 2 and set(made) <= {1, 2}
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "out of memory; going on with 4 rows of 32 tokens",
        "out of memory; going on with 2 rows of 32 tokens",
    ]
    assert np.allclose(halved.true, store.true, atol=1e-5)
    assert halved.meta == {**store.meta, "batch_halved": 2}


def test_a_row_that_does_not_fit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, 0)
    with pytest.raises(FusionError, match="one row of 32 tokens does not fit into memory"):
        teachers.write_store([model], DOCUMENTS, 5, tmp_path, nothing)


def test_memory_is_that_of_a_block(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four times the corpus about the same: tokens and what is said of them are held for a block at a time."""
    monkeypatch.setattr(corpus, "DOCUMENTS", 8)
    monkeypatch.setattr(teachers, "STRETCH", 4096)
    monkeypatch.setattr(reading, "packs", lambda live: True)

    def forward(live: Any, ids: torch.Tensor, **more: Any) -> torch.Tensor:
        return torch.zeros(*ids.shape, 270)

    monkeypatch.setattr(reading, "forward", forward)
    peaks = []
    for size in (8, 24, 96):  # the first fills caches
        path = tmp_path / f"{size}.jsonl"
        path.write_text("".join(json.dumps({"text": f"a{n} " * 400}) + "\n" for n in range(size)))
        documents = jsonl.read_jsonl(path)
        tracemalloc.start()
        try:
            store = teachers.write_store([model], documents, 5, path.with_suffix(""), nothing)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1] and peaks[2] < 8 * len(store.true)


def test_ids_are_packed_in_as_many_bits_as_the_vocabulary_needs(store: teachers.Store) -> None:
    assert bits.width(store.meta["vocabulary"]) == 9
    assert store.rows.itemsize == 6 + 10 + 2  # 5 ids of 9 bits, 5 log-probabilities, the tail's
