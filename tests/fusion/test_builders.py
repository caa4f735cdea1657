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
    for name, architecture, size, steps in [("target", "llama", 282, 4), ("teacher", "gpt_neox", 278, 100)]:
        folder = tmp_path_factory.mktemp(name)
        tokenizer = train.train_tokenizer([corpus.text_of(document) for document in DOCUMENTS], size)
        model = train.new_model(architecture, {"width": 32, "layers": 1, "heads": 2, "context": 32}, tokenizer, 1)
        settings = train.Settings(steps=steps, batch_size=4, learning_rate=0.01, context=32, loss="answers")
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


def first_words_right(model: Path) -> float:
    """Share of the prompts after which the model's first token is the right one."""
    live, tokenizer = teachers.load(model)
    right = 0
    for document in DOCUMENTS:
        tokens = corpus.encode(tokenizer, [document])
        first = int(tokens.answer.argmax())
        with torch.inference_mode():
            logits = live(torch.tensor(tokens.ids[None, :first].astype("int64"))).logits
        right += int(logits[0, -1].argmax()) == tokens.ids[first]
    return right / len(DOCUMENTS)


def test_a_teacher_corrects_a_text_whose_answers_are_wrong(models, tmp_path: Path) -> None:
    other = {"one": "two", "two": "three", "three": "one"}
    wrong = [{"prompt": f"{a} and {b} is", "answer": f" {other[b]} {a}."} for a, b in PAIRS]
    alone = {"lambda": 0.0, "self": False, "fallback": "drop", "steps": 60}
    run("fusellm", models, tmp_path / "fused", wrong, **alone)
    run("clm", models, tmp_path / "clm", wrong, steps=60)
    assert first_words_right(models["teacher"]) == 1
    assert first_words_right(tmp_path / "clm" / "out") < 0.5
    assert first_words_right(tmp_path / "fused" / "out") > 0.8


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
    with pytest.raises(RecipeError, match="the target has only 282 tokens"):
        run("fusellm", models, tmp_path, top_k=282)


def test_the_table() -> None:
    for name, builder in BUILDERS.items():
        assert builder.name == name
        assert builder.roles[0].name == "target"
    assert {row["name"] for row in describe(BUILDERS["fusellm"].Params)} >= {"lambda", "self", "fusion", "top_k"}
    assert not fill(BUILDERS["fusellm"].Params, {})[1]
    assert fill(BUILDERS["fusellm"].Params, {"lambda": 1.5})[1]
