"""The leaderboard as one self-contained page: inline CSS and SVG, a few lines of script to sort, no requests."""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.board import (
    CAUTION,
    ELSEWHERE,
    ELSEWHERE_ABOUT,
    LEGEND,
    Board,
    board,
    clipped,
    number,
    percent,
    plain,
)
from harness.html_cells import (
    LONGEST_NAME,
    bits_cell,
    cost_cells,
    escape,
    gain_cell,
    kinship_cell,
    model_cell,
    overall_cell,
    published_cell,
    rank_cell,
    reach_of,
    saved_cell,
    score_cell,
    score_scale,
    table,
    task_cell,
    td,
    th,
    tr,
)
from harness.html_scatter import STYLE as SCATTER_STYLE
from harness.html_scatter import kinship_section
from harness.page_style import SCRIPT, STYLE

# Of many measures of kinship the ranking shows the first; all have a plot, and are in the other formats.
MEASURES = 3
OVER = {"best": "best parent", "mean": "the parents' mean"}


def page(results: Mapping[str, Any]) -> str:
    """A whole HTML document of a results document; every name in it is escaped."""
    found = board(results)
    body = [
        _head(found),
        _table_models(found),
        _table_gains(found),
        _table_tasks(found),
        kinship_section(found),
        _published(found),
        _not_scored(found),
        _legend(),
        _foot(found),
    ]
    return document(f"{found.suite} · fuse-bench", body, SCATTER_STYLE)


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """A page that asks for nothing, of parts that are HTML; `style` is added to the leaderboard's."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, about: str, content: str) -> str:
    """A part of a page; all three are HTML."""
    return f'<section>\n<h2>{title}</h2>\n<p class="about">{about}</p>\n{content}\n</section>'


# ------------------------------------------------------------------------------------------------------------ parts


def _head(found: Board) -> str:
    items = found.rows[0].number("score", "n") if found.rows else None
    facts = [
        _count(len(found.rows), "model"),
        _count(len(found.groups), "group"),
        _count(len(found.tasks), "task"),
        "" if items is None else f"{int(items):,} items each",
    ]
    return (
        f'<header>\n<p class="brand">fuse-bench</p>\n<h1>{escape(found.suite)}</h1>\n'
        f'<p class="facts">{" · ".join(fact for fact in facts if fact)}</p>\n{_leader(found)}</header>'
    )


def _count(number_of: int, word: str) -> str:
    return f"{number_of} {word}{'' if number_of == 1 else 's'}"


def _leader(found: Board) -> str:
    """Who leads, in one sentence that does not claim more than the ranks do."""
    first = [row for row in found.rows if row.rank == 1]
    if not first:
        return ""
    names = [f"<b>{escape(clipped(plain(row.name), LONGEST_NAME))}</b>" for row in first]
    if len(names) == 1:
        lead = f"{names[0]} is certainly better than every other model."
    else:
        shown = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) <= 4 else f"{names[0]} scores highest, but it"
        rest = f"and {len(names) - 1} others " if len(names) > 4 else ""
        lead = f"{shown} {rest}share the first rank: these items do not tell them apart."
    return f'<p class="lead">{lead} {_gained(found)}</p>\n'


def _gained(found: Board) -> str:
    """How many candidates certainly beat what they were made of; controls do not count as candidates here."""
    rows = [row for row in found.rows if not row.control and row.kind != "routed"]
    tried = [row for row in rows if row.number("gain", row.headline, "value") is not None]
    ahead = sum(row.certain and (row.number("gain", row.headline, "value") or 0) > 0 for row in tried)
    if not tried:
        return ""
    are, its = ("is", "its") if ahead < 2 else ("are", "their")
    count = f"{ahead} of {_count(len(tried), 'candidate')} {are}" if ahead else "No candidate is"
    return f"{count} certainly better than {its} control or, without one, {its} best parent."


def _table_models(found: Board) -> str:
    if not found.rows:
        return '<p class="lead">No model has a score.</p>'
    scale, measures = score_scale(found.rows), _measures(found)
    hidden = len(found.measures) > len(measures)
    reach = max((reach_of([row], [row.headline]) for row in found.rows), default=0.01)
    head = [th("#", LEGEND["#"]), th("model", left=True), th("overall", LEGEND["overall"], left=True)]
    head += [th(escape(group)) for group in found.groups]
    head += [th("gain", LEGEND["gain"], left=True)] if found.gains else []
    head += [th(escape(title), LEGEND["bits/byte"]) for title in found.text_titles.values()]
    head += [th(escape(measure), LEGEND["kinship"]) for measure in measures]
    head += [th("time", LEGEND["time, memory"]), th("memory", LEGEND["time, memory"])]
    lines = []
    for row in found.rows:
        cells = [rank_cell(row), model_cell(row, made=True), overall_cell(row, scale)]
        cells += [score_cell(row, group) for group in found.groups]
        cells += [gain_cell(row, row.headline, reach)] if found.gains else []
        cells += [bits_cell(row, group) for group in found.texts]
        cells += [kinship_cell(row, measure) for measure in measures]
        cells += cost_cells(row)
        lines.append(tr(row, cells))
    return section(
        "Ranking",
        "A model's rank is 1 + the number of models that are certainly better by paired tests on the same items. "
        "Whiskers are 95&nbsp;% intervals. A star marks a gain that holds after correction for how many were tried."
        + (f" Of {len(found.measures)} measures of kinship {MEASURES} are here." if hidden else ""),
        table([head], lines),
    )


def _measures(found: Board) -> list[str]:
    """The measures of kinship that fit beside scores: the first, the last of them one that the most models have."""
    known = {m: sum(row.number("kinship", m, "mean") is not None for row in found.rows) for m in found.measures}
    first = list(found.measures[:MEASURES])
    widest = max(known, key=lambda measure: known[measure], default="")
    if first and known[widest] > max(known[measure] for measure in first):
        first[-1] = widest
    return first


def _table_gains(found: Board) -> str:
    saved = [(group, key) for group in found.texts for key in found.savings]
    rows = [
        row
        for row in found.rows
        if any(row.number("gain", gain, "value") is not None for gain in found.gains)
        or any(row.number("text_gain", group, key, "value") is not None for group, key in saved)
    ]
    if not rows:
        return ""
    reach = reach_of(rows, found.gains)
    head = [th("model", left=True), *(th(f"over {OVER.get(gain, gain)}", left=True) for gain in found.gains)]
    head += [
        th(f"saved over {key}", LEGEND["bits/byte"], below=f"<small>{escape(found.text_titles[group])}</small>")
        for group, key in saved
    ]
    lines = []
    for row in rows:
        cells = [model_cell(row), *(gain_cell(row, gain, reach) for gain in found.gains)]
        lines.append(tr(row, cells + [saved_cell(row, group, key) for group, key in saved]))
    return section(
        "Gains",
        "Paired differences in points, all on one scale, with 95&nbsp;% intervals. Point at one for what it is "
        "against and its p. For fusions, what counts is the gain over the control: the same text without the teachers."
        + (" What is saved is in bits per byte: above zero, fewer are needed." if saved else ""),
        table([head], lines),
    )


def _table_tasks(found: Board) -> str:
    if not found.tasks:
        return ""
    spans = [(group, sum(pair[0] == group for pair in found.tasks)) for group in found.groups]
    top = ["<th></th>", *(f'<th colspan="{span}" class="group">{escape(group)}</th>' for group, span in spans if span)]
    head = [th("model", left=True)]
    for group, task in found.tasks:
        sizes = [row.number("scores", group, "tasks", task, "n") for row in found.rows]
        chances = [row.number("scores", group, "tasks", task, "chance") for row in found.rows]
        n, chance = next((s for s in sizes if s is not None), None), next((c for c in chances if c is not None), None)
        notes = [f"n {int(n)}" if n is not None else "", f"chance {percent(chance, 0)}" if chance is not None else ""]
        below = f"<small>{'<br>'.join(note for note in notes if note)}</small>"
        head.append(th(f"{escape(clipped(plain(task), 24))}", title=plain(task), below=below))
    lines = [
        tr(row, [model_cell(row), *(task_cell(row, group, task) for group, task in found.tasks)]) for row in found.rows
    ]
    return section(
        "Tasks",
        "Percent, by task. Shading runs from chance to all right; a hatched cell was not scored. "
        "Point at a cell for its standard error and n.",
        table([top, head], lines),
    )


def _published(found: Board) -> str:
    """What papers report, by group, and by task in a fold."""
    if not found.published:
        return ""
    groups = found.published_groups
    head = [th("published", left=True), th("source", left=True), *(th(escape(group)) for group in groups)]
    lines = []
    for one in found.published:
        note = f'<span class="how">{escape(one.note)}</span>' if one.note else ""
        name = f'<td class="model" data-v="{escape(one.name)}"><span class="name">{escape(one.name)}</span>{note}</td>'
        source = f'<td class="left note">{escape(one.source)}</td>'
        lines.append(tr(None, [name, source, *(published_cell(one, group) for group in groups)]))
    return section(
        ELSEWHERE,
        f"{ELSEWHERE_ABOUT} In brackets: our model beside it, as it scored here.",
        table([head], lines) + _published_tasks(found),
    )


def _published_tasks(found: Board) -> str:
    if not found.published_tasks:
        return ""
    head = [th("task", left=True), *(th(escape(clipped(plain(one.name), LONGEST_NAME))) for one in found.published)]
    lines = []
    for group, task in found.published_tasks:
        values = [number(one.entry, "scores", group, "tasks", task) for one in found.published]
        cells = [td(percent(value, 2), value) for value in values]
        lines.append(tr(None, [td(f"{escape(group)} / {escape(task)}", left=True), *cells]))
    return f"<details><summary>By task</summary>{table([head], lines)}</details>"


def _not_scored(found: Board) -> str:
    names = [escape(clipped(plain(row.name), LONGEST_NAME)) for row in found.left_out]
    items = [
        f'<li><b>{name}</b> <span class="note">{escape(row.reason)}</span></li>'
        for name, row in zip(names, found.left_out, strict=True)
    ]
    items += [f"<li><b>{escape(path)}</b> is not a number and was left out</li>" for path in found.damaged]
    return f'<section class="failed">\n<h2>Not scored</h2>\n<ul>{"".join(items)}</ul>\n</section>' if items else ""


def _legend() -> str:
    terms = "".join(f"<dt>{escape(key)}</dt><dd>{escape(meaning)}</dd>" for key, meaning in LEGEND.items())
    return f'<section>\n<h2>How to read this</h2>\n<p class="about">{CAUTION}</p>\n<dl>{terms}</dl>\n</section>'


def _foot(found: Board) -> str:
    environment = found.results.get("environment")
    suite = found.results.get("suite")
    pairs = [
        (key, value)
        for source in (suite, environment)
        if isinstance(source, Mapping)
        for key, value in source.items()
        if isinstance(value, str | int | float)
    ]
    return (
        f"<footer>{' · '.join(f'{escape(key)} {escape(clipped(plain(value), 80))}' for key, value in pairs)}</footer>"
    )
