"""`fuse-bench align`: how well two tokenizers meet, in their vocabularies and on a text."""

import json
import os
import re
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fusion import corpus, jsonl
from fusion.align import Alignment, Cut, aligner
from fusion.errors import RoundTripError
from fusion.vocabulary import (
    Alignments,
    Compat,
    Map,
    Vocabulary,
    byte_ends,
    read_tokenizer,
    read_vocabulary,
    shares,
    vocabulary_map,
)
from harness.errors import UsageError

# Characters of a stretch of plain text, some 2,000 tokens.
LONGEST = 8000
# Tokens named of each kind.
NAMED = 10
# More of the text than this unmapped, or less of it than this aligned, is worth a warning.
MUCH_UNMAPPED = 0.5
LITTLE_ALIGNED = 0.1
# A space at which no line is broken.
UNBROKEN = "\u00a0"
DEFECT = (
    "compat fusellm-v1 reproduces the published code with a known defect, for comparison only: where nothing is "
    "aligned it trains the target to repeat its current token instead of predicting the next one"
)

Side = Literal["source", "target"]


@dataclass(frozen=True)
class Reader:
    """A tokenizer and its tokens; use: how often each was met so far."""

    tokenizer: Any
    vocabulary: Vocabulary
    use: Counter[int] = field(default_factory=Counter)

    def cut(self, text: str) -> tuple[Cut, str | None]:
        """A text, closed by EOS where there is one, and why the tokenizer does not give it back if it does not."""
        ids = self.tokenizer(text, verbose=False).input_ids
        eos = self.tokenizer.eos_token_id
        if eos is not None and ids[-1:] != [eos]:
            ids = [*ids, eos]
        self.use.update(ids)
        tokens = np.asarray(ids, np.int64)
        try:
            return Cut(tokens, byte_ends(self.vocabulary, tokens, text)), None
        except RoundTripError as error:
            return Cut(tokens, None), str(error)


def align_report(
    source: Path, target: Path, text: Path | None, alignment: str, compat: str | None, map_file: Path | None
) -> dict[str, Any]:
    """The shares of the source's vocabulary that the map sends exactly, approximately and nowhere, and what of a text
    is aligned.

    text: a .jsonl corpus, one document a line; any other file is plain text, taken in stretches of some 2,000 tokens
    that end at blank lines where they can. A position is a token of the target but a document's first, and counts as
    fallback where it is not aligned; in a document that a tokenizer does not give back, `bytes` aligns none. Seconds
    are CPU time; per 1,000 tokens of the target, of the alignment alone. map_file receives {source id: target id or
    null} as JSON, whole or not at all. Keys about the text are there only with a text.
    """
    if map_file is not None and (map_file.is_dir() or not map_file.absolute().parent.is_dir()):
        raise UsageError(f"--map {map_file}: not a file in a folder that is there")
    how, rule = cast(Alignments, alignment), cast("Compat | None", compat)
    readers: dict[Side, Reader] = {"source": _reader(source), "target": _reader(target)}
    theirs, ours = readers["source"].vocabulary, readers["target"].vocabulary
    start = time.process_time()
    mapping = vocabulary_map(theirs, ours, how, rule)
    seconds = time.process_time() - start
    report: dict[str, Any] = {
        "source": str(source),
        "target": str(target),
        "alignment": alignment,
        "compat": compat,
        "vocabulary": shares(mapping, theirs),
        "tokens": {side: sum(piece is not None for piece in r.vocabulary.pieces) for side, r in readers.items()},
        "map_seconds": seconds,
    }
    if text is not None:
        report |= _on_text(text, readers, mapping, aligner(how, theirs, ours, mapping, rule))
    if map_file is not None:
        _write_map(map_file, theirs, mapping)
    return {**report, "warnings": _warnings(report)}


def _reader(path: Path) -> Reader:
    tokenizer = read_tokenizer(path)
    return Reader(tokenizer, read_vocabulary(tokenizer))


# ---------------------------------------------------------------------------------------------------------------------
# On a text


def _on_text(
    path: Path, readers: Mapping[Side, Reader], mapping: Map, align: Callable[[Cut, Cut], Alignment]
) -> dict[str, Any]:
    count: Counter[str] = Counter()
    unreadable: dict[str, Any] = {"source": 0, "target": 0}
    seconds = 0.0
    for document in _documents(path):
        cuts: dict[Side, Cut] = {}
        for side, reader in readers.items():
            cuts[side], reason = reader.cut(document)
            if reason is not None:
                unreadable[side] += 1
                unreadable.setdefault("reason", reason)
        start = time.process_time()
        found = align(cuts["target"], cuts["source"])
        seconds += time.process_time() - start
        count["documents"] += 1
        count["tokens"] += len(found.source)
        count["positions"] += max(len(found.source) - 1, 0)
        count["aligned"] += int((found.source >= 0).sum())
        count["boundary"] += int(found.boundary.sum())
    if not count["positions"]:
        raise UsageError(f"--text {path}: holds no text of more than one token")
    use = readers["source"].use
    counts = np.asarray([use[i] for i in range(len(mapping.ids))], np.int64)
    report: dict[str, Any] = {
        "used": shares(mapping, readers["source"].vocabulary, counts),
        "documents": count["documents"],
        "positions": count["positions"],
        "aligned": count["aligned"] / count["positions"],
        "boundary": count["boundary"] / count["positions"],
        "fallback": 1 - count["aligned"] / count["positions"],
        "unreadable": unreadable,
        "seconds_per_1k_tokens": 1000 * seconds / count["tokens"],
    }
    return {**report, "most_used": _most_used(counts, mapping, readers)}


def _documents(path: Path) -> Iterable[str]:
    if path.suffix == ".jsonl":
        return (corpus.text_of(document) for document in jsonl.read_jsonl(path))
    try:
        return _stretches(path.read_bytes().decode())
    except OSError as error:
        raise UsageError(f"--text {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {path}: is not UTF-8 (byte {error.start})") from error


def _stretches(text: str) -> Iterator[str]:
    """Pieces of at most LONGEST characters, cut before blank lines; a longer paragraph is cut where it must."""
    held = ""
    for part in re.split(r"(?<=\n)(?=[ \t]*\r?\n)", text):
        if held.strip() and len(held) + len(part) > LONGEST:
            yield held.rstrip()
            held = ""
        held = held + part if held else re.sub(r"\A([ \t]*\r?\n)+", "", part)
        while len(held) > LONGEST:
            yield held[:LONGEST]
            held = held[LONGEST:]
    if held.strip():
        yield held.rstrip()


def _most_used(counts: np.ndarray, mapping: Map, readers: Mapping[Side, Reader]) -> dict[str, list[dict[str, Any]]]:
    """The tokens of the text that the map sends elsewhere than to their equal, the most frequent first."""
    theirs, ours = readers["source"].vocabulary, readers["target"].vocabulary
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    approximate = order[~mapping.exact[order] & (mapping.ids[order] >= 0)][:NAMED].tolist()
    unmapped = order[mapping.ids[order] < 0][:NAMED].tolist()
    return {
        "approximate": [
            {"token": _readable(theirs, i), "image": _readable(ours, int(mapping.ids[i])), "count": int(counts[i])}
            for i in approximate
        ],
        "unmapped": [{"token": _readable(theirs, i), "count": int(counts[i])} for i in unmapped],
    }


def _readable(vocabulary: Vocabulary, i: int) -> str:
    token = vocabulary.tokens[i]
    return str(vocabulary.pieces[i]) if token is None else token.decode(errors="backslashreplace")


# ---------------------------------------------------------------------------------------------------------------------
# What comes of it


def _write_map(path: Path, source: Vocabulary, mapping: Map) -> None:
    content = {
        str(i): image if image >= 0 else None
        for i, image in enumerate(mapping.ids.tolist())
        if source.pieces[i] is not None
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"--map {path}: cannot be written ({error.strerror})") from error


def _warnings(report: Mapping[str, Any]) -> list[str]:
    found = [DEFECT] if report["compat"] is not None else []
    unmapped = report.get("used", report["vocabulary"]).get("unmapped", 0.0)
    if unmapped > MUCH_UNMAPPED:
        where = " in the text" if "used" in report else ""
        found.append(f"{unmapped:.0%} of the source's tokens{where} have none of the target's: little can be taught")
    if "aligned" in report and report["aligned"] < LITTLE_ALIGNED:
        found.append(f"only {report['aligned']:.1%} of the positions are aligned: little can be taught")
    return found


def align_words(report: Mapping[str, Any]) -> str:
    """The report in lines of at most 80 columns."""
    how = report["alignment"] + (f" (compat {report['compat']})" if report["compat"] else "")
    rows = [
        ("source", f"{report['source']}, {report['tokens']['source']:,} tokens"),
        ("target", f"{report['target']}, {report['tokens']['target']:,} tokens"),
        ("alignment", how),
        ("vocabulary", f"{_kinds(report['vocabulary'])} (map in {report['map_seconds']:.1f} CPU-s)"),
    ]
    if "used" in report:
        rows += [
            ("used", f"{_kinds(report['used'])} of the source's tokens in the text"),
            ("positions", f"{report['positions']:,} in {report['documents']:,} documents: {_positions(report)}"),
            ("speed", f"{1000 * report['seconds_per_1k_tokens']:.3g} CPU-ms per 1,000 tokens"),
        ]
        bad = report["unreadable"]
        if "reason" in bad:
            rows.append(("unreadable", f"{bad['source']:,} documents by the source, {bad['target']:,} by the target, "
                         f"the first: {bad['reason']}"))  # fmt: skip
        rows += [
            (kind, ", ".join(_named(entry) for entry in entries))
            for kind, entries in report["most_used"].items()
            if entries
        ]
    rows += [("warning", warning) for warning in report["warnings"]]
    lines = [
        textwrap.wrap(f"{name:<12}{words}", 80, subsequent_indent=" " * 12, break_on_hyphens=False)
        for name, words in rows
    ]
    return "\n".join(line for wrapped in lines for line in wrapped).replace(UNBROKEN, " ")


def _kinds(of: Mapping[str, float]) -> str:
    return ", ".join(f"{share:.1%} {kind}" for kind, share in of.items())


def _positions(report: Mapping[str, Any]) -> str:
    shared = "share a boundary" if report["alignment"] == "bytes" else "lie beside one token"
    return (
        f"{report['aligned']:.1%} aligned, {report['boundary']:.1%} {shared}, "
        f"{report['fallback']:.1%} left to the fallback"
    )


def _named(entry: Mapping[str, Any]) -> str:
    to = f" to {entry['image']!r}" if "image" in entry else ""
    return f"{entry['token']!r}{to} ({entry['count']:,})".replace(" ", UNBROKEN)
