"""What trains a model from other models and text, in one explicit table; merges, which need no text, are METHODS."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusion import corpus, distill, teachers, vocabulary
from fusion.corpus import Document
from fusion.errors import RecipeError
from fusion.params import param
from fusion.train import Progress, Settings, train


@dataclass(frozen=True)
class Training:
    """Parameters that a fusion and its control share."""

    steps: int = param(150, low=1, help="optimizer steps")
    batch_size: int = param(16, low=1, help="rows of `context` tokens in a step")
    learning_rate: float = param(1e-3, low=0.0, open_low=True, help="peak of the cosine schedule")
    context: int = param(128, low=2, help="tokens in a row; short documents share one")
    loss: Literal["answers", "all"] = param("answers", help="learn the answers only, or all text")
    warmup: float = param(0.05, low=0.0, high=1.0, help="share of the steps in which the learning rate rises")
    precision: Literal["float32", "bfloat16"] = param("float32", help="bfloat16 is autocast, for GPUs")


@dataclass(frozen=True)
class FuseLLM(Training):
    """`lambda` weighs the text against the teachers: 1 is the control, 0 distillation alone."""

    lambda_: float = param(0.9, low=0.0, high=1.0, help="weight of the next-token loss; the rest is the fusion's")
    fusion: Literal["min_ce", "avg_ce"] = param("min_ce", help="per document the best source, or all of them weighted")
    top_k: int = param(10, low=1, help="tokens kept of each distribution; all others are one bucket")
    self_: bool = param(True, help="whether the target as it was is a source, too")
    fallback: Literal["next_token", "drop"] = param("next_token", help="what tokens learn that no source predicts")


@dataclass(frozen=True)
class Role:
    """A part that a model or a corpus plays; `many` takes a list of one or more."""

    name: str
    kind: Literal["model", "corpus"]
    many: bool = False


Run = Callable[[Any, Mapping[str, Any], Sequence[Document], int, Path, Path, Progress], dict[str, Any]]


@dataclass(frozen=True)
class Builder:
    """One row of the table. `version` counts changes that alter results; `control` names the row to be beaten.

    run(params, roles, documents, seed, out, scratch, progress) -> report. params: an instance of Params. roles: model
    folders by role, the corpus apart (`documents`). `out` gets a transformers folder, `scratch` is for what a killed
    run goes on from. The report's "wall" entries depend on the machine, all else does not.
    """

    name: str
    run: Run
    Params: type
    formula: str
    paper: str
    roles: tuple[Role, ...]
    kind: Literal["fused", "trained"]
    version: int
    control: str | None = None


def continue_training(
    params: Training,
    roles: Mapping[str, Any],
    documents: Sequence[Document],
    seed: int,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The control: the target trained on the text alone; the same rows in the same order as a fusion of this seed."""
    model, tokenizer = teachers.load(Path(roles["target"]))
    return train(model, tokenizer, documents, _settings(params, seed), out, scratch / "train", progress)


def fuse_llm(
    params: FuseLLM,
    roles: Mapping[str, Any],
    documents: Sequence[Document],
    seed: int,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Store what the sources say of the text, fuse it, and train the target on both.

    Raises RecipeError without a teacher, FusionError for tokenizers that cannot be turned into bytes or do not give a
    document back, TrainingError as `train` does.
    """
    models = [Path(teacher) for teacher in roles.get("teachers", ())]
    if not models:
        raise RecipeError("fusellm: needs at least one teacher")
    target = Path(roles["target"])
    # The target first: of equally good sources MinCE takes the first, and what is known already costs nothing.
    named = [("target", target)] if params.self_ else []
    named += [(f"teacher {number}", model) for number, model in enumerate(models, 1)]
    stage = _Stages(progress, len(named), params.steps)
    started = time.perf_counter()
    fused, report = _fused(params, target, named, list(documents), scratch, stage)
    seconds = time.perf_counter() - started
    model, tokenizer = teachers.load(target)
    identity = f"fusellm {params} {[source['model'] for source in report['sources'].values()]}"
    objective = distill.FusionLoss(fused, params.lambda_, identity)
    trained = train(
        model, tokenizer, documents, _settings(params, seed), out, scratch / "train", stage.of(len(named)), objective
    )
    return {**trained, "alignment": report, "wall": {**trained["wall"], "teachers_seconds": seconds}}


def _fused(
    params: FuseLLM,
    target: Path,
    named: Sequence[tuple[str, Path]],
    documents: list[Document],
    scratch: Path,
    stage: "_Stages",
) -> tuple[distill.Fused, dict[str, Any]]:
    reading = _read(target, documents)
    if len(reading.vocabulary.tokens) <= params.top_k:
        raise RecipeError(f"top_k {params.top_k}: the target has only {len(reading.vocabulary.tokens)} tokens")
    sources = []
    for number, (name, model) in enumerate(named):
        folder = scratch / name.replace(" ", "-")
        store = teachers.write_store(model, documents, params.top_k, folder, stage.of(number))
        sources.append(distill.make_source(name, store, _read(model, documents), reading.vocabulary))
    fused, report = distill.fuse(reading, sources, params.fusion, params.loss, params.top_k, params.fallback)
    for source in sources:
        report["sources"][source.name]["model"] = source.store.meta["model"]
    return fused, report


def _read(model: Path, documents: list[Document]) -> distill.Reading:
    tokenizer = teachers.load_tokenizer(model)
    return distill.read(corpus.encode(tokenizer, documents), vocabulary.read_vocabulary(tokenizer), documents)


def _settings(params: Training, seed: int) -> Settings:
    return Settings(
        steps=params.steps,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        context=params.context,
        seed=seed,
        loss=params.loss,
        warmup=params.warmup,
        precision=params.precision,
    )


class _Stages:
    """One progress over the passes of the sources, each counted as a quarter of the steps, and the training."""

    def __init__(self, progress: Progress, passes: int, steps: int) -> None:
        self.progress, self.passes, self.steps = progress, passes, steps
        self.each = max(1, steps // 4)

    def of(self, stage: int) -> Progress:
        size = self.each if stage < self.passes else self.steps
        total = self.passes * self.each + self.steps
        return lambda done, of: self.progress(stage * self.each + size * done // of, total)


TARGET = Role("target", "model")
CORPUS = Role("corpus", "corpus")

BUILDERS: dict[str, Builder] = {
    "clm": Builder(
        name="clm",
        run=continue_training,
        Params=Training,
        formula="L = L_CLM",
        paper="the control of Wan et al., ICLR 2024, arXiv:2401.10491",
        roles=(TARGET, CORPUS),
        kind="trained",
        version=1,
    ),
    "fusellm": Builder(
        name="fusellm",
        run=fuse_llm,
        Params=FuseLLM,
        formula="L = λ L_CLM + (1 − λ) KL(p_fused ‖ p_target)",
        paper="Wan et al., Knowledge Fusion of Large Language Models, ICLR 2024, arXiv:2401.10491",
        roles=(TARGET, Role("teachers", "model", many=True), CORPUS),
        kind="fused",
        version=1,
        control="clm",
    ),
}
