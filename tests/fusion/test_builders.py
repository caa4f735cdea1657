"""The builders: a fusion beside its control."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from fusion import corpus, teachers, train
from fusion.builders import BUILDERS
from fusion.errors import RecipeError
from fusion.params import build, describe, fill

PAIRS = [(a, b) for a in ("red", "green", "blue") for b in ("one", "two", "three")]
DOCUMENTS = [{"prompt": f"{a} and {b} is", "answer": f" {b} {a}."} for a, b in PAIRS]
TINY = {"steps": 6, "batch_size": 2, "context": 32, "learning_rate": 0.01, "top_k": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, architecture, size, steps in [("target", "llama", 280, 4), ("teacher", "gpt_neox", 266, 60)]:
        folder = tmp_path_factory.mktemp(name)
        tokenizer = train.train_tokenizer([corpus.text_of(document) for document in DOCUMENTS], size)
        model = train.new_model(architecture, {"width": 16, "layers": 1, "heads": 2, "context": 32}, tokenizer, 1)
        settings = train.Settings(steps=steps, batch_size=4, learning_rate=0.02, context=32)
        train.train(
            model, tokenizer, DOCUMENTS, settings, folder / "model", folder / "scratch", lambda done, total: None
        )
        made[name] = folder / "model"
    return made


def run(name: str, models, folder: Path, documents=DOCUMENTS, progress=lambda done, total: None, seed=7, **given):
    builder = BUILDERS[name]
    known = {row["name"] for row in describe(builder.Params)}
    values, problems = fill(builder.Params, {key: value for key, value in {**TINY, **given}.items() if key in known})
    assert not problems
    roles = {"target": models["target"], "teachers": [models["teacher"]]}
    return builder.run(
        build(builder.Params, values), roles, documents, seed, folder / "out", folder / "scratch", progress
    )


def weights(folder: Path) -> bytes:
    return (folder / "out" / "model.safetensors").read_bytes()


def test_with_lambda_1_a_fusion_is_its_control_bit_for_bit(models, tmp_path: Path) -> None:
    run("clm", models, tmp_path / "clm")
    run("fusellm", models, tmp_path / "one", **{"lambda": 1.0})
    run("fusellm", models, tmp_path / "half", **{"lambda": 0.5})
    assert weights(tmp_path / "one") == weights(tmp_path / "clm")
    assert weights(tmp_path / "half") != weights(tmp_path / "clm")
    run("clm", models, tmp_path / "other", seed=8)
    assert weights(tmp_path / "other") != weights(tmp_path / "clm")


def test_distillation_alone_teaches_what_the_text_has_wrong(models, tmp_path: Path) -> None:
    wrong = [{**document, "answer": " red red."} for document in DOCUMENTS]
    more = {"lambda": 0.0, "self": False, "steps": 40, "fallback": "drop"}
    mixed = DOCUMENTS + wrong
    run("fusellm", models, tmp_path / "fused", mixed, **more)
    run("clm", models, tmp_path / "clm", mixed, steps=40)
    losses = {}
    for name in ("fused", "clm"):
        model, tokenizer = teachers.load(tmp_path / name / "out")
        tokens = corpus.encode(tokenizer, DOCUMENTS)
        rows = corpus.make_rows(tokens, 32, "answers", 4, 0, tokenizer.pad_token_id, about=lambda index: {})
        batch = rows(range(4))
        with torch.inference_mode():
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        losses[name] = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1)[batch["at"]], batch["target"]))
    assert losses["fused"] < losses["clm"]


@pytest.mark.parametrize("fusion", ["min_ce", "avg_ce"])
def test_a_fusion_reports_its_alignment_and_writes_a_model(models, tmp_path: Path, fusion: str) -> None:
    seen: list[tuple[int, int]] = []
    report = run("fusellm", models, tmp_path, fusion=fusion, progress=lambda done, total: seen.append((done, total)))
    assert [name for name in report["alignment"]["sources"]] == ["target", "teacher 1"]
    assert 0 < report["alignment"]["aligned"] <= 1
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "curves.jsonl").read_text().splitlines()]
    assert {"step", "loss", "clm", "fusion", "learning_rate", "tokens", "wall"} == set(lines[-1])
    again = run("fusellm", models, tmp_path / "again", fusion=fusion)
    assert weights(tmp_path / "again") == weights(tmp_path)
    assert {**again, "wall": 0} == {**report, "wall": 0}


def test_a_fusion_that_was_stopped_goes_on(models, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == total - 2:
            raise Stopped

    with pytest.raises(Stopped):
        run("fusellm", models, tmp_path / "broken", progress=stop)
    run("fusellm", models, tmp_path / "broken")
    run("fusellm", models, tmp_path / "whole")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_what_cannot_be_fused_is_refused(models, tmp_path: Path) -> None:
    builder = BUILDERS["fusellm"]
    params = build(builder.Params, fill(builder.Params, TINY)[0])
    with pytest.raises(RecipeError, match="at least one teacher"):
        builder.run(params, {"target": models["target"]}, DOCUMENTS, 0, tmp_path, tmp_path, lambda done, total: None)
    with pytest.raises(RecipeError, match="the target has only 280 tokens"):
        run("fusellm", models, tmp_path, top_k=280)


def test_the_table() -> None:
    for name, builder in BUILDERS.items():
        assert builder.name == name
        assert builder.roles[0].name == "target"
    assert {row["name"] for row in describe(BUILDERS["fusellm"].Params)} >= {"lambda", "self", "fusion", "top_k"}
    assert not fill(BUILDERS["fusellm"].Params, {})[1]
    assert fill(BUILDERS["fusellm"].Params, {"lambda": 1.5})[1]
