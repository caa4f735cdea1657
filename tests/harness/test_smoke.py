"""Rehearsals: every job of a suite with tiny models, in a folder of its own, and marked."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from fusion.checkpoint import Checkpoint
from fusion.errors import FusionError
from fusion.lineage import lineage
from fusion.tiny import write_tiny
from harness.cli import cli
from harness.errors import UsageError
from tests.harness.test_evaluate import write_tokenizer
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, QUESTIONS, write_task

BIG = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
       "vocab_size": 300, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
SUITE = """
suite: big
seed: 3
models:
  base: {from: ./base}
  chat: {from: ./base, dtype: bfloat16}
  code: {from: ./base}
  mpt:  {from: ./other}
candidates:
  average: {method: linear, models: [chat, code]}
  ties: {method: ties, base: base, models: [chat, code], density: {sweep: [0.3, 0.5]}}
  regmean: {method: regmean, models: [chat, code], corpora: {chat: ./mix.jsonl, code: ./mix.jsonl}}
  fused: {method: fusellm, target: base, teachers: [mpt], corpus: ./mix.jsonl, epochs: 3, context: 256}
evaluate:
  questions: {tasks: [./legs.yaml], limit: 40}
  code: {tasks: [./functions.yaml], samples: 5, temperature: 0.8}
split: {dev: 0.5}
sandbox: any
kinship: {base: base}
track: {mlflow: sqlite}
"""


def write_donor(folder: Path, config) -> None:
    """A model's folder without its weights: a rehearsal has no need of them."""
    config.save_pretrained(folder)
    write_tokenizer(folder)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    write_donor(tmp_path / "base", LlamaConfig(**BIG, num_key_value_heads=8))
    write_donor(tmp_path / "other", GPTNeoXConfig(**BIG))
    write_task(tmp_path, "legs", CHOICE, QUESTIONS * 4)
    write_task(tmp_path, "functions", CODE, FUNCTIONS * 4)
    lines = [json.dumps({"prompt": f"What is {i}?", "answer": f" {i} is a number."}) for i in range(200)]
    (tmp_path / "mix.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "big.yaml").write_text(SUITE)
    return tmp_path / "big.yaml"


def smoke(suite: Path, *options: str):
    places = ["--out", str(suite.parent / "runs"), "--store", str(suite.parent / "store")]
    return CliRunner().invoke(cli, ["run", str(suite), "--smoke", "--progress", "none", *places, *options])


def test_the_whole_suite_is_rehearsed_and_marked(suite: Path) -> None:
    done = smoke(suite, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["jobs"]["failed"] == 0
    run_dir = Path(found["run_dir"])
    assert run_dir.parent == suite.parent / "runs" / "smoke", "no run's name and no `latest` finds it"
    assert not (suite.parent / "runs" / "mlflow.db").exists(), "nothing of it is tracked"
    results = json.loads(Path(found["results"]).read_text())
    assert results["suite"]["smoke"] is True
    assert {"average", "ties[density=0.3]", "regmean", "fused", "fused.control"} <= set(results["models"])
    assert all(row["status"] == "ok" for row in results["models"].values())
    n = results["suite"]["groups"]["questions"]["tasks"]["legs"]["n"]
    assert n == {"dev": 2, "test": 2}
    assert "rehearsal" in (run_dir / "leaderboard.md").read_text().splitlines()[0]
    again = json.loads(smoke(suite, "--json").stdout)
    assert again["jobs"]["ran"] == 0 and again["run_dir"] == found["run_dir"]
    assert sum(file.stat().st_size for file in (suite.parent / "store").rglob("*") if file.is_file()) < 40e6


def test_a_model_that_cannot_be_tiny_is_named(suite: Path) -> None:
    (suite.parent / "other" / "config.json").write_text(json.dumps({"model_type": "nobody"}))
    done = smoke(suite)
    assert isinstance(done.exception, UsageError) and "model 'mpt' cannot be rehearsed" in str(done.exception)


def test_tiny_models_are_kin_and_differ_and_are_the_same_again(tmp_path: Path) -> None:
    donor = tmp_path / "donor"
    write_donor(donor, LlamaConfig(**BIG, num_key_value_heads=8, dtype="bfloat16"))
    for name, out in (("a", "a"), ("b", "b"), ("a", "a2")):
        write_tiny(donor, tmp_path / out, name)
    a, b, again = (Checkpoint(tmp_path / out) for out in ("a", "b", "a2"))
    about = lineage(a, b)
    assert about.kin and about.distance is not None and about.distance > 0.05
    assert all(torch.equal(a.tensor(name), again.tensor(name)) for name in a.names())
    assert {a.dtype(name) for name in a.names()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert model.num_parameters() < 100_000 and model.config.vocab_size == 300
    assert model.config.num_attention_heads % model.config.num_key_value_heads == 0
    assert model.config.max_position_embeddings == 256, "prompts must fit as they will"


def test_an_architecture_that_is_not_known_is_an_error_of_the_engine(tmp_path: Path) -> None:
    donor = tmp_path / "donor"
    write_donor(donor, LlamaConfig(**BIG))
    (donor / "config.json").write_text(json.dumps({"model_type": "nobody"}))
    with pytest.raises(FusionError, match="no tiny model of its architecture can be made"):
        write_tiny(donor, tmp_path / "out", "a")
