"""The pocket world: small models that are trained in minutes on generated text, and the questions they are asked.

`TRAINERS` is what a suite's `train:` names, `corpus` what its `corpus: pocket/...` does; of the text named HELD_OUT
only bits per byte are measured. The questions themselves are committed as suites/pocket/*.jsonl;
`python -m harness.pocket` writes them again.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import mixtures, trainers
from .mixtures import CORPORA, HELD_OUT, corpus

__all__ = ["CORPORA", "HELD_OUT", "TRAINERS", "VERSION", "Trainer", "corpus", "recipe"]

# Of the generators and mixtures: raised whenever the same seed gives other text.
VERSION = 1


@dataclass(frozen=True)
class Trainer:
    """A way to train a model: `run(params, parent folder or None, seed, out, scratch, progress) -> report`."""

    name: str
    Params: type
    run: Callable[..., dict[str, Any]]
    parent: bool
    version: int


TRAINERS: dict[str, Trainer] = {
    "pocket/base": Trainer("pocket/base", trainers.BaseParams, trainers.base, parent=False, version=1),
    "pocket/specialist": Trainer(
        "pocket/specialist", trainers.SpecialistParams, trainers.specialist, parent=True, version=1
    ),
    "pocket/multitask": Trainer(
        "pocket/multitask", trainers.MultitaskParams, trainers.multitask, parent=True, version=1
    ),
    "pocket/teacher": Trainer("pocket/teacher", trainers.TeacherParams, trainers.teacher, parent=False, version=1),
}


def recipe(params: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer's parameters stand for: sizes, steps and shares of text; they decide the weights."""
    shares = {"base": mixtures.BASE, "teachers": mixtures.TEACHERS, "within": mixtures.WITHIN}
    return {"size": asdict(trainers.SIZES[params["size"]]), "shares": shares}
