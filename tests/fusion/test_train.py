"""Training: what a step learns from, determinism, resume after a kill, and how it fails."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fusion import corpus, new_model, packing, train, watch
from fusion.errors import TrainingError

SIZES = {"width": 16, "layers": 2, "heads": 2, "context": 32}
WORDS = ["red", "green", "blue", "one", "two", "three", "is", "and", "not", "big"]
DOCUMENTS = [{"prompt": f"{a} and {b} is", "answer": f" {b} {a}."} for a in WORDS for b in WORDS] + [
    {"text": " ".join(WORDS[i:] + WORDS[:i])} for i in range(10)
]
SETTINGS = train.Settings(steps=12, batch_size=2, learning_rate=1e-2, context=32, seed=5, log_every=2, save_every=4)
FOUR = replace(SETTINGS, batch_size=4)
ACCUMULATED = replace(FOUR, trainer={"gradient_accumulation_steps": 3})


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return new_model.train_tokenizer(map(corpus.text_of, DOCUMENTS), 280)


def run(tokenizer, folder: Path, settings=SETTINGS, documents=DOCUMENTS, progress=lambda done, total: None, **more):
    model = new_model.new_model("llama", SIZES, tokenizer, seed=1)
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


@pytest.fixture(scope="module")
def four(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    run(tokenizer, folder, FOUR)
    return folder


@pytest.fixture(scope="module")
def accumulated(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("accumulated")
    run(tokenizer, folder, ACCUMULATED)
    return folder


def assert_same_training(one: Path, other: Path) -> None:
    """To float error: other sums, the same batches, the same mean over a step's tokens."""
    mine, theirs = (load_file(folder / "out" / "model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=2e-6)
    for line, same in zip(curve(one), curve(other), strict=True):
        assert line == {name: pytest.approx(value, rel=1e-5) for name, value in same.items()}


@pytest.mark.parametrize("architecture", sorted(new_model.ARCHITECTURES))
def test_packed_documents_cost_what_they_cost_alone(architecture: str, tokenizer) -> None:
    model = new_model.new_model(architecture, SIZES, tokenizer, seed=0).eval()
    tokens = corpus.encode(tokenizer, DOCUMENTS[:6])
    rows = corpus.make_rows(tokens, 32, "answers", 4, 5, pad=tokenizer.pad_token_id, about=lambda index: {})
    assert max(len(row) for row in rows.packed) > 1
    batch = rows(range(4))
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    packed = train.CausalLM().loss(logits.flatten(0, 1)[batch["at"]], batch["target"], batch)[0]

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


def killed_in_a_checkpoint(tokenizer, folder: Path, settings) -> int:
    """The signal that ends a process which trains, and dies between a checkpoint's weights and its optimizer."""
    child = os.fork()
    if child == 0:
        save = train._Trainer._save_optimizer_and_scheduler

        def stop(self, output_dir):
            if output_dir.endswith("checkpoint-8"):
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, output_dir)

        train._Trainer._save_optimizer_and_scheduler = stop
        try:
            run(tokenizer, folder, settings)
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_killed_in_a_checkpoint_and_run_again_equals_unbroken(tokenizer, accumulated: Path, tmp_path: Path) -> None:
    assert killed_in_a_checkpoint(tokenizer, tmp_path, ACCUMULATED) == signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "scratch" / "checkpoint-8" / "model.safetensors").exists()
    assert [folder.name for folder in watch.checkpoints(tmp_path / "scratch")] == ["checkpoint-4"]
    steps: list[int] = []
    run(tokenizer, tmp_path, ACCUMULATED, progress=lambda done, total: steps.append(done))
    assert steps[0] == 5
    assert weights(tmp_path) == weights(accumulated)
    assert curve(tmp_path) == curve(accumulated)


def test_a_half_written_checkpoint_is_passed_over(tokenizer, unbroken: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise Stopped

    with pytest.raises(Stopped):
        run(tokenizer, tmp_path, progress=stop)
    newest = watch.checkpoints(tmp_path / "scratch")[-1]
    (newest / watch.MARK).unlink()
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
    assert [folder.name for folder in watch.checkpoints(tmp_path / "scratch")] == ["checkpoint-4"]


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


# --- how long, and how


def test_an_epoch_reads_every_document_once(tokenizer, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=None, epochs=1.0, batch_size=4)
    tokens = corpus.encode(tokenizer, DOCUMENTS)
    rows, steps = train._rows(tokens, settings, 0, train.CausalLM())
    read = [piece for row in rows.packed for piece in row]
    assert len(rows.packed) == 4 * steps
    assert sorted(set(read)) == list(range(len(DOCUMENTS)))
    last = [piece for row in rows.packed[:-4] for piece in row]
    assert len(last) == len(set(last)) < len(DOCUMENTS)
    _, report = run(tokenizer, tmp_path, settings)
    assert report["steps"] == steps
    assert curve(tmp_path)[-1]["step"] == steps


@pytest.mark.parametrize(("epochs", "low", "high"), [(2.5, 2, 3), (0.25, 0, 1)])
def test_parts_of_an_epoch(epochs: float, low: int, high: int, tokenizer) -> None:
    settings = replace(SETTINGS, steps=None, epochs=epochs)
    rows, _ = train._rows(corpus.encode(tokenizer, DOCUMENTS), settings, 0, train.CausalLM())
    times = Counter(piece for row in rows.packed for piece in row)
    assert {times[piece] for piece in range(len(DOCUMENTS))} == {low, high}
    assert 0 <= times.total() - epochs * len(DOCUMENTS) < 2 * 16


@pytest.mark.parametrize("length", [{}, {"steps": 3, "epochs": 1.0}, {"steps": 0}, {"epochs": -1.0}])
def test_one_length_is_needed(length: dict, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="give one of them, above 0"):
        run(tokenizer, tmp_path, replace(SETTINGS, **{"steps": None, **length}))


def test_what_trainer_is_told_counts(tokenizer, unbroken: Path, tmp_path: Path) -> None:
    usual = {"weight_decay": 0.01, "adam_beta2": 0.98, "lr_scheduler_type": "cosine", "max_grad_norm": 1}
    run(tokenizer, tmp_path / "usual", replace(SETTINGS, trainer=usual))
    assert weights(tmp_path / "usual") == weights(unbroken)
    run(tokenizer, tmp_path / "other", replace(SETTINGS, trainer={"lr_scheduler_type": "constant_with_warmup"}))
    assert curve(tmp_path / "other")[-1]["learning_rate"] == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"adam_beta3": 0.9}, "unknown argument 'adam_beta3' .*did you mean 'adam_beta2'"),
        ({"learning_rate": 0.1}, "learning_rate is not to be set; use learning_rate"),
        ({"save_steps": 5}, "save_steps is not to be set"),
        ({"per_device_train_batch_size": 5}, "use batch_size"),
        ({"weight_decay": "0.1"}, "weight_decay is '0.1'; expected a number"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing is 1; expected true or false"),
        ({"gradient_accumulation_steps": 2.0}, "expected an integer"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps 3: a process has 2 rows"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps 0"),
        ({"lr_scheduler_type": "cosin"}, "'cosin'.*not a valid SchedulerType"),
        ({"fsdp": True}, "fsdp only works in distributed training"),
        ({"optim": "galore_adamw", "optim_target_modules": ["q_proj"]}, "galore"),
    ],
)
def test_what_trainer_must_not_be_told(trainer: dict, says: str, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"(?s)^trainer.*{says}"):
        run(tokenizer, tmp_path, replace(SETTINGS, trainer=trainer))


def test_all_wrong_arguments_are_named_at_once(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"(?s)'fsbp'.*'fsdp'.*seed is not to be set"):
        run(tokenizer, tmp_path, replace(SETTINGS, trainer={"fsbp": True, "seed": 3}))


# --- memory


class Weighted(train.CausalLM):
    """Cross-entropy over every third token of the corpus: another number to divide by than the tokens'."""

    def about(self, token):
        return {"weight": torch.from_numpy((token % 3 == 0).astype("float32"))}

    def totals(self, batch):
        return {"weight": batch["weight"].sum()}

    def loss(self, logits, target, batch):
        each = torch.nn.functional.cross_entropy(logits, target, reduction="none") * batch["weight"]
        loss = each.sum() / batch.get("totals", self.totals(batch))["weight"]
        return loss, {"double": 2 * loss}


def test_accumulated_steps_are_whole_steps(four: Path, accumulated: Path) -> None:
    assert weights(accumulated) != weights(four)
    assert_same_training(accumulated, four)


def test_a_loss_with_its_own_weights_is_accumulated_exactly(tokenizer, tmp_path: Path) -> None:
    for name, settings in {"four": FOUR, "accumulated": ACCUMULATED}.items():
        run(tokenizer, tmp_path / name, settings, compute_loss=Weighted())
    assert_same_training(tmp_path / "accumulated", tmp_path / "four")
    assert all(line["double"] == pytest.approx(2 * line["loss"]) for line in curve(tmp_path / "accumulated"))


def test_gradient_checkpointing_changes_no_result(tokenizer, four: Path, tmp_path: Path) -> None:
    run(tokenizer, tmp_path, replace(FOUR, trainer={"gradient_checkpointing": True}))
    assert_same_training(tmp_path, four)


class Scarce:
    """Memory for `rows` rows a forward pass from a step on: the pass before that one's backward has already run."""

    def __init__(self, model, rows: int, after: int) -> None:
        self.forward, self.rows, self.after = model.forward, rows, after
        model.forward = functools.wraps(model.forward)(self)

    def __call__(self, input_ids, **more):
        self.after -= 1
        if self.after < 0 and len(input_ids) > self.rows:
            raise torch.OutOfMemoryError("tried to allocate 1.00 PiB")
        return self.forward(input_ids=input_ids, **more)


def run_scarce(tokenizer, folder: Path, rows: int, after: int, settings=FOUR):
    model = new_model.new_model("llama", SIZES, tokenizer, seed=1)
    Scarce(model, rows, after)
    return train.train(
        model, tokenizer, DOCUMENTS, settings, folder / "out", folder / "scratch", lambda done, total: None
    )


@pytest.mark.parametrize(("rows", "after"), [(1, 0), (2, 8)])
def test_out_of_memory_goes_on_with_fewer_rows(
    rows: int, after: int, tokenizer, four: Path, tmp_path: Path, caplog
) -> None:
    report = run_scarce(tokenizer, tmp_path, rows, after)
    assert report["wall"]["forward_rows"] == rows
    assert "out of memory at 4 rows of 32 tokens" in caplog.text and "going on with 2 rows" in caplog.text
    assert_same_training(tmp_path, four)


def test_out_of_memory_between_two_passes_of_a_step(tokenizer, four: Path, tmp_path: Path) -> None:
    settings = replace(FOUR, trainer={"gradient_accumulation_steps": 2})
    # Three probes, four steps of two passes, and the first pass of the fifth, whose gradient must not count twice.
    assert run_scarce(tokenizer, tmp_path, 1, 3 + 4 * 2 + 1, settings)["wall"]["forward_rows"] == 1
    assert_same_training(tmp_path, four)


def test_out_of_memory_at_one_row_says_what_to_do(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"out of memory at 1 rows.*gradient_checkpointing"):
        run_scarce(tokenizer, tmp_path, 0, 3 + 6)
    assert not (tmp_path / "out").exists()
    assert [folder.name for folder in watch.checkpoints(tmp_path / "scratch")] == ["checkpoint-4"]


def test_out_of_memory_in_the_optimizer_says_what_to_do(tokenizer, tmp_path: Path, monkeypatch) -> None:
    def none_left(self, *args, **more):
        raise torch.OutOfMemoryError("tried to allocate 1.00 PiB")

    monkeypatch.setattr(torch.optim.AdamW, "step", none_left)
    with pytest.raises(TrainingError, match="out of memory outside the forward and backward passes.*fsdp"):
        run(tokenizer, tmp_path)


# --- any causal language model


UNPACKED = {
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "context_length": 32},
}


@pytest.mark.parametrize("name", UNPACKED)
def test_a_model_that_cannot_be_packed_reads_a_document_a_row(name: str, tokenizer, tmp_path: Path) -> None:
    config = transformers.CONFIG_MAPPING[name](vocab_size=len(tokenizer), **UNPACKED[name])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    report = train.train(
        model, tokenizer, DOCUMENTS, SETTINGS, tmp_path / "out", tmp_path / "scratch", lambda done, total: None
    )
    assert report["packed"] is False
    lines = curve(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_unpacked_training_learns_what_packed_training_does(tokenizer, four: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packing, "packs", lambda model: False)
    _, report = run(tokenizer, tmp_path, FOUR)
    assert report["packed"] is False
    assert_same_training(tmp_path, four)


def test_the_models_own_limit_of_positions(tokenizer, tmp_path: Path) -> None:
    config = transformers.MptConfig(vocab_size=len(tokenizer), **UNPACKED["mpt"])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(TrainingError, match="the model has 32 positions"):
        train.train(model, tokenizer, DOCUMENTS, replace(SETTINGS, context=33), tmp_path, tmp_path, lambda a, b: None)


def test_the_config_is_written_as_it_was(unbroken: Path) -> None:
    assert transformers.AutoConfig.from_pretrained(unbroken / "out").use_cache is True


# --- speed


def test_a_cards_peak_goes_by_its_name(monkeypatch) -> None:
    peaks = {"NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A100-SXM4-80GB": 312e12, "Quadro": None}
    for name, peak in peaks.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert watch.matrix_peak(torch.device("cuda")) == peak
    assert watch.matrix_peak(torch.device("cpu")) is None


def test_the_share_of_the_peak_is_six_operations_a_weight_and_token(tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train, "matrix_peak", lambda device: 1e9)
    model, report = run(tokenizer, tmp_path)
    wall = json.loads((tmp_path / "out" / "curves.jsonl").read_text().splitlines()[-1])["wall"]
    count = sum(weight.numel() for weight in model.parameters())
    for found in (wall, report["wall"]):
        assert found["matrix_peak_share"] == pytest.approx(6 * count * found["tokens_per_second"] / 1e9)


def test_no_share_of_an_unknown_peak(unbroken: Path) -> None:
    walls = [json.loads(line)["wall"] for line in (unbroken / "out" / "curves.jsonl").read_text().splitlines()]
    assert all(set(wall) == {"tokens_per_second"} for wall in walls)


# --- several processes


PROCESS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_train import DOCUMENTS, FOUR, run
from dataclasses import replace
from fusion import corpus, new_model
torch.set_num_threads(1)
steps = []
settings = replace(FOUR, trainer={"gradient_accumulation_steps": 2})
tokenizer = new_model.train_tokenizer(map(corpus.text_of, DOCUMENTS), 280)
_, report = run(tokenizer, Path(sys.argv[2]), settings, progress=lambda done, total: steps.append(done))
report["progress"] = len(steps)
(Path(sys.argv[2]) / f"report-{os.environ['RANK']}.json").write_text(json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes_are_one_training(tokenizer, four: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROCESS)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    assert [report["progress"] for report in found] == [12, 0]
    assert found[0]["loss"] == found[1]["loss"]
    assert [report["tokens"] for report in found] == [sum(line["tokens"] for line in curve(four))] * 2
    assert_same_training(tmp_path, four)


def test_rows_that_processes_cannot_share(tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="batch_size 2: give a multiple of the 3 processes"):
        run(tokenizer, tmp_path)
