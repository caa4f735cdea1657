"""The leaderboard as terminal text, markdown, CSV and JSON; html.py draws the page."""

import html as escapes
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import html
from harness.board import (
    CAUTION,
    CHOSEN,
    ELSEWHERE,
    ELSEWHERE_ABOUT,
    LEGEND,
    TASK_IDENTITY,
    Board,
    Row,
    bits,
    board,
    clipped,
    columns_of,
    half_width,
    memory,
    number,
    percent,
    plain,
    points,
    seconds,
    times_longer,
    total_seconds,
)
from harness.board_data import csv_text, json_text

__all__ = ["csv_text", "json_text", "markdown", "text", "write"]

NAME_WIDTHS = (40, 28, 22, 18, 14, 10)
TITLE_WIDTH = 6
# Of the names and sources of what is published.
PUBLISHED_WIDTHS = ((40, 44), (28, 32), (22, 24), (18, 16), (14, 10), (10, 6))


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
    lines += _elsewhere(found, width)
    lines += ["", *_wrapped(_notes(found, hidden), width or 120)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def markdown(results: Mapping[str, Any]) -> str:
    """The wide table in GitHub's markdown, with its legend; every name escaped."""
    found = board(results)
    lines = [f"# {_md(found.suite)}", ""]
    if found.rows:
        lines += [*_md_table(_wide(found, _md)), ""]
    lines += [f"- **{_md(row.name)}** has no score: {_md(row.reason)}" for row in found.left_out]
    lines += [f"- `{_md(path)}` is not a number and was left out." for path in found.damaged]
    if found.says:
        lines += ["", _md(found.says)]
    lines += [
        "",
        *_md_elsewhere(found),
        CAUTION,
        "",
        *(f"- **{_md(key)}**: {_md(meaning)}" for key, meaning in LEGEND.items()),
    ]
    return "\n".join(lines) + "\n"


def _md_table(columns: Sequence[_Column]) -> list[str]:
    lines = [
        "| " + " | ".join(column.title for column in columns) + " |",
        "| " + " | ".join(":--" if column.left else "--:" for column in columns) + " |",
    ]
    return lines + ["| " + " | ".join(cells) + " |" for cells in zip(*(c.cells for c in columns), strict=True)]


def _md_elsewhere(found: Board) -> list[str]:
    """What papers report, by group and by task."""
    if not found.published:
        return []
    lines = [f"## {ELSEWHERE}", "", f"{ELSEWHERE_ABOUT} In brackets: our model beside it, as it scored here.", ""]
    lines += [*_md_table(_published_columns(found, _md)), ""]
    if found.published_tasks:
        places = found.published_tasks
        by_task = [_Column("task", [_md(f"{group} / {task}") for group, task in places], left=True)]
        for one in found.published:
            values = [number(one.entry, "scores", group, "tasks", task) for group, task in places]
            by_task.append(_Column(_md(one.name), [percent(value, 2) for value in values]))
        lines += [*_md_table(by_task), ""]
    notes = [f"- **{_md(one.name)}**: {_md(one.note)}" for one in found.published if one.note]
    return [*lines, *notes, *([""] if notes else [])]


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
        _column(found, "clean", lambda row: row.clean),
    ]
    for gain in found.gains:
        title = "vs best parent" if gain == "best" else f"vs {gain}"
        columns.append(_column(found, title, lambda row, g=gain: _gain_full(row, g)))  # type: ignore[misc]
    columns += _bits(found, escape)
    columns += [
        _column(found, f"{escape(found.text_titles[g])} saved over {key}", lambda row, g=g, k=key: _saved(row, g, k))  # type: ignore[misc]
        for g in found.texts
        for key in found.savings
    ]
    columns.append(_column(found, "taught", lambda row: escape(row.taught), left=True))
    for measure in found.measures:
        columns.append(
            _column(found, escape(measure), lambda row, m=measure: _kinship(row, m))  # type: ignore[misc]
        )
    columns.append(_column(found, "build", lambda row: seconds(row.number("cost", "build_s"))))
    columns.append(_column(found, "evaluate", lambda row: seconds(row.number("cost", "evaluate_s"))))
    columns.append(_column(found, "memory", lambda row: memory(_peak(row))))
    return [column for column in columns if any(column.cells)]


def _bits(found: Board, escape: Callable[[object], str]) -> list[_Column]:
    return [
        _column(found, escape(title), lambda row, g=group: bits(row.number("text", g, "value")))  # type: ignore[misc]
        for group, title in found.text_titles.items()
    ]


def _saved(row: Row, group: str, key: str) -> str:
    value, low, high = (row.number("text_gain", group, key, name) for name in ("value", "low", "high"))
    span = "" if low is None or high is None else f" [{bits(low, True)}, {bits(high, True)}]"
    return bits(value, True) + span


def _peak(row: Row) -> float | None:
    return row.number("cost", "peak_vram_mb") or row.number("cost", "peak_rss_mb")


def _kinship(row: Row, measure: str) -> str:
    value = row.number("kinship", measure, "mean")
    return "" if value is None else f"{value:.3g}"


def _fitted(found: Board, width: int) -> tuple[list[_Column], list[str]]:
    """The most that fits: cost goes first, then bits per byte, long titles and names, the gain's interval, groups."""
    for cost, texts, short_gain, titles, name_width in [
        *((True, True, False, 99, name_width) for name_width in NAME_WIDTHS[:3]),
        *((False, True, False, 99, name_width) for name_width in NAME_WIDTHS[:4]),
        *((False, True, False, TITLE_WIDTH, name_width) for name_width in NAME_WIDTHS[1:4]),
        *((False, False, False, TITLE_WIDTH, name_width) for name_width in NAME_WIDTHS[1:4]),
        *((False, False, True, TITLE_WIDTH, name_width) for name_width in NAME_WIDTHS[2:]),
    ]:
        columns = _narrow(found, cost, texts, name_width, short_gain, titles)
        if _total(columns) <= width:
            return columns, [] if texts else list(found.text_titles.values())
    groups = list(found.groups)
    first = len(columns) - len(groups) - (1 if found.gains else 0)
    hidden: list[str] = list(found.text_titles.values())
    while groups and _total(columns) > width:
        hidden.insert(0, groups.pop())
        del columns[first + len(groups)]
    return columns, hidden


def _narrow(found: Board, cost: bool, texts: bool, name_width: int, short_gain: bool, titles: int) -> list[_Column]:
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
    if texts:
        columns += _bits(found, plain)
    if cost:
        columns.append(_column(found, "cost", lambda row: seconds(total_seconds(row))))
    return columns


# -------------------------------------------------------------------------------------------------------- published


def _elsewhere(found: Board, width: int | None) -> list[str]:
    """What papers report, as a table of its own; by group, with what of it fits."""
    groups = list(found.published_groups)
    if not found.published:
        return []
    for name_width, source_width in PUBLISHED_WIDTHS:
        columns = _published_columns(found, plain, name_width, source_width)
        if width is None or _total(columns) <= width:
            break
    hidden: list[str] = []
    while width is not None and groups and _total(columns) > width:
        hidden.insert(0, groups.pop())
        columns.pop()
    lines = ["", f"{ELSEWHERE} (in brackets: our model beside it)", "", *_aligned(columns)]
    notes = [f"Too narrow to show: {', '.join(plain(group) for group in hidden)}."] if hidden else []
    if width is None:
        notes += [f"{plain(one.name)}: {plain(one.note)}" for one in found.published if one.note]
    return lines + _wrapped(notes, width or 120)


def _published_columns(
    found: Board, escape: Callable[[object], str], name_width: int = 999, source_width: int = 999
) -> list[_Column]:
    names = [escape(clipped(plain(one.name), name_width)) for one in found.published]
    sources = [escape(clipped(plain(one.source), source_width)) for one in found.published]
    columns = [_Column("published", names, left=True), _Column("source", sources, left=True)]
    for group in found.published_groups:
        ours = [percent(one.ours(group)) and f" ({percent(one.ours(group))})" for one in found.published]
        room = max(map(len, ours))
        cells = [percent(one.score(group)) + here.ljust(room) for one, here in zip(found.published, ours, strict=True)]
        columns.append(_Column(escape(clipped(plain(group), 16)), cells))
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
        "gain: points over the control, or without one over the best parent; * is p < .05 after Holm."
    ]
    if any(row.label.endswith(CHOSEN) for row in found.rows):
        notes[0] += f" {CHOSEN} is best of its sweep on dev."
    if found.texts:
        notes[0] += " bits/byte: of held-out text, fewer are better; they count for no rank."
    routed = [plain(row.name) for row in found.rows if row.kind == "routed"]
    if routed:
        notes.append(f"{', '.join(routed)} {TASK_IDENTITY}: told which group it answers, so it is not ranked.")
    for row in (row for row in found.rows if row.kind == "ensemble"):
        times = times_longer(row, found.rows)
        longer = f", in {times:.1f} times the time of one" if times is not None else ""
        notes.append(f"{plain(row.name)} runs {row.runs} models for every answer{longer}; so it is not ranked.")
    chatting = [plain(row.name) for row in found.rows if row.entry.get("chat")]
    if 0 < len(chatting) < len(found.rows):
        notes.append(
            f"Asked in their chat templates: {', '.join(chatting)}; the others plainly, so their prompts differ."
        )
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


def _md(value: object) -> str:
    """Text that markdown shows as it is: no HTML, no table cells, no emphasis, no links."""
    return re.sub(r"([\\`*_{}\[\]()#!|~$@])", r"\\\1", escapes.escape(plain(value), quote=False))
