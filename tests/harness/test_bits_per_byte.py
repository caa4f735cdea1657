"""Bits per byte: the model's own log-probabilities, a ratio of totals with its interval, and what a text must be."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fusion.modelref import Folder
from harness import bits_per_byte, judge, stats
from harness.errors import FuseBenchError, TaskError, UsageError
from harness.evaluate import LiveModel, Settings, respond
from harness.tasks import describe_text, texts
from tests.harness.test_evaluate import write_model

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = 24
DOCUMENTS = [
    {"text": "A cat has four legs. Größe, 中文."},
    {"prompt": "How many legs has a bird? ", "answer": "two"},
    {"text": "legs " * 40},
    {"prompt": "", "answer": "A spider has eight."},
    {"prompt": "A very long question on animals. " * 4, "answer": "six\n"},
    {"prompt": "Q:", "answer": " one"},
]


def write_text(path: Path, documents: list) -> str:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_model(folder / "a", seed=1, context=CONTEXT)
    # A tokenizer that sets BOS by itself, as Llama's does.
    write_model(folder / "b", seed=1, context=CONTEXT)
    described = json.loads((folder / "b" / "tokenizer.json").read_text())
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    (folder / "b" / "tokenizer.json").write_text(json.dumps(described))
    write_text(folder / "held_out.jsonl", DOCUMENTS)
    return folder


def loaded(folder: Path) -> LiveModel:
    live = LiveModel("cpu")
    live.load(Folder(str(folder)))
    return live


def plain(live: LiveModel, document: dict) -> float:
    """-log2 p of what is scored of a document, token by token, the model called once a token."""
    tokenizer, model = live.lm.tokenizer, live.lm.model
    prompt = document.get("prompt", "")
    context, text = prompt.rstrip(), prompt[len(prompt.rstrip()) :] + document.get("text", document.get("answer", ""))
    whole = tokenizer(context + text, add_special_tokens=False)["input_ids"]
    given = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    bos = [0] if not context or tokenizer("x")["input_ids"][0] == 0 else []
    ids = bos + whole
    total = 0.0
    for at in range(len(bos) + given, len(ids)):
        # Windows of the context: whole ones one after another; the last is filled up from the left.
        if context:
            first = max(0, len(ids) - 1 - CONTEXT)
        else:
            window = (at - 1) // CONTEXT * CONTEXT
            first = window if window + CONTEXT < len(ids) else max(0, len(ids) - 1 - CONTEXT)
        logits = model(torch.tensor([ids[first:at]])).logits[0, -1].double()
        total -= torch.log_softmax(logits, -1)[ids[at]].item() / math.log(2)
    return total


@pytest.mark.parametrize("name", ["a", "b"])
def test_bits_are_those_of_a_plain_loop_over_tokens(world, name):
    live, source = loaded(world / name), str(world / "held_out.jsonl")
    responses = respond(live, source, range(len(DOCUMENTS)), Settings(batch_size=4))
    records = judge.judge(source, responses)
    for document, record, response in zip(DOCUMENTS, records, responses, strict=True):
        assert record["also"]["bits"] == pytest.approx(plain(live, document), rel=1e-5)
        assert record["score"] == record["also"]["bits"] / record["also"]["bytes"]
        assert response["truncated"] == (document is DOCUMENTS[4])
    sizes = [len(d["text"].encode()) if "text" in d else len(d["answer"]) for d in DOCUMENTS]
    # The blank that ends a prompt is read with the answer, so its byte counts, too.
    sizes[1] += 1
    sizes[4] += 1
    assert [record["also"]["bytes"] for record in records] == sizes


def test_a_tokenizer_that_sets_bos_is_not_asked_for_it_twice(world):
    source = str(world / "held_out.jsonl")
    a, b = (respond(loaded(world / name), source, [0, 2, 3], Settings(4)) for name in "ab")
    assert AutoTokenizer.from_pretrained(world / "b")("x")["input_ids"][0] == 0
    assert a == b


def test_blocks_give_what_the_whole_gives_and_twice_the_same_bytes(world):
    live, source = loaded(world / "a"), str(world / "held_out.jsonl")
    whole, again = (respond(live, source, range(6), Settings(1)) for _ in range(2))
    parts = [record for ids in ([0, 3], [5, 1], [2, 4]) for record in respond(live, source, ids, Settings(1))]
    assert json.dumps(whole) == json.dumps(again)
    assert sorted(parts, key=lambda record: record["doc_id"]) == whole


# --- texts


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", ":2: a row must be an object"),
        ("{", ":2: not JSON"),
        ('{"text": 3}', ':2: expected {"text": ...}'),
        ('{"prompt": "a"}', ':2: expected {"text": ...}'),
        ('{"text": ""}', ":2: there is nothing to score: its text is empty"),
        ('{"prompt": "a ", "answer": ""}', ":2: there is nothing to score: its answer is empty"),
        ('{"text": "\\ud800"}', ":2: is not Unicode text"),
    ],
)
def test_a_document_of_another_form_is_named_by_its_line(tmp_path, line, says):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(TaskError, match=r"text\.jsonl") as caught:
        texts.load(str(path))
    assert says in str(caught.value)


def test_an_empty_text_bytes_that_are_not_utf8_and_no_file(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    for name, says in (("empty", "holds no document"), ("latin", "is not UTF-8"), ("none", "cannot be read")):
        with pytest.raises(TaskError, match=says):
            texts.load(str(tmp_path / f"{name}.jsonl"))


def test_a_text_is_known_by_its_documents_alone(tmp_path):
    first = describe_text("text", write_text(tmp_path / "a.jsonl", DOCUMENTS))
    again = describe_text("text", write_text(tmp_path / "b.jsonl", [{**d, "id": 7} for d in DOCUMENTS]))
    other = describe_text("text", write_text(tmp_path / "c.jsonl", DOCUMENTS[:-1]))
    assert (first.digest, first.items) == (again.digest, again.items)
    assert first.digest != other.digest and len(other.items) == 5
    assert (first.kind, first.metric, first.chance) == ("text", "bits_per_byte", None)


def test_a_changed_text_is_not_judged(world, tmp_path):
    source = write_text(tmp_path / "text.jsonl", DOCUMENTS)
    responses = respond(loaded(world / "a"), source, [0], Settings(1))
    write_text(tmp_path / "text.jsonl", DOCUMENTS[1:])
    with pytest.raises(TaskError, match="the data have changed"):
        judge.judge(source, responses)


def test_the_pocket_world_s_held_out_text_is_the_same_for_every_seed():
    found = texts.load("pocket/held_out")
    assert len(found.parts) > 1000 and len(set(found.ids)) > 0.99 * len(found.ids)
    assert all(part.bytes for part in found.parts)


def test_what_a_model_cannot_be_asked_is_an_error(world, tmp_path):
    live = loaded(world / "a")
    source = write_text(tmp_path / "long.jsonl", [{"prompt": "Q:", "answer": " wow" * 40}])
    with pytest.raises(TaskError, match=r"long\.jsonl:1: the answer has \d+ tokens, the model's whole context is 24"):
        respond(live, source, [0], Settings(1))
    with pytest.raises(TaskError, match="doc_ids must differ and be below 1"):
        respond(live, source, [0, 1], Settings(1))


def test_weights_that_are_not_finite_give_no_bits(world, tmp_path):
    live = loaded(world / "a")
    with torch.no_grad():
        live.lm.model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(FuseBenchError, match="not finite"):
        respond(live, str(world / "held_out.jsonl"), [0], Settings(1))


# --- the ratio and its uncertainty


def model(rng, n: int = 400, gap: float = 0.0, seeds: int = 1, sizes=None) -> dict:
    sizes = rng.integers(5, 200, n) if sizes is None else sizes
    rate = 2 + gap + 0.3 * np.random.default_rng(5).normal(size=n) + 0.1 * rng.normal(size=(seeds, n))
    return {"text": {"bits": rate * sizes, "bytes": np.broadcast_to(sizes, (seeds, n)).astype(float)}}


def test_the_value_is_total_bits_over_total_bytes_and_its_error_that_of_the_jackknife():
    texts_ = model(np.random.default_rng(0), n=50)
    bits, sizes = (texts_["text"][key].ravel() for key in ("bits", "bytes"))
    found = bits_per_byte.estimate(texts_, "text")
    assert found.value == pytest.approx(bits.sum() / sizes.sum(), abs=1e-12) and found.n == 50
    left = [np.delete(bits, i).sum() / np.delete(sizes, i).sum() for i in range(50)]
    assert found.stderr == pytest.approx(math.sqrt(49 / 50 * np.sum((left - np.mean(left)) ** 2)), rel=1e-9)


def test_documents_of_one_length_are_plain_means():
    rng = np.random.default_rng(1)
    bits = rng.random((1, 30)) * 8
    values = bits_per_byte.values(bits, np.full((1, 30), 4.0))
    assert values == pytest.approx(bits / 4)
    assert bits_per_byte.estimate({"g": {"bits": bits, "bytes": np.full((1, 30), 4.0)}}, "g") == stats.of_task(values)


def test_the_interval_is_that_of_resampled_documents():
    rng = np.random.default_rng(2)
    sizes = rng.integers(5, 200, 300)
    a, b = model(rng, 300, sizes=sizes), model(rng, 300, gap=0.1, sizes=sizes)
    found = bits_per_byte.saved(a, b, "text")
    drawn = np.random.default_rng(3).integers(0, 300, (4000, 300))
    gap = (b["text"]["bits"] - a["text"]["bits"])[0]
    draws = gap[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    assert found.value == pytest.approx(gap.sum() / sizes.sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.002)
    assert found.p < 0.001 and found.low > 0, "needing fewer bits is better"


def test_intervals_cover_what_they_should():
    """80 worlds without a difference: the interval of a paired difference misses zero about one time in twenty."""
    missed = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(5, 200, 60)
        found = bits_per_byte.saved(model(rng, 60, sizes=sizes), model(rng, 60, sizes=sizes), "text")
        missed += not found.low <= 0 <= found.high
    assert 1 <= missed <= 10


def test_one_document_that_outweighs_all_others_proves_nothing():
    rng = np.random.default_rng(4)
    sizes = np.array([10.0] * 50 + [1e6])
    mine, other = rng.random((1, 51)) * sizes, rng.random((1, 51)) * sizes
    mine[0, -1], other[0, -1] = 1e6, 2e6
    sizes = sizes[None]
    found = bits_per_byte.saved({"g": {"bits": mine, "bytes": sizes}}, {"g": {"bits": other, "bytes": sizes}}, "g")
    assert found.value == pytest.approx(1.0, abs=1e-3)
    assert found.low < 0 and found.p > 0.05


def test_replicates_widen_the_interval_and_one_document_has_none():
    rng = np.random.default_rng(6)
    sizes = rng.integers(5, 200, 100)
    base, seeds = model(rng, 100, sizes=sizes), model(rng, 100, gap=0.2, seeds=3, sizes=sizes)
    seeds["text"]["bits"] += sizes * np.array([[-0.3], [0.0], [0.3]])
    found = bits_per_byte.saved(base, seeds, "text")
    one = bits_per_byte.saved(base, {"text": {k: v[:1] for k, v in seeds["text"].items()}}, "text")
    assert found.high - found.low > 2 * (one.high - one.low)
    single = {"g": {"bits": np.array([[8.0]]), "bytes": np.array([[4.0]])}}
    assert bits_per_byte.estimate(single, "g") == stats.Estimate(2.0, None, 1)
    with pytest.raises(TaskError, match="documents that have bytes"):
        bits_per_byte.values(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0]]))
    with pytest.raises(UsageError, match="same items"):
        bits_per_byte.saved(model(rng, 5), model(rng, 6), "text")


def test_gains_are_over_what_was_read_and_absent_otherwise():
    rng = np.random.default_rng(7)
    sizes = rng.integers(5, 200, 40)
    all_ = {"mine": model(rng, 40, -0.5, sizes=sizes), "control": model(rng, 40, sizes=sizes)}
    found = bits_per_byte.gains("mine", {"control": "control", "target": "gone", "base": None}, all_)
    assert list(found["text"]) == ["control"]
    assert found["text"]["control"]["against"] == "control"
    assert found["text"]["control"]["value"] == pytest.approx(0.5, abs=0.05)
    assert bits_per_byte.gains("gone", {"control": "control"}, all_) == {}
