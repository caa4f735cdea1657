"""Reading a suite: what it becomes, and what is said of one that is wrong."""

import json
import re

import pytest

from harness import suite as suites
from harness.errors import SuiteError, UsageError
from harness.making import recipe_of
from harness.schema import schema
from harness.spec import Candidate

GOOD = """
suite: mine
seed: 7
models:
  base: {from: ./base}
  a: {from: ./a}
  b: {from: ./b, dtype: bfloat16}
  skilled: {train: pocket/specialist, from: base, skill: code}
candidates:
  ties: {method: ties, base: base, models: {a: 0.8, b: 1e-1}, density: {sweep: [0.3, 1e-1]}}
  again: {method: slerp, models: ["ties[density=0.3]", a], t: 0.25}
  noisy: {method: clm, target: "ties[density=0.3]", corpus: pocket/noisy, seeds: [1, 2]}
  fused: {method: fusellm, target: base, teachers: [a, b], corpus: pocket/noisy, lambda: {sweep: [0.1, 0.9]}, steps: 3}
evaluate:
  code: {tasks: pocket_number_functions, limit: 20}
  own: {tasks: [./my.yaml, pocket_goals]}
split: {dev: 0.25}
kinship: {base: base, measures: [pcc]}
"""


@pytest.fixture
def write(tmp_path):
    """Writes a suite into a folder with three models, and gives its path."""
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()

    def write(text):
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return path

    return write


def problems(write, text):
    """What is said of a bad suite."""
    with pytest.raises(SuiteError) as caught:
        suites.load(write(text))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_suite_becomes_models_in_the_order_of_need(write):
    suite = suites.load(write(GOOD))
    names = list(suite.models)
    assert set(names) == {
        "base", "a", "b", "skilled", "ties[density=0.3]", "ties[density=0.1]", "again", "noisy",
        "fused[lambda=0.1]", "fused[lambda=0.9]", "fused.control",
    }  # fmt: skip
    assert names.index("ties[density=0.3]") < names.index("again")
    ties = suite.models["ties[density=0.1]"]
    assert isinstance(ties, Candidate)
    assert (ties.row, ties.sweep, ties.params["density"]) == ("ties", {"density": 0.1}, 0.1)
    assert (ties.models, ties.weights, ties.base) == (("a", "b"), (0.8, 0.1), "base")
    assert ties.params["lambda"] == 1.0, "defaults are filled in"
    assert suite.models["noisy"].seeds == (1, 2)
    assert suite.groups[0].tasks == ("pocket_number_functions",)
    assert suite.groups[0].limit == 20
    assert (suite.dev_share, suite.kinship_base, suite.measures, suite.keep) == (0.25, "base", ("pcc",), "best")


def test_fusions_share_a_control_that_differs_in_nothing_but_the_teachers(write):
    suite = suites.load(write(GOOD))
    control, fused = suite.models["fused.control"], suite.models["fused[lambda=0.9]"]
    assert (control.method, control.is_control, control.models, control.target) == ("clm", True, (), "base")
    assert control.params == {key: fused.params[key] for key in control.params}
    assert fused.control == suite.models["fused[lambda=0.1]"].control == "fused.control"
    assert control.seeds == fused.seeds
    alone = suites.load(write(GOOD.replace("steps: 3}", "steps: 3, control: none}")))
    assert "fused.control" not in alone.models
    assert alone.models["fused[lambda=0.1]"].control is None


def test_a_sweep_of_what_the_control_shares_gives_a_control_for_each_point(write):
    suite = suites.load(write(GOOD.replace("steps: 3}", "steps: {sweep: [3, 4]}}")))
    assert suite.models["fused[lambda=0.1,steps=4]"].control == "fused.control[steps=4]"
    assert suite.models["fused.control[steps=4]"].params["steps"] == 4


def test_the_digest_is_of_what_is_said_not_of_how_it_is_written(write):
    first = suites.load(write(GOOD)).digest
    assert suites.load(write(GOOD + "# a remark\n")).digest == first
    assert suites.load(write(GOOD.replace("seed: 7", "seed: 8"))).digest != first


def test_all_problems_at_once_each_with_its_place(write):
    text = problems(
        write,
        "suite: mine\n"
        "models:\n"
        "  base: {from: ./base}\n"
        "  a: {from: ./gone}\n"
        "candidates:\n"
        "  t: {method: tise, base: base, models: [a]}\n"
        "  u: {method: ties, base: base, models: [a, base], densty: 0.5}\n"
        "  v: {method: ties, base: base, models: [a, bass], density: 1.5}\n"
        "evaluate:\n"
        "  code: {tasks: 3, limit: -1}\n"
        "sead: 3\n",
    )
    assert "suite.yaml:4:13" in text and "there is no folder" in text
    assert "suite.yaml:6:15" in text and "unknown method 'tise'" in text and "did you mean 'ties'?" in text
    assert "suite.yaml:7:52" in text and "did you mean 'density'?" in text
    assert "there is no model or candidate 'bass'" in text and "did you mean 'base'?" in text
    assert "'density' is 1.5" in text
    assert "tasks is a task's name" in text
    assert "suite.yaml:11:1" in text and "did you mean 'seed'?" in text
    assert re.search(r"\d problems in ", text)
    assert "    7 |   u: {method: ties, base: base, models: [a, base], densty: 0.5}" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 7", "sead: 7", "unknown key 'sead'"),
        ("seed: 7", "seed: soon", "'seed' is 'soon'; expected a whole number"),
        ("method: slerp", "method: slurp", "did you mean 'slerp'?"),
        ("[a, b], corpus", "[a, bb], corpus", "there is no model or candidate 'bb'"),
        ("teachers: [a, b], ", "", "fusellm needs `teachers:`"),
        ("corpus: pocket/noisy", "corpus: texts.jsonl", "there is no file"),
        ("method: ties, base: base", "method: ties", "base"),
        ("skill: code", "skill: cooking", "'skill' is 'cooking'"),
        ("pocket/specialist, from: base", "pocket/specialist", "continues a model: add `from:`"),
        ("pocket/specialist", "pocket/specialit", "did you mean 'pocket/specialist'?"),
        ("  a: {from: ./a}", "  a: {from: ./a}\n  a: {from: ./b}", "duplicate key"),
        (
            "candidates:\n",
            "candidates:\n  a: {method: linear, models: [base, b]}\n",
            "'a' is already the name of a model",
        ),
        ("density: {sweep: [0.3, 1e-1]}", "density: {sweep: []}", "'density' is swept over []"),
        ("density: {sweep: [0.3, 1e-1]}", "density: dense", "'density' is 'dense'"),
        ('"ties[density=0.3]"', "ties", "'ties' is swept and so is no single model; name one of ties[density=0.3], "),
        ('"ties[density=0.3]"', "again", "these are made of each other: again -> again"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "seeds is a list of different whole numbers"),
        ("limit: 20", "limit: 0", "'limit' is 0; expected a whole number from 1"),
        ("split: {dev: 0.25}", "split: 0.25", "split is {dev: share}"),
        ("split: {dev: 0.25}", "split: {dev: 1.0}", "split is {dev: share}"),
        ("measures: [pcc]", "measures: [pc]", "did you mean 'pcc'?"),
        ("kinship: {base: base", "kinship: {base: bas", "did you mean 'base'?"),
        ("dtype: bfloat16", "dtype: int4", "dtype 'int4' is not one of"),
        ("suite: mine", "suite: ../mine", "`suite:` names the suite"),
        ("models:\n  base", "models:\n  ba se: {from: ./a}\n  base", "is not a name"),
        ("evaluate:", "evaluat:", "did you mean 'evaluate'?"),
        ("{from: ./a}", "{from: ./a, revision: 12e4567}", "'revision' is inf; expected text: put it in quotes"),
        ("{from: ./a}", "{from: ./a, revision: 2024-01-01}", "expected text: put it in quotes"),
        (
            "skilled: {train: pocket/specialist, from: base",
            "skilled: {train: pocket/specialist, from: [base]",
            "['base'] is not",
        ),
        ("method: ties, base: base", "method: ties, base: [base]", "['base'] is not the name of a model"),
        ("measures: [pcc]", "measures: [[pcc]]", "unknown measure"),
        ("measures: [pcc]", "measures: pcc", "measures is a list"),
        ("measures: [pcc]", "measures: [cka]", "cka is measured on texts: add `texts:`"),
        ("measures: [pcc]", "texts: pocket/nosy", "did you mean 'pocket/noisy'?"),
        ("measures: [pcc]", "texts: gone.jsonl", "there is no file"),
        ('models: ["ties[density=0.3]", a]', "pairs: [a]", "expected a list of at least two different models"),
        ('models: ["ties[density=0.3]", a]', "pairs: [a, b, a]", "at least two different models"),
        ('models: ["ties[density=0.3]", a]', "pairs: [a, b, bb]", "there is no model or candidate 'bb'"),
        ('models: ["ties[density=0.3]", a]', "models: [a, b], pairs: [a, b]", "in the place of `models`"),
        ("teachers: [a, b], corpus", "pairs: [a, b], corpus", "`pairs` is for methods that merge"),
        ("t: 0.25}", "t: 0.25, tokenizer: bass}", "'tokenizer' is 'bass'; expected union, ties[density=0.3], a"),
        ("t: 0.25}", "t: 0.25, tokenizer: base}", "'tokenizer' is 'base'"),
        ("lambda: {sweep: [0.1, 0.9]}", "lambda: .inf", "'lambda' is inf; expected a finite number"),
        ("pocket/noisy, lambda", "pocket/nosy, lambda", "did you mean 'pocket/noisy'?"),
        ("t: 0.25}", "t: 0.25, seeds: [1, 2]}", "slerp draws nothing at random"),
        (
            "  again:",
            "  fused.control: {method: linear, models: [a, b]}\n  again:",
            "'fused.control' is the name of fused's control",
        ),
        ("split: {dev: 0.25}", "track: {mlflow: true}", "'mlflow' is True; expected sqlite, off"),
    ],
)
def test_what_is_said_of_a_bad_suite(write, old, new, said):
    assert old in GOOD
    assert said in problems(write, GOOD.replace(old, new, 1))


def test_pairs_are_one_candidate_for_each_two_models_whose_sweeps_are_rows_of_their_own(write):
    text = GOOD.replace('models: ["ties[density=0.3]", a], t: 0.25', "pairs: [a, b, skilled], t: {sweep: [0.25, 0.5]}")
    models = suites.load(write(text)).models
    found = {name: model.models for name, model in models.items() if name.startswith("again")}
    two = {"a+b": ("a", "b"), "a+skilled": ("a", "skilled"), "b+skilled": ("b", "skilled")}
    assert found == {f"again[{pair},t={t}]": parents for pair, parents in two.items() for t in (0.25, 0.5)}
    assert models["again[a+b,t=0.5]"].row == models["again[a+b,t=0.25]"].row == "again[a+b]"
    plain = suites.load(write(text.replace("{sweep: [0.25, 0.5]}", "0.5"))).models
    assert plain["again[a+b]"].row == "again[a+b]" and not plain["again[a+b]"].sweep


def test_an_unknown_model_of_pairs_is_said_once(write):
    text = GOOD.replace('models: ["ties[density=0.3]", a]', "pairs: [a, b, bb]")
    assert problems(write, text).count("'bb'") == 1


def test_a_merge_may_say_whose_tokens_it_has(write):
    models = suites.load(write(GOOD.replace("t: 0.25}", "t: 0.25, tokenizer: union}"))).models
    assert recipe_of(models["again"], 1).tokenizer == {"source": "union"}
    assert recipe_of(models["ties[density=0.3]"], 1).tokenizer is None


def test_a_cycle_is_shown(write):
    text = problems(
        write,
        GOOD.replace(
            "candidates:\n",
            "candidates:\n  x: {method: linear, models: [y, a]}\n  y: {method: linear, models: [x, b]}\n",
        ),
    )
    assert "these are made of each other: x -> y -> x" in text


def test_a_candidate_with_seeds_is_no_parent(write):
    text = problems(write, GOOD.replace("candidates:\n", "candidates:\n  x: {method: linear, models: [noisy, a]}\n"))
    assert "'noisy' has 2 seeds and so is no single model to build from" in text


@pytest.mark.parametrize("text", ["", "[1, 2]", "models: [", "a: b: c", "\t- x"])
def test_what_is_no_suite_at_all(write, text):
    assert "suite.yaml" in problems(write, text)


def test_a_missing_suite_names_the_shipped_ones(tmp_path):
    with pytest.raises(UsageError, match="shipped suites: .*quickstart"):
        suites.find(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        suites.find("quikstart")
    assert suites.find("quickstart").name == "quickstart.yaml"


def test_every_shipped_suite_reads():
    for path in suites.shipped().values():
        assert suites.load(path, planning=True).name == path.stem


def test_the_json_schema_knows_every_method_and_parameter():
    made = schema()
    text = json.dumps(made)
    for word in ("ties", "slerp", "fusellm", "clm", "pocket/specialist", "density", "sweep", "lambda", "pcc"):
        assert f'"{word}"' in text
    assert made["required"] == ["suite", "models", "evaluate"]
    assert made["additionalProperties"] is False
