"""What the command line says when it is given something bad: one clear error, its exit code, and nothing lost."""

import json
import os
import shutil

import pytest
import torch

from fusion.digests import folder_digests
from harness import runs, sandbox
from harness.errors import SandboxError
from harness.run import Options
from harness.run import run as run_suite
from harness.work import FUNCTIONS
from tests.fusion.models import save_llama, tiny_llama

SUITE = """
suite: own
models:
  base: {from: ./base}
  a: {from: ./a}
  b: {from: ./b}
candidates:
  average: {method: linear, allow_unrelated: true, models: [a, b]}
  ties: {method: ties, allow_unrelated: true, base: base, models: [a, b]}
evaluate:
  quiz: {tasks: [./quiz.yaml], batch_size: 4}
"""
QUIZ = """
task: quiz
dataset_path: json
dataset_kwargs: {data_files: {test: quiz.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@pytest.fixture
def folder(tmp_path):
    """A suite of three random models and a task of their own words."""
    for seed, name in enumerate(("base", "a", "b")):
        save_llama(tmp_path / name, tiny_llama(seed))
    rows = [{"question": f"t{i} t3", "choices": ["t4", "t5"], "label": i % 2} for i in range(12)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    (tmp_path / "own.yaml").write_text(SUITE)
    return tmp_path


def refused(done, *said, code=2):
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr
    return done


def run(bench, *more, **environment):
    return bench("run", "own.yaml", "--progress", "plain", *more, **environment)


def test_two_checkpoints_and_a_base_are_all_it_takes(folder, bench):
    done = run(bench, "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / json.loads(done.stdout)["results"]).read_text())
    assert results["models"]["ties"]["scores"]["quiz"]["n"] == 12
    assert results["models"]["a"]["kind"] == "source"
    assert "kinship" in results["models"]["ties"]
    assert list(results["models"]["average"]["kinship"]) == ["capa"], "linear has no base, and the suite names none"
    kept = list((folder / "store").glob("objects/*/*/model/model.safetensors"))
    assert len(kept) == 1, "keep: best writes the best merge"


def test_a_truncated_model_is_named_before_anything_is_built(folder, bench):
    weights = folder / "b" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    refused(run(bench), str(weights), "truncated")


def test_a_model_without_a_tokenizer_is_named(folder, bench):
    for path in (folder / "b").glob("*token*"):
        path.unlink()
    refused(run(bench), str(folder / "b"), "tokenizer")


def test_models_of_different_shapes_fail_their_merges_and_nothing_else(folder, bench):
    for path in (folder / "b").iterdir():
        path.unlink()
    (folder / "b").rmdir()
    save_llama(folder / "b", tiny_llama(5, intermediate_size=40))
    done = refused(
        run(bench, "--json"), "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight", code=1
    )
    results = json.loads((folder / json.loads(done.stdout)["results"]).read_text())["models"]
    assert (results["ties"]["status"], results["average"]["status"]) == ("failed", "failed")
    assert "scores" not in results["ties"] and "score" not in results["ties"] and "rank" not in results["ties"]
    assert results["b"]["scores"]["quiz"]["n"] == 12
    assert "ties" in (folder / json.loads(done.stdout)["run_dir"] / "leaderboard.md").read_text()


def test_strangers_are_not_merged_unless_that_is_asked_for(folder, bench):
    (folder / "own.yaml").write_text(SUITE.replace("allow_unrelated: true, ", ""))
    done = refused(run(bench, "--json"), "not kin to 'base'", "a: cosine", "relative distance", code=1)
    results = json.loads((folder / json.loads(done.stdout)["results"]).read_text())["models"]
    assert results["ties"]["status"] == "failed" and results["a"]["status"] == "ok"


def test_a_model_with_a_nan_in_it_is_named_and_has_no_score(folder, bench):
    broken = tiny_llama(7)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 2] = float("nan")
    for path in (folder / "b").iterdir():
        path.unlink()
    (folder / "b").rmdir()
    save_llama(folder / "b", broken)
    done = refused(run(bench, "--json"), "not finite", "model.layers.1.mlp.up_proj.weight", code=1)
    results = json.loads((folder / json.loads(done.stdout)["results"]).read_text())["models"]
    assert results["b"]["status"] == "incomplete" and "scores" not in results["b"]
    assert results["a"]["status"] == "ok"


def test_a_task_without_data_is_named(folder, bench):
    (folder / "quiz.jsonl").write_text("")
    refused(run(bench), "quiz.jsonl", "empty")
    (folder / "quiz.jsonl").unlink()
    refused(run(bench), "quiz.jsonl")


def test_an_unknown_task_has_near_names(folder, bench):
    (folder / "own.yaml").write_text(SUITE.replace("./quiz.yaml", "pocket_gaols"))
    refused(run(bench), "unknown task 'pocket_gaols'", "pocket_goals")


def test_an_unwritable_run_folder_is_named(folder, bench):
    (folder / "runs").write_text("a file is in the way")
    refused(run(bench), str(folder / "runs"), "a file is in the way")


def test_weights_that_cannot_be_kept_cost_no_results(folder, monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "write", "tests.harness.toy:refuse")
    outcome = run_suite(folder / "own.yaml", Options(folder / "runs", folder / "store", progress="none"))
    assert list(outcome.failed.values()) == ["write is refused"]
    assert not outcome.kept
    models = json.loads((outcome.run_dir / "results.json").read_text())["models"]
    assert {model["status"] for model in models.values()} == {"ok"}


def test_scores_of_a_model_that_is_broken_since_are_not_read(folder):
    options = Options(folder / "runs", folder / "store", progress="none")
    run_dir = run_suite(folder / "own.yaml", options).run_dir
    assert runs.read_scores(run_dir, "b") is not None
    for path in (folder / "b").iterdir():
        path.unlink()
    broken = tiny_llama(7)
    with torch.no_grad():
        broken.lm_head.weight[3, 2] = float("nan")
    save_llama(folder / "b", broken)
    assert run_suite(folder / "own.yaml", options).run_dir == run_dir
    assert runs.read_scores(run_dir, "b") is None
    assert runs.read_scores(run_dir, "a") is not None


def test_the_dtype_that_a_config_states_is_part_of_a_model(folder, bench):
    """lm-eval's `auto`, and ours, evaluates in it."""
    shutil.copytree(folder / "a", folder / "half")
    config = json.loads((folder / "half" / "config.json").read_text())
    (folder / "half" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert folder_digests(folder / "half")["weights"] == folder_digests(folder / "a")["weights"]
    assert folder_digests(folder / "half")["model"] != folder_digests(folder / "a")["model"]


def test_a_suite_error_shows_the_line(folder, bench):
    (folder / "own.yaml").write_text(SUITE.replace("method: ties", "method: tise"))
    done = refused(run(bench), "own.yaml:9:18", "did you mean 'ties'?", "^")
    assert done.stdout == ""


def test_a_missing_suite_or_recipe_is_named(bench):
    refused(bench("run", "nothing.yaml"), "there is no suite file nothing.yaml")
    refused(bench("merge", "nothing.yaml", "out"), "nothing.yaml")


def test_the_weakest_sandbox_is_refused_unless_it_is_asked_for(monkeypatch):
    weak = {"rlimits": None, "namespaces": "they are forbidden here", "bubblewrap": "bwrap is not installed"}
    monkeypatch.setattr(sandbox, "probe", lambda: weak)
    with pytest.raises(
        SandboxError, match="programs that models write are to be run.*they are forbidden here.*"
    ) as error:
        sandbox.accepted(None)
    assert "--allow-weak-sandbox, or `sandbox: any` in the suite" in str(error.value)
    assert sandbox.accepted("any") == "rlimits"
    with pytest.raises(SandboxError, match="no sandbox of level 'bubblewrap' or stronger"):
        sandbox.accepted("bubblewrap")


def test_merge_writes_a_folder_that_transformers_loads(folder, bench):
    from transformers import AutoModelForCausalLM

    recipe = folder / "recipe.yaml"
    recipe.write_text("method: linear\nmodels: {a: 3, b: 1}\n")
    done = bench("merge", "recipe.yaml", "out", "--allow-unrelated", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"].startswith("sha256:")
    load = AutoModelForCausalLM.from_pretrained
    merged, a, b = (load(folder / name).state_dict() for name in ("out", "a", "b"))
    for name, tensor in merged.items():
        assert torch.allclose(tensor, 0.75 * a[name] + 0.25 * b[name], atol=1e-7)
    refused(bench("merge", "recipe.yaml", "out"), "not empty")


def test_kinship_of_folders(folder, bench):
    refused(bench("kinship", "a", "b", "--base", "base"), "a: cosine", "--allow-unrelated")
    found = json.loads(bench("kinship", "a", "b", "--base", "base", "--allow-unrelated", "--json").stdout)
    assert set(found) == {"base", "models", "measures", "lineage", "pairs"}
    assert {"a", "b", "pcc", "cosine", "euclidean"} <= set(found["pairs"][0])
    refused(bench("kinship", "a", "--base", "base"), "at least two")
    refused(bench("kinship", "a", "a", "--base", "base"), "more than once")


@pytest.mark.parametrize("verb", ["methods", "measures", "tasks", "suites", "doctor"])
def test_tables_are_text_and_json(bench, verb):
    assert bench(verb).stdout.strip()
    assert json.loads(bench(verb, "--json").stdout)


def test_init_writes_a_suite_that_reads_but_for_its_models(folder, bench):
    assert bench("init", "mine.yaml").returncode == 0
    refused(bench("init", "mine.yaml"), "is there already")
    refused(bench("plan", "mine.yaml"), "3 problems in", "there is no folder")
