"""How a model is trained, for those that only say it: `train.py`, which does it, takes seconds to import."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fusion.corpus import Loss

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Settings:
    """How to train: `steps` of `batch_size` rows of `context` tokens, or `epochs`; `warmup` is a share of the steps.

    `batch_size` counts the rows of a whole step, whoever computes them: processes share them and
    `gradient_accumulation_steps` cut them, and neither changes what is learnt. `trainer`: further arguments of
    transformers' TrainingArguments by their names (weight_decay, gradient_checkpointing, fsdp, deepspeed, ...).
    """

    steps: int | None = None
    epochs: float | None = None  # rounded up to a whole step
    batch_size: int = 16
    learning_rate: float = 1e-3
    context: int = 128
    seed: int = 0
    loss: Loss = "all"
    warmup: float = 0.05
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast; weights stay float32
    trainer: Mapping[str, Any] = field(default_factory=dict)
    log_every: int = 10
    save_every: int = 100  # checkpoints; rounded up to a multiple of log_every
