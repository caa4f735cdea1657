"""Continued training on text alone: the control of every fusion, and the upper bound of merging."""

from typing import Any

from fusion import teachers
from fusion.builders.builder import Training, Work, check_training, settings

FORMULA = "L = L_CLM"
PAPER = "the control of Wan et al., ICLR 2024, arXiv:2401.10491"
MULTITASK_FORMULA = "L = L_CLM over the joined corpora"
MULTITASK_PAPER = "the upper bound of Jin et al., RegMean, ICLR 2023, arXiv:2212.09849"


def run(work: Work) -> dict[str, Any]:
    """Train the target on the text: the same rows in the same order as a fusion of this seed.

    Raises RecipeError for parameters that exclude each other, TrainingError as `train` does.
    """
    from fusion.train import train

    params: Training = work.params
    check_training(params, 0)
    model, tokenizer = teachers.load(work.target)
    how = settings(params, model, work.seed)
    return train(model, tokenizer, work.documents, how, work.out, work.scratch / "train", work.progress)
