"""Ensembles as candidates of a suite: what may be said of them, and a run from the suite to its leaderboard."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusion.modelref import Ensemble, Folder
from harness import leaderboard, merging, runs
from harness import suite as suites
from harness.board import board
from harness.errors import SuiteError, TaskError, UsageError
from harness.report import survey
from harness.run import Options
from harness.run import run as run_suite
from harness.spec import Candidate
from harness.work import Task, build
from tests.harness.test_candidates import HEAD, TAIL
from tests.harness.test_ensembles import swap_tokens
from tests.harness.test_evaluate import write_model
from tests.harness.test_tasks import CHOICE, GENERATE, QUESTIONS, write_task


@pytest.fixture
def read(tmp_path: Path) -> Any:
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()

    def read(*candidates: str) -> Any:
        (tmp_path / "suite.yaml").write_text(HEAD + "\n".join(f"  {line}" for line in candidates) + TAIL)
        return suites.load(tmp_path / "suite.yaml").models

    return read


def test_a_list_a_mapping_and_a_sweep(read: Any) -> None:
    found = read(
        "plain: {method: ensemble, models: [a, b]}",
        "heavy: {method: ensemble, models: {a: 0.7, b: 0.3}, combine: mean_logit}",
        "route: {method: ensemble, models: [a, b], combine: routed, corpora: {b: pocket/code, a: pocket/reasoning}}",
        "both: {method: ensemble, models: [a, b], combine: {sweep: [mean_prob, perplexity_weighted]}}",
    )
    assert {name: m.params["combine"] for name, m in found.items() if isinstance(m, Candidate)} == {
        "plain": "mean_prob",
        "heavy": "mean_logit",
        "route": "routed",
        "both[combine=mean_prob]": "mean_prob",
        "both[combine=perplexity_weighted]": "perplexity_weighted",
    }
    assert (found["heavy"].weights, found["plain"].weights) == ((0.7, 0.3), None)
    assert found["route"].corpora == ("pocket/reasoning", "pocket/code"), "in the order of the models"
    assert {m.kind for m in found.values() if isinstance(m, Candidate)} == {"ensemble"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c: {method: ensemble, models: [a]}", "an ensemble is of two different models or more"),
        ("c: {method: ensemble, models: [a, a]}", "an ensemble is of two different models or more"),
        ("c: {method: ensemble, models: [a, b, a]}", "an ensemble is of two different models or more"),
        ("c: {method: ensemble}", "'models' is a list of models, or a mapping of models to weights"),
        ("c: {method: ensemble, models: [a, x]}", "there is no model or candidate 'x'"),
        ("c: {method: ensemble, models: [a, b], combine: mean_probs}", "did you mean 'mean_prob'?"),
        ("c: {method: ensemble, models: [a, b], combine: 3}", "'combine' is 3; expected mean_prob | mean_logit"),
        ("c: {method: ensemble, models: [a, b], combine: routed}", "ensemble routed needs `corpora:`"),
        ("c: {method: ensemble, models: [a, b], combine: routed, corpora: {a: pocket/code}}", "no corpus for 'b'"),
        ("c: {method: ensemble, models: [a, b], corpora: {a: pocket/code}}", "mean_prob reads no data"),
        (
            "c: {method: ensemble, models: {a: 1, b: 2}, combine: routed, corpora: {a: pocket/code, b: pocket/code}}",
            "routed finds each item's weights itself",
        ),
        (
            "c: {method: ensemble, models: {a: 1, b: 2}, combine: perplexity_weighted}",
            "finds each item's weights itself",
        ),
        ("c: {method: ensemble, models: {a: 1, b: 0}}", "its weight is 0; expected a number above 0"),
        ("c: {method: ensemble, models: {a: 1, b: .inf}}", "its weight is inf; expected a number above 0"),
        ("c: {method: ensemble, models: {a: 1, b: heavy}}", "its weight is 'heavy'; expected a number above 0"),
        ("c: {method: ensemble, models: {a: {density: 1}, b: 1}}", "a weight and nothing else"),
        ("c: {method: ensemble, models: [a, b], base: base}", "unknown key 'base'"),
        ("c: {method: ensemble, models: [a, b], seeds: [1, 2]}", "unknown key 'seeds'"),
        ("c: {method: ensembl, models: [a, b]}", "did you mean 'ensemble'?"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(read: Any, line: str, message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        read(line)
    assert message in str(caught.value) and "suite.yaml:8:" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d: {method: linear, models: [c, a]}", "'c' is an ensemble: it has no weights"),
        ("d: {method: task_arithmetic, base: c, models: [a, b]}", "'c' is an ensemble: it has no weights"),
        ("d: {method: ensemble, models: [c, a]}", "'c' is an ensemble: it has no weights"),
        ("d: {method: clm, target: c, corpus: pocket/code}", "'c' is an ensemble: it has no weights"),
        ("d: {method: linear, models: [c, a], normalize: {sweep: [true, false]}}", "'c' is an ensemble"),
        ("d: {method: linear, models: [e, a]}", "'e' is one model a group: it has no weights"),
    ],
)
def test_nothing_is_made_of_what_has_no_weights(read: Any, line: str, message: str) -> None:
    routed = "e: {method: emr, base: base, models: [a, b], route: {one: a, two: b}}"
    with pytest.raises(SuiteError) as caught:
        read("c: {method: ensemble, models: [a, b]}", routed, line)
    assert message in str(caught.value) and "suite.yaml:10:" in str(caught.value)


def test_an_ensemble_may_be_a_control(read: Any) -> None:
    found = read("c: {method: ensemble, models: [a, b]}", "d: {method: linear, models: [a, b], control: c}")
    assert found["d"].control == "c"


# ----------------------------------------------------------------------------------------------------- leaderboard


def results() -> dict[str, Any]:
    def row(kind: str, value: float, seconds: float, **more: Any) -> dict[str, Any]:
        scores = {"g": {"value": value, "tasks": {}}}
        return {
            "kind": kind,
            "status": "ok",
            "score": {"value": value},
            "scores": scores,
            "cost": {"evaluate_s": seconds},
            **more,
        }

    models = {
        "a": row("source", 0.4, 10.0, rank=1),
        "b": row("source", 0.3, 20.0, rank=2),
        "both": row("ensemble", 0.5, 33.0, parents=["a", "b"]),
    }
    return {"schema": 1, "suite": {"name": "s"}, "models": models}


def test_an_ensemble_is_a_class_of_its_own_with_its_cost() -> None:
    text = leaderboard.text(results())
    assert "both runs 2 models for every answer, in 2.2 times the time of one; so it is not ranked." in " ".join(
        text.split()
    )
    assert "| – | both | ensemble \\(runs 2 models\\) |" in leaderboard.markdown(results())
    given = results()
    del given["models"]["b"]["cost"]
    assert "both runs 2 models for every answer; so" in " ".join(leaderboard.text(given).split())
    assert [row.runs for row in board(results()).rows] == [1, 1, 2]


# ------------------------------------------------------------------------------------------------------- a whole run

SUITE = """
suite: pack
seed: 3
models:
  a: {from: ./a, dtype: float32}
  b: {from: ./b}
  other: {from: ./other, dtype: bfloat16}
  strange: {from: ./strange}
candidates:
  average: {method: linear, models: [a, b], allow_unrelated: true}
  mix: {method: ensemble, models: {average: 3, other: 1}}
  pack: {method: ensemble, models: [a, b], combine: perplexity_weighted}
  route: {method: ensemble, models: [a, b], combine: routed, corpora: {a: legs_text.jsonl, b: code_text.jsonl}}
evaluate:
  choice: {tasks: ./legs.yaml}
  write: {tasks: ./word.yaml}
split: {dev: 0.3}
kinship: {measures: [capa]}
keep: all
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ensembles")
    for seed, name in enumerate(("a", "b", "other", "strange")):
        write_model(folder / name, seed=seed, architecture="neox" if name == "other" else "llama")
    swap_tokens(folder / "strange")
    write_task(folder, "legs", CHOICE, QUESTIONS)
    write_task(folder, "word", GENERATE, QUESTIONS)
    for name, text in (("legs", "how many legs has a hen of {}?"), ("code", "def f(x): return x + {}")):
        lines = [json.dumps({"text": text.format(n)}) for n in range(8)]
        (folder / f"{name}_text.jsonl").write_text("\n".join(lines))
    (folder / "pack.yaml").write_text(SUITE)
    options = Options(out=folder / "runs", store=folder / "store", slots=1, progress="none")
    return SimpleNamespace(folder=folder, options=options, outcome=run_suite(folder / "pack.yaml", options))


@pytest.mark.slow
def test_a_run_scores_ensembles_beside_their_members(world: Any) -> None:
    models = world.outcome.results["models"]
    for name in ("mix", "pack", "route"):
        row = models[name]
        assert (row["kind"], row["status"], "rank" in row) == ("ensemble", "ok", False)
        assert set(row["scores"]) == {"choice", "write"} and row["digest"].startswith("sha256:")
        assert row["gain"]["best"]["against"] in row["parents"] and row["cost"]["evaluate_s"] > 0
        assert "capa" in row["kinship"]
    assert models["route"]["corpora"] == [str(world.folder / f"{name}_text.jsonl") for name in ("legs", "code")]
    assert len({models[name]["digest"] for name in ("mix", "pack", "route")}) == 3
    assert sorted(models[name]["rank"] for name in ("a", "average", "b", "other", "strange"))[0] == 1
    assert not (world.outcome.run_dir / "models").exists() or "pack" not in world.outcome.kept


ODD = "  odd: {method: ensemble, models: [average, strange]}\nevaluate:"


@pytest.mark.slow
def test_different_tokenizers_that_are_to_write_are_refused_before_anything_runs(world: Any) -> None:
    (world.folder / "refused.yaml").write_text(SUITE.replace("evaluate:", ODD).replace("suite: pack", "suite: refused"))
    with pytest.raises(TaskError, match="candidate 'odd': average, strange have different .* cannot answer word"):
        run_suite(world.folder / "refused.yaml", world.options)


def test_what_it_is_to_be_asked_is_looked_at_before_it_is(tmp_path: Path) -> None:
    for name in ("a", "strange"):
        write_model(tmp_path / name)
    swap_tokens(tmp_path / "strange")
    parts = tuple((name, Folder(str(tmp_path / name))) for name in ("a", "strange"))
    ref = Ensemble(parts, ("auto", "auto"), "mean_prob")
    for tasks in ([], ["humaneval", "bbh_dyck"]):
        where = {"device": "cpu", "corpora": (), "corpus_seed": 0, "tokenwise": tasks}
        task = Task("build", {"corpora": []}, where, {}, {"self": ref}, tmp_path, tmp_path, lambda done, of: None)
        if not tasks:
            assert build(task).result == {"by_token": False}
            continue
        with pytest.raises(TaskError, match="a, strange have different tokenizers.* cannot answer humaneval, bbh_dyck"):
            build(task)


@pytest.mark.slow
def test_a_second_run_finds_everything_and_says_the_same(world: Any) -> None:
    again = run_suite(world.folder / "pack.yaml", world.options)
    assert (again.jobs["ran"], again.jobs["failed"]) == (0, 0)
    first = json.loads(json.dumps(world.outcome.results))
    assert runs.canonical(json.loads(json.dumps(again.results))) == runs.canonical(first)


@pytest.mark.slow
def test_a_plan_counts_the_memory_of_all_members(world: Any) -> None:
    largest = max(file.stat().st_size for file in world.folder.glob("*/model.safetensors"))
    assert survey(world.folder / "pack.yaml", world.options).memory_needed == 2 * largest


@pytest.mark.slow
def test_an_ensemble_is_not_exported(world: Any, tmp_path: Path) -> None:
    ref, _ = merging.models_of(world.outcome.run_dir)["route"]
    assert isinstance(ref, Ensemble) and ref.domains is not None and Path(ref.domains).is_file()
    with pytest.raises(UsageError, match="'route' is an ensemble: it has no weights to write; .* one by one: a, b"):
        merging.export(str(world.outcome.run_dir), "route", tmp_path / "out", world.folder / "runs")


@pytest.mark.slow
def test_multiple_choice_alone_takes_different_tokenizers(world: Any) -> None:
    lines = SUITE.replace("evaluate:", ODD).replace("suite: pack", "suite: odd").splitlines()
    kept = [line for line in lines if line.split(":")[0].strip() not in ("mix", "pack", "route", "write")]
    (world.folder / "odd.yaml").write_text("\n".join(kept))
    found = run_suite(world.folder / "odd.yaml", world.options)
    assert not found.failed
    assert set(found.results["models"]["odd"]["scores"]) == {"choice"}
