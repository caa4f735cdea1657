"""Models of any architecture and tokenizer, compared by what they make of texts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fusion import corpus, new_model, teachers
from fusion.errors import FusionError, RecipeError
from fusion.kinship import continuations, hidden, probe
from fusion.kinship.continuations import Continuation
from fusion.kinship.representation import linear_cka
from fusion.packing import positions

TEXTS = [f"{a} and {b} is {a}{b}." for a in ("red", "blue", "naïve") for b in ("two", "three")]
TEXTS += ["a long one " * 9, "日本 and red", "", "x"]
DOCUMENTS = [{"text": text} for text in TEXTS] + [{"prompt": "red is", "answer": " blue and two"}]
CONTEXT = 32


def nothing(done: int, total: int) -> None:
    pass


def _bloom(tokenizer: Any) -> Any:
    return transformers.BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=2, n_head=2)


def _mamba(tokenizer: Any) -> Any:
    return transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4)


Architecture = str | Callable[[Any], Any]


def save(
    folder: Path, tokenizer: Any, architecture: Architecture, seed: int = 3, width: int = 16, layers: int = 2
) -> Path:
    torch.manual_seed(seed)
    if isinstance(architecture, str):
        sizes = {"width": width, "layers": layers, "heads": 2, "context": CONTEXT}
        model = new_model.new_model(architecture, sizes, tokenizer, seed=seed)
    else:
        model = transformers.AutoModelForCausalLM.from_config(architecture(tokenizer))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Certain of something, as a trained model is.
            weight.mul_(4 if weight.ndim == 2 and "bias" not in name else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Any, Any]:
    return new_model.train_tokenizer(TEXTS, 300), new_model.train_tokenizer(["and is red blue long"] * 3, 268)


@pytest.fixture(scope="module")
def models(tokenizers: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Other widths, depths, architectures and tokenizers, and one of them twice."""
    folder = tmp_path_factory.mktemp("models")
    one, other = tokenizers
    found = {
        "llama": save(folder / "llama", one, "llama"),
        "gpt2": save(folder / "gpt2", one, "gpt2", seed=4, width=24, layers=4),
        "neox": save(folder / "neox", other, "gpt_neox", seed=5),
    }
    shutil.copytree(found["llama"], folder / "twin")
    return {**found, "twin": folder / "twin"}


@pytest.fixture(scope="module")
def probes(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("probes")
    for name, model in models.items():
        probe.write_probe(model, DOCUMENTS, folder / name, probe.MEASURES, 11, nothing)
    return {name: folder / name for name in models}


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# ------------------------------------------------------------------------------------------------------------- features


def plain_features(live: Any, tokenizer: Any, text: str) -> np.ndarray | None:
    """The mean over a text's bytes of the state of the token that each belongs to, piece by piece, one text alone."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    context = CONTEXT if hasattr(live.config, "max_position_embeddings") else len(ids)
    total, size, read = 0, 0, 0
    for first in range(0, len(ids), max(context, 1)):
        with torch.inference_mode():
            out = live(torch.tensor([ids[first : first + context]]), output_hidden_states=True, use_cache=False)
        states = torch.stack(out.hidden_states[1:])[:, 0].double().numpy()
        for at in range(states.shape[1]):
            own = len(text[: ends[first + at]].encode()) - read
            read += own
            if at:
                total, size = total + own * states[:, at], size + own
    return total / size if size else None


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", _bloom, _mamba])
def test_features_are_those_of_each_text_alone(
    tokenizers: tuple[Any, Any], tmp_path: Path, architecture: Architecture
) -> None:
    model = save(tmp_path / "model", tokenizers[0], architecture)
    probe.write_probe(model, DOCUMENTS, tmp_path / "probe", ["cka"], 0, nothing)
    features = np.load(tmp_path / "probe" / "features.npy")
    read = np.load(tmp_path / "probe" / "read.npy")
    assert features.dtype == np.float32 and features.shape == (2, len(DOCUMENTS), 16)
    live, tokenizer = teachers.load(model)
    for number, document in enumerate(DOCUMENTS):
        expected = plain_features(live, tokenizer, corpus.text_of(document))
        assert read[number] == (expected is not None)
        if expected is not None:
            assert np.allclose(features[:, number], expected, atol=2e-5, rtol=1e-4)
        else:
            assert not features[:, number].any()
    assert read.tolist().count(False) == 2


def test_padding_and_batches_do_not_matter(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at_once in (1, 70, 1 << 13):
        monkeypatch.setattr(hidden, "FORWARD", at_once)
        probe.write_probe(models["gpt2"], DOCUMENTS, tmp_path / str(at_once), ["cka"], 0, nothing)
        found.append(np.load(tmp_path / str(at_once) / "features.npy"))
    assert all(np.allclose(found[0], other, atol=1e-5) for other in found[1:])


def test_a_bos_is_no_text(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    """With a BOS the first word's token is no longer first and counts; the BOS itself never does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = new_model.train_tokenizer(TEXTS, 300)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    model = save(tmp_path / "model", tokenizer, "llama")
    probe.write_probe(model, [{"text": "red"}, {"text": ""}], tmp_path / "probe", ["cka"], 0, nothing)
    live, _ = teachers.load(model)
    ids = tokenizer("red")["input_ids"]
    assert ids[0] == tokenizer.eos_token_id
    with torch.inference_mode():
        states = live(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]
    sizes = np.asarray([len(tokenizer.decode([i])) for i in ids[1:]])
    expected = [np.average(state[0, 1:].numpy(), axis=0, weights=sizes) for state in states]
    assert np.allclose(np.load(tmp_path / "probe" / "features.npy")[:, 0], expected, atol=1e-5)
    assert np.load(tmp_path / "probe" / "read.npy").tolist() == [True, False]


def test_states_that_are_not_finite_are_named(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    model = save(tmp_path / "model", tokenizers[0], "llama")
    live, tokenizer = teachers.load(model)
    with torch.no_grad():
        live.get_input_embeddings().weight[tokenizer("日本")["input_ids"][0]] = torch.nan
    live.save_pretrained(model)
    with pytest.raises(FusionError, match=r"model: its hidden states are not finite in layer 1 at document 8; "):
        probe.write_probe(model, DOCUMENTS, tmp_path / "probe", ["cka"], 0, nothing)
    assert not (tmp_path / "probe" / "features.npy").exists()


def test_a_tokenizer_of_another_model_is_refused(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    model = save(tmp_path / "model", tokenizers[1], "llama")
    tokenizers[0].save_pretrained(model)
    with pytest.raises(FusionError, match="and the model knows 268; the tokenizer is another model's"):
        probe.write_probe(model, DOCUMENTS, tmp_path / "probe", ["cka"], 0, nothing)


# -------------------------------------------------------------------------------------------------------- continuations


def test_a_text_is_continued_from_its_prompt_or_its_first_half() -> None:
    assert continuations.opening({"prompt": "red is", "answer": " blue"}) == "red is"
    assert continuations.opening({"text": "one two three four"}) == "one two"
    assert continuations.opening({"text": "one two three"}) == "one two"
    assert continuations.opening({"text": "onetwothree"}) == "onetwo"
    assert continuations.opening({"text": "x"}) == "x"
    assert continuations.opening({"prompt": "", "answer": "one two"}) == "one"
    assert continuations.opening({"text": ""}) == ""


def certain(folder: Path, tokenizer: Any, architecture: Architecture) -> Path:
    """A model so sure of each next token that drawing one is taking the likeliest."""
    model = save(folder, tokenizer, architecture)
    live, _ = teachers.load(model)
    head = torch.nn.Linear(live.get_output_embeddings().in_features, len(tokenizer), bias=False)
    with torch.no_grad():
        head.weight.copy_(1e4 * live.get_output_embeddings().weight)
    live.config.tie_word_embeddings = False
    live.set_output_embeddings(head)
    live.save_pretrained(model)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", _bloom, _mamba])
def test_a_continuation_does_not_depend_on_those_beside_it(
    tokenizers: tuple[Any, Any], tmp_path: Path, architecture: Architecture
) -> None:
    live, tokenizer = teachers.load(certain(tmp_path / "model", tokenizers[0], architecture))
    documents = [*DOCUMENTS[5:], {"text": "1234" * 15}]
    prompts = [continuations.opening(document) for document in documents]
    continuations.write_continuations(live, tokenizer, documents, tmp_path / "all", 1, nothing)
    lines = [json.loads(line) for line in (tmp_path / "all").read_text().splitlines()]
    assert [line is None for line in lines] == [not prompt for prompt in prompts]
    most = min(32, (positions(live) or 2048) // 2)
    for prompt, line in zip(prompts, lines, strict=True):
        if line is None:
            continue
        ids = tokenizer(prompt)["input_ids"][-((positions(live) or 2048) - most) :]
        said: list[int] = []
        while len(said) < most and tokenizer.eos_token_id not in said:
            with torch.inference_mode():
                said.append(int(live(torch.tensor([ids + said]), use_cache=False).logits[0, -1].argmax()))
        ended = said[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(said[: len(said) - ended], skip_special_tokens=True)
        whole = text.partition("\ufffd")[0]
        assert (line["answer"], line["ended"]) == (whole, ended and whole == text)
        assert line["prompt"] == tokenizer.decode(ids) and (len(ids) == 16 or line["prompt"] == prompt)


def test_what_a_model_says_is_drawn_from_its_own_distribution(models: dict[str, Path], tmp_path: Path) -> None:
    """Whatever its checkpoint asks a generation to do; and from nothing but the seed."""
    model = shutil.copytree(models["llama"], tmp_path / "model")
    settings = {"do_sample": True, "temperature": 0.01, "top_k": 1, "repetition_penalty": 9.0, "min_new_tokens": 9}
    (model / "generation_config.json").write_text(json.dumps(settings))
    found = []
    for number, (folder, seed) in enumerate([(models["llama"], 1), (model, 1), (models["llama"], 2)]):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        live, tokenizer = teachers.load(folder)
        continuations.write_continuations(live, tokenizer, DOCUMENTS, tmp_path / str(number), seed, nothing)
        assert torch.equal(torch.get_rng_state(), before)
        found.append((tmp_path / str(number)).read_bytes())
    assert found[0] == found[1] != found[2]


def test_tokens_are_drawn_as_often_as_they_are_likely(models: dict[str, Path]) -> None:
    live, tokenizer = teachers.load(models["neox"])
    ids = tokenizer("red")["input_ids"]
    with torch.inference_mode():
        log_probs = live(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = continuations._draw(live, tokenizer, [ids] * 4000, 1)[:, 0]
    entropy = -(log_probs.exp() * log_probs).sum()
    deviation = ((log_probs.exp() * (log_probs + entropy) ** 2).sum() / 4000).sqrt()
    assert abs(-log_probs[drawn].mean() - entropy) < 4 * deviation


def test_bytes_that_are_no_text_end_a_continuation(tokenizers: tuple[Any, Any]) -> None:
    tokenizer = tokenizers[1]
    from fusion.vocabulary import read_vocabulary

    vocabulary, eos = read_vocabulary(tokenizer), tokenizer.eos_token_id
    ids = tokenizer("ab é")["input_ids"]
    made = continuations._continuation
    assert made(vocabulary, eos, "p", [*ids, eos, eos]) == Continuation("p", "ab é", True)
    assert made(vocabulary, eos, "p", ids) == Continuation("p", "ab é", False)
    assert made(vocabulary, eos, "p", [*ids[:-1], eos]) == Continuation("p", "ab ", False)
    assert made(vocabulary, eos, "p", [tokenizer.pad_token_id, *ids, 10**6]) == Continuation("p", "ab é", False)
    assert made(vocabulary, eos, "p", [eos]) == Continuation("p", "", True)


def test_bits_are_those_of_what_was_said_alone(models: dict[str, Path]) -> None:
    live, tokenizer = teachers.load(models["llama"])
    said = [Continuation("red is", " blue", True), Continuation("blue is", " two and two", False)]
    said += [Continuation("a long one " * 9, " and 日本", False), Continuation("red", "", True)]
    nats = 0.0
    for one in said:
        ids = [*tokenizer(one.prompt + one.answer)["input_ids"], tokenizer.eos_token_id]
        before = len(tokenizer(one.prompt)["input_ids"])
        pieces = range(0, len(ids) - 1, CONTEXT - 1)
        with torch.inference_mode():
            rows = [live(torch.tensor([ids[i : i + CONTEXT]])).logits[0].double().log_softmax(-1) for i in pieces]
        for at in range(before, len(ids) - (not one.ended)):
            piece, place = divmod(at - 1, CONTEXT - 1)
            nats -= float(rows[piece][place, ids[at]])
    size = sum(len(one.answer.encode()) for one in said)
    found = continuations.bits_per_byte("llama", live, tokenizer, said)
    assert found == pytest.approx(nats / np.log(2) / size, rel=1e-5)
    assert np.isnan(continuations.bits_per_byte("llama", live, tokenizer, [Continuation("red", "", True)]))


# --------------------------------------------------------------------------------------------------------------- probes


def test_the_same_inputs_give_the_same_bytes(models: dict[str, Path], probes: dict[str, Path], tmp_path: Path) -> None:
    for name in ("twin", "neox"):
        probe.write_probe(models[name], DOCUMENTS, tmp_path / name, probe.MEASURES, 11, nothing)
    assert content(probes["llama"]) == content(probes["twin"]) == content(tmp_path / "twin")
    assert content(probes["neox"]) == content(tmp_path / "neox") != content(probes["twin"])
    assert sorted(content(tmp_path / "neox")) == [
        "continuations.jsonl", "features.npy", "probe.json", "read.npy", "said/meta.json", "said/top.bin",
        "said/true.bin",
    ]  # fmt: skip


def test_what_is_finished_is_not_made_again(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "probe"
    probe.write_probe(models["llama"], DOCUMENTS, folder, ["cka"], 11, lambda *at: seen.append(at))
    assert seen[-1] == (11, 11) and seen == sorted(seen)
    before = content(folder)
    monkeypatch.setitem(probe._WRITE, "features", lambda *given: pytest.fail("read again"))
    probe.write_probe(models["llama"], DOCUMENTS, folder, ["data_kernel", "cka"], 11, nothing)
    assert content(folder) == before
    seen.clear()
    probe.write_probe(
        models["llama"], DOCUMENTS, folder, ["cka", "js", "cross_likelihood"], 11, lambda *at: seen.append(at)
    )
    assert {total for _, total in seen} == {22} and seen[-1] == (22, 22) and seen == sorted(seen)
    assert before.items() - content(folder).items() == {("probe.json", before["probe.json"])}


def test_a_killed_probe_is_made_to_its_end(
    models: dict[str, Path], probes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "probe"
    monkeypatch.setattr(hidden, "FORWARD", 40)
    with pytest.raises(KeyboardInterrupt):
        probe.write_probe(models["twin"], DOCUMENTS, folder, probe.MEASURES, 11, killed)
    with pytest.raises(FusionError, match="holds no finished probe for cka; make it with write_probe"):
        probe.relate({"twin": models["twin"], "b": models["twin"]}, DOCUMENTS, {"twin": folder, "b": folder}, ["cka"])
    monkeypatch.undo()
    probe.write_probe(models["twin"], DOCUMENTS, folder, probe.MEASURES, 11, nothing)
    assert content(folder) == content(probes["twin"])


def test_a_probe_of_something_else_is_refused(models: dict[str, Path], probes: dict[str, Path]) -> None:
    made = probes["llama"]
    for model, documents, seed, what in (
        (models["gpt2"], DOCUMENTS, 11, "model"),
        (models["llama"], DOCUMENTS[:3], 11, "corpus"),
        (models["llama"], DOCUMENTS, 12, "seed"),
    ):
        with pytest.raises(FusionError, match=f"made with another {what}; give another folder"):
            probe.write_probe(model, documents, made, ["cka"], seed, nothing)
    two = {"llama": models["llama"], "gpt2": models["gpt2"]}
    with pytest.raises(FusionError, match="made with another model;"):
        probe.relate(two, DOCUMENTS, {"llama": probes["gpt2"], "gpt2": probes["llama"]}, ["cka"])
    with pytest.raises(FusionError, match="made with another corpus;"):
        probe.relate(two, DOCUMENTS[1:], probes, ["cka"])
    with pytest.raises(FusionError, match="gpt2: has no probe"):
        probe.relate(two, DOCUMENTS, {"llama": made}, ["cka"])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"parts": 3}'])
def test_a_damaged_probe_is_named(models: dict[str, Path], tmp_path: Path, text: str) -> None:
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(FusionError, match=r"is damaged|made with another"):
        probe.write_probe(models["llama"], DOCUMENTS, tmp_path, ["cka"], 11, nothing)


def test_measures_that_are_none_of_texts_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'capa' is no measure of texts"):
        probe.write_probe(models["llama"], DOCUMENTS, tmp_path, ["capa"], 0, nothing)
    with pytest.raises(RecipeError, match="'cka2' is no measure of texts: did you mean 'cka'"):
        probe.relate(models, DOCUMENTS, {}, ["cka2"])
    with pytest.raises(RecipeError, match="got 1, give two or more"):
        probe.relate({"llama": models["llama"]}, DOCUMENTS, {}, ["cka"])
    with pytest.raises(FusionError, match="no document"):
        probe.write_probe(models["llama"], [], tmp_path, ["cka"], 0, nothing)


# ------------------------------------------------------------------------------------------------------------ relations


def test_models_of_any_kind_are_compared(models: dict[str, Path], probes: dict[str, Path]) -> None:
    rows = probe.relate(models, DOCUMENTS, probes, probe.MEASURES)
    assert [(row["a"], row["b"]) for row in rows] == [
        ("llama", "gpt2"), ("llama", "neox"), ("llama", "twin"), ("gpt2", "neox"), ("gpt2", "twin"), ("neox", "twin"),
    ]  # fmt: skip
    by = {(row["a"], row["b"]): row for row in rows}
    same = by["llama", "twin"]
    assert same["cka"] == pytest.approx(1, abs=1e-12) and same["data_kernel"] == pytest.approx(0, abs=1e-6)
    assert same["js"] == same["cross_likelihood"] == 0 and same["aligned"] == 1 and same["moved"] == []
    for pair, row in by.items():
        assert "status" not in row and row["texts"] == 9
        if pair != ("llama", "twin"):
            assert row["cka"] < 1 and row["data_kernel"] > 0 and 0 < row["js"] <= 1 and row["cross_likelihood"] > 0
        assert (row["aligned"] == 1) == ("neox" not in pair)
        assert list(row["layers"]) == ["0", "1"]
    mixed, swapped = by["llama", "gpt2"], by["gpt2", "twin"]
    for name in probe.MEASURES:
        assert mixed[name] == pytest.approx(swapped[name], rel=1e-6)
    first, second = (
        np.load(probes[name] / "features.npy")[:, np.load(probes[name] / "read.npy")] for name in ("llama", "gpt2")
    )
    expected = [linear_cka(first[0], second[1]), linear_cka(first[1], second[3])]
    assert [layer["cka"] for layer in mixed["layers"].values()] == expected
    assert mixed["cka"] == np.mean(expected)
    json.dumps(rows, allow_nan=False)


def test_only_what_is_asked_is_found(models: dict[str, Path], probes: dict[str, Path]) -> None:
    two = {name: models[name] for name in ("llama", "neox")}
    (row,) = probe.relate(two, DOCUMENTS, probes, ["js"])
    assert set(row) == {"a", "b", "js", "aligned"}
    (row,) = probe.relate(two, DOCUMENTS, probes, ["data_kernel"])
    assert set(row) == {"a", "b", "data_kernel", "moved", "texts"}


def test_what_is_undefined_has_a_reason(models: dict[str, Path], tmp_path: Path) -> None:
    two = {name: models[name] for name in ("llama", "neox")}
    documents = [{"text": "red and blue"}, {"text": "x"}]
    folders = {name: tmp_path / name for name in two}
    for name, model in two.items():
        probe.write_probe(model, documents, folders[name], ["cka", "data_kernel"], 0, nothing)
    (row,) = probe.relate(two, documents, folders, ["cka", "data_kernel"])
    assert row["cka"] is row["data_kernel"] is None and row["texts"] == 1 and "moved" not in row
    assert row["status"].startswith("cka: needs 4 texts") and "; data_kernel: needs 8 texts" in row["status"]
    silent = [{"text": ""}, {"text": ""}]
    folders = {name: tmp_path / f"{name} silent" for name in two}
    for name, model in two.items():
        probe.write_probe(model, silent, folders[name], ["cross_likelihood", "js"], 0, nothing)
    (row,) = probe.relate(two, silent, folders, ["cross_likelihood", "js"])
    assert row["cross_likelihood"] is None and row["js"] is None and row["aligned"] == 0
    assert "cross_likelihood: 'llama' and 'neox' said nothing after any text" in row["status"]
