"""The candidates of a suite: per-model parameters, corpora, routes, adapters; and what is said of wrong ones."""

import json

import pytest

from harness import suite as suites
from harness.errors import SuiteError
from harness.spec import Candidate, Source

HEAD = """
suite: mine
models:
  base: {from: ./base}
  a: {from: ./a}
  b: {from: ./b}
candidates:
"""
TAIL = """
evaluate:
  one: {tasks: [pocket_goals]}
  two: {tasks: [pocket_number_functions]}
"""


@pytest.fixture
def read(tmp_path):
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()

    def read(*candidates, head=HEAD):
        (tmp_path / "suite.yaml").write_text(head + "\n".join(f"  {line}" for line in candidates) + TAIL)
        return suites.load(tmp_path / "suite.yaml").models

    return read


def said(read, *candidates, head=HEAD):
    with pytest.raises(SuiteError) as caught:
        read(*candidates, head=head)
    return str(caught.value)


def test_numbers_may_vary_and_differ_by_model(read):
    models = read(
        "c: {method: ties, base: base, models: {a: {weight: [0.1, 0.9], density: 0.4}, b: 0.5}, "
        "lambda: [{filter: mlp, value: 0.3}, {value: 1}]}"
    )
    found = models["c"]
    assert isinstance(found, Candidate)
    assert found.weights == ([0.1, 0.9], 0.5)
    assert found.own == ({"density": 0.4}, {})
    assert found.params["lambda"] == [{"filter": "mlp", "value": 0.3}, {"filter": None, "value": 1.0}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c: {method: ties, base: base, models: {a: {weihgt: 1}, b: 1}}", "unknown parameter 'weihgt'"),
        ("c: {method: ties, base: base, models: {a: {lambda: 1}, b: 1}}", "'lambda' is one for all models"),
        ("c: {method: ties, base: base, models: {a: {density: 2}, b: 1}}", "'density' is 2.0; allowed: [0.0, 1.0]"),
        ("c: {method: ties, base: base, models: [a, b], density: [0.1, x]}", "'density' is 'x'; expected number"),
        ("c: {method: ties, base: base, models: [a, b], density: [{filter: 3, value: 1}]}", "part of a tensor's name"),
        ("c: {method: linear, models: [a, b], corpora: {a: pocket/code}}", "linear reads no data"),
        ("c: {method: linear, models: [a, b], route: {one: a}}", "linear makes one model for all groups"),
        ("c: {method: linear, models: [a, b], seeds: [1, 2]}", "draws nothing at random"),
        ("c: {method: regmean, models: [a, b]}", "regmean needs `corpora:`"),
        ("c: {method: regmean, models: [a, b], corpora: {a: pocket/code}}", "there is no corpus for 'b'"),
        ("c: {method: regmean, models: [a], corpora: {a: pocket/cod}}", "did you mean 'pocket/code'?"),
        ("c: {method: regmean, models: [a], corpora: {a: pocket/code, x: pocket/code}}", "'x' is not merged here"),
        ("c: {method: regmean, models: [a], corpora: {a: none.jsonl}}", "there is no file"),
        (
            "c: {method: regmean, models: [a], corpora: {a: pocket/code}, calibration: {sequence: 3}}",
            "did you mean 'sequences'?",
        ),
        (
            "c: {method: regmean, models: [a], corpora: {a: pocket/code}, calibration: {sequences: 0}}",
            "'sequences' is 0; allowed: [1, inf]",
        ),
        ("c: {method: emr, base: base, models: [a, b]}", "emr needs `route:`"),
        ("c: {method: emr, base: base, models: [a, b], route: {one: a}}", "no model is named for group 'two'"),
        ("c: {method: emr, base: base, models: [a, b], route: {one: a, two: c}}", "'c' is not merged here"),
        ("c: {method: emr, base: base, models: [a, b], route: {one: a, two: b, to: a}}", "there is no group 'to'"),
        ("c: {method: emr, base: base, models: [a], task: a, route: {one: a, two: a}}", "`task` is set by the route"),
        ("c: {method: linear, models: [a, b], allow_unrelated: 1}", "expected true or false"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(read, line, message):
    text = said(read, line)
    assert message in text
    assert "suite.yaml:8:" in text


def test_random_methods_have_replicates(read):
    found = read("c: {method: dare_ties, base: base, models: [a, b], seeds: [1, 2, 3]}")["c"]
    assert isinstance(found, Candidate) and found.seeds == (1, 2, 3)


def test_a_routed_candidate_is_of_its_own_kind(read):
    found = read("c: {method: emr, base: base, models: [a, b], route: {one: a, two: b}}")["c"]
    assert isinstance(found, Candidate)
    assert (found.kind, found.route) == ("routed", {"one": "a", "two": "b"})


def test_an_adapter_is_a_model_on_another_ones_folder(read, tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    head = HEAD.replace("candidates:", "  coder: {from: base, adapter: ./lora}\ncandidates:")
    found = read("c: {method: linear, models: [a, coder]}", head=head)["coder"]
    assert isinstance(found, Source)
    assert (found.origin, found.adapter) == (str(tmp_path / "base"), str(tmp_path / "lora"))


def test_a_folder_without_an_adapter_is_told(read):
    head = HEAD.replace("candidates:", "  coder: {from: base, adapter: ./lora}\ncandidates:")
    assert "there is no LoRA adapter in" in said(read, "c: {method: linear, models: [a]}", head=head)


def test_another_seed_is_another_run(read, tmp_path):
    read("c: {method: linear, models: [a, b]}")
    first, second = (suites.load(tmp_path / "suite.yaml", seed) for seed in (None, 5))
    assert (first.seed, second.seed) == (0, 5)
    assert first.digest != second.digest
