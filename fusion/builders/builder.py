"""What a builder is: one row of the table, the parameters that all trainings share, and what a run is given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusion.corpus import Document
from fusion.errors import RecipeError
from fusion.packing import positions
from fusion.params import param
from fusion.trainer_arguments import check_trainer
from fusion.training import Progress, Settings

# The longest row, where the model could take more and the recipe does not say.
LONGEST = 2048


@dataclass(frozen=True)
class Training:
    """Parameters that a fusion and its control share."""

    steps: int | None = param(None, low=1, help="optimizer steps; neither steps nor epochs: one epoch")
    epochs: float | None = param(None, low=0.0, open_low=True, help="passes over the corpus, instead of steps")
    batch_size: int = param(16, low=1, help="rows of `context` tokens in a step")
    learning_rate: float = param(1e-5, low=0.0, open_low=True, help="peak of the schedule")
    context: int | None = param(
        None, low=2, help=f"tokens in a row; left out: all that the model takes, {LONGEST} at most"
    )
    loss: Literal["answers", "all"] = param("answers", help="learn the answers only, or all text")
    warmup: float = param(0.05, low=0.0, high=1.0, help="share of the steps in which the learning rate rises")
    precision: Literal["float32", "bfloat16"] = param("float32", help="bfloat16 is autocast, for GPUs")
    trainer: Mapping[str, Any] = param({}, help="further arguments of transformers' Trainer: weight_decay, fsdp, ...")


@dataclass(frozen=True)
class Distilling(Training):
    """Parameters of every training by distributions. `lambda` 1 is the text alone, 0 the distributions alone."""

    lambda_: float = param(0.9, low=0.0, high=1.0, help="weight of the next-token loss; the rest is the divergence's")
    divergence: Literal["forward_kl", "reverse_kl", "js"] = param(
        "forward_kl", help="between k + 1 buckets; a fallback's next token is learnt by cross-entropy under each"
    )
    top_k: int = param(10, low=1, help="tokens kept of each distribution; all others are one bucket")


@dataclass(frozen=True)
class Role:
    """A part that a model or a corpus plays; `many` takes a list. `default` says what stands in where none is named."""

    name: str
    kind: Literal["model", "corpus"]
    many: bool = False
    default: Literal["mean of the teachers"] | None = None


@dataclass(frozen=True)
class Work:
    """What a run is given: checked parameters, models, the text, and the stores that `Builder.readings` asks for.

    `out` gets a transformers folder, `scratch` is for what a killed run goes on from.
    """

    params: Any
    target: Path
    teachers: tuple[Path, ...]
    documents: Sequence[Document]
    stores: tuple[Path, ...]
    seed: int
    out: Path
    scratch: Path
    progress: Progress


# Who is read before the training, each by its role ("target", "teacher.0", ...); the logits of several are averaged.
Readings = tuple[tuple[str, ...], ...]


def check_training(params: Training, teachers: int) -> None:
    """Raises RecipeError for a length that is given twice, TrainingError for arguments that Trainer does not take."""
    if params.steps is not None and params.epochs is not None:
        raise RecipeError(f"steps {params.steps} and epochs {params.epochs:g}: give one of them")
    check_trainer(params.trainer)


@dataclass(frozen=True)
class Builder:
    """One row of the table. `version` counts changes that alter results; `control` names the row to be beaten.

    run(work) -> report; its "wall" entries depend on the machine, all else does not. readings(params, teachers):
    whose distributions the run needs, one store (`teachers.py`) each, in this order; they do not depend on anything
    but the models, the corpus and `top_k`, so fusions share them. check(params, teachers) raises RecipeError or
    TrainingError for what no run could do, before anything is read.
    """

    name: str
    run: Callable[[Work], dict[str, Any]]
    Params: type
    formula: str
    paper: str
    roles: tuple[Role, ...]
    kind: Literal["fused", "trained"]
    version: int
    control: str | None = None
    check: Callable[[Any, int], None] = check_training
    readings: Callable[[Any, int], Readings] = lambda params, teachers: ()


def settings(params: Training, model: Any, seed: int) -> Settings:
    """How to train a model by these parameters."""
    epochs = 1.0 if params.steps is None and params.epochs is None else params.epochs
    return Settings(
        steps=params.steps,
        epochs=epochs,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        context=params.context or min(positions(model) or LONGEST, LONGEST),
        seed=seed,
        loss=params.loss,
        warmup=params.warmup,
        precision=params.precision,
        trainer=params.trainer,
    )
