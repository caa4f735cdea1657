"""What each row of a model's vocabulary stands for, and which row of another model stands for the same.

Rows are never matched by their number alone: a token is known by the bytes it stands for, a special one by its content
and then by its role (see fusion/vocabulary.py). Tokenizers whose tokens have no exact bytes are matched by spelling,
and only with tokenizers that spell alike.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fusion.checkpoint import OUTPUT_HEADS, VOCABULARY_FILES, Source, read_config, tokenizer_files
from fusion.errors import CheckpointError, FusionError, MismatchError
from fusion.vocabulary import ROLES, read_vocabulary

# Tables of tokens, by the name of their module; what else is called an embedding has rows of another kind.
EMBEDDING = re.compile(r"emb|^wte$|^shared$")
HEAD = re.compile(r"lm_head|embed_out|unembed|^output(_layer)?$|^head$|^decoder$|vocab")
OTHER_ROWS = re.compile(r"pos|type|segment|norm|rotary|patch|class|per_layer|proj|image|vision|audio|time")
# Preference among tokens of the same bytes; -1 is an id that no token has.
NORMAL, ADDED, SPECIAL, FALLBACK = range(4)
BYTE_LEVEL, SENTENCEPIECE = "byte-level", "sentencepiece"


@runtime_checkable
class OwnTokenizer(Protocol):
    """A Source whose tokenizer lies elsewhere than its config."""

    @property
    def tokenizer(self) -> Path:
        """The folder of its tokenizer's files."""
        ...


@dataclass(frozen=True)
class Table:
    """A model's vocabulary tensors: their rows, and their names (embedding, output head, the head's bias)."""

    rows: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Tokens:
    """A model's tokens by id. spelt: as the tokenizer writes them; content: as bytes; None where no token has the id.

    kinds [v]: NORMAL, ADDED, SPECIAL, FALLBACK (a single byte as `<0x41>`) or -1. family: tokens of one family that are
    spelt alike are the same. tokenizer: the transformers tokenizer, None where only its token ids were read.
    """

    spelt: tuple[str | None, ...]
    content: tuple[bytes | None, ...]
    kinds: Int[np.ndarray, " v"]
    roles: Mapping[str, int]
    family: str
    tokenizer: Any = field(default=None, compare=False, repr=False)

    def find(self, text: str) -> int | None:
        """The id of a token given as the tokenizer spells it, or as the text it stands for."""
        if text in self.spelt:
            return self.spelt.index(text)
        return self.content.index(text.encode()) if text.encode() in self.content else None


def tokenizer_folder(source: Source) -> Path:
    """Where a model's tokenizer lies: with its config, unless the model says otherwise."""
    return source.tokenizer if isinstance(source, OwnTokenizer) else source.donor


def vocabulary_table(source: Source) -> Table | None:
    """A model's vocabulary tensors, or None when it has no token embedding.

    The rows are those of the two-dimensional tensor whose module is named like an embedding and not like one of
    positions, types or images; where several sizes remain, the config's vocab_size decides. The table holds every
    tensor of as many rows whose module is named like an embedding or an output head.

    Raises MismatchError when the rows cannot be told, or when the output head has another number of rows.
    """
    shapes = {name: source.shape(name) for name in source.names() if _role(name)}
    sizes = {shape[0] for name, shape in shapes.items() if _role(name) == "embedding" and len(shape) == 2}
    if not sizes:
        return None
    rows = next(iter(sizes))
    if len(sizes) > 1:
        stated = _vocab_sizes(read_config(source.donor)) & sizes
        if len(stated) != 1:
            raise MismatchError(
                f"{source.donor}: cannot tell which rows are the vocabulary's: embeddings have {_numbers(sizes)} rows "
                f"and its config's vocab_size is {_numbers(_vocab_sizes(read_config(source.donor))) or 'missing'}"
            )
        rows = stated.pop()
    for head in OUTPUT_HEADS:
        if head in shapes and shapes[head][0] != rows:
            raise MismatchError(f"{source.donor}: {head} has {shapes[head][0]} rows, its embedding {rows}")
    fits = {name: shape for name, shape in shapes.items() if shape and shape[0] == rows}
    return Table(rows, tuple(name for name, shape in fits.items() if len(shape) == 2 or _role(name) == "head"))


def _role(name: str) -> str | None:
    """What a tensor's name says it is: "embedding", "head" or neither."""
    parts = name.split(".")
    module = parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]
    if HEAD.search(module):
        return "head"
    return "embedding" if EMBEDDING.search(module) and not OTHER_ROWS.search(module) else None


def _vocab_sizes(config: Any) -> set[int]:
    if not isinstance(config, dict):
        return set()
    own = {config["vocab_size"]} if isinstance(config.get("vocab_size"), int) else set()
    return own.union(*(_vocab_sizes(value) for value in config.values()))


def _numbers(sizes: set[int]) -> str:
    return " and ".join(f"{size:,}" for size in sorted(sizes))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def same_tokens(a: Path, b: Path) -> bool:
    """Whether two folders' tokenizers give every token the same id, as far as their files tell without loading them."""
    if a == b or _defining(a) == _defining(b):
        return True
    ids = token_ids(a)
    return ids is not None and ids == token_ids(b)


def _defining(folder: Path) -> dict[str, bytes]:
    files = [folder / name for name in (*VOCABULARY_FILES, "added_tokens.json") if (folder / name).is_file()]
    more = {
        key: value for key, value in read_optional(folder / "tokenizer_config.json").items() if key != "chat_template"
    }
    tokens = {key: value for key, value in more.items() if key == "added_tokens_decoder" or key.endswith("_token")}
    return {
        **{file.name: file.read_bytes() for file in files},
        "config": json.dumps(tokens, sort_keys=True).encode(),
        "map": json.dumps(read_optional(folder / "special_tokens_map.json"), sort_keys=True).encode(),
    }


def token_ids(folder: Path) -> dict[str, int] | None:
    """Every token's id, read off a tokenizer.json without loading it; None where that does not tell."""
    state = read_optional(folder / "tokenizer.json")
    if not isinstance(state.get("model"), dict):
        return None
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        return None
    ids = {**vocabulary, **{token["content"]: token["id"] for token in state.get("added_tokens") or []}}
    config = read_optional(folder / "tokenizer_config.json")
    ids |= {token["content"]: int(i) for i, token in (config.get("added_tokens_decoder") or {}).items()}
    ids |= read_optional(folder / "added_tokens.json")
    named = {**read_optional(folder / "special_tokens_map.json"), **config}
    special = [value for key, value in named.items() if key.endswith("_token") and value]
    contents = [token["content"] if isinstance(token, dict) else token for token in special]
    # A special token that the vocabulary lacks gets an id only when the tokenizer is loaded.
    return ids if all(token in ids for token in contents if isinstance(token, str)) else None


def read_optional(file: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no such file. Raises CheckpointError when it is no JSON."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{file} is not readable as JSON ({error}): copy or download it again") from error
    return content if isinstance(content, dict) else {}


def spelt_tokens(ids: Mapping[str, int]) -> Tokens:
    """Tokens of which only the spelling is known: enough for models that share one tokenizer."""
    spelt: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for token, i in ids.items():
        spelt[i] = token
    kinds = np.asarray([-1 if token is None else NORMAL for token in spelt], np.int64)
    content = tuple(None if token is None else token.encode() for token in spelt)
    return Tokens(tuple(spelt), content, kinds, {}, "one")


def read_tokens(folder: Path) -> Tokens:
    """A folder's tokens, by loading its tokenizer. Raises CheckpointError where transformers has no fast one for it."""
    tokenizer = load_tokenizer(folder)
    spelt: list[str | None] = [None] * (max(tokenizer.get_vocab().values(), default=-1) + 1)
    for token, i in tokenizer.get_vocab().items():
        spelt[i] = token
    added = {i: SPECIAL if token.special else ADDED for i, token in tokenizer.added_tokens_decoder.items()}
    kinds = np.asarray([-1 if token is None else added.get(i, NORMAL) for i, token in enumerate(spelt)], np.int64)
    content = [None if token is None else token.encode() for token in spelt]
    decoder = tokenizer.backend_tokenizer.decoder
    state = json.loads(decoder.__getstate__()) if decoder is not None else None
    try:
        vocabulary = read_vocabulary(tokenizer)
    except FusionError:
        family = f"{tokenizer.backend_tokenizer.model.__class__.__name__}, decoder {json.dumps(state, sort_keys=True)}"
        roles = {role: i for role in ROLES if (i := getattr(tokenizer, f"{role}_token_id")) is not None}
        return Tokens(tuple(spelt), tuple(content), kinds, roles, family, tokenizer)
    kinds[np.flatnonzero(vocabulary.fallback)] = FALLBACK
    content = [token if token is not None else given for token, given in zip(vocabulary.tokens, content, strict=True)]
    family = BYTE_LEVEL if state and state["type"] == "ByteLevel" else SENTENCEPIECE
    return Tokens(tuple(spelt), tuple(content), kinds, vocabulary.roles, family, tokenizer)


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers loads it. Raises CheckpointError when it does not."""
    from transformers import AutoTokenizer

    tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{folder}: transformers cannot load its tokenizer ({error})") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder}: its tokenizer is a slow one; save it as a fast one (tokenizer.json)")
    return tokenizer


def check_comparable(tokens: Mapping[str, Tokens]) -> None:
    """Raises MismatchError when tokens of two models have neither bytes nor a spelling in common."""
    exact = (BYTE_LEVEL, SENTENCEPIECE)
    (first, reference), *others = tokens.items()
    for model, other in others:
        if reference.family != other.family and not (reference.family in exact and other.family in exact):
            raise MismatchError(
                f"cannot compare the tokens of '{first}' ({reference.family}) with those of '{model}' "
                f"({other.family}): byte-level BPE and sentencepiece have bytes in common; others must spell alike"
            )


def match(target: Tokens, own: Tokens) -> Int[np.ndarray, " target"]:
    """For each of the target's ids the own id that stands for the same; -1 where there is none.

    By spelling within one family; else by bytes and kind; else by bytes, a byte fallback last. A byte fallback that is
    the target's only token for its byte meets the own token that is in use for it, whatever its spelling. What is then
    left of the roles (EOS, BOS, pad, unk) meets by role, unless the own token already stands for another.
    """
    kinds = own.kinds.tolist()
    of_kind: list[dict[bytes, int]] = [{}, {}, {}, {}]
    for i, content in enumerate(own.content):
        if content is not None:
            of_kind[kinds[i]].setdefault(content, i)
    anywhere: dict[bytes, int] = {}
    for kind in (FALLBACK, SPECIAL, ADDED, NORMAL):
        anywhere.update(of_kind[kind])
    spelt = {token: i for i, token in enumerate(own.spelt)} if target.family == own.family else {}
    kinds = target.kinds.tolist()
    in_use = {content for content, kind in zip(target.content, kinds, strict=True) if kind != FALLBACK}
    found = np.full(len(target.content), -1, np.int64)
    for i, (content, token, kind) in enumerate(zip(target.content, target.spelt, target.kinds.tolist(), strict=True)):
        if content is None:
            continue
        same = spelt.get(token, -1)
        if kind == FALLBACK and content not in in_use:
            same = anywhere.get(content, -1)
        elif same < 0 or own.content[same] != content:
            same = of_kind[kind].get(content, anywhere.get(content, -1))
        found[i] = same
    taken = set(found.tolist())
    for role in ROLES:
        at, here = target.roles.get(role), own.roles.get(role)
        if at is not None and here is not None and found[at] < 0 and here not in taken:
            found[at] = here
            taken.add(here)
    return found
