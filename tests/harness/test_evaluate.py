"""The live model answers as bare lm-eval does, block by block, swap after swap, with little overhead."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusion.errors import MismatchError
from fusion.merge import write
from fusion.modelref import Delta, Folder
from fusion.recipe import Recipe
from harness.errors import FuseBenchError, TaskError
from harness.evaluate import LiveModel, Settings, respond
from harness.tasks import load
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, GENERATE, QUESTIONS, write_task

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([row["question"] for row in QUESTIONS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)


def write_model(folder: Path, seed: int = 0, context: int = 96, architecture: str = "llama") -> Folder:
    """A random model whose outputs are far from uniform, so that choices and lengths differ."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {**SMALL, "vocab_size": 300, "max_position_embeddings": context}
    common |= {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3, "tie_word_embeddings": True}
    if architecture == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=1))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**common))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return Folder(str(folder))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a, b and other (another architecture), and task files."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "a", seed=1)
    write_model(folder / "b", seed=2)
    write_model(folder / "other", seed=3, architecture="neox")
    write_task(folder, "legs", CHOICE, QUESTIONS)
    write_task(folder, "word", GENERATE, QUESTIONS)
    write_task(folder, "functions", CODE, FUNCTIONS)
    write_task(folder, "shots", CHOICE.replace("test: ", "train: train.jsonl, test: "), QUESTIONS, SHOTS)
    (folder / "train.jsonl").write_text((folder / "legs.jsonl").read_text().replace("has", "had"))
    return folder


SHOTS = "training_split: train\nnum_fewshot: 2\n"
TASKS = ["legs", "word", "functions", "shots"]


def loaded(world: Path, name: str) -> LiveModel:
    live = LiveModel("cpu")
    live.load(Folder(str(world / name)))
    return live


def ask(live: LiveModel, world: Path, task: str, ids: Sequence[int] = range(4), batch_size: int = 4) -> list[Any]:
    return respond(live, str(world / f"{task}.yaml"), ids, Settings(batch_size))


@pytest.mark.parametrize("task", TASKS)
def test_two_runs_give_the_same_bytes(world: Path, task: str) -> None:
    first, again = (json.dumps(ask(loaded(world, "a"), world, task), allow_nan=False) for _ in range(2))
    assert first == again


def test_a_record(world: Path) -> None:
    records = ask(loaded(world, "a"), world, "legs", [3, 1])
    task = load.load(world / "legs.yaml")
    assert [record["doc_id"] for record in records] == [1, 3]
    assert [record["id"] for record in records] == [task.ids[1], task.ids[3]]
    assert [len(record["resps"]) for record in records] == [3, 3]
    assert all(len(repeats) == 1 and len(repeats[0]) == 2 for record in records for repeats in record["resps"])
    assert [record["target"] for record in records] == [1, 0]
    assert all(len(record["prompt_hash"]) == 64 and record["truncated"] is False for record in records)
    (text,) = ask(loaded(world, "a"), world, "word", [0])[0]["resps"]
    assert len(text) == 1 and isinstance(text[0], str)


@pytest.mark.parametrize("task", TASKS)
def test_blocks_give_what_the_whole_gives(world: Path, task: str) -> None:
    live = loaded(world, "a")
    whole = ask(live, world, task, range(4), batch_size=1)
    blocks = ask(live, world, task, [2, 3], batch_size=1) + ask(live, world, task, [0, 1], batch_size=1)
    assert whole == sorted(blocks, key=lambda record: record["doc_id"])


def test_models_of_one_architecture_share_a_skeleton(world: Path) -> None:
    live = loaded(world, "a")
    first = ask(live, world, "legs")
    digests = [live.load(Folder(str(world / name))) for name in ("b", "a", "b", "a")]
    assert live.skeletons_loaded == 1
    assert ask(live, world, "legs") == first
    assert digests[0] == digests[2] != digests[1] == digests[3]
    assert sorted(digests[0]) == ["config", "model", "tokenizer", "weights"]
    live.load(Folder(str(world / "other")))
    assert live.skeletons_loaded == 2
    assert ask(live, world, "legs") == ask(loaded(world, "other"), world, "legs") != first


def test_changed_weights_are_loaded_again(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "a", tmp_path / "m")
    live = LiveModel("cpu")
    before = live.load(Folder(str(tmp_path / "m")))
    assert live.load(Folder(str(tmp_path / "m"))) == before
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    save_file(
        {name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "m" / "model.safetensors", {"format": "pt"}
    )
    assert live.load(Folder(str(tmp_path / "m")))["weights"] != before["weights"]


def test_dtype_is_the_models_own_or_the_one_asked_for(world: Path) -> None:
    live = LiveModel("cpu")
    live.load(Folder(str(world / "a")))
    assert live.lm.model.dtype == torch.float32
    live.load(Folder(str(world / "a")), "bfloat16")
    assert live.lm.model.dtype == torch.bfloat16
    assert live.skeletons_loaded == 2


def test_a_failed_load_leaves_no_model_behind(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "a", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    live = loaded(world, "a")
    with pytest.raises(MismatchError, match=r"model\.norm\.weight"):
        live.load(Folder(str(tmp_path / "m")))
    with pytest.raises(RuntimeError, match="no model is loaded"):
        ask(live, world, "legs")


def test_weights_that_are_not_finite_give_no_score(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "a", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    live = LiveModel("cpu")
    with pytest.raises(FuseBenchError, match="not finite"):
        live.load(Folder(str(tmp_path / "m")))
        ask(live, world, "legs")


def test_prompts_that_lose_their_beginning_are_marked(world: Path, tmp_path: Path) -> None:
    live = loaded(world, "a")
    long = {**QUESTIONS[0], "question": "is " * 120}
    for name, template in (("legs", CHOICE), ("word", GENERATE)):
        write_task(tmp_path, name, template, [QUESTIONS[0], long, QUESTIONS[1]])
        records = respond(live, str(tmp_path / f"{name}.yaml"), [1, 2], Settings())
        assert [record["truncated"] for record in records] == [True, False]


def test_the_mark_is_exact(tmp_path: Path) -> None:
    context = 96
    write_model(tmp_path / "m", context=context)
    live = loaded(tmp_path, "m")
    texts = ["x" * n for n in range(context - 8, context + 2)]
    rows = [{**QUESTIONS[0], "question": text} for text in texts]
    records = respond(live, str(write_task(tmp_path, "word", GENERATE, rows)), range(len(rows)), Settings())
    lengths = [len(live.lm.tok_encode(text)) for text in texts]
    assert [record["truncated"] for record in records] == [length > context - 6 for length in lengths]
    assert {record["truncated"] for record in records} == {True, False}


def test_more_to_generate_than_there_is_context(world: Path, tmp_path: Path) -> None:
    path = write_task(tmp_path, "word", GENERATE.replace("max_gen_toks: 6", "max_gen_toks: 96"), QUESTIONS)
    with pytest.raises(TaskError, match="max_gen_toks is 96, but the model's whole context is 96 tokens"):
        respond(loaded(world, "a"), str(path), [0], Settings())


@pytest.mark.parametrize("ids", [[10], [-1], [1, 1]])
def test_items_that_are_not_there(world: Path, ids: list[int]) -> None:
    with pytest.raises(TaskError, match="doc_ids must differ and be below 10"):
        ask(loaded(world, "a"), world, "legs", ids)


def test_nothing_is_written_to_stderr(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    live = loaded(world, "a")
    for task in TASKS:
        ask(live, world, task)
    assert capfd.readouterr() == ("", "")


def test_nothing_asks_the_network(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*arguments: Any, **named: Any) -> None:
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    live = loaded(world, "a")
    respond(live, str(write_task(tmp_path, "legs", CHOICE, QUESTIONS)), [0], Settings())
    assert asked == []


def test_a_merge_is_loaded_without_being_written(world: Path, tmp_path: Path) -> None:
    recipe = Recipe("linear", ("a", "b"), None, (0.5, 0.5), {}, 0, None)
    merge = Delta(recipe, tuple((name, Folder(str(world / name))) for name in ("a", "b")))
    write(merge, tmp_path / "merged")
    live = loaded(world, "a")
    digests = live.load(merge)
    assert live.skeletons_loaded == 1
    assert digests == LiveModel("cpu").load(Folder(str(tmp_path / "merged")))
    assert ask(live, world, "legs") == ask(loaded(tmp_path, "merged"), world, "legs")


def test_importing_is_light() -> None:
    code = "import sys, harness.evaluate, harness.judge; print('lm_eval' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_warm_call_costs_little_beyond_the_model(world: Path) -> None:
    live = loaded(world, "a")
    ask(live, world, "legs", [0])
    begin = time.process_time()
    for _ in range(10):
        ask(live, world, "legs", [0])
    # Processor time of ten calls on one item; a tenth of this where the machine is idle.
    assert time.process_time() - begin < 2.0
