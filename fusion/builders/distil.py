"""What all builders by distributions share: stores -> fused targets -> a training on them and the text."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion import distill, fused, teachers
from fusion.builders.builder import Distilling, Work, settings
from fusion.errors import RecipeError
from fusion.fused import How, Source
from fusion.training import Progress


def distil(work: Work, sources: Sequence[tuple[str, Sequence[Path]]], how: How) -> dict[str, Any]:
    """Fuse what the sources say of the text, and train the target on it and on the text.

    sources: (name, the models that were read together), in the order of the stores. Raises RecipeError for a `top_k`
    that the target's vocabulary does not have, FusionError for stores of other models and what `fuse` refuses,
    TrainingError as `train` does.
    """
    from fusion.train import train

    params: Distilling = work.params
    tokenizer = teachers.load_tokenizer(work.target)
    if len(tokenizer) <= params.top_k:
        raise RecipeError(f"top_k {params.top_k}: the target has only {len(tokenizer)} tokens")
    started = time.perf_counter()
    opened = [
        Source(
            name,
            teachers.open_store(folder, models, work.documents, params.top_k),
            tokenizer if models[0] == work.target else teachers.load_tokenizer(models[0]),
        )
        for (name, models), folder in zip(sources, work.stores, strict=True)
    ]
    first, second = _stages(work.progress)
    # Processes that train together each make the targets for themselves: the same, and in no one's way.
    place = work.scratch / f"fused-{os.environ.get('RANK', '0')}"
    targets, report = fused.fuse(tokenizer, opened, work.documents, how, place, first)
    seconds = time.perf_counter() - started
    model, tokenizer = teachers.load(work.target)
    identity = f"{how} {params} {[source.store.meta for source in opened]}"
    objective = distill.FusionLoss(targets, params.lambda_, params.divergence, identity)
    trained = train(
        model,
        tokenizer,
        work.documents,
        settings(params, model, work.seed),
        work.out,
        work.scratch / "train",
        second,
        objective,
    )
    return {**trained, "alignment": report, "wall": {**trained["wall"], "fusing_seconds": seconds}}


def _stages(progress: Progress) -> tuple[Progress, Progress]:
    """One progress in thousandths: a tenth for the targets, the rest for the training."""
    return (
        lambda done, of: progress(100 * done // max(of, 1), 1000),
        lambda done, of: progress(100 + 900 * done // max(of, 1), 1000),
    )
