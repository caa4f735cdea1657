"""Training causal language models, new ones or given ones further, on transformers' Trainer.

How a step reads its rows (packed by `corpus.py`): positions restart at 0 in every document of a row, from which
transformers builds block-diagonal causal attention, so no document sees another; a model that does not keep them apart
so (`packing.py`) reads the same documents one a row. The first token of a document is never predicted; under loss
"answers" neither is any token of its prompt. The loss is the mean over the predicted tokens of the step. Unless
`Settings.trainer` says otherwise: AdamW (.9, .98), weight decay .01, linear warm-up and cosine decay to 0, gradients
clipped to norm 1.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import DistributedType
from torch import Tensor
from transformers import Trainer, TrainingArguments

from fusion import corpus, packing
from fusion.corpus import Document, Rows
from fusion.distill import CausalLM, Objective
from fusion.errors import TrainingError
from fusion.trainer_arguments import check_trainer
from fusion.training import Progress, Settings
from fusion.watch import Watch, check_weights, matrix_peak, over_processes

LOG = logging.getLogger(__name__)

SMALLER = (
    "weights, gradients and optimizer must fit beside one row: try trainer: {gradient_checkpointing: true}, a shorter "
    "context, precision: bfloat16, or several GPUs by `torchrun ... -m harness fuse` with trainer: {fsdp: true}"
)


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

    `scratch` is this training's own folder for tokens and checkpoints: a training that was killed and is called again
    with the same arguments goes on from the last one and ends in the same bytes (on the CPU, at the same number of
    threads and processes). Called by all processes of torchrun or accelerate launch, it is one training, which the
    first one writes. `compute_loss` replaces the next-token loss. The report holds steps, tokens, documents, truncated
    (documents that lost the beginning of their prompt), padding (share of the tokens of a row), packed (whether rows
    were read as they are), loss (mean of the last `log_every` steps, nats), and apart under "wall" what depends on the
    machine: seconds, tokens_per_second, forward_rows (rows of a forward pass, fewer where the memory asked for it) and
    on a known card matrix_peak_share (6 operations a parameter and token, of the bfloat16 peak).

    Raises TrainingError for a corpus with nothing to predict, settings that do not fit the model or each other, a loss
    or weights that are not finite (with the step; the last good checkpoint stays in `scratch`), a row that does not
    fit the memory, and a scratch folder that another training has used.
    """
    objective = compute_loss or CausalLM()
    _check(model, settings)
    forward_rows = _forward_rows(settings)
    tokens = corpus.encode(tokenizer, documents, scratch / f"tokens-{os.environ.get('RANK', 0)}")
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    rows, steps = _rows(tokens, settings, pad, objective)
    packed = packing.packs(model)
    fingerprint = _fingerprint(model, documents, settings, objective)
    args = _arguments(settings, steps, getattr(model.config, "use_cache", False), scratch)
    peak = matrix_peak(args.device)
    operations = None if peak is None else 6 * sum(p.numel() for p in model.parameters()) / (peak * args.world_size)
    watch = Watch(steps, settings.log_every, fingerprint, progress, forward_rows, operations)
    checkpoint = watch.restore(scratch, args.process_index == 0)
    try:
        with _said_plainly(settings.trainer):
            trainer = _Trainer(objective, rows, packed, watch, model, args, settings.trainer)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"out of memory outside the forward and backward passes ({error}); {SMALLER}") from error
    check_weights(trainer.model_wrapped, steps, scratch)
    trainer.write(out, tokenizer)
    return _report(watch, rows, settings, len(documents), packed)


def _check(model: Any, settings: Settings) -> None:
    if settings.context < 2 or settings.batch_size < 1:
        raise TrainingError(f"batch_size must be at least 1 and context at least 2; found {settings}")
    length = settings.steps if settings.epochs is None else settings.epochs
    if (settings.steps is None) == (settings.epochs is None) or not length or length <= 0:
        raise TrainingError(f"steps {settings.steps}, epochs {settings.epochs}: give one of them, above 0")
    longest = packing.positions(model)
    if longest is not None and settings.context > longest:
        raise TrainingError(f"context {settings.context}: the model has {longest} positions; use that or fewer")


def _processes() -> int:
    """How many processes train together, as torchrun, accelerate launch and deepspeed tell each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _forward_rows(settings: Settings) -> int:
    """Rows of one forward pass: a process's share of a step, cut into `gradient_accumulation_steps`."""
    check_trainer(settings.trainer)
    share, left = divmod(settings.batch_size, _processes())
    if left:
        raise TrainingError(f"batch_size {settings.batch_size}: give a multiple of the {_processes()} processes")
    pieces = settings.trainer.get("gradient_accumulation_steps", 1)
    if not 1 <= pieces <= share:
        raise TrainingError(f"trainer: gradient_accumulation_steps {pieces}: a process has {share} rows of a step")
    return math.ceil(share / pieces)


def _rows(tokens: corpus.Tokens, settings: Settings, pad: int, objective: Objective) -> tuple[Rows, int]:
    """The rows of the whole training, and its steps."""

    def made(count: int) -> Rows:
        context, loss, seed = settings.context, settings.loss, settings.seed
        return corpus.make_rows(tokens, context, loss, count, seed, pad=pad, about=objective.about)

    if settings.steps is not None:
        return made(settings.steps * settings.batch_size), settings.steps
    assert settings.epochs is not None
    pieces = corpus.cut(tokens, settings.context, settings.loss)
    wanted = math.ceil(settings.epochs * len(pieces.start))
    # Rows are nearly full; where they are not, ask for more.
    count = math.ceil(1.05 * settings.epochs * int(pieces.length.sum()) / settings.context) + corpus.OPEN_ROWS
    while True:
        rows = made(count + settings.batch_size)
        read = np.cumsum([len(row) for row in rows.packed])
        steps = math.ceil((int(np.searchsorted(read, wanted)) + 1) / settings.batch_size)
        if steps * settings.batch_size <= len(rows.packed):
            return replace(rows, packed=rows.packed[: steps * settings.batch_size]), steps
        count *= 2


def _fingerprint(model: Any, documents: Sequence[Document], settings: Settings, objective: Objective) -> str:
    """What two trainings must share for one to resume the other's checkpoint; weights come from the checkpoint."""
    parts = [corpus.digest(documents), asdict(settings), objective.identity, model.config.to_json_string()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _arguments(settings: Settings, steps: int, use_cache: bool, scratch: Path) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    usual = {
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
    }
    ours = {
        "output_dir": str(scratch),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size // _processes(),
        # A step's rows are cut by _Trainer, which knows the whole step's tokens.
        "gradient_accumulation_steps": 1,
        "learning_rate": settings.learning_rate,
        "warmup_steps": math.ceil(settings.warmup * steps),
        "train_sampling_strategy": "sequential",
        "seed": settings.seed,
        "bf16": settings.precision == "bfloat16",
        # What the config says anyway: Trainer writes it there, and it stays in the trained model's config.
        "use_cache": use_cache,
        "use_cpu": not on_gpu,
        "save_strategy": "steps",
        "save_steps": math.ceil(settings.save_every / settings.log_every) * settings.log_every,
        # Two, so that one is whole whenever the other is being written.
        "save_total_limit": 2,
        # Everything that costs time at a small model's step: logs and non-finite losses are Watch's.
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }
    with _said_plainly(settings.trainer):
        args = TrainingArguments(**{**usual, **settings.trainer, **ours})
    # One process, one GPU: DataParallel, which would take them all, cannot share our rows. torchrun uses them all.
    args._n_gpu = min(args.n_gpu, 1)
    return args


@contextlib.contextmanager
def _said_plainly(trainer: Mapping[str, Any]) -> Iterator[None]:
    """What Trainer has against the user's arguments, as an error without a traceback."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if not trainer:
            raise
        raise TrainingError(f"trainer {dict(trainer)}: {error}") from error


class _Trainer(Trainer):
    """transformers' Trainer with an Objective for its loss, watched by Watch."""

    def __init__(
        self,
        objective: Objective,
        rows: Rows,
        packed: bool,
        watch: Watch,
        model: Any,
        args: TrainingArguments,
        given: Mapping[str, Any],
    ) -> None:
        # The data set is the rows' numbers: a step collates them itself, and skipping on resume loads nothing.
        super().__init__(
            model=model, args=args, data_collator=list, train_dataset=range(len(rows.packed)), callbacks=[watch]
        )
        self.remove_callback(transformers.PrinterCallback)
        self.objective, self.rows, self.packed, self.watch, self.given = objective, rows, packed, watch, given

    def create_optimizer(self, model: Any = None) -> Any:
        with _said_plainly(self.given):
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        with _said_plainly(self.given):
            return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: Any, inputs: list[int], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward passes over a process's rows of a step; in smaller pieces where memory runs out."""
        model.train()
        while True:
            try:
                return self._step(model, inputs)
            except torch.OutOfMemoryError as error:
                self._halve(len(inputs), error)
            # Out of the except clause, for the error holds the pass's tensors.
            model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _halve(self, share: int, error: torch.OutOfMemoryError) -> None:
        tried = min(self.watch.forward_rows, share)
        what = f"out of memory at {tried} rows of {self.rows.context} tokens a forward pass ({error})"
        if tried == 1:
            raise TrainingError(f"{what}; {SMALLER}") from error
        if self.accelerator.distributed_type != DistributedType.NO:
            # The other processes wait in the middle of this pass.
            raise TrainingError(
                f"{what}; set trainer: {{gradient_accumulation_steps: {math.ceil(share / (tried // 2))}}}, "
                "which changes no result"
            ) from error
        self.watch.forward_rows = tried // 2
        LOG.warning("%s; going on with %d rows, which changes no result", what, tried // 2)

    def _step(self, model: Any, numbers: list[int]) -> Tensor:
        size = self.watch.forward_rows
        batches = [self._batch(numbers[i : i + size]) for i in range(0, len(numbers), size)]
        totals = self._totals(batches)
        values: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with self._gradients(model, last=i == len(batches) - 1):
                parts = self._pass(model, {**batch, **totals})
            values = {name: values[name] + part if values else part for name, part in parts.items()}
        tokens = sum(batch["tokens"] for batch in batches)
        self.watch.see(values, tokens, self.optimizer.param_groups[0]["lr"])
        return values["loss"]

    def _batch(self, numbers: list[int]) -> dict[str, Any]:
        batch = self.rows(numbers)
        return batch if self.packed else packing.unpack(batch)

    def _totals(self, batches: list[dict[str, Any]]) -> dict[str, Any]:
        """What the means of the whole step divide by, over its pieces and processes; nothing where it is one batch."""
        if len(batches) == 1 and self.args.world_size == 1:
            return {}
        counted = [self.objective.totals(batch) for batch in batches]
        names = list(counted[0])
        sums = torch.stack([torch.stack([of[name].float() for of in counted]).sum() for name in names])
        return {"totals": dict(zip(names, over_processes(sums.to(self.args.device)), strict=True))}

    def _gradients(self, model: Any, last: bool) -> Any:
        """Gradients are exchanged between processes in the last backward pass of a step only."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        whole = last or self.accelerator.distributed_type == DistributedType.DEEPSPEED
        return contextlib.nullcontext() if whole else self.accelerator.no_sync(model)

    def _pass(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss of a batch and its parts, once their gradient is added."""
        batch = {name: self._moved(value) if isinstance(value, Tensor) else value for name, value in batch.items()}
        apart = "position_ids" if self.packed else "attention_mask"
        logits = packing.forward(model, batch["input_ids"], **{apart: batch[apart]})
        logits = logits.flatten(0, 1).index_select(0, batch["at"]).float()
        loss, parts = self.objective.loss(logits, batch["target"], batch)
        # Processes average their gradients, and the losses of ours add up.
        scaled = {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}
        self.accelerator.backward(loss * self.args.world_size if self.args.world_size > 1 else loss, **scaled)
        return {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}

    def _moved(self, value: Tensor) -> Tensor:
        """On the training's device; from pinned memory, so that no step waits for the GPU."""
        on_gpu = self.args.device.type == "cuda" and value.device.type == "cpu"
        return (value.pin_memory() if on_gpu else value).to(self.args.device, non_blocking=on_gpu)

    def floating_point_ops(self, inputs: Any) -> int:
        """None counted: Trainer's estimate walks all modules at every step, and nothing reads it."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        check_weights(model, self.state.global_step, Path(self.args.output_dir))
        super()._save_checkpoint(model, trial)

    def write(self, out: Path, tokenizer: Any) -> None:
        """The model, its weights gathered from all processes, with its tokenizer and the curve."""
        whole = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        weights = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            weights = self.accelerator.get_state_dict(self.model_wrapped)
            # Gathered weights no longer show which of them are one.
            once = {name for name, _ in whole.named_parameters()}
            again = {name for name, _ in whole.named_parameters(remove_duplicate=False)} - once
            weights = {name: weight for name, weight in weights.items() if name not in again}
        if self.args.process_index == 0:
            out.mkdir(parents=True, exist_ok=True)
            whole.eval().save_pretrained(out, state_dict=weights)
            tokenizer.save_pretrained(out)
            lines = [json.dumps(line) + "\n" for line in self.watch.curve]
            (out / "curves.jsonl").write_text("".join(lines), encoding="utf-8")
        self.accelerator.wait_for_everyone()


def _report(watch: Watch, rows: Rows, settings: Settings, documents: int, packed: bool) -> dict[str, Any]:
    slots = watch.steps * settings.batch_size * settings.context
    last = watch.curve[-1]
    return {
        "steps": watch.steps,
        "documents": documents,
        "tokens": watch.tokens,
        "truncated": rows.pieces.truncated,
        "padding": 1 - watch.tokens / slots,
        "packed": packed,
        **{name: value for name, value in last.items() if name not in ("step", "learning_rate", "tokens", "wall")},
        "wall": watch.wall(),
    }
