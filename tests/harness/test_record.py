"""A row of the record beside scores: the control that was tuned as hard, bits per byte, trainings and their cost."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness import record, runs
from harness import suite as suites
from harness.blocks import SCORES, write_block
from harness.compare import compare, table
from harness.described import describe, warnings, write_curves
from harness.drive import Progress
from harness.errors import UsageError
from harness.facts import LIBRARIES, Facts, FolderFacts
from harness.job import Input, Job
from harness.plan import plan
from harness.record import tuned_control
from harness.spec import Candidate, Source
from harness.store import Entry
from harness.tasks import describe_text

LAMBDA, LEARNING = (0.1, 0.5), (1e-4, 1e-3)


def scores(value: float) -> dict:
    return {"g": {"t": np.full((1, 4), value)}}


def control(name: str, rate: float, steps: int = 5, **more) -> Candidate:
    params = {"learning_rate": rate, "steps": steps}
    return Candidate(name=name, method="clm", kind="trained", params=params, target="base", is_control=True, **more)


@pytest.fixture
def models() -> dict:
    """A row swept over lambda and learning rate, its two controls, and another row's control."""
    found = {f"c{rate}": control(f"c{rate}", rate, row="fused.control") for rate in LEARNING}
    found["longer"] = control("longer", 1e-4, steps=9, row="other.control")
    for lambda_ in LAMBDA:
        for rate in LEARNING:
            name = f"fused{lambda_},{rate}"
            params = {"lambda": lambda_, "learning_rate": rate, "steps": 5}
            found[name] = Candidate(
                name=name, row="fused", method="fusellm", kind="fused", params=params, target="base", control=f"c{rate}"
            )
    return found


# --- the control


@pytest.mark.parametrize(("better", "mine"), [(1e-3, 1e-4), (1e-4, 1e-4), (1e-4, 1e-3)])
def test_the_control_is_the_one_of_the_row_that_is_best_on_dev(models, better, mine):
    dev = {f"c{rate}": scores(0.6 if rate == better else 0.5) for rate in LEARNING} | {"longer": scores(0.9)}
    assert tuned_control(models, models[f"fused0.1,{mine}"], dev) == f"c{better}"


def test_a_tie_is_its_own_control_s_and_without_dev_scores_it_is_its_own(models):
    for name, own in (("fused0.1,0.0001", "c0.0001"), ("fused0.5,0.001", "c0.001")):
        assert tuned_control(models, models[name], {f"c{rate}": scores(0.5) for rate in LEARNING}) == own
        assert tuned_control(models, models[name], {}) == own
        assert tuned_control(models, models[name], {"c0.0001": scores(0.9)}) == own, "one was not scored"


def test_a_control_that_differs_in_more_than_its_learning_rate_is_no_rival(models):
    models["fused0.1,0.001"] = Candidate(**{**vars(models["fused0.1,0.001"]), "control": "longer"})
    del models["fused0.5,0.001"]
    dev = {"c0.0001": scores(0.1), "longer": scores(0.9), "c0.001": scores(0.9)}
    assert tuned_control(models, models["fused0.1,0.0001"], dev) == "c0.0001"
    assert tuned_control(models, models["fused0.1,0.001"], dev) == "longer"


def test_a_model_that_is_given_can_be_a_control_and_none_is_none(models):
    models["given"] = Source("given", "/given")
    merged = Candidate(name="merged", row="merged", method="linear", kind="merged", params={}, control="given")
    assert tuned_control(models, merged, {"given": scores(0.1)}) == "given"
    assert tuned_control(models, Candidate(name="x", method="linear", kind="merged", params={}), {}) is None


# --- bits per byte

SUITE = """
suite: read
models:
  base: {from: ./base}
  good: {from: ./good}
candidates:
  mean: {method: linear, models: [base, good], control: base}
  drawn: {method: dare_linear, base: base, models: [base, good], seeds: [1, 2], control: good}
evaluate:
  own: {tasks: quiz}
  text: {bits_per_byte: held_out.jsonl, limit: 60}
split: {dev: 0.3}
published: {Theirs: {source: a paper, scores: {own: {value: 0.5}}}}
"""
RATE = {"base": 3.0, "good": 2.0, "mean": 2.5, "drawn@1": 2.2, "drawn@2": 2.4}


@pytest.fixture
def assembled(tmp_path):
    """Results of a suite whose every document takes RATE bits per byte, but for a tenth more or less."""
    for name in ("base", "good"):
        (tmp_path / name).mkdir()
    documents = [{"text": "x" * (i + 1)} for i in range(80)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite = suites.load(tmp_path / "suite.yaml")
    text = describe_text("text", suite.groups[1].text)
    quiz = replace(text, name="quiz", kind="likelihood", metric="acc", source="quiz.yaml")
    facts = Facts(
        folders={name: FolderFacts(f"/{name}", name, 1, {}) for name in ("base", "good")},
        tasks={"quiz": quiz, "text": text}, groups={"own": ("quiz",), "text": ("text",)}, corpora={},
        versions=dict.fromkeys((*LIBRARIES, "python"), "1"), device="cpu", gpus=(), sandbox=None,
    )  # fmt: skip
    planned = plan(suite, facts)
    sizes = dict(zip(text.items, range(1, 81), strict=True))

    def results(without: str = "-", chat: frozenset[str] = frozenset()):
        done = {}
        for i, job in enumerate(j for j in planned.jobs.values() if j.kind == "judge" and without not in j.id):
            _, model, place = job.id.split(" ")
            (block,) = [b for tasks in planned.items.values() for t in tasks.values() for b in t.blocks
                        if place == f"{'text' if b.task == 'text' else 'own'}/{b.name}"]  # fmt: skip
            rows = [_judged(block.task, sizes[one], RATE[model]) for one in block.ids]
            found = entry(tmp_path, f"{without}{i}", {})
            write_block(found.path, SCORES, rows)
            done[job.id] = found
            done[job.id.replace("judge", "generate", 1)] = found
        return record.assemble(replace(planned, chat=chat), Progress(done=done))

    return results


def test_who_is_asked_in_a_template_and_what_came_to_no_end(assembled):
    results = assembled(chat=frozenset({"good"})).results
    models = results["models"]
    assert {name: row.get("chat") for name, row in models.items()} == {name: None for name in models} | {"good": True}
    quiz = models["base"]["scores"]["own"]["tasks"]["quiz"]
    assert (quiz["unfinished"], quiz["truncated"]) == (2 * quiz["n"], quiz["n"]), "of the items that count alone"
    assert results["suite"]["groups"]["own"]["tasks"]["quiz"]["n"]["dev"] > 0
    assert models["drawn"]["text"]["text"]["truncated"] == 2 * models["base"]["text"]["text"]["truncated"], "two seeds"
    assert "unfinished" not in models["base"]["text"]["text"]
    assert "samples" not in results["suite"]["groups"]["own"]


def _judged(task: str, size: int, rate: float) -> dict:
    if task == "quiz":
        return {"score": float(size % 2), "also": {}, "truncated": 1, "unfinished": 2}
    bits = size * rate * (1.1 if size % 2 else 0.9)
    return {"score": bits / size, "also": {"bits": bits, "bytes": float(size)}, "truncated": 1}


def test_bits_per_byte_stand_beside_the_scores_and_count_for_none_of_them(assembled):
    found = assembled()
    results, scores = found.results, found.scores
    models = results["models"]
    assert {name: set(row["scores"]) for name, row in models.items()} == {name: {"own"} for name in models}
    assert len({row["score"]["value"] for row in models.values()}) == 1, "all answer the tasks alike"
    assert {row["rank"] for row in models.values()} == {1}
    base, drawn = scores["text"]["base"]["text"], scores["text"]["drawn"]["text"]
    n = results["suite"]["groups"]["text"]["tasks"]["text"]["n"]
    assert results["suite"]["groups"]["text"]["text"] is True and n["test"] + n["dev"] == 60
    assert base["bits"].shape == (1, n["test"]) and drawn["bits"].shape == (2, n["test"])
    assert models["base"]["text"]["text"]["value"] == pytest.approx(base["bits"].sum() / base["bytes"].sum())
    assert models["base"]["text"]["text"]["n"] == n["test"] and models["base"]["text"]["text"]["truncated"] > 0
    assert models["base"]["dev_text"]["text"]["n"] == n["dev"]
    assert results["published"] == {"Theirs": {"source": "a paper", "scores": {"own": {"value": 0.5}}}}
    json.dumps(results, allow_nan=False)


def test_what_is_saved_is_over_the_control_paired_and_positive_when_it_is_less(assembled):
    models = assembled().results["models"]
    value = {name: row["text"]["text"]["value"] for name, row in models.items()}
    found = models["mean"]["text_gain"]["text"]["control"]
    assert found["value"] == pytest.approx(value["base"] - value["mean"]) and found["value"] > 0
    assert found["against"] == models["mean"]["gain"]["control"]["against"] == "base"
    assert models["drawn"]["text_gain"]["text"]["control"]["value"] < 0
    assert "text_gain" not in models["base"]


def test_a_text_that_was_not_read_is_absent_and_the_score_stands(assembled):
    found = assembled(without="judge drawn@2 text")
    results, scores = found.results, found.scores
    drawn = results["models"]["drawn"]
    assert "text" not in drawn and "text_gain" not in drawn and "drawn" not in scores["text"]
    assert drawn["score"]["value"] and "drawn" in scores["test"]


def test_the_record_is_written_with_the_bits(assembled, tmp_path):
    written = assembled()
    (tmp_path / "run").mkdir()
    suite = suites.load(tmp_path / "suite.yaml")
    items = {"text": {"text": SimpleNamespace(counted={"dev": ["a"], "test": ["b"]})}}
    record.write(tmp_path / "run", written, SimpleNamespace(suite=suite, items=items))
    found = runs.read_scores(tmp_path / "run", "drawn", "text")["text"]
    assert np.allclose(found["bits"], written.scores["text"]["drawn"]["text"]["bits"])
    assert runs.read_scores(tmp_path / "run", "drawn").keys() == {"own"}


# --- trainings


REPORT = {
    "steps": 3, "tokens": 100, "loss": 1.0, "clm": 0.5, "wall": {"seconds": 9.0}, "digests": {"model": "d"},
    "machine": {"threads": 1},
    "alignment": {
        "positions": 90, "aligned": 0.9,
        "sources": {"target": {"weight_of_positions": 0.4}, "teacher.0": {"weight_of_positions": 0.5}},
        "unreadable": {"teacher.0": {"documents": 1, "first": "why"}},
        "warnings": ["teacher.0: 60 % of what it says has no token of the target's"],
    },
}  # fmt: skip


def entry(tmp_path, key: str, result: dict, seconds: float = 1.0) -> Entry:
    folder = tmp_path / key
    (folder / "model").mkdir(parents=True)
    return Entry(key, folder, "fuse", f"digest of {key}", result, {"seconds": seconds, "peak_rss_mb": 5.0})


@pytest.fixture
def fused(tmp_path):
    """A plan with a fusion of two seeds, and all of it done."""
    model = Candidate(
        name="fused", row="fused", method="fusellm", kind="fused", params={}, models=("neox",), target="base",
        seeds=(1, 2), corpora=("pocket/noisy",),
    )  # fmt: skip
    reads = tuple(
        Input(f"store.{i}", job=f"read {name} on noisy 12345678 top_k=10") for i, name in enumerate(("base", "neox"))
    )
    jobs = {f"fuse fused@{seed}": Job(f"fuse fused@{seed}", "fuse", {}, reads) for seed in (1, 2)}
    suite = SimpleNamespace(models={"fused": model, "base": Source("base", "/base")})
    plan = SimpleNamespace(suite=suite, jobs=jobs, facts=SimpleNamespace(folders={}))
    done = {
        "read base on noisy 12345678 top_k=10": entry(tmp_path, "r1", {}, 10.0),
        "read neox on noisy 12345678 top_k=10": entry(tmp_path, "r2", {}, 20.0),
        "read fused@1 on noisy 12345678 top_k=10": entry(tmp_path, "r3", {}, 500.0),
        "fuse fused@1": entry(tmp_path, "f1", REPORT, 1.0),
        "fuse fused@2": entry(tmp_path, "f2", {**REPORT, "loss": 2.0}, 2.0),
        "generate fused@1 g/t/test.0": entry(tmp_path, "g1", {"truncated": 0, "unfinished": 2}, 4.0),
    }
    (done["fuse fused@1"].path / "model" / "curves.jsonl").write_text('{"step": 1}\n')
    return plan, Progress(done=done), model


def test_a_fusion_s_row_says_who_taught_what_and_how_it_trained(fused):
    row = describe(*fused[:2], "fused", fused[2])
    assert row["training"] == {"steps": 3, "tokens": 100, "loss": 1.5, "clm": 0.5}
    assert row["fusion"]["sources"] == {"base": {"weight_of_positions": 0.4}, "neox": {"weight_of_positions": 0.5}}
    assert row["fusion"]["unreadable"] == {"neox": {"documents": 1, "first": "why"}}
    said = "60 % of what it says has no token of the target's"
    assert warnings({"models": {"fused": row, "plain": {}}}) == [f"fused: neox: {said}"]
    json.dumps(row, allow_nan=False)


def test_its_cost_includes_the_reading_of_its_sources_and_nobody_else_s(fused):
    cost = describe(*fused[:2], "fused", fused[2])["cost"]
    assert (cost["build_s"], cost["evaluate_s"]) == (10 + 20 + 1 + 2, 4)


def test_a_training_that_failed_or_had_no_teacher_says_less(fused):
    plan, progress, model = fused
    for seed in (1, 2):
        progress.done.pop(f"fuse fused@{seed}")
    row = describe(plan, progress, "fused", model)
    assert "training" not in row and "fusion" not in row
    assert warnings({"models": {"fused": row}}) == []


def test_curves_are_copied_by_instance_and_a_model_without_one_has_none(fused, tmp_path):
    (tmp_path / "run").mkdir()
    write_curves(tmp_path / "run", *fused[:2])
    assert [path.name for path in (tmp_path / "run" / "curves").iterdir()] == ["fused@1.jsonl"]
    assert (tmp_path / "run" / "curves" / "fused@1.jsonl").read_text() == '{"step": 1}\n'


# --- comparing two models on a text


@pytest.fixture
def run_of(tmp_path):
    """A run folder with the bits of models on one text and their scores on one task."""

    def run_of(models: dict, seed: int = 1, order=slice(None), digest: str = "d") -> str:
        folder = tmp_path / f"run{seed}-{digest}"
        (folder / "scores").mkdir(parents=True)
        names = [f"doc{i}" for i in range(40)][order]
        (folder / "scores" / "items.json").write_text(
            json.dumps({"test": {"g": {"t": names}, "text": {"text": names}}})
        )
        sizes = np.arange(10.0, 50.0)[None]
        for name, rate in models.items():
            bits = {"bits": (sizes * rate)[:, order], "bytes": np.broadcast_to(sizes, np.shape(sizes * rate))[:, order]}
            packed = {"test": record._pack({"g": {"t": np.ones((1, 40))}})}
            if name != "unread":
                packed["text"] = record._pack({"text": bits})
            (folder / "scores" / f"{name}.json").write_text(json.dumps({"model": name, "scores": packed}))
        groups = {"g": {"tasks": {"t": {}}}, "text": {"tasks": {"text": {"digest": digest}}, "text": True}}
        results = {"schema": 1, "suite": {"seed": seed, "groups": groups}, "models": {name: {} for name in models}}
        (folder / "results.json").write_text(json.dumps(results))
        return str(folder)

    return run_of


def noise(seed: int, n: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, n))


def test_two_models_are_compared_on_a_text_in_bits_per_byte(run_of, tmp_path):
    a, b = 2 + 0.1 * noise(1), 2.5 + 0.1 * noise(2)
    run = run_of({"a": a, "b": b})
    (row,) = compare(f"{run}:a", f"{run}:b", "text", tmp_path)["rows"]
    sizes = np.arange(10.0, 50.0)
    assert row["value"] == pytest.approx(float((sizes * (a - b)).sum() / sizes.sum()))
    assert row["low"] < row["value"] < row["high"] < 0
    assert (row["won"], row["lost"]) == (int((a < b).sum()), int((a > b).sum()))
    assert (row["name"], row["n"], row["verdict"]) == ("text", 40, "A is better")
    other = compare(f"{run}:b", f"{run}:a", "text", tmp_path)
    assert other["rows"][0]["verdict"] == "B is better" and other["unit"] == "bits per byte"
    shown = table(other)
    assert (
        "bits per byte, fewer are better" in shown and "+0.5" in shown and max(map(len, shown.splitlines()[1:])) <= 120
    )


def test_a_text_is_no_part_of_the_comparison_over_all_groups(run_of, tmp_path):
    run = run_of({"a": 2 + 0.1 * noise(1), "b": 2.5 + 0.1 * noise(2)})
    found = compare(f"{run}:a", f"{run}:b", None, tmp_path)
    assert [row["name"] for row in found["rows"]] == ["overall", "g", "g/t"] and "unit" not in found


def test_runs_are_pooled_and_documents_paired_whatever_their_order(run_of, tmp_path):
    rates = {seed: (2 + 0.1 * noise(seed), 2.2 + 0.1 * noise(10 + seed)) for seed in (1, 2, 3)}
    over = [run_of({"a": a, "b": b}, seed, slice(None, None, -1 if seed == 2 else 1)) for seed, (a, b) in rates.items()]
    found = compare("a", "b", "text", tmp_path, over)
    sizes = np.arange(10.0, 50.0)
    gaps = [float((sizes * (a - b)).sum() / sizes.sum()) for a, b in rates.values()]
    assert found["rows"][0]["value"] == pytest.approx(np.mean(gaps))
    gap = np.mean([a - b for a, b in rates.values()], axis=0)
    assert found["rows"][0]["won"] == int((gap < 0).sum())
    alone = compare(f"{over[0]}:a", f"{over[1]}:a", "text", tmp_path)
    assert alone["rows"][0]["n"] == 40


def test_what_cannot_be_compared_on_a_text(run_of, tmp_path):
    run = run_of({"a": 2 + 0.1 * noise(1), "unread": 2 + 0.1 * noise(2)})
    with pytest.raises(UsageError, match="model 'unread' has no scores"):
        compare(f"{run}:a", f"{run}:unread", "text", tmp_path)
    with pytest.raises(UsageError, match="there is no group 'txt'; did you mean 'text'"):
        compare(f"{run}:a", f"{run}:a", "txt", tmp_path)
    other = run_of({"a": 2 + 0.1 * noise(1)}, seed=2, digest="another text")
    with pytest.raises(UsageError, match="were not scored alike"):
        compare(f"{run}:a", f"{other}:a", "text", tmp_path)


def test_the_packed_bits_come_back_as_they_were(run_of):
    rate = np.stack([2 + 0.1 * noise(1)[0], 3 + 0.1 * noise(2)[0]])
    run = run_of({"a": rate})
    found = runs.read_scores(Path(run), "a", "text")["text"]
    assert np.array_equal(found["bits"], rate * np.arange(10.0, 50.0))
