"""The leaderboard as one self-contained page: inline CSS and SVG, a few lines of script to sort, no requests."""

import html as escapes
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.board import (
    CAUTION,
    LEGEND,
    Board,
    Row,
    board,
    clipped,
    half_width,
    memory,
    number,
    percent,
    plain,
    points,
    seconds,
    total_seconds,
)
from harness.page_style import SCRIPT, STYLE

PLOT_WIDTH = 96
PLOT_HEIGHT = 18
LONGEST_NAME = 48
LONGEST_HOW = 72
OVER = {"best": "best parent", "mean": "the parents' mean"}
KINDS = ("source", "trained", "merged", "fused", "routed", "ensemble")


def page(results: Mapping[str, Any]) -> str:
    """A whole HTML document of a results document; every name in it is escaped."""
    found = board(results)
    body = [
        _head(found),
        _table_models(found),
        _table_gains(found),
        _table_tasks(found),
        _kinship(found),
        _not_scored(found),
        _legend(),
        _foot(found),
    ]
    title = f"{_e(found.suite)} · fuse-bench"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _e(value: object) -> str:
    return escapes.escape(plain(value), quote=True)


def _section(title: str, about: str, content: str) -> str:
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
        f'<header>\n<p class="brand">fuse-bench</p>\n<h1>{_e(found.suite)}</h1>\n'
        f'<p class="facts">{" · ".join(fact for fact in facts if fact)}</p>\n{_leader(found)}</header>'
    )


def _count(number_of: int, word: str) -> str:
    return f"{number_of} {word}{'' if number_of == 1 else 's'}"


def _leader(found: Board) -> str:
    """Who leads, in one sentence that does not claim more than the ranks do."""
    first = [row for row in found.rows if row.rank == 1]
    if not first:
        return ""
    names = [f"<b>{_e(clipped(plain(row.name), LONGEST_NAME))}</b>" for row in first]
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
    return f"{count} certainly better than {its} best parent or, where fused, {its} control."


def _table_models(found: Board) -> str:
    if not found.rows:
        return '<p class="lead">No model has a score.</p>'
    scale = _score_scale(found.rows)
    reach = max((_reach([row], [row.headline]) for row in found.rows), default=0.01)
    head = [_th("#", LEGEND["#"]), _th("model", left=True), _th("overall", LEGEND["overall"], left=True)]
    head += [_th(_e(group)) for group in found.groups]
    head += [_th("gain", LEGEND["gain"], left=True)] if found.gains else []
    head += [_th(_e(measure), LEGEND["kinship"]) for measure in found.measures]
    head += [_th("time", LEGEND["time, memory"]), _th("memory", LEGEND["time, memory"])]
    lines = []
    for row in found.rows:
        cells = [_rank(row), _model(row), _overall(row, scale)]
        cells += [_score(row, group) for group in found.groups]
        cells += [_gain(row, row.headline, reach)] if found.gains else []
        cells += [_kinship_cell(row, measure) for measure in found.measures]
        cells += _cost(row)
        lines.append(_tr(row, cells))
    return _section(
        "Ranking",
        "A model's rank is 1 + the number of models that are certainly better by paired tests on the same items. "
        "Whiskers are 95&nbsp;% intervals. A star marks a gain that holds after correction for how many were tried.",
        _table([head], lines),
    )


def _table_gains(found: Board) -> str:
    rows = [row for row in found.rows if any(row.number("gain", gain, "value") is not None for gain in found.gains)]
    if not rows:
        return ""
    reach = _reach(rows, found.gains)
    head = [_th("model", left=True), *(_th(f"over {OVER.get(gain, gain)}", left=True) for gain in found.gains)]
    lines = [_tr(row, [_model(row), *(_gain(row, gain, reach) for gain in found.gains)]) for row in rows]
    return _section(
        "Gains",
        "Paired differences in points, all on one scale, with 95&nbsp;% intervals. Point at one for what it is "
        "against and its p. For fusions, what counts is the gain over the control: the same text without the teachers.",
        _table([head], lines),
    )


def _table_tasks(found: Board) -> str:
    if not found.tasks:
        return ""
    spans = [(group, sum(pair[0] == group for pair in found.tasks)) for group in found.groups]
    top = ["<th></th>", *(f'<th colspan="{span}" class="group">{_e(group)}</th>' for group, span in spans if span)]
    head = [_th("model", left=True)]
    for group, task in found.tasks:
        sizes = [row.number("scores", group, "tasks", task, "n") for row in found.rows]
        chances = [row.number("scores", group, "tasks", task, "chance") for row in found.rows]
        n, chance = next((s for s in sizes if s is not None), None), next((c for c in chances if c is not None), None)
        notes = [f"n {int(n)}" if n is not None else "", f"chance {percent(chance, 0)}" if chance is not None else ""]
        below = f"<small>{'<br>'.join(note for note in notes if note)}</small>"
        head.append(_th(f"{_e(clipped(plain(task), 24))}", title=plain(task), below=below))
    lines = [_tr(row, [_model(row), *(_heat(row, group, task) for group, task in found.tasks)]) for row in found.rows]
    return _section(
        "Tasks",
        "Percent, by task. Shading runs from chance to all right; a hatched cell was not scored. "
        "Point at a cell for its standard error and n.",
        _table([top, head], lines),
    )


def _kinship(found: Board) -> str:
    if not found.says:
        return ""
    relation = found.results.get("kinship_vs_gain") or {}
    leaves = [
        (measure, f"{'size of the gain' if kind == 'absolute' else 'gain'} over {OVER.get(gain, gain)}", leaf)
        for measure, gains in (relation.get("measures") or {}).items()
        for gain, kinds in gains.items()
        for kind, leaf in kinds.items()
    ]
    table = ""
    if leaves:
        head = [_th("kinship", left=True), _th("against", left=True), _th("Pearson"), _th("Spearman")]
        lines = [_leaf(measure, label, leaf) for measure, label, leaf in leaves]
        reasons = dict.fromkeys(str(leaf["reason"]) for _, _, leaf in leaves if leaf.get("reason"))
        table = _table([[*head, _th("candidates"), _th("models")]], lines)
        table += "".join(f'<p class="about">{_e(reason)}.</p>' for reason in reasons)
        table = f"<details><summary>Every measure</summary>{table}</details>"
    return f'<section>\n<h2>Kinship and gain</h2>\n<p class="lead">{_e(found.says)}</p>\n{table}\n</section>'


def _leaf(measure: str, label: str, leaf: Mapping[str, Any]) -> str:
    cells = [_td(_e(measure), left=True), _td(_e(label), left=True)]
    cells += [_td(_coefficient(leaf, name), number(leaf, name, "value")) for name in ("pearson", "spearman")]
    return f"<tr>{''.join(cells)}{_td(_e(leaf.get('n', '')))}{_td(_e(leaf.get('models', '')))}</tr>"


def _coefficient(leaf: Mapping[str, Any], name: str) -> str:
    value, low, high, p = (number(leaf, name, key) for key in ("value", "low", "high", "p"))
    if value is None:
        return "–"
    span = "" if low is None or high is None else f", {low:+.2f} to {high:+.2f}"
    return f"{value:+.2f}<small>{span}{'' if p is None else f', p = {p:.2g}'}</small>".replace("-", "−")


def _not_scored(found: Board) -> str:
    items = [
        f'<li><b>{_e(clipped(plain(row.name), LONGEST_NAME))}</b> <span class="note">{_e(row.reason)}</span></li>'
        for row in found.left_out
    ]
    items += [f"<li><b>{_e(path)}</b> is not a number and was left out</li>" for path in found.damaged]
    return f'<section class="failed">\n<h2>Not scored</h2>\n<ul>{"".join(items)}</ul>\n</section>' if items else ""


def _legend() -> str:
    terms = "".join(f"<dt>{_e(key)}</dt><dd>{_e(meaning)}</dd>" for key, meaning in LEGEND.items())
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
    return f"<footer>{' · '.join(f'{_e(key)} {_e(clipped(plain(value), 80))}' for key, value in pairs)}</footer>"


# ------------------------------------------------------------------------------------------------------------ cells


def _table(heads: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    top = "".join(f"<tr>{''.join(head)}</tr>" for head in heads)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead>{top}</thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody>\n</table></div>"
    )


def _th(text: str, title: str = "", left: bool = False, below: str = "") -> str:
    about = f' title="{_e(title)}"' if title else ""
    side = ' class="left"' if left else ""
    return f'<th{side}{about} aria-sort="none"><button type="button">{text}</button>{below}</th>'


def _tr(row: Row, cells: Iterable[str]) -> str:
    kind = row.kind if row.kind in KINDS else "other"
    return f'<tr class="{kind}{" control" if row.control else ""}">{"".join(cells)}</tr>'


def _td(content: str, value: float | str | None = None, left: bool = False, extra: str = "") -> str:
    sort = "" if value is None else f' data-v="{_e(value)}"'
    side = ' class="left"' if left else ""
    return f"<td{side}{sort}{extra}>{content}</td>"


def _rank(row: Row) -> str:
    if row.rank is None:
        return _td("–")
    return _td(f'{row.rank}<span class="tie">{"=" if row.tied else ""}</span>', row.rank, extra=' class="rank"')


def _model(row: Row) -> str:
    method = row.entry.get("method")
    parents = [plain(parent) for parent in row.entry.get("parents") or []]
    how = " ".join(
        part for part in (plain(method) if method else "", f"of {', '.join(parents)}" if parents else "") if part
    )
    name = plain(row.name)
    return (
        f'<td class="model" data-v="{_e(name)}"><span class="name" title="{_e(name)}">'
        f'{_e(clipped(name, LONGEST_NAME))}</span><span class="how" title="{_e(how)}">'
        f'<span class="kind">{_e(row.stamped)}</span> {_e(clipped(how, LONGEST_HOW))}</span></td>'
    )


def _overall(row: Row, scale: tuple[float, float]) -> str:
    value, low, high = row.number("score", "value"), row.number("interval", "low"), row.number("interval", "high")
    text = f'<b>{percent(value)}</b><small class="half">{half_width(row.entry, "interval")}</small>'
    return _td(f'<span class="with">{text}</span>{_whisker(value, low, high, scale)}', value, extra=' class="plot"')


def _score(row: Row, group: str) -> str:
    value, stderr, n = (row.number("scores", group, key) for key in ("value", "stderr", "n"))
    if value is None:
        return '<td class="absent" title="not scored"></td>'
    return _td(percent(value), value, extra=f' title="{_about(stderr, n)}"')


def _about(stderr: float | None, n: float | None) -> str:
    parts = [
        f"standard error {percent(stderr)}" if stderr is not None else "",
        f"n = {int(n)}" if n is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _gain(row: Row, gain: str, reach: float) -> str:
    value, low, high, p = (row.number("gain", gain, key) for key in ("value", "low", "high", "p"))
    if value is None:
        return '<td class="none plot">–</td>'
    against = plain(((row.entry.get("gain") or {}).get(gain) or {}).get("against") or gain)
    about = f"against {against}" + (f", p = {p:.2g}" if p is not None else "")
    if gain == row.headline and row.p_holm is not None:
        about += f", after Holm {row.p_holm:.2g}"
    star = '<span class="star">*</span>' if gain == row.headline and row.certain else '<span class="star"></span>'
    if low is not None and high is not None:
        about += f", 95 % interval {points(low)} to {points(high)}"
    text = f'<span class="with">{_signed(value)}{star}</span>'
    plot = _whisker(value, low, high, (-reach, reach), zero=True)
    return _td(text + plot, value, extra=f' class="plot" title="{_e(about)}"')


def _signed(value: float) -> str:
    return points(value).replace("-", "−")


def _cost(row: Row) -> list[str]:
    build, evaluate = row.number("cost", "build_s"), row.number("cost", "evaluate_s")
    peak = row.number("cost", "peak_vram_mb") or row.number("cost", "peak_rss_mb")
    about = ", ".join(f"{what} {seconds(spent)}" for what, spent in (("build", build), ("evaluate", evaluate)) if spent)
    total = total_seconds(row)
    return [_td(seconds(total), total, extra=f' title="{about}"'), _td(memory(peak), peak)]


def _kinship_cell(row: Row, measure: str) -> str:
    value, low, high = (row.number("kinship", measure, key) for key in ("mean", "min", "max"))
    if value is None:
        return '<td class="none">–</td>'
    spread = "" if low is None or high is None else f' title="{low:.3g} to {high:.3g} over pairs of parents"'
    return _td(f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}", value, extra=spread)


def _heat(row: Row, group: str, task: str) -> str:
    value, stderr, n, chance = (
        row.number("scores", group, "tasks", task, key) for key in ("value", "stderr", "n", "chance")
    )
    if value is None:
        return '<td class="absent" title="not scored"></td>'
    start = chance or 0.0
    share = min(1.0, max(0.0, (value - start) / (1 - start))) if start < 1 else 0.0
    return _td(percent(value), value, extra=f' class="heat" style="--h:{share:.2f}" title="{_about(stderr, n)}"')


# ---------------------------------------------------------------------------------------------------------- whiskers


def _score_scale(rows: Sequence[Row]) -> tuple[float, float]:
    ends = [
        row.number(*path) for row in rows for path in (("interval", "low"), ("interval", "high"), ("score", "value"))
    ]
    known = [end for end in ends if end is not None]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _reach(rows: Sequence[Row], gains: Sequence[str]) -> float:
    """The largest distance from zero of any gain or its interval's ends; the axis is symmetric."""
    ends = [row.number("gain", gain, key) for row in rows for gain in gains for key in ("value", "low", "high")]
    return max([abs(end) for end in ends if end is not None], default=0.0) or 0.01


def _whisker(
    value: float | None, low: float | None, high: float | None, scale: tuple[float, float], zero: bool = False
) -> str:
    """A dot with its interval on an axis; decoration for the number beside it, so hidden from screen readers."""
    if value is None:
        return ""

    def at(point: float) -> str:
        return f"{6 + (PLOT_WIDTH - 12) * (point - scale[0]) / (scale[1] - scale[0]):.1f}"

    middle = PLOT_HEIGHT / 2
    parts = [f'<line class="axis" x1="0" x2="{PLOT_WIDTH}" y1="{middle}" y2="{middle}"/>']
    if zero:
        parts.append(f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="{PLOT_HEIGHT}"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="span" x1="{at(low)}" x2="{at(high)}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<circle cx="{at(value)}" cy="{middle}" r="3.4"/>')
    size = f'width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}"'
    return f'<svg {size} aria-hidden="true">{"".join(parts)}</svg>'
