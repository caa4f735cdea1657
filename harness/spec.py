"""What a suite says, as frozen values; `suite.py` makes them from YAML and checks them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHAT = ("auto", "on", "off")
"""Whether models are asked in their chat templates; of a model None is what the suite says."""


@dataclass(frozen=True)
class Source:
    """A model that is given: a folder, or a repository of the Hugging Face hub; with a LoRA adapter's folder or not."""

    name: str
    origin: str
    revision: str | None = None
    dtype: str | None = None
    adapter: str | None = None
    pickled: bool = False
    chat: str | None = None


@dataclass(frozen=True)
class Trained:
    """A model that the suite trains, from nothing or from `parent`."""

    name: str
    trainer: str
    params: Mapping[str, Any]
    parent: str | None
    seed: int
    chat: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A model that the suite builds by a method. `row` and `sweep` say what it is one of; `seeds` makes replicates.

    `weights` and `own` (a model's own parameters) follow `models`, as do the `corpora` of a merge that is guided by
    data; those of a training are joined. `control` is the model to be beaten on the same terms.
    `merges_base`: the base is merged, too, and not what task vectors are taken from.
    `tokenizer` names whose tokens a merge has (union, base or one of its models), where vocabularies differ.
    `route` says which of the models each group is answered as, of a model that is told which group it answers.
    """

    name: str
    method: str
    kind: str
    params: Mapping[str, Any]
    models: tuple[str, ...] = ()
    weights: tuple[Any, ...] | None = None
    own: tuple[Mapping[str, Any], ...] = ()
    base: str | None = None
    merges_base: bool = False
    corpora: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    route: Mapping[str, str] = field(default_factory=dict)
    allow_unrelated: bool = False
    tokenizer: str | None = None
    target: str | None = None
    seeds: tuple[int, ...] = (0,)
    row: str = ""
    sweep: Mapping[str, Any] = field(default_factory=dict)
    is_control: bool = False
    control: str | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """The models it is made of: what is merged, or target and teachers."""
        first = self.target or (self.base if self.merges_base else None)
        return ((first,) if first else ()) + self.models


Model = Source | Trained | Candidate


@dataclass(frozen=True)
class Group:
    """A named list of tasks, or a text whose bits per byte are measured; `limit` is the number of items that count.

    limit: of each task, or of the text's documents; None: all. text: a .jsonl file's absolute path, or pocket/held_out.
    metric: which of its tasks' scores counts; None: each task's own choice. samples: programs for each problem of a
    code task, drawn at `temperature` from the `top_p` likeliest part of the distribution; at 0 the likeliest is taken.
    """

    name: str
    tasks: tuple[str, ...]
    limit: int | None
    batch_size: int
    text: str | None = None
    metric: str | None = None
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Suite:
    """A checked suite. `models` holds sources, trained models and candidates alike, parents before children.

    `kinship_texts` is the corpus that models read for those measures of kinship that need texts.
    `data`: where local data of tasks are (`tasks/local.py`), paths absolute.
    `published` is what papers say of models: shown beside the results, never compared with them. `smoke`: this is the
    rehearsal of a suite with tiny models, and its results say nothing.
    """

    name: str
    seed: int
    models: Mapping[str, Model]
    groups: tuple[Group, ...]
    dev_share: float
    kinship_base: str | None
    measures: tuple[str, ...]
    kinship_texts: str | None
    mlflow: str | None
    keep: str
    sandbox: str | None
    trust_task_code: bool
    published: Mapping[str, Mapping[str, Any]]
    path: Path
    text: str
    digest: str
    chat: str = "auto"
    data: str | Mapping[str, str | Mapping[str, str]] | None = None
    smoke: bool = False

    @property
    def folder(self) -> Path:
        """Paths in the suite are relative to this."""
        return self.path.parent
