"""A tokenizer as the bytes that its tokens stand for, and the exact map between two.

Strings of a vocabulary are the tokenizer's private spelling ("Ġthe", "▁the"); bytes are what two tokenizers share.
Compared by bytes, newlines, accents and quotes meet that compared by strings do not. Special tokens stand for no bytes;
they meet by role (EOS with EOS).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from fusion.errors import FusionError

ROLES = ("eos", "bos", "pad", "unk")
SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """What each token id stands for.

    tokens[i]: its bytes; None for a special token or an id that no token has. lengths [v]: their number, 0 for None.
    fallback [v]: spelt as a single byte (`<0x41>`) because no better token was there. roles: special ids by role.
    """

    name: str
    tokens: tuple[bytes | None, ...]
    lengths: Int[np.ndarray, " v"]
    fallback: Bool[np.ndarray, " v"]
    roles: Mapping[str, int]


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """The tokens of a fast tokenizer as bytes: byte-level BPE, or sentencepiece's spelling with or without bytes.

    Raises FusionError for a tokenizer whose tokens it cannot turn into bytes exactly.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    byte_level, has_bytes = _spelling(tokenizer, name)
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens: list[bytes | None] = []
    fallback = np.zeros(max(by_id) + 1, bool)
    for i in range(max(by_id) + 1):
        spelt = by_id.get(i)
        if spelt is None or (i in added and added[i].special):
            tokens.append(None)
        elif i in added:
            tokens.append(spelt.encode())
        elif byte_level:
            tokens.append(_from_byte_level(spelt, name))
        elif has_bytes and (byte := BYTE.fullmatch(spelt)):
            tokens.append(bytes.fromhex(byte[1]))
            fallback[i] = True
        else:
            tokens.append(spelt.replace(SPACE, " ").encode())
    roles = {role: i for role in ROLES if (i := getattr(tokenizer, f"{role}_token_id")) is not None}
    lengths = np.asarray([len(token) if token else 0 for token in tokens], np.int64)
    return Vocabulary(name, tuple(tokens), lengths, fallback, roles)


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
def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: a printable Latin-1 byte is its own character, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def _from_byte_level(spelt: str, name: str) -> bytes:
    table = _byte_of()
    try:
        return bytes(table[character] for character in spelt)
    except KeyError as error:
        raise FusionError(
            f"tokenizer {name}: token {spelt!r} is not spelt in bytes, as byte-level BPE spells"
        ) from error


def exact_map(source: Vocabulary, target: Vocabulary) -> Int[np.ndarray, " source"]:
    """For each source id the target id that stands for the same bytes, or has the same role; -1 where there is none.

    Where several target ids stand for the same bytes it is the lowest one that is no byte fallback.
    """
    of_bytes: dict[bytes, int] = {}
    for wanted in (False, True):
        for i in np.flatnonzero(target.fallback == wanted).tolist():
            token = target.tokens[i]
            if token:
                of_bytes.setdefault(token, i)
    mapping = np.full(len(source.tokens), -1, np.int64)
    for i, token in enumerate(source.tokens):
        if token:
            mapping[i] = of_bytes.get(token, -1)
    # A token with two roles keeps the first of ROLES: what closes a document is its EOS whatever else it serves as.
    for role in reversed(ROLES):
        if role in source.roles:
            mapping[source.roles[role]] = target.roles.get(role, -1)
    return mapping


def shares(mapping: Int[np.ndarray, " source"], source: Vocabulary) -> dict[str, float]:
    """The shares of the source's tokens that the map sends to the same bytes or role, and nowhere."""
    special = list(source.roles.values())
    there = np.asarray([token is not None for token in source.tokens])
    there[special] = True
    exact = int((mapping[there] >= 0).sum())
    return {"exact": exact / int(there.sum()), "unmapped": 1 - exact / int(there.sum())}


def byte_ends(vocabulary: Vocabulary, ids: Int[np.ndarray, " n"], text: str) -> Int[np.ndarray, " n"]:
    """Where each token of a text ends, in bytes of the text.

    A space that sentencepiece puts before the text ends at byte 0. Raises FusionError for a text that the tokenizer
    does not give back byte by byte (it drops or normalises characters).
    """
    read = b"".join([vocabulary.tokens[i] or b"" for i in ids.tolist()])
    wanted = text.encode()
    added = len(read) - len(wanted)
    if read != b" " * added + wanted or added > 1:
        raise FusionError(
            f"tokenizer {vocabulary.name}: does not give back {_difference(wanted, read)}; "
            "it drops or normalises characters. Take such documents out of the corpus"
        )
    return np.maximum(np.cumsum(vocabulary.lengths[ids]) - added, 0)


def _difference(wanted: bytes, read: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(wanted, read, strict=False)) if a != b), min(len(wanted), len(read)))
    show = [part[max(at - 10, 0) : at + 20].decode(errors="replace") for part in (wanted, read)]
    return f"the text at byte {at}: {show[0]!r} became {show[1]!r}"
