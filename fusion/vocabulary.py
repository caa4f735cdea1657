"""A tokenizer as the bytes that its tokens stand for, and the map from one such vocabulary to another.

Strings of a vocabulary are the tokenizer's private spelling ("Ġthe", "▁the"); bytes are what two tokenizers share.
Compared by bytes, newlines, accents and quotes meet that compared by strings do not. Special tokens stand for no bytes;
they meet by role (EOS with EOS), and where neither has a role by their spelling ("<|im_start|>").
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from fusion import edit
from fusion.errors import FusionError, RoundTripError

Alignments = Literal["bytes", "min_ed", "exact"]
Compat = Literal["fusellm-v1"]

ROLES = ("eos", "bos", "pad", "unk")
# How special tokens are spelt whose role no file states, the likelier spelling first.
SPELT = {
    "eos": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]"),
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]"),
    "pad": ("<pad>", "<|padding|>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
}
SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """What each token id stands for.

    tokens[i]: its bytes; None for a special token or an id that no token has. lengths [v]: their number, 0 for None.
    fallback [v]: spelt as a single byte (`<0x41>`) because no better token was there. roles: special ids by role.
    pieces[i]: the private spelling; None for an id that no token has.
    """

    name: str
    tokens: tuple[bytes | None, ...]
    lengths: Int[np.ndarray, " v"]
    fallback: Bool[np.ndarray, " v"]
    roles: Mapping[str, int]
    pieces: tuple[str | None, ...]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder or of a tokenizer.json file, as a fast one of transformers.

    A folder holds what transformers loads (tokenizer_config.json beside the vocabulary), or a tokenizer.json alone, or
    vocab.json and merges.txt alone. The last do not say how a text is split before it is merged: if a token has two
    digits it is split as GPT-2 does, else as Qwen does, which splits digits apart. Roles that no file states are those
    of the added special tokens by their spelling (SPELT).

    Raises FusionError for a path that is not there, without a tokenizer, or with one that cannot be loaded.
    """
    try:
        tokenizer = _load(path)
    except FusionError:
        raise
    except Exception as error:
        raise FusionError(f"{path}: its tokenizer cannot be loaded ({error})") from error
    if not tokenizer.is_fast:
        raise FusionError(f"{path}: its tokenizer is a slow one; save it as a fast one (tokenizer.json)")
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for role, names in SPELT.items():
        known = [name for name in names if name in special]
        if known and getattr(tokenizer, f"{role}_token_id") is None:
            setattr(tokenizer, f"{role}_token", known[0])
    return tokenizer


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast, Qwen2TokenizerFast

    if path.is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    there = {file.name for file in path.iterdir()} if path.is_dir() else set()
    pieces = {name for name in there if name.endswith(".model")}
    if pieces and "tokenizer.json" not in there and find_spec("sentencepiece") is None:
        raise FusionError(
            f"{path}: its tokenizer is a sentencepiece model alone ({min(pieces)}); save it as a fast one "
            "(tokenizer.json), or install sentencepiece"
        )
    stated = there & {"tokenizer_config.json", "config.json"}
    if stated and (pieces or there & {"tokenizer.json", "vocab.json"}):
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if "tokenizer.json" in there:
        return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    if {"vocab.json", "merges.txt"} <= there:
        vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
        kind = GPT2TokenizerFast if any(re.search("[0-9]{2}", piece) for piece in vocabulary) else Qwen2TokenizerFast
        return kind(vocab=str(path / "vocab.json"), merges=str(path / "merges.txt"))
    found = "no tokenizer in this folder" if path.is_dir() else "no such file or folder"
    raise FusionError(
        f"{path}: {found}; a tokenizer is a tokenizer.json file, or a folder with a tokenizer.json or with vocab.json "
        "and merges.txt"
    )


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """The tokens of a fast tokenizer as bytes: byte-level BPE, or sentencepiece's spelling with or without bytes.

    Raises FusionError for a tokenizer whose tokens it cannot turn into bytes exactly. WordPiece is one: it drops the
    white space between words, so that no token says how many bytes lie before the next.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    byte_level, has_bytes = _spelling(tokenizer, name)
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    size = max(by_id, default=-1) + 1
    added = tokenizer.added_tokens_decoder
    unknown = _unknown(tokenizer)
    pieces = tuple(by_id.get(i) for i in range(size))
    tokens: list[bytes | None] = []
    fallback = np.zeros(size, bool)
    table = _byte_level()
    for i, spelt in enumerate(pieces):
        if spelt is None or spelt == unknown or (i in added and added[i].special):
            tokens.append(None)
        elif byte_level and i not in added:
            try:
                tokens.append(spelt.translate(table).encode("latin-1"))
            except UnicodeEncodeError as error:
                raise FusionError(
                    f"tokenizer {name}: token {spelt!r} is not spelt in bytes, as byte-level BPE spells"
                ) from error
        elif byte_level:
            tokens.append(spelt.encode())
        elif has_bytes and (byte := BYTE.fullmatch(spelt)):
            tokens.append(bytes.fromhex(byte[1]))
            fallback[i] = True
        else:
            tokens.append(spelt.replace(SPACE, " ").encode())
    roles = {role: i for role in ROLES if (i := getattr(tokenizer, f"{role}_token_id")) is not None}
    lengths = np.asarray([len(token) if token else 0 for token in tokens], np.int64)
    return Vocabulary(name, tuple(tokens), lengths, fallback, roles, pieces)


def _unknown(tokenizer: Any) -> str | None:
    """The token that the model puts for what it cannot spell, special or not: it stands for no bytes."""
    model = tokenizer.backend_tokenizer.model
    if type(model).__name__ != "Unigram":
        return getattr(model, "unk_token", None)
    number: int | None = json.loads(model.__getstate__())["unk_id"]
    return None if number is None else model.id_to_token(number)


def _spelling(tokenizer: Any, name: str) -> tuple[bool, bool]:
    """Whether tokens are spelt byte by byte, and if not, whether `<0x41>` stands for a byte; read off the decoder."""
    if not tokenizer.is_fast:
        raise FusionError(f"tokenizer {name}: is a slow one; save it as a fast one (tokenizer.json)")
    decoder = tokenizer.backend_tokenizer.decoder
    state: Any = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "none"}
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return True, False
    spaces = [step for step in steps if step["type"] == "Metaspace" or _replaces_space(step)]
    if spaces and all(step in spaces or step["type"] in ("ByteFallback", "Fuse", "Strip") for step in steps):
        return False, "ByteFallback" in kinds
    raise FusionError(
        f"tokenizer {name}: its tokens cannot be turned into bytes exactly (decoder {' + '.join(kinds)}); "
        "byte-level BPE and sentencepiece tokenizers can"
    )


def _replaces_space(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and step["pattern"] == {"String": SPACE} and step["content"] == " "


@cache
def _byte_level() -> dict[int, int]:
    """GPT-2's alphabet: a printable Latin-1 byte is its own character, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # No spelling has the others themselves: they become what is no byte.
    return {byte: 0xFFFF for byte in others} | {0x100 + n: byte for n, byte in enumerate(others)}


# ---------------------------------------------------------------------------------------------------------------------
# Maps


@dataclass(frozen=True)
class Map:
    """For each source id a target id (-1: unmapped), and whether it stands for the same bytes or has the same role."""

    ids: Int[np.ndarray, " source"]
    exact: Bool[np.ndarray, " source"]


def vocabulary_map(source: Vocabulary, target: Vocabulary, alignment: Alignments, compat: Compat | None = None) -> Map:
    """The target id for each source id.

    bytes, exact: the one that stands for the same bytes (the lowest id that is no byte fallback, else the lowest), or
    for special tokens has the same role, or where neither has a role the same spelling.

    min_ed: that one where there is one; else the one at the smallest Levenshtein distance, each byte a character, and
    of those the lowest id. Special tokens, byte fallbacks and tokens without bytes are neither given nor taken by
    distance: they are mapped exactly or not at all.

    compat "fusellm-v1" (min_ed or exact) is the rule of FuseLLM's published code, for comparison only: strings are
    compared as they are spelt, save that the source's mark for a space becomes the target's; min_ed takes the nearest
    of all target strings, special tokens and byte fallbacks included, and so sends newlines to spaces and EOS anywhere.

    Raises FusionError for compat with alignment bytes, which the published code does not know.
    """
    if compat is not None:
        return _published_map(source, target, alignment)
    ids = _exact(source, target)
    exact = ids >= 0
    if alignment == "min_ed":
        from_ = np.flatnonzero(~exact & ~source.fallback & (source.lengths > 0))
        to = np.flatnonzero(~target.fallback & (target.lengths > 0))
        if len(to):
            ids[from_] = to[edit.nearest(as_characters(source, from_), as_characters(target, to))]
    return Map(ids, exact)


def as_characters(vocabulary: Vocabulary, ids: Int[np.ndarray, " n"]) -> list[str]:
    """The bytes of tokens as strings of one character a byte, which is what edit distances are taken of."""
    return [(vocabulary.tokens[i] or b"").decode("latin-1") for i in ids.tolist()]


def _exact(source: Vocabulary, target: Vocabulary) -> Int[np.ndarray, " source"]:
    of_bytes: dict[bytes, int] = {}
    for wanted in (False, True):
        for i in np.flatnonzero(target.fallback == wanted).tolist():
            token = target.tokens[i]
            if token:
                of_bytes.setdefault(token, i)
    spelt = {piece: i for i, piece in _special(target)}
    ids = np.full(len(source.tokens), -1, np.int64)
    for i, token in enumerate(source.tokens):
        if token:
            ids[i] = of_bytes.get(token, -1)
    for i, piece in _special(source):
        ids[i] = spelt.get(piece, -1)
    # A token with two roles keeps the first of ROLES: what closes a document is its EOS whatever else it serves as.
    for role in reversed(ROLES):
        if role in source.roles:
            ids[source.roles[role]] = target.roles.get(role, -1)
    return ids


def _special(vocabulary: Vocabulary) -> Iterator[tuple[int, str]]:
    """Special tokens without a role, and their spelling."""
    roles = set(vocabulary.roles.values())
    for i, (token, piece) in enumerate(zip(vocabulary.tokens, vocabulary.pieces, strict=True)):
        if token is None and piece is not None and i not in roles:
            yield i, piece


def _published_map(source: Vocabulary, target: Vocabulary, alignment: Alignments) -> Map:
    if alignment == "bytes":
        raise FusionError("compat fusellm-v1: the published code aligns by min_ed or exact; choose one of them")
    spelt = respelt(source, target)
    by_piece = {piece: i for i, piece in enumerate(target.pieces) if piece is not None}
    ids = np.asarray([-1 if piece is None else by_piece.get(piece, -1) for piece in spelt], np.int64)
    exact = ids >= 0
    rest = [i for i, piece in enumerate(spelt) if piece is not None and ids[i] < 0]
    if alignment == "min_ed" and by_piece:
        to = np.asarray(list(by_piece.values()), np.int64)
        ids[rest] = to[edit.nearest([spelt[i] or "" for i in rest], list(by_piece))]
    return Map(ids, exact)


def space_mark(vocabulary: Vocabulary) -> str:
    """The character that a vocabulary writes for a space ("Ġ" or "▁")."""
    for token, piece in zip(vocabulary.tokens, vocabulary.pieces, strict=True):
        if token and piece and token.startswith(b" ") and not piece.startswith((" ", "<")):
            return piece[0]
    return SPACE


def respelt(source: Vocabulary, target: Vocabulary) -> list[str | None]:
    """The source's spellings with the target's mark for a space, as FuseLLM's published code compares them."""
    theirs, ours = space_mark(source), space_mark(target)
    return [None if piece is None else piece.replace(theirs, ours) for piece in source.pieces]


def shares(mapping: Map, source: Vocabulary, use: Int[np.ndarray, " source"] | None = None) -> dict[str, float]:
    """The shares of the source's tokens mapped exactly, approximately and not at all.

    Each token counts once, or as often as `use` says. Empty where there is nothing to count.
    """
    there = np.asarray([piece is not None for piece in source.pieces], np.int64)
    weight = there if use is None else use
    total = int(weight.sum())
    kinds = {"exact": mapping.exact, "approximate": ~mapping.exact & (mapping.ids >= 0), "unmapped": mapping.ids < 0}
    return {kind: int(weight[which].sum()) / total for kind, which in kinds.items()} if total else {}


# ---------------------------------------------------------------------------------------------------------------------
# Places in a text


def byte_ends(vocabulary: Vocabulary, ids: Int[np.ndarray, " n"], text: str) -> Int[np.ndarray, " n"]:
    """Where each token of a text ends, in bytes of the text.

    A space that sentencepiece puts before the text ends at byte 0. Raises RoundTripError for a text that the tokenizer
    does not give back byte by byte (it drops or normalises characters).
    """
    read = b"".join([vocabulary.tokens[i] or b"" for i in ids.tolist()])
    wanted = text.encode()
    for added in range(2 if read.startswith(b" ") else 1):
        if read[added:] == wanted:
            return np.maximum(np.cumsum(vocabulary.lengths[ids]) - added, 0)
    raise RoundTripError(
        f"tokenizer {vocabulary.name}: does not give back {_difference(wanted, read)}; "
        "it drops or normalises characters. Take such documents out of the corpus"
    )


def _difference(wanted: bytes, read: bytes) -> str:
    if read.startswith(b" ") and not wanted.startswith(b" "):
        read = read[1:]
    at = next((n for n, (a, b) in enumerate(zip(wanted, read, strict=False)) if a != b), min(len(wanted), len(read)))
    show = [ascii(part[max(at - 10, 0) : at + 20].decode(errors="replace")) for part in (wanted, read)]
    return f"the text at byte {at}: {show[0]} became {show[1]}"
