"""Training: what a step learns from, determinism, resume after a kill, and how it fails."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from fusion import corpus, train
from fusion.errors import TrainingError

SIZES = {"width": 16, "layers": 2, "heads": 2, "context": 32}
WORDS = ["red", "green", "blue", "one", "two", "three", "is", "and", "not", "big"]
DOCUMENTS = [{"prompt": f"{a} and {b} is", "answer": f" {b} {a}."} for a in WORDS for b in WORDS] + [
    {"text": " ".join(WORDS[i:] + WORDS[:i])} for i in range(10)
]
SETTINGS = train.Settings(steps=12, batch_size=2, learning_rate=1e-2, context=32, seed=5, log_every=2, save_every=4)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train.train_tokenizer(map(corpus.text_of, DOCUMENTS), 280)


def run(tokenizer, folder: Path, settings=SETTINGS, documents=DOCUMENTS, progress=lambda done, total: None, **more):
    model = train.new_model("llama", SIZES, tokenizer, seed=1)
    report = train.train(model, tokenizer, documents, settings, folder / "out", folder / "scratch", progress, **more)
    return model, report


def curve(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "out" / "curves.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "wall"} for line in lines]


def weights(folder: Path) -> bytes:
    return (folder / "out" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(tokenizer, folder)
    return folder


@pytest.mark.parametrize("architecture", sorted(train.ARCHITECTURES))
def test_packed_documents_cost_what_they_cost_alone(architecture: str, tokenizer) -> None:
    model = train.new_model(architecture, SIZES, tokenizer, seed=0).eval()
    tokens = corpus.encode(tokenizer, DOCUMENTS[:6])
    rows = corpus.make_rows(tokens, 32, "answers", 4, 5, pad=tokenizer.pad_token_id, about=lambda index: {})
    assert max(len(row) for row in rows.packed) > 1
    batch = rows(range(4))
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    packed = train.CausalLM().loss(logits.flatten(0, 1)[batch["at"]], batch["target"], {})[0]

    total, count = 0.0, 0
    for piece in (piece for row in rows.packed[:4] for piece in row):
        start, length = int(rows.pieces.start[piece]), int(rows.pieces.length[piece])
        ids = torch.tensor(rows.tokens.ids[start : start + length].astype("int64"))
        answer = torch.from_numpy(rows.tokens.answer[start : start + length])
        losses = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        total += float(losses[answer[1:]].sum().detach())
        count += int(answer[1:].sum())
    assert count == len(batch["target"])
    assert float(packed.detach()) == pytest.approx(total / count, rel=1e-5)


def test_training_learns_and_writes_a_model_that_transformers_loads(tokenizer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    model, report = run(
        tokenizer, tmp_path, replace(SETTINGS, steps=40), progress=lambda done, total: seen.append((done, total))
    )
    lines = curve(tmp_path)
    assert [line["step"] for line in lines] == list(range(2, 41, 2))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert report["loss"] == lines[-1]["loss"]
    assert report["tokens"] == sum(line["tokens"] for line in lines)
    assert seen == [(step, 40) for step in range(1, 41)]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("red is\n42").input_ids == tokenizer("red is\n42").input_ids
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_schedule_warms_up_and_decays(tokenizer, tmp_path: Path) -> None:
    run(tokenizer, tmp_path, replace(SETTINGS, steps=10, warmup=0.2, log_every=1))
    rates = [line["learning_rate"] for line in curve(tmp_path)]
    assert rates[:3] == pytest.approx([0, 0.005, 0.01])
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 1e-3


def test_two_runs_give_the_same_bytes(tokenizer, unbroken: Path, tmp_path: Path) -> None:
    run(tokenizer, tmp_path)
    assert weights(tmp_path) == weights(unbroken)
    assert curve(tmp_path) == curve(unbroken)
    run(tokenizer, tmp_path / "other", replace(SETTINGS, seed=6))
    assert weights(tmp_path / "other") != weights(unbroken)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_train import DOCUMENTS, run
from fusion import corpus, train
torch.set_num_threads(1)
def stop(done, total):
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
run(train.train_tokenizer(map(corpus.text_of, DOCUMENTS), 280), Path(sys.argv[2]), progress=stop)
"""


def test_killed_and_run_again_equals_unbroken(tokenizer, unbroken: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "out").exists()
    assert [folder.name for folder in train._checkpoints(tmp_path / "scratch")] == ["checkpoint-4"]
    steps: list[int] = []
    run(tokenizer, tmp_path, progress=lambda done, total: steps.append(done))
    assert steps[0] == 5
    assert weights(tmp_path) == weights(unbroken)
    assert curve(tmp_path) == curve(unbroken)


def test_a_half_written_checkpoint_is_passed_over(tokenizer, unbroken: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise Stopped

    with pytest.raises(Stopped):
        run(tokenizer, tmp_path, progress=stop)
    newest = train._checkpoints(tmp_path / "scratch")[-1]
    (newest / train.MARK).unlink()
    (newest / "optimizer.pt").write_bytes(b"half")
    run(tokenizer, tmp_path)
    assert weights(tmp_path) == weights(unbroken)


def test_finished_training_called_again_only_writes(tokenizer, unbroken: Path, tmp_path: Path) -> None:
    run(tokenizer, tmp_path)
    steps: list[int] = []
    run(tokenizer, tmp_path, progress=lambda done, total: steps.append(done))
    assert steps == []
    assert weights(tmp_path) == weights(unbroken)


def test_another_trainings_scratch_is_refused(tokenizer, tmp_path: Path) -> None:
    run(tokenizer, tmp_path, replace(SETTINGS, steps=4))
    with pytest.raises(TrainingError, match="another training"):
        run(tokenizer, tmp_path, replace(SETTINGS, steps=4, learning_rate=1e-3))


class Spoiled(train.CausalLM):
    """A loss that is not a number at one step, or a gradient that is not."""

    def __init__(self, step: int, gradient: bool = False) -> None:
        self.left, self.gradient = step, gradient

    def loss(self, logits, target, rows):
        loss, parts = super().loss(logits, target, rows)
        self.left -= 1
        if self.left == 0:
            # The root's slope at 0 is infinite, and infinity times 0 is not a number; its value is 0.
            loss = loss + ((logits.sum() * 0).sqrt() if self.gradient else logits.sum() * float("nan"))
        return loss, parts


@pytest.mark.parametrize(("gradient", "says"), [(False, "nan at step 7 of 12"), (True, "nan at step 8 of 12")])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    gradient: bool, says: str, tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=rf"{says}.*checkpoint-4"):
        run(tokenizer, tmp_path, compute_loss=Spoiled(7, gradient))
    assert not (tmp_path / "out").exists()
    assert [folder.name for folder in train._checkpoints(tmp_path / "scratch")] == ["checkpoint-4"]


def test_weights_spoilt_by_the_last_step_are_not_saved(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite after step 12; .*checkpoint-8"):
        run(tokenizer, tmp_path, compute_loss=Spoiled(12, gradient=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("documents", [[], [{"text": ""}]])
def test_a_corpus_with_nothing_to_predict(tokenizer, tmp_path: Path, documents: list) -> None:
    with pytest.raises(TrainingError, match="empty corpus"):
        run(tokenizer, tmp_path, documents=documents)


def test_a_context_beyond_the_models_positions(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the model has 32 positions"):
        run(tokenizer, tmp_path, replace(SETTINGS, context=64))


def test_unknown_architecture_and_missing_sizes(tokenizer) -> None:
    with pytest.raises(TrainingError, match="known: gpt2, gpt_neox, llama"):
        train.new_model("lama", SIZES, tokenizer, 0)
    with pytest.raises(TrainingError, match="sizes lack heads, context"):
        train.new_model("llama", {"width": 8, "layers": 1}, tokenizer, 0)


def test_the_tokenizer_splits_digits_and_loses_nothing(tokenizer) -> None:
    text = " 1990 is\tné — 中\n\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len([i for i in ids if tokenizer.decode([i]).strip() in set("0123456789")]) == 4
    with pytest.raises(TrainingError, match="at least 258"):
        train.train_tokenizer(["a"], 100)


def test_the_pocket_model_has_the_size_of_the_notes(tokenizer) -> None:
    model = train.new_model("llama", {"width": 128, "layers": 4, "heads": 4, "context": 128}, tokenizer, 0)
    assert sum(p.numel() for p in model.parameters()) == 861_312 - 128 * (640 - len(tokenizer))
