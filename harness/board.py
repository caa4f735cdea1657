"""A results document as ranked rows, with what every format needs to know of them; no format is drawn here.

Absent stays None, and so does a number that is not finite: it is named in `Board.damaged`, never shown as a score.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.stats import ALPHA, holm

GAINS = ("best", "mean", "base", "control", "target")
COSTS = ("build_s", "evaluate_s", "peak_rss_mb", "peak_vram_mb")

LEGEND = {
    "#": "rank: 1 + the models that are certainly better (paired tests over all pairs, Holm-corrected, alpha .05); "
    "= marks a shared rank",
    "kind": "source and trained models are what candidates are made of; merged, fused and ensemble are candidates; "
    "a control is a candidate that exists to be beaten; † is the point of a sweep that is best on dev items",
    "routed": "uses task identity: it is told which group it answers, and answers each with weights of its own; so it "
    "has no rank among models that answer all alike",
    "ensemble": "runs several models for every answer and combines what they say, so it costs as many times as much; a "
    "class of its own, without a rank among single models",
    "overall": "mean over groups of the mean over tasks, in percent, with its 95 % interval "
    "(for reading: ranks and gains are decided by paired differences)",
    "gain": "score minus that of the parent that is best on dev items (without a dev split: of every parent), in "
    "points, paired on test items; where there is a control, over that, and of a control, over the model it continues; "
    "* : p < .05 after Holm over all candidates",
    "mean, base, control, target": "gains over the parents' mean, the base, the control trained alike, and the model "
    "that was fused into",
    "bits/byte": "bits that a byte of held-out text takes: total bits over total bytes, fewer are better; no part of "
    "the overall score, the ranks or the gains. saved: how many fewer than its control or target a model takes, "
    "paired on documents, which the intervals resample",
    "taught": "of a fusion: the share of the text's tokens that a source taught, and the weight that each source had",
    "clean": "the overall score without the items that stand in a text that the model was made with, and how many "
    "those are; empty where there are none",
    "kinship": "how related a candidate's parents are, mean over pairs, by each measure",
    "time, memory": "to build and to evaluate; the peak, of the accelerator where one was used",
    "chance": "what guessing scores; n: how many items",
}
CHOSEN = "†"
TASK_IDENTITY = "uses task identity"
ELSEWHERE = "Published elsewhere, not measured here"
ELSEWHERE_ABOUT = (
    "What papers report, in percent, with their models, settings and items: for orientation only. It is not ranked and "
    "no difference from it is tested."
)
CAUTION = "The best of many candidates looks better than it is: its score was picked for being high."


@dataclass(frozen=True)
class Row:
    """One model. `rank` and `tied` are for scored ones; `reason` says why one has no place in the table."""

    name: str
    kind: str
    control: bool
    rank: int | None
    tied: bool
    p_holm: float | None
    reason: str | None
    entry: Mapping[str, Any]

    def number(self, *path: str) -> float | None:
        """The finite number at a path of the model's entry, such as ("score", "value")."""
        return number(self.entry, *path)

    @property
    def headline(self) -> str:
        """The gain that answers whether it was worth building."""
        return headline(self.entry)

    @property
    def certain(self) -> bool:
        """Whether its headline gain, or loss, holds after Holm."""
        return self.p_holm is not None and self.p_holm < ALPHA

    @property
    def label(self) -> str:
        """The kind, with a mark on the point of a sweep that dev items chose."""
        chosen = (self.entry.get("sweep") or {}).get("chosen") is True
        return ("control" if self.control else self.kind) + (CHOSEN if chosen else "")

    @property
    def taught(self) -> str:
        """Of a fusion, how much of its text a source taught, and the weight of each."""
        aligned = self.number("fusion", "aligned")
        if aligned is None:
            return ""
        sources = (self.entry["fusion"].get("sources") or {}).items()
        shares = [(plain(name), number(source, "weight_of_positions")) for name, source in sources]
        by = ", ".join(f"{name} {percent(share, 0)} %" for name, share in shares if share is not None)
        return f"{percent(aligned, 0)} % taught" + (f"; weight: {by}" if by else "")

    @property
    def overlapping(self) -> tuple[int, int]:
        """The test items that stand in a text that the model was made with, and all that were looked for there."""
        tasks = (self.entry.get("overlap") or {}).values()
        return sum(one["overlapping"] for one in tasks), sum(one["items"] for one in tasks)

    @property
    def clean(self) -> str:
        """The overall score without the items that stand in the model's texts; empty where none do."""
        found, items = self.overlapping
        return f"{percent(self.number('clean_score', 'value')) or '–'} ({found} of {items} out)" if found else ""

    @property
    def runs(self) -> int:
        """How many models are run for every answer."""
        return len(self.entry.get("parents") or ()) if self.kind == "ensemble" else 1

    @property
    def stamped(self) -> str:
        """The label, with what sets a model apart from those it stands beside."""
        if self.kind == "ensemble":
            return f"{self.label} (runs {self.runs} models)"
        return f"{self.label} ({TASK_IDENTITY})" if self.kind == "routed" else self.label


@dataclass(frozen=True)
class Published:
    """What a paper reports of a model; `here` is the row of ours that it stands beside, where that has a score."""

    name: str
    source: str
    note: str | None
    entry: Mapping[str, Any]
    here: Row | None

    def score(self, group: str) -> float | None:
        """A group's value as it is published."""
        return number(self.entry, "scores", group, "value")

    def ours(self, group: str) -> float | None:
        """The same group's value of the model that it stands beside."""
        return None if self.here is None else self.here.number("scores", group, "value")


@dataclass(frozen=True)
class Board:
    """Scored rows best first, the others with their reasons, and the columns that some row has.

    `texts` are the groups measured in bits per byte, `savings` the models ("control", "target") they are compared with.
    """

    suite: str
    rows: tuple[Row, ...]
    left_out: tuple[Row, ...]
    groups: tuple[str, ...]
    tasks: tuple[tuple[str, str], ...]
    gains: tuple[str, ...]
    texts: tuple[str, ...]
    savings: tuple[str, ...]
    measures: tuple[str, ...]
    says: str | None
    damaged: tuple[str, ...]
    published: tuple[Published, ...]
    results: Mapping[str, Any]

    @property
    def text_titles(self) -> dict[str, str]:
        """What the column of each text is called: by its group only where there are several."""
        return {group: "bits/byte" if len(self.texts) == 1 else f"{group} bits/byte" for group in self.texts}

    @property
    def published_groups(self) -> tuple[str, ...]:
        """The groups of which a value is published, ours first."""
        named = _seen(list(one.entry.get("scores") or {}) for one in self.published)
        mine = [group for group in self.groups if group in named]
        return tuple(g for g in _seen([mine, named]) if any(one.score(g) is not None for one in self.published))

    @property
    def published_tasks(self) -> tuple[tuple[str, str], ...]:
        """(group, task) of which a value is published."""
        scores = [(group, s) for one in self.published for group, s in (one.entry.get("scores") or {}).items()]
        return tuple(dict.fromkeys((group, task) for group, score in scores for task in score.get("tasks") or {}))


def board(results: Mapping[str, Any]) -> Board:
    """Rank what has a score and collect the rest. Reads contract 4's keys and models' rank, interval and score."""
    models: Mapping[str, Mapping[str, Any]] = results.get("models") or {}
    corrected = _holm_over_candidates(models)
    controls = {entry.get("control") for entry in models.values() if isinstance(entry.get("control"), str)}
    ranks = [entry.get("rank") for entry in models.values() if _why_left_out(entry) is None]
    rows = [
        Row(
            name=name,
            kind=str(entry.get("kind") or "model"),
            control=name in controls or entry.get("control") is True,
            rank=entry.get("rank") if _why_left_out(entry) is None else None,
            tied=ranks.count(entry.get("rank")) > 1,
            p_holm=corrected.get(name),
            reason=_why_left_out(entry),
            entry=entry,
        )
        for name, entry in models.items()
    ]
    scored = sorted((row for row in rows if row.reason is None), key=_order)
    return Board(
        suite=_title(results.get("suite") or {}),
        rows=tuple(scored),
        left_out=tuple(row for row in rows if row.reason is not None),
        groups=_seen(list(row.entry.get("scores") or {}) for row in scored),
        tasks=_tasks(scored),
        gains=tuple(gain for gain in GAINS if any(row.number("gain", gain, "value") is not None for row in scored)),
        texts=_seen(list(row.entry.get("text") or {}) for row in scored),
        savings=_seen(
            [key for saved in (row.entry.get("text_gain") or {}).values() for key in saved] for row in scored
        ),
        measures=_seen(list(row.entry.get("kinship") or {}) for row in scored),
        says=(results.get("kinship_vs_gain") or {}).get("says"),
        damaged=tuple(found for name, entry in models.items() for found in _not_finite(entry, name)),
        published=tuple(_published(name, entry, scored) for name, entry in (results.get("published") or {}).items()),
        results=results,
    )


def _title(suite: Any) -> str:
    if not isinstance(suite, Mapping):
        return str(suite)
    name = str(suite.get("suite") or suite.get("name") or "suite")
    return f"{name} (a rehearsal with tiny random models: its numbers say nothing)" if suite.get("smoke") else name


def _published(name: str, entry: Mapping[str, Any], rows: Sequence[Row]) -> Published:
    """What is published, beside the model of that name, or the point of the swept row that dev items chose."""
    beside = entry.get("beside")
    here = next((row for row in rows if row.name == beside), None)
    for row in rows:
        sweep = row.entry.get("sweep") or {}
        if here is None and sweep.get("chosen") is True and sweep.get("row") == beside:
            here = row
    return Published(name, str(entry.get("source") or ""), entry.get("note"), entry, here)


def headline(entry: Mapping[str, Any]) -> str:
    """Which gain counts: over the best parent; of a fusion, over its control; of a control, over what it continues."""
    gain = entry.get("gain") or {}
    if entry.get("control") is True and "target" in gain:
        return "target"
    return "control" if "control" in gain else "best"


def number(entry: Any, *path: str) -> float | None:
    """The finite number at a path of nested mappings, or None."""
    for key in path:
        if not isinstance(entry, Mapping) or key not in entry:
            return None
        entry = entry[key]
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry):
        return None
    return float(entry)


def _holm_over_candidates(models: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    gains = {name: number(entry, "gain", headline(entry), "p") for name, entry in models.items()}
    found = [(name, p) for name, p in gains.items() if p is not None]
    return dict(zip([name for name, _ in found], holm([p for _, p in found]), strict=True))


def _why_left_out(entry: Mapping[str, Any]) -> str | None:
    status = str(entry.get("status") or "ok")
    error = entry.get("error")
    if status in ("failed", "skipped"):
        return f"{status}: {error}" if error else status
    if number(entry, "score", "value") is None:
        return str(error or entry.get("note") or f"{status}: it has no overall score")
    return None


def _order(row: Row) -> tuple[float, float, str]:
    rank = math.inf if row.rank is None else row.rank
    return rank, -(row.number("score", "value") or 0.0), row.name


def _seen(lists: Any) -> tuple[str, ...]:
    """Every name once, in order of first appearance."""
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _tasks(rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    pairs = [
        (group, task)
        for row in rows
        for group, found in (row.entry.get("scores") or {}).items()
        for task in found.get("tasks") or {}
    ]
    groups = list(dict.fromkeys(group for group, _ in pairs))
    return tuple(sorted(dict.fromkeys(pairs), key=lambda pair: groups.index(pair[0])))


def _not_finite(value: Any, path: str) -> list[str]:
    if isinstance(value, Mapping):
        return [found for key, inner in value.items() for found in _not_finite(inner, f"{path}.{key}")]
    return [path] if isinstance(value, float) and not math.isfinite(value) else []


# --------------------------------------------------------------------------------------------------- words, numbers


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent, such as 62.1; empty when absent."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A signed difference of shares in points, such as +2.1."""
    return "" if value is None else f"{100 * value + 0.0:+.1f}"


def bits(value: float | None, sign: bool = False) -> str:
    """Bits per byte, or with `sign` a difference of them; empty when absent."""
    return "" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def half_width(entry: Any, *path: str) -> str:
    """±2.4 from the low and high at a path; empty when there is no interval."""
    low, high = number(entry, *path, "low"), number(entry, *path, "high")
    return "" if low is None or high is None else f"±{50 * (high - low):.1f}"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 99.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5940 else f"{value / 3600:.1f} h"


def memory(megabytes: float | None) -> str:
    if megabytes is None:
        return ""
    return f"{megabytes:.0f} MB" if megabytes < 999.5 else f"{megabytes / 1024:.1f} GB"


def times_longer(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as long as one of its members, on average, an ensemble's evaluation took; None where unknown."""
    parents = row.entry.get("parents") or ()
    found = [one.number("cost", "evaluate_s") for one in rows if one.name in parents]
    known = [value for value in found if value]
    mine = row.number("cost", "evaluate_s")
    return mine * len(known) / sum(known) if mine is not None and known and len(known) == len(parents) else None


def total_seconds(row: Row) -> float | None:
    found = [row.number("cost", key) for key in ("build_s", "evaluate_s")]
    known = [value for value in found if value is not None]
    return sum(known) if known else None


def plain(text: object) -> str:
    """One printable line: control characters, line breaks and direction overrides as escapes."""
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def columns_of(text: str) -> int:
    """How many terminal columns a text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def clipped(text: str, width: int, end: int = 3) -> str:
    """The text in at most `width` columns; what is cut leaves an ellipsis and 1 / `end` of the width behind it."""
    if columns_of(text) <= width:
        return text
    keep = max(1, width - 1)
    head, tail = text[: keep - keep // end], text[len(text) - keep // end :]
    while columns_of(head) + columns_of(tail) > keep and head:
        head = head[:-1]
    return f"{head}…{tail}"
