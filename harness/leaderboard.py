"""The leaderboard as terminal text, markdown, CSV and JSON; html.py draws the page."""

import csv
import html as escapes
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import html
from harness.board import (
    CAUTION,
    CHOSEN,
    COSTS,
    LEGEND,
    TASK_IDENTITY,
    Board,
    Row,
    board,
    clipped,
    columns_of,
    half_width,
    memory,
    percent,
    plain,
    points,
    seconds,
    total_seconds,
)

SCHEMA = 1
NAME_WIDTHS = (40, 28, 22, 18, 14, 10)
TITLE_WIDTH = 6


class _Column(NamedTuple):
    title: str
    cells: list[str]
    left: bool = False

    def width(self) -> int:
        return max(columns_of(text) for text in (self.title, *self.cells))


def text(results: Mapping[str, Any], width: int | None = 80) -> str:
    """The table for a terminal of `width` columns; None: the wide variant, with all there is to show of a model."""
    found = board(results)
    columns, hidden = (_wide(found, plain), []) if width is None else _fitted(found, width)
    lines = [f"{plain(found.suite)}: {len(found.rows)} models ranked", ""]
    if found.rows:
        lines += _aligned(columns)
    lines += ["", *_wrapped(_notes(found, hidden), width or 120)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def markdown(results: Mapping[str, Any]) -> str:
    """The wide table in GitHub's markdown, with its legend; every name escaped."""
    found = board(results)
    lines = [f"# {_md(found.suite)}", ""]
    if found.rows:
        columns = _wide(found, _md)
        lines.append("| " + " | ".join(column.title for column in columns) + " |")
        lines.append("| " + " | ".join(":--" if column.left else "--:" for column in columns) + " |")
        lines += ["| " + " | ".join(cells) + " |" for cells in zip(*(c.cells for c in columns), strict=True)]
        lines.append("")
    lines += [f"- **{_md(row.name)}** has no score: {_md(row.reason)}" for row in found.left_out]
    lines += [f"- `{_md(path)}` is not a number and was left out." for path in found.damaged]
    if found.says:
        lines += ["", _md(found.says)]
    lines += ["", CAUTION, "", *(f"- **{_md(key)}**: {_md(meaning)}" for key, meaning in LEGEND.items())]
    return "\n".join(lines) + "\n"


def csv_text(results: Mapping[str, Any]) -> str:
    """Everything as numbers, one line a model, the unscored ones too; an absent value is an empty cell."""
    found = board(results)
    records = [_record(found, row) for row in (*found.rows, *found.left_out)]
    header = list(dict.fromkeys(key for record in records for key in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def json_text(results: Mapping[str, Any]) -> str:
    """{"schema", "suite", "models": [ranked], "not_scored": [...], "kinship_vs_gain", "legend"}; absent is absent."""
    found = board(results)
    document = {
        "schema": SCHEMA,
        "suite": found.suite,
        "models": [_entry(row) for row in found.rows],
        "not_scored": [{"name": row.name, "kind": row.kind, "reason": row.reason} for row in found.left_out],
        "not_numbers": list(found.damaged),
        "kinship_vs_gain": results.get("kinship_vs_gain"),
        "legend": LEGEND,
    }
    return json.dumps(_clean(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(results: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write leaderboard.md, .csv, .json and .html into a folder; returns their paths by format."""
    texts = {"md": markdown(results), "csv": csv_text(results), "json": json_text(results), "html": html.page(results)}
    paths = {}
    for suffix, content in texts.items():
        paths[suffix] = folder / f"leaderboard.{suffix}"
        paths[suffix].write_text(content, encoding="utf-8", newline="\n")
    return paths


# ---------------------------------------------------------------------------------------------------------- columns


def _rank(row: Row) -> str:
    return "–" if row.rank is None else f"{row.rank}{'=' if row.tied else ' '}"


def _overall(row: Row) -> str:
    return f"{percent(row.number('score', 'value'))} {half_width(row.entry, 'interval')}".rstrip()


def _gain_short(row: Row) -> str:
    value = row.number("gain", row.headline, "value")
    if value is None:
        return ""
    return f"{points(value)} {half_width(row.entry, 'gain', row.headline)}".rstrip() + ("*" if row.certain else " ")


def _gain_full(row: Row, gain: str) -> str:
    value, low, high = (row.number("gain", gain, key) for key in ("value", "low", "high"))
    if value is None:
        return ""
    span = "" if low is None or high is None else f" [{points(low)}, {points(high)}]"
    return points(value) + span + (("*" if row.certain else " ") if gain == row.headline else "")


def _column(found: Board, title: str, cell: Callable[[Row], str], left: bool = False) -> _Column:
    return _Column(title, [cell(row) for row in found.rows], left)


def _groups(found: Board, escape: Callable[[object], str]) -> list[_Column]:
    return [
        _column(found, escape(group), lambda row, g=group: percent(row.number("scores", g, "value")))  # type: ignore[misc]
        for group in found.groups
    ]


def _wide(found: Board, escape: Callable[[object], str]) -> list[_Column]:
    columns = [
        _column(found, "#", _rank),
        _column(found, "model", lambda row: escape(row.name), left=True),
        _column(found, "kind", lambda row: escape(row.stamped), left=True),
        _column(found, "overall", _overall),
        *_groups(found, escape),
    ]
    for gain in found.gains:
        title = "vs best parent" if gain == "best" else f"vs {gain}"
        columns.append(_column(found, title, lambda row, g=gain: _gain_full(row, g)))  # type: ignore[misc]
    for measure in found.measures:
        columns.append(
            _column(found, escape(measure), lambda row, m=measure: _kinship(row, m))  # type: ignore[misc]
        )
    columns.append(_column(found, "build", lambda row: seconds(row.number("cost", "build_s"))))
    columns.append(_column(found, "evaluate", lambda row: seconds(row.number("cost", "evaluate_s"))))
    columns.append(_column(found, "memory", lambda row: memory(_peak(row))))
    return [column for column in columns if any(column.cells)]


def _peak(row: Row) -> float | None:
    return row.number("cost", "peak_vram_mb") or row.number("cost", "peak_rss_mb")


def _kinship(row: Row, measure: str) -> str:
    value = row.number("kinship", measure, "mean")
    return "" if value is None else f"{value:.3g}"


def _fitted(found: Board, width: int) -> tuple[list[_Column], list[str]]:
    """The most that fits: cost goes first, then long titles and names, then the gain's interval, then groups."""
    for cost, short_gain, titles, name_width in [
        *((True, False, 99, name_width) for name_width in NAME_WIDTHS[:3]),
        *((False, False, 99, name_width) for name_width in NAME_WIDTHS[:4]),
        *((False, False, TITLE_WIDTH, name_width) for name_width in NAME_WIDTHS[1:4]),
        *((False, True, TITLE_WIDTH, name_width) for name_width in NAME_WIDTHS[2:]),
    ]:
        columns = _narrow(found, cost, name_width, short_gain, titles)
        if _total(columns) <= width:
            return columns, []
    groups = list(found.groups)
    first = len(columns) - len(groups) - (1 if found.gains else 0)
    hidden: list[str] = []
    while groups and _total(columns) > width:
        hidden.insert(0, groups.pop())
        del columns[first + len(groups)]
    return columns, hidden


def _narrow(found: Board, cost: bool, name_width: int, short_gain: bool, titles: int) -> list[_Column]:
    gain = (lambda row: points(row.number("gain", row.headline, "value"))) if short_gain else _gain_short
    columns = [
        _column(found, "#", _rank),
        _column(found, "model", lambda row: clipped(plain(row.name), name_width), left=True),
        _column(found, "kind", lambda row: plain(row.label), left=True),
        _column(found, "overall", _overall),
        *(column._replace(title=clipped(column.title, titles, end=99)) for column in _groups(found, plain)),
    ]
    if found.gains:
        columns.append(_column(found, "gain", gain))
    if cost:
        columns.append(_column(found, "cost", lambda row: seconds(total_seconds(row))))
    return columns


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width() for column in columns) + 2 * (len(columns) - 1)


def _aligned(columns: Sequence[_Column]) -> list[str]:
    widths = [column.width() for column in columns]
    lines = []
    for cells in [
        [c.title for c in columns],
        ["─" * w for w in widths],
        *zip(*(c.cells for c in columns), strict=True),
    ]:
        padded = []
        for column, cell, wide in zip(columns, cells, widths, strict=True):
            space = " " * (wide - columns_of(cell))
            padded.append(cell + space if column.left else space + cell)
        lines.append("  ".join(padded))
    return lines


def _notes(found: Board, hidden: Sequence[str]) -> list[str]:
    notes = [
        "# counts the models that are certainly better (paired tests, Holm); = is a tie. ± is half the 95 % interval. "
        "gain: points over the best parent, of a fusion over its control; * is p < .05 after Holm."
    ]
    if any(row.label.endswith(CHOSEN) for row in found.rows):
        notes[0] += f" {CHOSEN} is best of its sweep on dev."
    routed = [plain(row.name) for row in found.rows if row.kind == "routed"]
    if routed:
        notes.append(f"{', '.join(routed)} {TASK_IDENTITY}: told which group it answers, so it is not ranked.")
    if hidden:
        notes.append(f"Too narrow to show: {', '.join(plain(group) for group in hidden)}.")
    notes += [f"No score: {plain(row.name)} ({plain(str(row.reason).splitlines()[0])})" for row in found.left_out]
    notes += [f"Not a number, left out: {plain(path)}" for path in found.damaged]
    return [*notes, plain(found.says)] if found.says else notes


def _wrapped(notes: Sequence[str], width: int) -> list[str]:
    lines = []
    for note in notes:
        line = ""
        for word in note.split(" "):
            if line and columns_of(line) + 1 + columns_of(word) > width:
                lines.append(line)
                line = " "
            line = f"{line} {word}" if line else word
        lines.append(line)
    return lines


# ---------------------------------------------------------------------------------------------------------- records


def _record(found: Board, row: Row) -> dict[str, Any]:
    entry = row.entry
    record: dict[str, Any] = {
        "rank": row.rank,
        "model": row.name,
        "kind": row.kind,
        "control": "yes" if row.control else "",
        "status": entry.get("status"),
        "reason": row.reason,
        "method": entry.get("method"),
        "params": json.dumps(entry["params"], sort_keys=True) if entry.get("params") else None,
        "parents": " ".join(map(str, entry.get("parents") or [])) or None,
        "base": entry.get("base"),
        "digest": entry.get("digest"),
    }
    record |= {f"overall.{key}": row.number("score", key) for key in ("value", "stderr", "n")}
    record |= {f"overall.{key}": row.number("interval", key) for key in ("low", "high")}
    for group in found.groups:
        record |= {f"{group}.{key}": row.number("scores", group, key) for key in ("value", "stderr", "n")}
    for group, task in found.tasks:
        path = ("scores", group, "tasks", task)
        record |= {f"{group}/{task}.{key}": row.number(*path, key) for key in ("value", "stderr", "n", "chance")}
    for gain in found.gains:
        record |= {f"gain.{gain}.{key}": row.number("gain", gain, key) for key in ("value", "low", "high", "p")}
        record[f"gain.{gain}.against"] = ((entry.get("gain") or {}).get(gain) or {}).get("against")
    record["gain.best.p_holm"] = row.p_holm
    for measure in found.measures:
        record |= {f"kinship.{measure}.{key}": row.number("kinship", measure, key) for key in ("mean", "min", "max")}
    record |= {f"cost.{key}": row.number("cost", key) for key in COSTS}
    return {key: _whole(value) for key, value in record.items()}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 2 else value


def _entry(row: Row) -> dict[str, Any]:
    """A row for JSON: the model's entry and what the board made of it."""
    gain = {key: dict(value) for key, value in (row.entry.get("gain") or {}).items()}
    if row.p_holm is not None:
        gain[row.headline]["p_holm"] = row.p_holm
    place = {"rank": row.rank, "tied": row.tied, "name": row.name, "kind": row.kind, "is_control": row.control}
    rest = {key: value for key, value in row.entry.items() if key not in (*place, "gain")}
    return {**place, **rest, "gain": gain}


def _clean(value: Any) -> Any:
    """Without None and without numbers that are not finite: absent is absent."""
    if isinstance(value, Mapping):
        return {str(key): _clean(inner) for key, inner in value.items() if not _absent(inner)}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value if not _absent(inner)]
    return value


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value - value != 0)


def _md(value: object) -> str:
    """Text that markdown shows as it is: no HTML, no table cells, no emphasis, no links."""
    return re.sub(r"([\\`*_{}\[\]()#!|~$@])", r"\\\1", escapes.escape(plain(value), quote=False))
