"""Training causal language models: new ones from a config, or given ones further, on transformers' Trainer.

How a step reads its rows (packed by `corpus.py`): positions restart at 0 in every document of a row, from which
transformers builds block-diagonal causal attention, so no document sees another. The first token of a document is
never predicted; under loss "answers" neither is any token of its prompt. The loss is the mean over the predicted
tokens of the batch. AdamW (.9, .98), linear warm-up and cosine decay to 0, gradients clipped to norm 1.
"""

import hashlib
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from fusion import corpus
from fusion.corpus import Document, Loss, Rows
from fusion.distill import CausalLM, Objective
from fusion.errors import TrainingError

Progress = Callable[[int, int], None]  # (done, total)

END = "<|endoftext|>"
PAD = "<|pad|>"


@dataclass(frozen=True)
class Settings:
    """How to train. `steps` of `batch_size` rows of `context` tokens; `warmup` is a share of the steps."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    context: int = 128
    seed: int = 0
    loss: Loss = "all"
    warmup: float = 0.05
    weight_decay: float = 0.01
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast; weights stay float32
    log_every: int = 10
    save_every: int = 100  # checkpoints; rounded up to a multiple of log_every


# ---------------------------------------------------------------------------------------------------------------------
# New models and tokenizers


def _llama(sizes: Mapping[str, int], common: dict[str, Any]) -> Any:
    return transformers.LlamaConfig(
        intermediate_size=sizes.get("mlp", sizes["width"] * 8 // 3 // 16 * 16), **_shape(sizes), **common
    )


def _gpt_neox(sizes: Mapping[str, int], common: dict[str, Any]) -> Any:
    return transformers.GPTNeoXConfig(intermediate_size=sizes.get("mlp", 4 * sizes["width"]), **_shape(sizes), **common)


def _gpt2(sizes: Mapping[str, int], common: dict[str, Any]) -> Any:
    return transformers.GPT2Config(
        n_embd=sizes["width"],
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        n_positions=sizes["context"],
        n_inner=sizes.get("mlp", 4 * sizes["width"]),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **common,
    )


def _shape(sizes: Mapping[str, int]) -> dict[str, int]:
    return {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "max_position_embeddings": sizes["context"],
    }


ARCHITECTURES: dict[str, Callable[[Mapping[str, int], dict[str, Any]], Any]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
}


def new_model(architecture: str, sizes: Mapping[str, int], tokenizer: Any, seed: int) -> Any:
    """A causal language model with random float32 weights, tied embeddings and no dropout.

    `sizes`: width, layers, heads, context, and optionally mlp (default 8/3 width for llama, 4 width for the others).
    Raises TrainingError for an architecture that ARCHITECTURES does not hold or a size that is missing.
    """
    if architecture not in ARCHITECTURES:
        raise TrainingError(f"architecture {architecture!r}: unknown; known: {', '.join(sorted(ARCHITECTURES))}")
    missing = [name for name in ("width", "layers", "heads", "context") if name not in sizes]
    if missing:
        raise TrainingError(f"architecture {architecture}: sizes lack {', '.join(missing)}")
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    common = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **special}
    config = ARCHITECTURES[architecture](sizes, common)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig(**special)
    return model


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every digit a token of its own, an EOS, a padding token, nothing added to a text.

    `vocab_size` counts all tokens; the 256 bytes and the two special ones are always among them.
    """
    if vocab_size < 258:
        raise TrainingError(f"vocab_size {vocab_size}: at least 258 are needed, for 256 bytes and two special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(
    model: Any,
    tokenizer: Any,
    documents: Sequence[Document],
    settings: Settings,
    out: Path,
    scratch: Path,
    progress: Progress,
    compute_loss: Objective | None = None,
) -> dict[str, Any]:
    """Train `model` in place and write it to `out`: weights, config, tokenizer, generation config, curves.jsonl.

    `scratch` is this training's own folder for checkpoints: a training that was killed and is called again with the
    same arguments goes on from the last one and ends in the same bytes (on the CPU, at the same number of threads).
    `compute_loss` replaces the next-token loss. The report holds steps, tokens, documents, truncated (documents that
    lost the beginning of their prompt), padding (share of the tokens of a row), loss (mean of the last
    `log_every` steps, nats), and apart under "wall" what depends on the machine.

    Raises TrainingError for a corpus with nothing to predict, a loss or weights that are not finite (with the step;
    the last good checkpoint stays in `scratch`), and a scratch folder that another training has used.
    """
    objective = compute_loss or CausalLM()
    _check(model, settings)
    tokens = corpus.encode(tokenizer, documents)
    rows = corpus.make_rows(
        tokens,
        settings.context,
        settings.loss,
        settings.steps * settings.batch_size,
        settings.seed,
        pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        about=objective.about,
    )
    watch = _Watch(settings, _fingerprint(model, documents, settings, objective), progress)
    checkpoint = watch.restore(scratch)
    trainer = _Trainer(objective, watch, model=model, args=_arguments(settings, scratch), rows=rows)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    _check_weights(model, settings.steps, scratch)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    lines = [json.dumps(line) + "\n" for line in watch.curve]
    (out / "curves.jsonl").write_text("".join(lines), encoding="utf-8")
    return _report(watch, rows, settings, len(documents))


def _check(model: Any, settings: Settings) -> None:
    if settings.context < 2 or settings.steps < 1 or settings.batch_size < 1:
        raise TrainingError(f"steps and batch_size must be at least 1 and context at least 2; found {settings}")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and settings.context > longest:
        raise TrainingError(f"context {settings.context}: the model has {longest} positions; use that or fewer")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise TrainingError(f"{type(model).__name__}: takes no position_ids, by which packed documents are kept apart")


def _fingerprint(model: Any, documents: Sequence[Document], settings: Settings, objective: Objective) -> str:
    """What two trainings must share for one to resume the other's checkpoint; weights come from the checkpoint."""
    parts = [corpus.digest(documents), asdict(settings), objective.identity, model.config.to_json_string()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _arguments(settings: Settings, scratch: Path) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        train_sampling_strategy="sequential",
        seed=settings.seed,
        bf16=settings.precision == "bfloat16",
        use_cpu=not on_gpu,
        save_strategy="steps",
        save_steps=math.ceil(settings.save_every / settings.log_every) * settings.log_every,
        # Two, so that one is whole whenever the other is being written.
        save_total_limit=2,
        # Everything that costs time at a small model's step: logs and non-finite losses are _Watch's.
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )


class _Trainer(Trainer):
    """transformers' Trainer with an Objective for its loss, watched by _Watch."""

    def __init__(self, objective: Objective, watch: "_Watch", model: Any, args: TrainingArguments, rows: Rows) -> None:
        # The data set is the rows' numbers: `rows` collates them, and skipping on resume loads nothing.
        super().__init__(
            model=model,
            args=args,
            data_collator=rows,
            train_dataset=range(len(rows.packed)),
            callbacks=[watch],
        )
        self.remove_callback(transformers.PrinterCallback)
        self.objective = objective
        self.watch = watch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False)
        logits = outputs.logits.flatten(0, 1).index_select(0, inputs["at"]).float()
        loss, parts = self.objective.loss(logits, inputs["target"], inputs)
        self.watch.see(loss, parts, inputs["tokens"], self.optimizer.param_groups[0]["lr"])
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None counted: Trainer's estimate walks all modules at every step, and nothing reads it."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        _check_weights(model, self.state.global_step, Path(self.args.output_dir))
        super()._save_checkpoint(model, trial)


def _check_weights(model: Any, step: int, scratch: Path) -> None:
    """A gradient can spoil the weights although the step's loss was finite."""
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise TrainingError(f"{name} is not finite after step {step}; {_kept(scratch)}")


def _kept(scratch: Path) -> str:
    last = _checkpoints(scratch)
    return f"the last good checkpoint is {last[-1]}" if last else "no checkpoint had been written yet"


MARK = "fuse_bench.json"


def _checkpoints(scratch: Path) -> list[Path]:
    """Whole checkpoints, oldest first: the mark is written last."""
    folders = [mark.parent for mark in scratch.glob(f"checkpoint-*/{MARK}")]
    return sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))


@dataclass
class _Watch(TrainerCallback):
    """Collects the curve, stops at a loss that is not finite, marks checkpoints as whole, reports progress.

    Losses stay on the device until a line of the curve is due, so that no step waits for the GPU.
    """

    settings: Settings
    fingerprint: str
    progress: Progress
    curve: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    _seen: list[dict[str, Any]] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def restore(self, scratch: Path) -> Path | None:
        """The checkpoint to go on from, with the curve up to it."""
        whole = _checkpoints(scratch)
        if not whole:
            return None
        mark = json.loads((whole[-1] / MARK).read_text(encoding="utf-8"))
        if mark["fingerprint"] != self.fingerprint:
            raise TrainingError(f"{scratch}: holds checkpoints of another training; give an empty folder")
        self.curve, self.tokens, self.seconds = mark["curve"], mark["tokens"], mark["seconds"]
        return whole[-1]

    def see(self, loss: Tensor, parts: Mapping[str, Tensor], tokens: int, learning_rate: float) -> None:
        """One step's loss, before its update."""
        values = {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}
        self._seen.append({"values": values, "tokens": tokens, "learning_rate": learning_rate})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.settings.log_every == 0 or state.global_step == self.settings.steps:
            self._flush(state.global_step, Path(args.output_dir))
        self.progress(state.global_step, self.settings.steps)

    def _flush(self, step: int, scratch: Path) -> None:
        names = list(self._seen[0]["values"])
        values = torch.stack([torch.stack([seen["values"][name] for name in names]) for seen in self._seen]).double()
        values = values.cpu()
        bad = torch.nonzero(~torch.isfinite(values[:, 0])).flatten().tolist()
        if bad:
            at = step - len(self._seen) + 1 + bad[0]
            rate = self._seen[bad[0]]["learning_rate"]
            raise TrainingError(
                f"the loss is {values[bad[0], 0].item()} at step {at} of {self.settings.steps} "
                f"(learning rate {rate:.3g}); {_kept(scratch)}. Try a lower learning rate"
            )
        tokens = sum(seen["tokens"] for seen in self._seen)
        now = time.perf_counter()
        means = dict(zip(names, values.mean(0).tolist(), strict=True))
        wall = {"tokens_per_second": tokens / (now - self._since)}
        self.curve.append(
            {"step": step, **means, "learning_rate": self._seen[-1]["learning_rate"], "tokens": tokens, "wall": wall}
        )
        self.tokens += tokens
        self.seconds += now - self._since
        self._since = now
        self._seen = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        mark = {
            "fingerprint": self.fingerprint,
            "curve": self.curve,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        partial = folder / f"{MARK}.partial"
        partial.write_text(json.dumps(mark), encoding="utf-8")
        os.replace(partial, folder / MARK)


def _report(watch: _Watch, rows: Rows, settings: Settings, documents: int) -> dict[str, Any]:
    slots = settings.steps * settings.batch_size * settings.context
    last = watch.curve[-1]
    return {
        "steps": settings.steps,
        "documents": documents,
        "tokens": watch.tokens,
        "truncated": rows.pieces.truncated,
        "padding": 1 - watch.tokens / slots,
        **{name: value for name, value in last.items() if name not in ("step", "learning_rate", "tokens", "wall")},
        "wall": {"seconds": watch.seconds, "tokens_per_second": watch.tokens / max(watch.seconds, 1e-9)},
    }
