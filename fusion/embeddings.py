"""Models with different vocabularies brought to one: which row of each model is which row of the result.

Row k of one tokenizer is never taken for row k of another: rows are matched by what their tokens stand for (see
fusion/tokens.py). A row that a model lacks is filled for it (see fusion/rows.py), so that the models can be combined
tensor by tensor.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from fusion.checkpoint import CONFIG, GENERATION_CONFIG, Source, tokenizer_files
from fusion.errors import MismatchError, RecipeError
from fusion.params import did_you_mean
from fusion.rows import RULES, Filling, Remapped, Rows, plan
from fusion.tokens import (
    Table,
    Tokens,
    check_comparable,
    has_tokenizer,
    match,
    read_optional,
    read_tokens,
    same_tokens,
    spelt_tokens,
    token_ids,
    tokenizer_folder,
    vocabulary_table,
)
from fusion.union import Union, unite, write_union

UNION = "union"
KEYS = ("source", "tokens", "pad_to_multiple_of")


@dataclass(frozen=True)
class Wish:
    """A recipe's `tokenizer:` block: whose tokenizer, or the union; wishes for tokens; a divisor of the rows."""

    target: str
    tokens: Mapping[str, Mapping[str, Any]]
    multiple: int | None

    @property
    def plain(self) -> bool:
        """Whether it asks for nothing that models of one vocabulary do not have."""
        return not self.tokens and self.multiple is None


@dataclass(frozen=True)
class Common:
    """One vocabulary for several models.

    rows: of the result's vocabulary tensors. maps[model] [rows]: the model's own row for each, or -1. sources: the
    models with these rows. config_changes, generation_changes: what the donor's config.json and generation_config.json
    must say instead, nested as they are.
    """

    rows: int
    maps: Mapping[str, Int[np.ndarray, " rows"]]
    sources: Mapping[str, Source]
    config_changes: Mapping[str, Any]
    generation_changes: Mapping[str, Any]
    tokens: Tokens
    _folder: Path
    _union: Union | None
    _report: Mapping[str, Any]

    def report(self) -> dict[str, Any]:
        """What was done, as JSON.

        {"source": whose tokenizer or "union", "rows", "tokens", "padding": rows without a token, "owners": {model:
        tokens of the result that it has}, "reordered": models whose rows moved, "dropped": {model: its tokens that the
        result lacks}, "filled": {model: {rule: rows}}, "added", "unreachable", "unspellable": of a union (see
        fusion/union.py)}.
        """
        return dict(self._report)

    @property
    def tokenizer(self) -> Path:
        """A folder with the result's tokenizer: one model's own, or one that holds the union as long as this lives.

        Raises CheckpointError when transformers does not read the union back with the ids that the rows have.
        """
        return self._folder if self._union is None or not self._union.added else Path(self._written.name)

    @cached_property
    def _written(self) -> "TemporaryDirectory[str]":
        folder = TemporaryDirectory(prefix="tokenizer-")
        if self._union is not None:
            write_union(self._union, self._folder, Path(folder.name))
        return folder

    def write_tokenizer(self, out: Path) -> None:
        """Write the result's tokenizer files into a folder. Raises CheckpointError as `tokenizer` does."""
        for file in tokenizer_files(self.tokenizer):
            target = out / file.relative_to(self.tokenizer)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def laid_over(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with changes laid over it, nested ones inside what they are nested in."""
    return {**config, **{k: laid_over(config[k], v) if isinstance(v, Mapping) else v for k, v in changes.items()}}


def common_vocabulary(
    sources: Mapping[str, Source], donor: str, wish: Mapping[str, Any] | None = None, base: str | None = None
) -> Common | None:
    """The vocabulary that models are merged in, or None when they all have the same one and nothing is to be done.

    donor: the model whose config the result has. Without a wish its tokenizer and its number of rows are the result's.
    A wish is mergekit's `tokenizer` block: {"source": "base" | "union" | a model, "tokens": {token: {"source": a model
    | {"kind": "model_token", "model", "token" or "token_id"} | {"kind": "zero"}, "force": bool}},
    "pad_to_multiple_of": int}; "base" is the base, else the donor. A union has at least the donor's rows. base: the
    model whose rows fill those that others lack. A model without tokenizer files that has as many rows as the result's
    owner is taken to share its tokenizer.

    Raises RecipeError for a wish that makes no sense; MismatchError when rows cannot be told or compared, or when only
    some models tie their output head to the embedding; CheckpointError for a tokenizer that cannot be read.
    """
    wanted = _read_wish(wish, sources, donor, base)
    first = donor if wanted.target == UNION else wanted.target
    tables = {model: vocabulary_table(source) for model, source in sources.items()}
    folders = {model: tokenizer_folder(source) for model, source in sources.items()}
    rows = {model: None if table is None else table.rows for model, table in tables.items()}
    alike = {model: _alike(model, first, folders, rows) for model in sources}
    if wanted.plain and all(alike.values()) and len(set(rows.values())) == 1:
        return None
    checked = _checked_tables(tables)
    tokens = _tokens(folders, first, alike)
    union = None
    others = list({id(t): t for t in tokens.values() if t is not tokens[first]}.values())
    if wanted.target == UNION and others:
        union = unite(tokens[first], others)
    out = tokens[first] if union is None else union.tokens
    size = _size(len(out.spelt), checked[first].rows, wanted)
    own = {model: _own(out, tokens[model], tokens[first], checked[model].rows, size) for model in sources}
    padding = np.ones(size, bool)
    padding[np.flatnonzero(out.kinds[:size] >= 0)] = False
    fillings = [_filling(text, about, out, tokens, checked, size) for text, about in wanted.tokens.items()]
    rows_plan = plan(own, first, base, padding, fillings)
    changes = _Changes(size, checked[donor].rows, own[donor], tokens[donor], out)
    return Common(
        size,
        own,
        {model: _remapped(model, sources, checked[model], rows_plan) for model in sources},
        changes.of(read_optional(sources[donor].donor / CONFIG)),
        changes.of(read_optional(sources[donor].donor / GENERATION_CONFIG)),
        out,
        folders[first],
        union,
        _account(wanted.target, rows_plan, padding, tokens, checked, union),
    )


def _read_wish(wish: Mapping[str, Any] | None, sources: Mapping[str, Source], donor: str, base: str | None) -> Wish:
    given = wish or {}
    problems = [f"'{key}' is not a key of it{_hint(key, KEYS)}" for key in given if key not in KEYS]
    target = given.get("source", donor)
    target = (base or donor) if target == "base" else target
    if target != UNION and target not in sources:
        problems.append(f"source '{target}' is no model here: base, union or one of {', '.join(sources)}")
    multiple = given.get("pad_to_multiple_of")
    if multiple is not None and (not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1):
        problems.append(f"pad_to_multiple_of is {multiple!r}; expected an integer of at least 1")
    tokens = given.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        problems.append(f"tokens is {tokens!r}; expected tokens with a source each")
        tokens = {}
    problems += [f"token {token!r}: {wrong}" for token, about in tokens.items() if (wrong := _wrong(about, sources))]
    if problems:
        raise RecipeError("the recipe's tokenizer block makes no sense:\n  " + "\n  ".join(problems))
    return Wish(target, tokens, multiple)


def _wrong(about: Any, sources: Mapping[str, Source]) -> str | None:
    """What is wrong with the wish for one token."""
    if not isinstance(about, Mapping) or set(about) - {"source", "force"} or "source" not in about:
        return f"{about!r} is not {{source: ..., force: true or false}}"
    if not isinstance(about.get("force", False), bool):
        return f"force is {about['force']!r}; expected true or false"
    source = about["source"]
    if isinstance(source, str):
        return None if source in sources else f"source '{source}' is no model here{_hint(source, sources)}"
    if source == {"kind": "zero"}:
        return None
    if not isinstance(source, Mapping) or source.get("kind") != "model_token":
        return f"source {source!r} is not a model, {{kind: model_token, ...}} or {{kind: zero}}"
    if set(source) - {"kind", "model", "token", "token_id"} or ("token" in source) == ("token_id" in source):
        return "a model_token has a model and either a token or a token_id"
    model = source.get("model")
    return None if model in sources else f"source model '{model}' is no model here{_hint(str(model), sources)}"


def _hint(name: str, known: Any) -> str:
    hint = did_you_mean(name, known)
    return f" ({hint})" if hint else ""


def _alike(model: str, first: str, folders: Mapping[str, Path], rows: Mapping[str, int | None]) -> bool:
    """Whether a model's tokens have the ids of the first one's."""
    here, there = folders[model], folders[first]
    if here == there or not has_tokenizer(here):
        if rows[model] != rows[first] and not has_tokenizer(here):
            tokenizer_files(here)
        return True
    return has_tokenizer(there) and same_tokens(here, there)


def _checked_tables(tables: Mapping[str, Table | None]) -> dict[str, Table]:
    """Raises MismatchError unless the vocabulary tensors of all models are known and have the same names."""
    found = {model: table for model, table in tables.items() if table is not None}
    lost = [model for model in tables if model not in found]
    if lost:
        raise MismatchError(
            f"the vocabularies differ, and no token embedding is recognised in {', '.join(lost)}: no two-dimensional "
            "tensor is named like one (embed_tokens, wte, embed_in, word_embeddings, ...)"
        )
    names = {model: ", ".join(table.names) for model, table in found.items()}
    if len(set(names.values())) > 1:
        raise MismatchError(
            "the models do not have the same vocabulary tensors, as where only some tie their output head to the "
            "embedding:\n  "
            + "\n  ".join(f"{model}: {have}" for model, have in names.items())
            + "\nuntie the heads of all (tie_word_embeddings: false, with a stored head) or of none"
        )
    return found


def _tokens(folders: Mapping[str, Path], first: str, alike: Mapping[str, bool]) -> dict[str, Tokens]:
    """Each model's tokens. Where all are alike their files tell enough, and no tokenizer is loaded."""
    if all(alike.values()):
        ids = token_ids(folders[first]) if has_tokenizer(folders[first]) else None
        tokens = read_tokens(folders[first]) if ids is None else spelt_tokens(ids)
        return dict.fromkeys(folders, tokens)
    loaded: dict[Path, Tokens] = {}
    for model, folder in folders.items():
        known = folders[first] if alike[model] else next((k for k in loaded if same_tokens(k, folder)), folder)
        loaded[folder] = loaded[known] if known in loaded else read_tokens(known)
    found = {model: loaded[folder] for model, folder in folders.items()}
    shared = {model: found[first] if alike[model] else tokens for model, tokens in found.items()}
    check_comparable(shared)
    return shared


def _size(tokens: int, rows: int, wish: Wish) -> int:
    if wish.multiple is not None:
        return math.ceil(tokens / wish.multiple) * wish.multiple
    return max(tokens, rows) if wish.target == UNION else rows


def _own(out: Tokens, own: Tokens, first: Tokens, rows: int, size: int) -> Int[np.ndarray, " size"]:
    """A model's row for each row of the result, or -1. Padding is only padding's among models of one tokenizer."""
    found = np.full(size, -1, np.int64)
    if own is first:
        found[:] = np.arange(size)
        # The result's new tokens lie where this model has padding.
        found[len(first.spelt) : len(out.spelt)] = -1
    else:
        matched = match(out, own)[:size]
        found[: len(matched)] = matched
    found[found >= rows] = -1
    return found


def _filling(
    text: str,
    about: Mapping[str, Any],
    out: Tokens,
    tokens: Mapping[str, Tokens],
    tables: Mapping[str, Table],
    size: int,
) -> Filling:
    """The wish for one token, by rows. Raises RecipeError when a token that it names does not exist."""
    row, source, force = out.find(text), about["source"], about.get("force", False)
    if row is None or row >= size:
        raise RecipeError(
            f"the recipe's tokenizer block: the result has no token {text!r}; use source: union to add it"
        )
    if source == {"kind": "zero"}:
        return Filling(row, None, -1, force)
    model = source if isinstance(source, str) else source["model"]
    wanted = text if isinstance(source, str) else source.get("token", source.get("token_id"))
    own = wanted if isinstance(wanted, int) else tokens[model].find(str(wanted))
    if own is None or not 0 <= own < tables[model].rows:
        raise RecipeError(
            f"the recipe's tokenizer block: token {text!r} is to come from {model}, which has no {wanted!r}"
        )
    return Filling(row, model, own, force)


def _remapped(model: str, sources: Mapping[str, Source], table: Table, rows: Rows) -> Source:
    same = len(rows.lacking(model)) == 0 and np.array_equal(rows.own[model], np.arange(table.rows))
    return sources[model] if same else Remapped(model, sources, table.names, rows)


class _Changes:
    """What a config of the donor must say of another vocabulary: its rows, and the new ids of special tokens."""

    def __init__(self, size: int, rows: int, own: Int[np.ndarray, " rows"], donor: Tokens, out: Tokens) -> None:
        has = np.flatnonzero(own >= 0)
        self._size, self._rows, self._roles = size, rows, out.roles
        self._new = dict(zip(own[has].tolist(), has.tolist(), strict=True))
        moved = out is not donor and any(self._new.get(i, i) != i for i in range(len(donor.spelt)))
        lost = out is not donor and any(i not in self._new for i in donor.roles.values())
        self._moved = moved or lost

    def of(self, config: Mapping[str, Any], nested: bool = False) -> dict[str, Any]:
        """The keys of a config that change, nested as in the config."""
        changes: dict[str, Any] = {}
        for key, value in config.items():
            if isinstance(value, dict):
                inner = self.of(value, nested=True)
                changes |= {key: inner} if inner else {}
            # A nested one may be another vocabulary's.
            elif key == "vocab_size" and value != self._size and (value == self._rows or not nested):
                changes[key] = self._size
            elif key.endswith("_token_id") and self._moved and (new := self._ids(key, value)) != value:
                changes[key] = new
        return changes

    def _ids(self, key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [new for old in value if (new := self._ids(key, old)) is not None]
        if not isinstance(value, int):
            return value
        return self._new.get(value, self._roles.get(key.removesuffix("_token_id")))


def _account(
    source: str,
    rows: Rows,
    padding: Bool[np.ndarray, " rows"],
    tokens: Mapping[str, Tokens],
    tables: Mapping[str, Table],
    union: Union | None,
) -> dict[str, Any]:
    owners, reordered, dropped, filled = {}, [], {}, {}
    for model, own in rows.own.items():
        has = own >= 0
        owners[model] = int((has & ~padding).sum())
        if not np.array_equal(own[has], np.flatnonzero(has)):
            reordered.append(model)
        there = np.flatnonzero(tokens[model].kinds[: tables[model].rows] >= 0)
        dropped[model] = len(np.setdiff1d(there, own))
        counts = np.bincount(rows.rules[rows.lacking(model)], minlength=len(RULES))
        filled[model] = {rule: int(count) for rule, count in zip(RULES, counts, strict=True) if count}
    return {
        "source": source,
        "rows": len(padding),
        "tokens": int((~padding).sum()),
        "padding": int(padding.sum()),
        "owners": owners,
        "reordered": reordered,
        "dropped": dropped,
        "filled": filled,
        "added": 0 if union is None else union.added,
        "unreachable": 0 if union is None else union.unreachable,
        "unspellable": 0 if union is None else union.unspellable,
    }
