"""What some models and their base have in common, and what keeps the rest from being compared.

Tensors are the same by name and shape. Rows of a vocabulary are the same by the token that they stand for, never by
their number alone; a model without tokenizer files is taken to number its tokens as the others do.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fusion.checkpoint import Source, mismatches
from fusion.errors import MismatchError
from fusion.tokens import (
    Table,
    check_comparable,
    has_tokenizer,
    match,
    read_tokens,
    same_tokens,
    tokenizer_folder,
    vocabulary_table,
)


@dataclass(frozen=True)
class LeftOut:
    """What is not compared: tensors that not all have alike, and the most vocabulary rows that one has besides."""

    tensors: int
    rows: int


class SharedPart:
    """A model with only those of its tensors, and of its vocabulary's rows, that all models have; a Source."""

    def __init__(
        self, source: Source, names: Sequence[str], tables: Collection[str], rows: Int[np.ndarray, " rows"]
    ) -> None:
        self.source, self.donor = source, source.donor
        self._names, self._tables, self._rows = list(names), frozenset(tables), torch.from_numpy(rows)
        self._leading = np.array_equal(rows, np.arange(len(rows)))

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self.source.shape(name)
        return (len(self._rows), *shape[1:]) if name in self._tables else shape

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        tensor = self.source.tensor(name)
        if name not in self._tables:
            return tensor
        return tensor[: len(self._rows)] if self._leading else tensor.index_select(0, self._rows)

    def takes_rows(self, name: str) -> bool:
        """Whether a tensor is of the vocabulary, and not simply the model's own."""
        return name in self._tables

    def gathers(self, name: str) -> bool:
        """Whether a tensor's elements are other than the first ones of the model's own."""
        return name in self._tables and not self._leading


def misfits(models: Mapping[str, Source], base: Source) -> dict[str, str]:
    """Of the models that cannot be compared with the base tensor by tensor: why, in one line."""
    found = {}
    for name, source in models.items():
        lines = [line.removeprefix(f"{name}: ") for line in mismatches({"": base, name: source})]
        if lines:
            more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
            found[name] = f"differs from the base: {lines[0]}{more}"
    return found


def in_common(sources: Mapping[str, Source]) -> tuple[dict[str, Source], LeftOut]:
    """The part of every model that all of them have, the base being the first.

    Raises MismatchError when that is nothing, or when a model's vocabulary rows cannot be told.
    """
    tables = {model: vocabulary_table(source) for model, source in sources.items()}
    named = {name for table in tables.values() if table is not None for name in table.names}
    rows = _rows(sources, {model: table for model, table in tables.items() if table is not None})
    known = [frozenset(source.names()) for source in sources.values()]
    every = frozenset().union(*known)
    kept = [name for name in sorted(every.intersection(*known)) if _alike(name, sources, tables, named)]
    if not any(len(one) for one in rows.values()):
        kept = [name for name in kept if name not in named]
    if not any(_is_floating(name, sources) for name in kept):
        raise MismatchError(
            f"{', '.join(sources)} have no tensor of the same name and shape in common: use measures of kinship that "
            "need no common weights (cka, capa, ...)"
        )
    parts = {model: SharedPart(source, kept, named, rows.get(model, np.arange(0))) for model, source in sources.items()}
    spare = [table.rows - len(rows[model]) for model, table in tables.items() if table is not None]
    return dict(parts), LeftOut(len(every) - len(kept), max(spare, default=0))


def _alike(
    name: str, sources: Mapping[str, Source], tables: Mapping[str, Table | None], named: Collection[str]
) -> bool:
    """Whether a tensor that all have is the same thing in all."""
    if len({source.dtype(name).is_floating_point for source in sources.values()}) > 1:
        return False
    if name in named:
        here = all(table is not None and name in table.names for table in tables.values())
        return here and len({source.shape(name)[1:] for source in sources.values()}) == 1
    return len({source.shape(name) for source in sources.values()}) == 1


def _is_floating(name: str, sources: Mapping[str, Source]) -> bool:
    return next(iter(sources.values())).dtype(name).is_floating_point


def _rows(sources: Mapping[str, Source], tables: Mapping[str, Table]) -> dict[str, Int[np.ndarray, " rows"]]:
    """For each model the rows of the tokens that all of them have, in the same order."""
    if not tables:
        return {}
    folders = {model: tokenizer_folder(sources[model]) for model in tables}
    first = next((model for model, folder in folders.items() if has_tokenizer(folder)), next(iter(tables)))
    own = {model: _own(folders[first], folder, tables[first].rows) for model, folder in folders.items()}
    shared = np.all([(ids >= 0) & (ids < tables[model].rows) for model, ids in own.items()], axis=0)
    return {model: ids[shared] for model, ids in own.items()}


def _own(first: Path, folder: Path, rows: int) -> Int[np.ndarray, " rows"]:
    """The ids in one model's vocabulary of the tokens that another has in its rows; -1 where it lacks one."""
    if folder == first or not has_tokenizer(folder) or same_tokens(first, folder):
        return np.arange(rows)
    target, tokens = read_tokens(first), read_tokens(folder)
    check_comparable({str(first): target, str(folder): tokens})
    found = np.full(rows, -1, np.int64)
    matched = match(target, tokens)[:rows]
    found[: len(matched)] = matched
    return found
