"""The builders: a fusion beside its control."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fusion import corpus, new_model, teachers, train
from fusion.builders import BUILDERS
from fusion.builders.builder import Work
from fusion.errors import FusionError, RecipeError
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
        tokenizer = new_model.train_tokenizer([corpus.text_of(document) for document in DOCUMENTS], size)
        model = new_model.new_model(architecture, {"width": 32, "layers": 1, "heads": 2, "context": 32}, tokenizer, 1)
        settings = train.Settings(steps=steps, batch_size=4, learning_rate=0.01, context=32, loss="answers")
        train.train(
            model, tokenizer, DOCUMENTS, settings, folder / "model", folder / "scratch", lambda done, total: None
        )
        made[name] = folder / "model"
    return made


def quiet(done: int, total: int) -> None:
    pass


def run(name: str, models, folder: Path, documents=DOCUMENTS, progress=quiet, seed=7, **given):
    builder = BUILDERS[name]
    known = {row["name"] for row in describe(builder.Params)}
    values, problems = fill(builder.Params, {key: value for key, value in {**TINY, **given}.items() if key in known})
    assert not problems
    params = build(builder.Params, values)
    taught_by = [models[teacher] for teacher in given.get("by", ["teacher"])]
    roles = {"target": models["target"], **{f"teacher.{i}": model for i, model in enumerate(taught_by)}}
    stores = []
    for together in builder.readings(params, len(taught_by)):
        stores.append(folder / " ".join(together))
        teachers.write_store([roles[role] for role in together], documents, params.top_k, stores[-1], quiet)
    uses_teachers = any(role.name == "teachers" for role in builder.roles)
    return builder.run(
        Work(
            params=params,
            target=models["target"],
            teachers=tuple(taught_by) if uses_teachers else (),
            documents=documents,
            stores=tuple(stores),
            seed=seed,
            out=folder / "out",
            scratch=folder / "scratch",
            progress=progress,
        )
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
    assert [name for name in report["alignment"]["sources"]] == ["target", "teacher.0"]
    assert 0 < report["alignment"]["aligned"] <= 1
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "curves.jsonl").read_text().splitlines()]
    assert {"step", "loss", "clm", "fusion", "aligned", "learning_rate", "tokens", "wall"} == set(lines[-1])
    again = run("fusellm", models, tmp_path / "again", fusion=fusion)
    assert weights(tmp_path / "again") == weights(tmp_path)
    assert {**again, "wall": 0} == {**report, "wall": 0}


def test_a_fusion_that_was_stopped_goes_on(models, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 0.7 * total:
            raise Stopped

    with pytest.raises(Stopped):
        run("fusellm", models, tmp_path / "broken", progress=stop)
    run("fusellm", models, tmp_path / "broken")
    run("fusellm", models, tmp_path / "whole")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_what_cannot_be_fused_is_refused(models, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least one teacher"):
        run("fusellm", models, tmp_path, by=[])
    with pytest.raises(RecipeError, match="at least one teacher"):
        run("partitioned_kl", models, tmp_path, by=[])
    with pytest.raises(RecipeError, match="two teachers or more; found 1"):
        run("feddf", models, tmp_path)
    with pytest.raises(RecipeError, match="steps 6 and epochs 2: give one"):
        run("clm", models, tmp_path, epochs=2)
    with pytest.raises(RecipeError, match="aligns by min_ed or exact"):
        run("fusellm", models, tmp_path, compat="fusellm-v1")


def test_a_store_of_another_text_is_refused(models, tmp_path: Path) -> None:
    builder = BUILDERS["self_distillation"]
    params = build(builder.Params, fill(builder.Params, TINY)[0])
    other = [{"text": "red and one is red."}]
    teachers.write_store([models["target"]], other, params.top_k, tmp_path / "store", lambda done, total: None)
    work = Work(
        params, models["target"], (), DOCUMENTS, (tmp_path / "store",), 7, tmp_path / "o", tmp_path / "s", print
    )
    with pytest.raises(FusionError, match="another corpus"):
        builder.run(work)


def test_self_distillation_stays_nearer_to_the_model_than_the_text_alone(models, tmp_path: Path) -> None:
    run("self_distillation", models, tmp_path / "self", **{"lambda": 0.0})
    run("clm", models, tmp_path / "clm")
    assert distance(tmp_path / "self" / "out", models["target"]) < distance(tmp_path / "clm" / "out", models["target"])
    report = run("self_distillation", models, tmp_path / "half", **{"lambda": 0.5})
    assert report["alignment"]["aligned"] == 1


def distance(a: Path, b: Path) -> float:
    """Between two models' weights."""
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return sum(float((first[name] - second[name]).pow(2).sum()) for name in first) ** 0.5


def test_feddf_is_taught_by_the_mean_of_the_logits(models, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="tokenizer"):
        run("feddf", models, tmp_path, by=["teacher", "target"])
    report = run("feddf", models, tmp_path, by=["target", "target"], top_k=8)
    alone = run("self_distillation", models, tmp_path / "alone", top_k=8, **{"lambda": 0.0})
    assert report["fusion"] == pytest.approx(alone["fusion"])
    assert weights(tmp_path) == weights(tmp_path / "alone")


def test_partitioned_kl_takes_each_token_from_whoever_is_surer_of_it(models, tmp_path: Path) -> None:
    report = run("partitioned_kl", models, tmp_path, steps=60)
    taught = {name: source["weight_of_positions"] for name, source in report["alignment"]["sources"].items()}
    assert taught["teacher.0"] > 0.5 and taught["target"] > 0
    assert first_words_right(tmp_path / "out") > 0.8


def test_the_table() -> None:
    for name, builder in BUILDERS.items():
        assert builder.name == name
        assert builder.roles[0].name == "target"
        assert builder.control in (None, "clm")
    assert {row["name"] for row in describe(BUILDERS["fusellm"].Params)} >= {"lambda", "self", "fusion", "top_k"}
    assert not fill(BUILDERS["fusellm"].Params, {})[1]
    assert fill(BUILDERS["fusellm"].Params, {"lambda": 1.5})[1]
