"""Fusions in suites and alone: who takes part, which controls they get, what is read once for several of them."""

import json
from pathlib import Path

import pytest

from harness import suite as suites
from harness.errors import SuiteError
from harness.fusing import read_fusion
from harness.making import making
from harness.spec import Candidate
from tests.harness.test_plan import facts

HEAD = """
suite: mine
seed: 3
models:
  base: {from: ./base}
  a: {from: ./a}
  b: {from: ./b}
candidates:
"""
TAIL = """
evaluate:
  one: {tasks: [pocket_goals]}
"""
FUSED = "method: fusellm, target: base, corpus: pocket/noisy, steps: 5"


@pytest.fixture
def read(tmp_path):
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()

    def read(*candidates):
        (tmp_path / "suite.yaml").write_text(HEAD + "\n".join(f"  {line}" for line in candidates) + TAIL)
        return suites.load(tmp_path / "suite.yaml")

    return read


def candidate(suite, name) -> Candidate:
    found = suite.models[name]
    assert isinstance(found, Candidate)
    return found


def jobs(suite, name):
    return list(making(suite, facts(), name, candidate(suite, name), 3))


# ------------------------------------------------------------------------------------------------------ controls


def test_fusions_that_would_have_the_same_control_share_one(read):
    suite = read(
        f"one: {{{FUSED}, teachers: [a], lambda: {{sweep: [0.1, 0.9]}}}}",
        f"two: {{{FUSED}, teachers: [a, b], fusion: avg_ce}}",
        f"longer: {{{FUSED.replace('5', '6')}, teachers: [a]}}",
    )
    controls = {
        name: candidate(suite, name).control for name in ("one[lambda=0.1]", "one[lambda=0.9]", "two", "longer")
    }
    assert controls == {
        "one[lambda=0.1]": "one.control",
        "one[lambda=0.9]": "one.control",
        "two": "one.control",
        "longer": "longer.control",
    }
    assert [name for name in suite.models if "control" in name] == ["one.control", "longer.control"]
    assert candidate(suite, "one.control").is_control and candidate(suite, "one.control").params["steps"] == 5


def test_a_learning_rate_is_swept_for_the_control_too(read):
    suite = read(f"one: {{{FUSED}, teachers: [a], learning_rate: {{sweep: [0.1, 0.2]}}, lambda: {{sweep: [0, 0.5]}}}}")
    assert candidate(suite, "one[learning_rate=0.2,lambda=0]").control == "one.control[learning_rate=0.2]"
    assert candidate(suite, "one.control[learning_rate=0.2]").sweep == {"learning_rate": 0.2}


def test_a_control_may_be_named_or_left_out(read):
    suite = read(
        f"one: {{{FUSED}, teachers: [a], control: none}}",
        f"two: {{{FUSED}, teachers: [a], control: plain}}",
        "plain: {method: clm, target: base, corpus: pocket/noisy, learning_rate: 0.1}",
        "both: {method: linear, models: [one, two], control: plain}",
    )
    assert [candidate(suite, name).control for name in ("one", "two", "both")] == [None, "plain", "plain"]
    assert not [name for name in suite.models if name.endswith(".control")]
    with pytest.raises(SuiteError, match="there is no model or candidate 'plan'"):
        read(f"two: {{{FUSED}, teachers: [a], control: plan}}", "plain: {method: linear, models: [a, b]}")


def test_feddf_starts_from_the_mean_of_its_teachers_which_is_scored_too(read):
    suite = read("fed: {method: feddf, teachers: [a, b], corpus: pocket/noisy, steps: 5}")
    assert candidate(suite, "fed").target == "fed.start"
    start = candidate(suite, "fed.start")
    assert (start.method, start.kind, start.models) == ("linear", "merged", ("a", "b"))
    assert candidate(suite, "fed.control").target == "fed.start"
    named = read("fed: {method: feddf, target: base, teachers: [a, b], corpus: pocket/noisy, steps: 5}")
    assert "fed.start" not in named.models


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"c: {{{FUSED}}}", "fusellm needs `teachers:`"),
        (f"c: {{{FUSED}, teachers: a}}", "'teachers' is a list of models"),
        (f"c: {{{FUSED}, teachers: {{a: 0.5}}}}", "'teachers' is a list of models"),
        (f"c: {{{FUSED}, teachers: []}}", "'teachers' is a list of models"),
        (f"c: {{{FUSED}, teachers: [a], epochs: 2}}", "steps 5 and epochs 2: give one of them"),
        (f"c: {{{FUSED}, teachers: [a], compat: fusellm-v1}}", "aligns by min_ed or exact, not by bytes"),
        (f"c: {{{FUSED}, teachers: [a], trainer: {{weight_decy: 1}}}}", "unknown argument 'weight_decy'"),
        ("c: {method: feddf, teachers: [a], corpus: pocket/noisy}", "feddf: needs two teachers or more; found 1"),
        (f"c: {{{FUSED}, teachers: [a], seeds: [-1]}}", "whole numbers from 0"),
        (f"c: {{{FUSED}, teachers: [a], alignment: byte}}", "'alignment' is 'byte'"),
        ("c: {method: multitask, target: base, corpora: pocket/noisy}", "'corpora' is a list of corpora"),
        ("c: {method: multitask, target: base, corpora: [pocket/noisi]}", "did you mean 'pocket/noisy'?"),
        ("c: {method: self_distillation, target: base, teachers: [a], corpus: pocket/noisy}", "'teachers'"),
    ],
)
def test_what_is_wrong_with_a_fusion_is_said(read, line, message):
    with pytest.raises(SuiteError) as caught:
        read(line)
    assert message in str(caught.value)


# --------------------------------------------------------------------------------------------------- what is read


def test_a_teacher_reads_a_corpus_once_for_all_its_fusions(read):
    suite = read(
        f"one: {{{FUSED}, teachers: [a], lambda: 0.1}}",
        f"two: {{{FUSED}, teachers: [a, b], self: false}}",
        f"wide: {{{FUSED}, teachers: [a], top_k: 20}}",
    )
    reads = {name: [job.id for job in jobs(suite, name) if job.kind == "read"] for name in ("one", "two", "wide")}
    assert [job.split(" on ")[0] for job in reads["one"]] == ["read base", "read a"]
    assert [job.split(" on ")[0] for job in reads["two"]] == ["read a", "read b"]
    assert reads["one"][1] == reads["two"][0] and reads["wide"][1] not in (*reads["one"], *reads["two"])
    fuse = jobs(suite, "two")[-1]
    assert [(i.role, i.model) for i in fuse.inputs] == [
        ("target", "base"), ("teacher.0", "a"), ("teacher.1", "b"), ("store.0", None), ("store.1", None),
    ]  # fmt: skip
    assert fuse.needs == tuple(reads["two"])


def test_feddf_reads_all_teachers_together(read):
    suite = read("fed: {method: feddf, target: base, teachers: [a, b], corpus: pocket/noisy, steps: 5}")
    read_job, _ = jobs(suite, "fed")
    assert [i.model for i in read_job.inputs] == ["a", "b"]


def test_what_a_teacher_is_called_is_in_no_key(read):
    first, second = read(f"one: {{{FUSED}, teachers: [a]}}"), read(f"two: {{{FUSED}, teachers: [a]}}")
    (a, b), (c, d) = (
        [job.key({n: n for n in job.needs}) for job in jobs(s, n)][1:] for s, n in ((first, "one"), (second, "two"))
    )
    assert (a, b) == (c, d)


# ---------------------------------------------------------------------------------------------------------- alone


@pytest.fixture
def recipe(world, tmp_path):
    (tmp_path / "text.jsonl").write_text(
        json.dumps({"prompt": "How do you cut a dorvik?", "answer": " With a saw."}) * 1
    )

    def recipe(**given):
        content = {
            "method": "fusellm",
            "target": str(world.model("base")),
            "teachers": [str(world.model("teacher"))],
            "corpus": "text.jsonl",
            "steps": 2,
            "context": 64,
            "batch_size": 1,
            **given,
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in content.items() if value is not None]
        (tmp_path / "recipe.yaml").write_text("\n".join(lines) + "\n")
        return tmp_path / "recipe.yaml"

    return recipe


def test_a_recipe_is_checked_whole(recipe, tmp_path):
    with pytest.raises(SuiteError) as caught:
        read_fusion(recipe(lamda=0.5, corpus="none.jsonl", teachers=["./nobody"]))
    said = str(caught.value)
    assert "did you mean 'lambda'?" in said and "none.jsonl" in said and "nobody" in said and "recipe.yaml:4" in said
    with pytest.raises(SuiteError, match="did you mean 'fusellm'"):
        read_fusion(recipe(method="fuselm"))
    with pytest.raises(SuiteError, match="needs `target:`"):
        read_fusion(recipe(target=None))
    with pytest.raises(SuiteError, match="unknown method"):
        read_fusion(recipe(method=["fusellm"]))
    with pytest.raises(SuiteError, match="'seed' is -1"):
        read_fusion(recipe(seed=-1))
    with pytest.raises(SuiteError, match="give one of them"):
        read_fusion(recipe(epochs=1))
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(SuiteError, match="unknown method None"):
        read_fusion(tmp_path / "empty.yaml")


def test_the_verb_fuses_and_keeps_what_teachers_said(recipe, bench, tmp_path):
    path = recipe(teachers=None, method="self_distillation", seed=5)
    first = bench("fuse", path, "out", "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["alignment"]["aligned"] == 1 and found["steps"] == 2 and found["seed"] == 5
    assert {"model.safetensors", "README.md", "tokenizer.json", "curves.jsonl"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert found["digest"] in json.dumps(found) and "self_distillation" in (tmp_path / "out" / "README.md").read_text()
    stores = folders(tmp_path / "store" / "teachers")
    assert len(stores) == 1 and not folders(tmp_path / "store" / "fusions")
    again = bench("fuse", path, "out")
    assert again.returncode == 2 and "exists and is not empty" in again.stderr and "Traceback" not in again.stderr
    same = json.loads(bench("fuse", path, "other", "--json").stdout)
    assert same["digest"] == found["digest"]
    assert folders(tmp_path / "store" / "teachers") == stores


def folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir())


def test_the_verb_says_what_it_did(recipe, bench):
    done = bench("fuse", recipe(), Path("there") / "out")
    assert done.returncode == 0, done.stderr
    assert "taught by a source:" in done.stdout and "bits per byte" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:-1])) <= 80
