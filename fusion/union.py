"""The union of several tokenizers: one model's own, with what the others have besides.

Special and added tokens of the others stay what they are, flags included. Tokens of their vocabularies are put into the
first one's vocabulary, spelt as it spells, and its merges are followed by those of the others that make them: a text is
cut as the first model cuts it, and then joined into the new tokens. Without a merge a new token can be decoded but is
never made of a text; they are counted.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion.checkpoint import VOCABULARY_FILES, tokenizer_files
from fusion.errors import CheckpointError
from fusion.tokens import ADDED, BYTE_LEVEL, NORMAL, SENTENCEPIECE, SPECIAL, Tokens, load_tokenizer, match
from fusion.vocabulary import ROLES, SPACE


@dataclass(frozen=True)
class Union:
    """tokens: all of them, the first model's under their own ids. state: their tokenizer.json.

    added: how many tokens are new. unreachable: of those, how many no text is cut into. unspellable: how many tokens
    of the others the first one's alphabet cannot write (parts of characters), which are left out.
    """

    tokens: Tokens
    state: Mapping[str, Any]
    added: int
    unreachable: int
    unspellable: int


def unite(first: Tokens, others: Sequence[Tokens]) -> Union:
    """Add to the first tokens those of the others that it lacks, model by model, in the order of their ids.

    Raises CheckpointError for a tokenizer whose vocabulary cannot be added to.
    """
    union, unspellable = first, 0
    flags: list[dict[str, Any]] = []
    scores: dict[str, float] = {}
    merges: list[list[str]] = []
    for other in others:
        state = _state(other)
        united, left_out = _extended(union, other)
        new = {token for token in united.spelt[len(union.spelt) :] if token is not None}
        places = {token: i for i, token in enumerate(united.spelt) if i >= len(union.spelt)}
        given = {token["content"]: token for token in state.get("added_tokens", [])}
        flags += [{**given[token], "id": i} for token, i in places.items() if token in given]
        scores |= {token: score for token, score in _scores(state).items() if token in new}
        merges += _merges(state, other, new, united)
        union, unspellable = united, unspellable + left_out
    new_normal = [union.spelt[i] for i in range(len(first.spelt), len(union.spelt)) if union.kinds[i] == NORMAL]
    # A single character needs no merge.
    made = {"".join(pair) for pair in merges} | {token for token in new_normal if token is not None and len(token) == 1}
    first_state = _state(first)
    bpe = first_state["model"]["type"] == "BPE"
    state = _written(first_state, union, flags, scores, merges if bpe else [])
    reachable = made if bpe else set(new_normal)
    unreachable = sum(token not in reachable for token in new_normal)
    return Union(union, state, len(union.spelt) - len(first.spelt), unreachable, unspellable)


def _extended(union: Tokens, other: Tokens) -> tuple[Tokens, int]:
    """The union with the tokens of another model that it lacks, and how many of those it cannot spell."""
    alphabet = _alphabet(union)
    lacking = np.flatnonzero((match(other, union) < 0) & (other.kinds >= 0)).tolist()
    taken = {token for token in union.spelt if token is not None}
    spelt: list[str | None] = []
    content: list[bytes | None] = []
    kinds: list[int] = []
    left_out = 0
    for i in lacking:
        kind, token = int(other.kinds[i]), other.spelt[i]
        if kind not in (ADDED, SPECIAL) and other.family != union.family:
            token, kind = _respelt(other.content[i] or b"", union.family, alphabet), NORMAL
        if not token or token in taken:
            left_out += 1
            continue
        taken.add(token)
        spelt.append(token)
        content.append(other.content[i])
        kinds.append(kind)
    tokens = Tokens(
        (*union.spelt, *spelt),
        (*union.content, *content),
        np.concatenate([union.kinds, np.asarray(kinds, np.int64)]),
        union.roles,
        union.family,
        union.tokenizer,
    )
    return tokens, left_out


def _alphabet(tokens: Tokens) -> dict[int, str]:
    """How a byte-level vocabulary writes each byte, read off its own tokens."""
    pairs = zip(tokens.content, tokens.spelt, tokens.kinds.tolist(), strict=True)
    return {
        content[0]: token
        for content, token, kind in pairs
        if content is not None and token is not None and len(content) == 1 and kind == NORMAL
    }


def _respelt(content: bytes, family: str, alphabet: Mapping[int, str]) -> str | None:
    if family == BYTE_LEVEL:
        return "".join(alphabet[byte] for byte in content) if all(byte in alphabet for byte in content) else None
    try:
        return content.decode().replace(" ", SPACE) if family == SENTENCEPIECE else None
    except UnicodeDecodeError:
        return None


def _state(tokens: Tokens) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokens.tokenizer.backend_tokenizer.to_str())
    return state


def _scores(state: Mapping[str, Any]) -> dict[str, float]:
    """The log-probabilities of a unigram vocabulary."""
    return dict(state["model"]["vocab"]) if isinstance(state["model"]["vocab"], list) else {}


def _merges(state: Mapping[str, Any], other: Tokens, new: set[str], union: Tokens) -> list[list[str]]:
    """Another model's merges that make a new token out of two that the union has, in the union's spelling."""
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in state["model"].get("merges") or []]
    places = match(other, union).tolist()
    spelling = {token: union.spelt[at] for token, at in zip(other.spelt, places, strict=True) if at >= 0}
    known = [[a, b] for first, second in pairs if (a := spelling.get(first)) and (b := spelling.get(second))]
    return [[a, b] for a, b in known if a + b in new]


def _written(
    state: dict[str, Any],
    union: Tokens,
    flags: Sequence[Mapping[str, Any]],
    scores: Mapping[str, float],
    merges: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """The first model's tokenizer.json with the union's tokens."""
    model = state["model"]
    if isinstance(model["vocab"], dict):
        # Added tokens too: the library numbers what only `added_tokens` names by the size of the vocabulary.
        model["vocab"] = {token: i for i, token in enumerate(union.spelt) if token is not None}
    else:
        known = len(model["vocab"])
        lowest = min(score for _, score in model["vocab"])
        if None in union.spelt:
            raise CheckpointError("a unigram tokenizer with ids that no token has cannot be added to")
        model["vocab"] += [[token, scores.get(str(token), lowest)] for token in union.spelt[known:]]
    if merges:
        together = [[*pair] if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
        model["merges"] = [*together, *([*pair] for pair in merges)]
    state["added_tokens"] = [*(state.get("added_tokens") or []), *flags]
    return state


def write_union(union: Union, folder: Path, out: Path) -> None:
    """Write the union's tokenizer beside the first model's other tokenizer files, which lie in `folder`.

    Raises CheckpointError when transformers does not read back every token under its own id.
    """
    replaced = (*VOCABULARY_FILES, "merges.txt", "added_tokens.json", "tokenizer_config.json")
    for file in tokenizer_files(folder):
        if file.name not in replaced:
            target = out / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(union.state, ensure_ascii=False), encoding="utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(_config(union.tokens, folder), indent=2), encoding="utf-8")
    check_written(union.tokens, out)


def _config(tokens: Tokens, folder: Path) -> dict[str, Any]:
    """The first model's tokenizer_config.json; tokenizer.json now says which tokens are added, and how."""
    given = folder / "tokenizer_config.json"
    if given.is_file():
        config = json.loads(given.read_text(encoding="utf-8"))
        return {key: value for key, value in config.items() if key != "added_tokens_decoder"}
    special = {f"{role}_token": tokens.spelt[tokens.roles[role]] for role in ROLES if role in tokens.roles}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **special}


def check_written(tokens: Tokens, folder: Path) -> None:
    """Raises CheckpointError when a written tokenizer does not give every token its id."""
    wanted = {token: i for i, token in enumerate(tokens.spelt) if token is not None}
    found = load_tokenizer(folder).get_vocab()
    wrong = [token for token in {**wanted, **found} if wanted.get(token) != found.get(token)]
    if wrong:
        token = wrong[0]
        raise CheckpointError(
            f"{folder}: transformers does not read the union of the tokenizers back as it was written: {len(wrong)} "
            f"tokens differ, as {token!r}, which has id {found.get(token)} instead of {wanted.get(token)}; use one "
            "model's tokenizer (tokenizer: {source: base})"
        )
