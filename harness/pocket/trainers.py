"""Training the pocket world's models with fusion/train.py, which is imported only when there is something to train."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusion.params import param

from . import mixtures
from .item import Document
from .texts import documents

if TYPE_CHECKING:
    from fusion.training import Settings

Progress = Callable[[int, int], None]  # (done, total)
SizeName = Literal["pocket", "tiny"]


@dataclass(frozen=True)
class Size:
    """A size of the world: models, vocabularies, and the steps that bring each model where it should be."""

    llama: Mapping[str, int]
    teacher: Mapping[str, int]
    vocabulary: int
    teacher_vocabularies: Mapping[str, int]
    base_steps: int
    specialist_steps: int
    teacher_steps: Mapping[str, int]
    batch_size: int
    context: int
    learning_rate: float
    specialist_learning_rate: float


SIZES: dict[str, Size] = {
    "pocket": Size(
        llama={"width": 128, "layers": 4, "heads": 4, "context": 256},
        teacher={"width": 128, "layers": 4, "heads": 4, "context": 256},
        vocabulary=640,
        teacher_vocabularies={"gpt_neox": 900, "gpt2": 448},
        base_steps=465,
        specialist_steps=320,
        teacher_steps={"commonsense+code": 740, "reasoning": 740},
        batch_size=8,
        context=128,
        learning_rate=4e-3,
        specialist_learning_rate=1.5e-3,
    ),
    "tiny": Size(
        llama={"width": 64, "layers": 2, "heads": 4, "context": 256},
        teacher={"width": 64, "layers": 2, "heads": 4, "context": 256},
        vocabulary=400,
        teacher_vocabularies={"gpt_neox": 480, "gpt2": 352},
        base_steps=600,
        specialist_steps=160,
        teacher_steps={"commonsense+code": 350, "reasoning": 350},
        batch_size=8,
        context=128,
        learning_rate=6e-3,
        specialist_learning_rate=3e-3,
    ),
}
DOCUMENTS_A_ROW = 5  # a few more than fit
TOKENIZER_TEXTS = 6000
SIZE_HELP = "pocket: the quickstart's models (0.9 M parameters); tiny: the tests' (0.1 M), trained in seconds"
STEPS_HELP = "training steps; left out: what the size has been tuned for"


@dataclass(frozen=True)
class BaseParams:
    size: SizeName = param("pocket", help=SIZE_HELP)
    steps: int | None = param(None, low=1, help=STEPS_HELP)


@dataclass(frozen=True)
class SpecialistParams:
    skill: mixtures.Skill = param(help="what it is trained on")
    replay: float = param(
        mixtures.REPLAY, low=0.0, high=1.0, help="share of its documents that come from the other skills"
    )
    size: SizeName = param("pocket", help=SIZE_HELP)
    steps: int | None = param(None, low=1, help=STEPS_HELP)


@dataclass(frozen=True)
class MultitaskParams:
    size: SizeName = param("pocket", help=SIZE_HELP)
    steps: int | None = param(None, low=1, help="training steps; left out: as many as the specialists have together")


@dataclass(frozen=True)
class TeacherParams:
    architecture: Literal["gpt_neox", "gpt2"] = param("gpt_neox", help="another architecture than the base's (llama)")
    skills: mixtures.Skills = param("commonsense+code", help="what it knows well")
    size: SizeName = param("pocket", help=SIZE_HELP)
    steps: int | None = param(None, low=1, help=STEPS_HELP)


@dataclass(frozen=True)
class Course:
    """A training: who reads what, for how long."""

    who: str
    groups: Mapping[str, float]
    steps: int
    learning_rate: float
    size: Size
    seed: int

    def documents(self) -> list[Document]:
        """Enough that no question of the algorithmic tasks is drawn to be read twice."""
        count = self.steps * self.size.batch_size * DOCUMENTS_A_ROW
        return documents(mixtures.shares(self.groups), count, random.Random(f"{self.who} {self.seed}"))

    def settings(self) -> "Settings":
        from fusion.training import Settings

        return Settings(
            steps=self.steps,
            batch_size=self.size.batch_size,
            learning_rate=self.learning_rate,
            context=self.size.context,
            seed=self.seed,
            loss="answers",
        )


def base(
    params: BaseParams, parent: Path | None, seed: int, out: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """A Llama from random weights, with a tokenizer of its own."""
    size = SIZES[params.size]
    course = Course("base", mixtures.BASE, params.steps or size.base_steps, size.learning_rate, size, seed)
    return _start("llama", size.llama, size.vocabulary, course, out, scratch, progress)


def teacher(
    params: TeacherParams, parent: Path | None, seed: int, out: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """A model of another architecture and tokenizer: the kind that weights cannot be merged with."""
    size = SIZES[params.size]
    who = f"teacher {params.architecture}"
    steps = params.steps or size.teacher_steps[params.skills]
    course = Course(who, mixtures.TEACHERS[params.skills], steps, size.learning_rate, size, seed)
    vocabulary = size.teacher_vocabularies[params.architecture]
    return _start(params.architecture, size.teacher, vocabulary, course, out, scratch, progress)


def _start(
    architecture: str,
    sizes: Mapping[str, int],
    vocabulary: int,
    course: Course,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    from fusion import new_model, train

    texts = course.documents()
    read = [text["prompt"] + text["answer"] for text in texts[:TOKENIZER_TEXTS]]
    tokenizer = new_model.train_tokenizer(read, vocabulary)
    model = new_model.new_model(architecture, sizes, tokenizer, course.seed)
    return train.train(model, tokenizer, texts, course.settings(), out, scratch, progress)


def specialist(
    params: SpecialistParams, parent: Path | None, seed: int, out: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """Its parent, trained further on one skill and a replay of the others."""
    size = SIZES[params.size]
    course = _specialists(params.skill, params.replay, params.steps or size.specialist_steps, size, seed)
    return _go_on(parent, course.documents(), course.settings(), out, scratch, progress)


def multitask(
    params: MultitaskParams, parent: Path | None, seed: int, out: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """Its parent, trained further on the very documents of all specialists together: what merging them is held to."""
    size = SIZES[params.size]
    courses = [_specialists(skill, mixtures.REPLAY, size.specialist_steps, size, seed) for skill in mixtures.GROUP_OF]
    settings = replace(courses[0].settings(), steps=params.steps or sum(course.steps for course in courses))
    joined = [document for course in courses for document in course.documents()]
    random.Random(f"multitask {seed}").shuffle(joined)
    return _go_on(parent, joined, settings, out, scratch, progress)


def _specialists(skill: str, replay: float, steps: int, size: Size, seed: int) -> Course:
    groups = mixtures.specialist(skill, replay)
    return Course(f"specialist {skill}", groups, steps, size.specialist_learning_rate, size, seed)


def _go_on(
    parent: Path | None, texts: list[Document], settings: "Settings", out: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    import transformers

    from fusion import train

    model = transformers.AutoModelForCausalLM.from_pretrained(parent)
    tokenizer = transformers.AutoTokenizer.from_pretrained(parent)
    return train.train(model, tokenizer, texts, settings, out, scratch, progress)
