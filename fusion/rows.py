"""Vocabulary rows: which rows of which models make up the rows of a common vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fusion.checkpoint import Source
from fusion.tokens import tokenizer_folder

# How a row is filled for a model that lacks it, best first.
RULES = ("wish", "base", "padding", "owner", "average", "zero")


@dataclass(frozen=True)
class Filling:
    """A wish for one row: the model and its row that fill it (None: zeros); `force` fills it for every model."""

    row: int
    model: str | None
    own: int
    force: bool


@dataclass(frozen=True)
class Rows:
    """A common vocabulary of `rows` rows.

    own[model] [rows]: the model's row for each, or -1. fill[model] [rows]: its row that goes into the mean which
    fills the row for the models that lack it, or -1. forced [rows]: filled for every model. rules [rows]: by which of
    RULES a row is filled, or -1 where no model lacks it.
    """

    own: Mapping[str, Int[np.ndarray, " rows"]]
    fill: Mapping[str, Int[np.ndarray, " rows"]]
    forced: Bool[np.ndarray, " rows"]
    rules: Int[np.ndarray, " rows"]

    def lacking(self, model: str) -> Int[np.ndarray, " n"]:
        """The rows that are filled for a model."""
        return np.flatnonzero((self.own[model] < 0) | self.forced)


def plan(
    own: Mapping[str, Int[np.ndarray, " rows"]],
    target: str,
    base: str | None,
    padding: Bool[np.ndarray, " rows"],
    fillings: Sequence[Filling],
) -> Rows:
    """Decide how the rows that models lack are filled.

    By a wish; else with the base's row; a padding row with that of `target`, whose tokenizer the result has; else with
    the row of the only model that has it; else with the mean over those that have it; else with zeros.
    """
    has = {model: rows >= 0 for model, rows in own.items()}
    count = np.sum(list(has.values()), axis=0)
    nowhere = np.zeros(len(padding), bool)
    base_has = has[base] if base is not None else nowhere
    chosen = np.select(
        [count == len(own), base_has, padding & has[target], count == 1, count > 1],
        [-1, RULES.index("base"), RULES.index("padding"), RULES.index("owner"), RULES.index("average")],
        RULES.index("zero"),
    )
    fill = {}
    for model, rows in own.items():
        only = {"base": model == base, "padding": model == target, "owner": True, "average": True}
        used = np.isin(chosen, [RULES.index(rule) for rule, this in only.items() if this])
        fill[model] = np.where(used, rows, -1)
    forced = nowhere.copy()
    for filling in fillings:
        for model in own:
            fill[model][filling.row] = filling.own if model == filling.model else -1
        forced[filling.row] = filling.force
        if filling.force or chosen[filling.row] >= 0:
            chosen[filling.row] = RULES.index("wish")
    return Rows(own, fill, forced, chosen)


class Remapped:
    """A model whose vocabulary tensors have the rows of a common vocabulary; its other tensors are as they were.

    tokenizer: the model's own, by which its rows were found; not that of the rows it now has.
    """

    def __init__(self, model: str, sources: Mapping[str, Source], names: Sequence[str], rows: Rows) -> None:
        self._source, self._sources = sources[model], sources
        self._names, self._rows, self._own = frozenset(names), rows, rows.own[model]
        self._lacking = rows.lacking(model)
        self.donor: Path = self._source.donor
        self.tokenizer: Path = tokenizer_folder(self._source)

    def names(self) -> list[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._source.shape(name)
        return (len(self._own), *shape[1:]) if name in self._names else shape

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        tensor = self._source.tensor(name)
        if name not in self._names:
            return tensor
        if len(self._lacking) == 0 and np.array_equal(self._own, np.arange(len(self._own))):
            return tensor[: len(self._own)]
        rows = tensor.index_select(0, torch.from_numpy(np.maximum(self._own, 0)))
        if len(self._lacking):
            rows[torch.from_numpy(self._lacking)] = self._filled(name).to(rows.dtype)
        return rows

    def _filled(self, name: str) -> Tensor:
        """The rows that this model lacks: the mean of the models' that fill them, in float32; zeros where none does."""
        total = torch.zeros(len(self._lacking), *self.shape(name)[1:])
        count = torch.zeros(len(self._lacking), *[1] * (total.ndim - 1))
        for model, fill in self._rows.fill.items():
            at = np.flatnonzero(fill[self._lacking] >= 0)
            if len(at):
                wanted = torch.from_numpy(fill[self._lacking][at])
                here = torch.from_numpy(at)
                total[here] += self._sources[model].tensor(name).index_select(0, wanted).float()
                count[here] += 1
        return total / count.clamp(min=1)
