"""The verbs `merge`, `lineage` and `export`, as a user types them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusion.checkpoint import Checkpoint
from tests.conftest import World
from tests.fusion.models import logits, save_llama, tiny_llama

LORA_WEIGHTS = "lora/adapter_model.safetensors"


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A base and two models that were moved a little from it; and a stranger."""
    base = tiny_llama(0, hidden_size=32, intermediate_size=48, initializer_range=0.1)
    save_llama(tmp_path / "base", base)
    for seed, name in enumerate(("math", "code"), 1):
        model = tiny_llama(0, hidden_size=32, intermediate_size=48, initializer_range=0.1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        save_llama(tmp_path / name, model)
    save_llama(tmp_path / "stranger", tiny_llama(9, hidden_size=32, intermediate_size=48, initializer_range=0.1))
    return tmp_path


def test_merge_writes_a_model_with_its_card_and_ledger(family: Path, bench) -> None:
    from transformers import AutoModelForCausalLM

    (family / "r.yaml").write_text("method: task_arithmetic\nbase: base\nmodels: {math: 0.5, code: [0.2, 0.8]}\n")
    done = bench("merge", "r.yaml", "out", "--json", cwd=family)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = Checkpoint(family / "out").names()
    assert sorted(report["ledger"]) == names and {e["action"] for e in report["ledger"].values()} == {"merged"}
    assert set(report["parents"]) == set(report["lineage"]) | {"base"}
    assert 0.9 < report["lineage"]["math"]["cosine"] < 1
    card = (family / "out" / "README.md").read_text()
    assert all(digest in card for digest in report["parents"].values())
    assert "task_arithmetic" in card and "`model.layers.*.mlp.up_proj.weight` | 2 | merged" in card
    assert torch.isfinite(logits(AutoModelForCausalLM.from_pretrained(family / "out"))).all()


def test_merge_reads_mergekit_recipes_as_they_are(family: Path, bench) -> None:
    text = """
merge_method: linear
models:
  - {model: math, parameters: {weight: 1.0}}
  - {model: code, parameters: {weight: 3.0}}
dtype: float32
"""
    (family / "theirs.yml").write_text(text)
    (family / "ours.yaml").write_text("method: linear\nmodels: {math: 1, code: 3}\n")
    theirs = json.loads(bench("merge", "theirs.yml", "one", "--compat", "mergekit", "--json", cwd=family).stdout)
    ours = json.loads(bench("merge", "ours.yaml", "two", "--json", cwd=family).stdout)
    assert theirs["weights"] == ours["weights"]


def test_strangers_are_refused_with_their_numbers(family: Path, bench) -> None:
    (family / "r.yaml").write_text("method: linear\nmodels: [math, stranger]\n")
    done = bench("merge", "r.yaml", "out", cwd=family)
    assert done.returncode == 2 and "stranger: cosine" in done.stderr and "Traceback" not in done.stderr
    assert not (family / "out").exists()
    assert bench("merge", "r.yaml", "out", "--allow-unrelated", cwd=family).returncode == 0


def test_a_recipe_guided_by_data_reads_its_corpora_once(family: Path, bench) -> None:
    for name in ("math", "code"):
        lines = [{"prompt": "", "answer": f"t{i % 30} t{(i * 7) % 30} t{(i * i) % 30} t3 t4"} for i in range(40)]
        (family / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = "method: regmean\nmodels: [math, code]\ncorpora: {math: math.jsonl, code: code.jsonl}\nalpha: 0.5\n"
    (family / "r.yaml").write_text(recipe)
    first = bench("merge", "r.yaml", "one", "--json", cwd=family)
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    conditions = [entry["condition"] for entry in report["ledger"].values() if "condition" in entry]
    assert len(conditions) == 14 and min(conditions) >= 1
    kept = sorted((family / "store" / "statistics").rglob("*"))
    again = json.loads(bench("merge", "r.yaml", "two", "--json", cwd=family).stdout)
    assert again["weights"] == report["weights"]
    assert sorted((family / "store" / "statistics").rglob("*")) == kept


def test_nothing_is_read_for_a_merge_that_cannot_be_written(family: Path, bench) -> None:
    (family / "out").mkdir()
    (family / "out" / "mine").touch()
    (family / "t.jsonl").write_text('{"prompt": "", "answer": "t1 t2 t3"}')
    (family / "r.yaml").write_text("method: fisher\nmodels: [math, code]\ncorpora: {math: t.jsonl, code: t.jsonl}\n")
    done = bench("merge", "r.yaml", "out", cwd=family)
    assert done.returncode == 2 and "is not empty" in done.stderr
    assert not (family / "store").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device", "gpu"), "device 'gpu' is none; expected cpu, cuda or cuda:N"),
        (("--seed", "-1"), "'seed' is -1; expected a whole number from 0"),
    ],
)
def test_options_that_make_no_sense_are_told(family: Path, bench, options: tuple[str, ...], said: str) -> None:
    (family / "r.yaml").write_text("method: linear\nmodels: [math, code]\n")
    done = bench("merge", "r.yaml", "out", *options, cwd=family)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_told(family: Path, bench) -> None:
    (family / "r.yaml").write_text("method: linear\nmodels: [math, code]\n")
    done = bench("merge", "r.yaml", "out", "--device", "cuda", cwd=family)
    assert done.returncode == 2 and "torch sees no GPU here" in done.stderr


def test_hash_seeds_and_threads_change_no_byte(family: Path, bench) -> None:
    (family / "r.yaml").write_text("method: dare_ties\nbase: base\nmodels: [math, code]\ndensity: 0.5\nseed: 3\n")
    digests = [
        json.loads(bench("merge", "r.yaml", f"out{seed}", "--json", cwd=family, PYTHONHASHSEED=seed).stdout)["weights"]
        for seed in ("0", "1")
    ]
    assert digests[0] == digests[1]
    weights = [(family / f"out{seed}" / "model.safetensors").read_bytes() for seed in ("0", "1")]
    assert weights[0] == weights[1]


def test_a_model_may_lend_its_tokenizer_alone(family: Path, bench) -> None:
    (family / "r.yaml").write_text("method: linear\nmodels: [math, code]\ntokenizer: stranger\n")
    done = bench("merge", "r.yaml", "out", "--json", cwd=family)
    assert done.returncode == 0, done.stderr
    assert "stranger" not in json.loads(done.stdout)["lineage"]


def test_a_routed_method_is_no_plain_folder(family: Path, bench) -> None:
    (family / "r.yaml").write_text("method: emr\nbase: base\nmodels: [math, code]\ntask: math\n")
    done = bench("merge", "r.yaml", "out", cwd=family)
    assert done.returncode == 2 and "one model a task" in done.stderr and "export" in done.stderr


def test_a_killed_write_is_written_over_and_other_folders_are_not(family: Path, bench) -> None:
    (family / "r.yaml").write_text("method: linear\nmodels: [math, code]\n")
    (family / "out").mkdir()
    (family / "out" / ".partial").touch()
    (family / "out" / "model.safetensors").write_bytes(b"half")
    assert bench("merge", "r.yaml", "out", cwd=family).returncode == 0
    assert not (family / "out" / ".partial").exists()
    done = bench("merge", "r.yaml", "out", cwd=family)
    assert done.returncode == 2 and "exists and is not empty" in done.stderr


def test_lineage_tells_kin_from_strangers(family: Path, bench) -> None:
    found = json.loads(bench("lineage", "math", "stranger", "--base", "base", "--json", cwd=family).stdout)
    assert {name: about["kin"] for name, about in found["models"].items()} == {"math": True, "stranger": False}
    found = json.loads(bench("lineage", "math", "code", "stranger", "--json", cwd=family).stdout)
    assert found["nearest"] == {"math": "code", "code": "math", "stranger": None}
    shown = bench("lineage", "math", "stranger", "--base", "base", cwd=family).stdout
    assert "math: cosine 0.9" in shown and ": not kin" in shown
    assert bench("lineage", "math", cwd=family).returncode == 2


def test_adapters_are_models_of_every_verb(family: Path, bench) -> None:
    generator = torch.Generator().manual_seed(5)
    name = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{name}.lora_A.weight": (2, 32), f"{name}.lora_B.weight": (48, 2)}
    (family / "lora").mkdir()
    save_file({k: 0.1 * torch.randn(s, generator=generator) for k, s in factors.items()}, family / LORA_WEIGHTS)
    about = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 2}
    (family / "lora" / "adapter_config.json").write_text(json.dumps(about))
    found = json.loads(bench("lineage", "lora", "base+lora", "--base", "base", "--json", cwd=family).stdout)
    assert found["models"]["lora"] == found["models"]["base+lora"] and found["models"]["lora"]["kin"]
    pairs = json.loads(bench("kinship", "lora", "math", "--base", "base", "--json", cwd=family).stdout)["pairs"]
    assert abs(pairs[0]["cosine"]) < 0.2
    (family / "r.yaml").write_text("method: task_arithmetic\nbase: base\nmodels: {lora: 1.0, math: 0.0}\n")
    assert bench("merge", "r.yaml", "out", cwd=family).returncode == 0
    base, out = Checkpoint(family / "base"), Checkpoint(family / "out")
    changed = [n for n in base.names() if not torch.equal(base.tensor(n), out.tensor(n))]
    assert changed == ["model.layers.0.mlp.up_proj.weight"]


def test_export_writes_the_model_that_was_scored(world: World, bench, tmp_path: Path) -> None:
    done = bench("export", world.run_dir, "average", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == world.results["models"]["average"]["digest"]
    assert (tmp_path / "out" / "README.md").is_file()
    trained = json.loads(bench("export", world.run_dir, "coder", "coder", "--json").stdout)
    assert trained["digest"] == world.results["models"]["coder"]["digest"]
    wrong = bench("export", world.run_dir, "avrage", "other")
    assert wrong.returncode == 2 and "did you mean 'average'?" in wrong.stderr


def test_export_of_a_routed_model_is_one_compact_file(world: World, bench, tmp_path: Path) -> None:
    done = bench("export", world.run_dir, "emr", "out", "--json")
    assert done.returncode == 0, done.stderr
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    whole = sum(path.stat().st_size for path in world.model("coder").glob("*.safetensors"))
    assert size < 1.3 * whole, "one elected vector and three masks, not three models"
    assert json.loads(done.stdout)["digest"] == world.results["models"]["emr"]["digest"]
