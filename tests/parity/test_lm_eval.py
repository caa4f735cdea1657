"""Sample by sample beside bare lm-eval on the real data, with a small random model: `make parity`, some 20 minutes.

lm-eval is run as its users do, by `simple_evaluate` on its own task files with nothing but the data replaced. Whatever
the bench does on the way (blocks, shared contexts, its own stop sequences for BBH) must not be seen in the numbers.
"""

import os
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fusion.corpus import text_of
from fusion.modelref import Folder
from fusion.new_model import train_tokenizer
from harness import pocket, tasks
from harness.evaluate import LiveModel, Settings, respond
from harness.judge import judge

DATA = os.environ.get("FUSE_BENCH_DATA")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not DATA, reason="FUSE_BENCH_DATA does not name a folder with the real data"),
]
BATCH = 16
GENERATED = 8  # items of a task
TWO_ULPS = 2.4e-7  # of float32: what a sum of two thousand nats can be told to
MC = sorted(path.stem for path in (Path(lm_eval.__file__).parent / "tasks/leaderboard/bbh_mc").glob("[!_]*.yaml"))
BBH = sorted(path.stem for path in Path(DATA or ".").glob("bbh/*.jsonl"))
COMMONSENSE = {
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, but far from uniform; its tokens are those of the pocket world's text."""
    folder = tmp_path_factory.mktemp("model")
    texts = [text_of(document) for document in pocket.corpus("pocket/noisy", 0)]
    tokenizer = train_tokenizer(texts, 2048)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(model: Path) -> HFLM:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(model), batch_size=BATCH)


@pytest.fixture(scope="module")
def ours(model: Path) -> LiveModel:
    live = LiveModel("cpu")
    live.load(Folder(str(model)))
    return live


def by_lm_eval(lm: HFLM, file: str, split: str, data: Path, folder: Path, limit: int | None) -> list[dict[str, Any]]:
    """lm-eval's own records of one of its tasks, on local data."""
    own = {"training_split": None, "validation_split": None, "test_split": None}
    config = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / file),
        "task": "beside",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(data)}},
        **own,
        f"{split}_split": split,
    }
    (folder / "beside.yaml").write_text(yaml.safe_dump(config))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=lm, tasks=["beside"], task_manager=manager, limit=limit, bootstrap_iters=0)
    return list(found["samples"]["beside"])


def by_us(live: LiveModel, name: str, cache: Path, limit: int | None) -> list[tuple[Any, dict[str, float]]]:
    """Our response to each item, and its scores by name."""
    (task,) = tasks.describe([name], Path(), cache).values()
    items = range(len(task.items) if limit is None else limit)
    # In two parts of unequal size, as blocks come.
    cut = len(items) // 3
    responses = [
        response
        for part in (items[:cut], items[cut:])
        for response in respond(live, task.source, part, Settings(batch_size=BATCH))
    ]
    scores = judge(task.source, responses)
    named = [{task.metric: one["score"], **one["also"]} for one in scores]
    return list(zip(responses, named, strict=True))


def check_choices(theirs: list[dict[str, Any]], ours: list[tuple[Any, dict[str, float]]]) -> None:
    """Each choice's likelihood, and every metric."""
    assert len(theirs) == len(ours)
    for sample in theirs:
        response, scores = ours[sample["doc_id"]]
        assert response["id"] == sample["doc_hash"]
        wanted = [repeats[0][0] for repeats in sample["resps"]]
        assert [repeats[0][0] for repeats in response["resps"]] == pytest.approx(wanted, abs=1e-4, rel=TWO_ULPS)
        assert [r[0][1] for r in response["resps"]] == [r[0][1] for r in sample["resps"]], "greedy or not"
        assert response["prompt_hash"] == sample["prompt_hash"]
        assert scores == {metric: sample[metric] for metric in sample["metrics"]}


@pytest.mark.parametrize("name", MC)
def test_bbh_by_likelihood(name: str, theirs: HFLM, ours: LiveModel, tmp_path: Path) -> None:
    data = Path(str(DATA)) / "bbh" / f"{name}.jsonl"
    beside = by_lm_eval(theirs, f"leaderboard/bbh_mc/{name}.yaml", "test", data, tmp_path, None)
    check_choices(beside, by_us(ours, f"leaderboard_bbh_{name}", tmp_path / "cache", None))


@pytest.mark.parametrize("name", COMMONSENSE)
def test_commonsense(name: str, theirs: HFLM, ours: LiveModel, tmp_path: Path) -> None:
    file, split = COMMONSENSE[name]
    data = Path(str(DATA)) / "commonsense" / f"{name}.jsonl"
    beside = by_lm_eval(theirs, file, split, data, tmp_path, None)
    check_choices(beside, by_us(ours, name, tmp_path / "cache", None))


@pytest.mark.parametrize("mode", ["cot_fewshot", "fewshot", "zeroshot"])
@pytest.mark.parametrize("name", BBH)
def test_bbh_by_generation(mode: str, name: str, theirs: HFLM, ours: LiveModel, tmp_path: Path) -> None:
    """lm-eval's text is ours up to its own stop, and its score is the one that we derive."""
    data = Path(str(DATA)) / "bbh" / f"{name}.jsonl"
    beside = by_lm_eval(theirs, f"bbh/{mode}/{name}.yaml", "test", data, tmp_path, GENERATED)
    mine = by_us(ours, f"bbh_{mode}_{name}", tmp_path / "cache", GENERATED)
    assert {sample["doc_id"] for sample in beside} == set(range(len(mine))) == set(range(GENERATED))
    for sample in beside:
        response, scores = mine[sample["doc_id"]]
        assert response["id"] == sample["doc_hash"]
        assert response["prompt_hash"] == sample["prompt_hash"]
        (text,), (theirs_text,) = response["resps"][0], sample["resps"][0]
        if mode == "zeroshot":
            assert text == theirs_text
            assert scores[f"exact_match,{sample['filter']}"] == sample["exact_match"]
        else:
            assert text.partition("Q")[0] == theirs_text
            assert scores["exact_match,lm-eval"] == sample["exact_match"]
