"""The cells of the leaderboard page: each a piece of HTML whose text is escaped, with whiskers as inline SVG."""

import html as escapes
from collections.abc import Iterable, Sequence

from harness.board import (
    Published,
    Row,
    bits,
    clipped,
    half_width,
    memory,
    percent,
    plain,
    points,
    seconds,
    total_seconds,
)

PLOT_WIDTH = 96
PLOT_HEIGHT = 18
LONGEST_NAME = 48
LONGEST_HOW = 72
KINDS = ("source", "trained", "merged", "fused", "routed", "ensemble")


def escape(value: object) -> str:
    """Text as HTML shows it, on one line."""
    return escapes.escape(plain(value), quote=True)


def table(heads: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """A table in a box that scrolls; `heads` are its header rows, `lines` its rows as HTML."""
    top = "".join(f"<tr>{''.join(head)}</tr>" for head in heads)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead>{top}</thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody>\n</table></div>"
    )


def th(text: str, title: str = "", left: bool = False, below: str = "") -> str:
    """A column's head, by which the table is sorted."""
    about = f' title="{escape(title)}"' if title else ""
    side = ' class="left"' if left else ""
    return f'<th{side}{about} aria-sort="none"><button type="button">{text}</button>{below}</th>'


def tr(row: Row | None, cells: Iterable[str]) -> str:
    """A row, of a model in the colour of its kind."""
    if row is None:
        return f"<tr>{''.join(cells)}</tr>"
    kind = row.kind if row.kind in KINDS else "other"
    return f'<tr class="{kind}{" control" if row.control else ""}">{"".join(cells)}</tr>'


def td(content: str, value: float | str | None = None, left: bool = False, extra: str = "") -> str:
    """A cell; `value` is what it is sorted by, where its text is no plain number."""
    sort = "" if value is None else f' data-v="{f"{value:.5g}" if isinstance(value, float) else escape(value)}"'
    side = ' class="left"' if left else ""
    return f"<td{side}{sort}{extra}>{content}</td>"


def rank_cell(row: Row) -> str:
    """A rank, with its tie."""
    if row.rank is None:
        return td("–")
    if not row.tied:
        return td(f"{row.rank}", extra=' class="rank"')
    return td(f'{row.rank}<span class="tie">=</span>', row.rank, extra=' class="rank tied"')


def model_cell(row: Row, made: bool = False) -> str:
    """A model's name and kind; with `made`, how it was made, by whom a fusion was taught, and its score on clean items.

    It is sorted by its text, which begins with the name.
    """
    name = plain(row.name)
    shown = clipped(name, LONGEST_NAME)
    kind = f'<span class="kind">{escape(row.stamped)}</span>'
    if made:
        method = row.entry.get("method")
        parents = [plain(parent) for parent in row.entry.get("parents") or []]
        parts = (plain(method) if method else "", f"of {', '.join(parents)}" if parents else "")
        how = " ".join(part for part in parts if part)
        told = clipped(how, LONGEST_HOW)
        said = [row.taught, f"clean items alone: {row.clean}" if row.clean else ""]
        by = "".join(f'<span class="how">{escape(one)}</span>' for one in said if one)
        kind = f'<span class="how"{_whole(how, told)}>{kind} {escape(told)}</span>{by}'
    return f'<td class="model"><span class="name"{_whole(name, shown)}>{escape(shown)}</span>{kind}</td>'


def _whole(text: str, shown: str) -> str:
    """The title of a text that is not shown whole."""
    return "" if text == shown else f' title="{escape(text)}"'


def overall_cell(row: Row, scale: tuple[float, float]) -> str:
    """The overall score with its interval."""
    value, low, high = row.number("score", "value"), row.number("interval", "low"), row.number("interval", "high")
    text = f'<b>{percent(value)}</b><small class="half">{half_width(row.entry, "interval")}</small>'
    return td(f'<span class="with">{text}</span>{_whisker(value, low, high, scale)}', value, extra=' class="plot"')


def score_cell(row: Row, group: str) -> str:
    """A group's score."""
    value, stderr, n = (row.number("scores", group, key) for key in ("value", "stderr", "n"))
    if value is None:
        return '<td class="absent" title="not scored"></td>'
    return td(percent(value), extra=f' title="{_error(stderr, n)}"')


def bits_cell(row: Row, group: str) -> str:
    """A text's bits per byte."""
    value, stderr, n = (row.number("text", group, key) for key in ("value", "stderr", "n"))
    if value is None:
        return '<td class="absent" title="not read"></td>'
    about = [f"standard error {bits(stderr)}" if stderr is not None else "", f"n = {int(n)}" if n is not None else ""]
    return td(bits(value), value, extra=f' title="{", ".join(part for part in about if part)}"')


def saved_cell(row: Row, group: str, key: str) -> str:
    """The bits per byte that a model saves of its control's or target's, with their interval."""
    path = ("text_gain", group, key)
    value, low, high, p = (row.number(*path, name) for name in ("value", "low", "high", "p"))
    if value is None:
        return '<td class="none">–</td>'
    against = plain(row.entry["text_gain"][group][key].get("against") or key)
    about = f"against {against}" + (f", p = {p:.2g}" if p is not None else "")
    span = "" if low is None or high is None else f"<br><small>{bits(low, True)} to {bits(high, True)}</small>"
    return td(f"{bits(value, True)}{span}".replace("-", "−"), value, extra=f' title="{escape(about)}"')


def published_cell(one: Published, group: str) -> str:
    """A published value, and in brackets that of our model beside it."""
    value, ours = one.score(group), one.ours(group)
    beside = "" if ours is None or one.here is None else f' title="here: {escape(one.here.name)}"'
    here = f'<small class="half">({percent(ours)})</small>' if beside else ""
    return td(f"{percent(value)}{here}" if value is not None else "–", value, extra=beside)


def _error(stderr: float | None, n: float | None) -> str:
    parts = [
        f"standard error {percent(stderr)}" if stderr is not None else "",
        f"n = {int(n)}" if n is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def gain_cell(row: Row, gain: str, reach: float) -> str:
    """A gain with its interval."""
    value, low, high, p = (row.number("gain", gain, key) for key in ("value", "low", "high", "p"))
    if value is None:
        return '<td class="none plot">–</td>'
    against = plain(((row.entry.get("gain") or {}).get(gain) or {}).get("against") or gain)
    about = f"against {against}" + (f", p = {p:.2g}" if p is not None else "")
    if gain == row.headline and row.p_holm is not None:
        about += f", after Holm {row.p_holm:.2g}"
    certain = gain == row.headline and row.certain
    if low is not None and high is not None:
        about += f", 95 % interval {points(low)} to {points(high)}"
    star = '<span class="star">*</span>' if certain else ""
    text = f'<span class="with{" sure" if certain else ""}">{_signed(value)}{star}</span>'
    plot = _whisker(value, low, high, (-reach, reach), zero=True)
    return td(text + plot, value, extra=f' class="plot" title="{escape(about)}"')


def _signed(value: float) -> str:
    return points(value).replace("-", "−")


def cost_cells(row: Row) -> list[str]:
    """Time and memory."""
    build, evaluate = row.number("cost", "build_s"), row.number("cost", "evaluate_s")
    peak = row.number("cost", "peak_vram_mb") or row.number("cost", "peak_rss_mb")
    about = ", ".join(f"{what} {seconds(spent)}" for what, spent in (("build", build), ("evaluate", evaluate)) if spent)
    total = total_seconds(row)
    return [td(seconds(total), total, extra=f' title="{about}"'), td(memory(peak), peak)]


def kinship_cell(row: Row, measure: str) -> str:
    """Kinship by one measure."""
    value, low, high = (row.number("kinship", measure, key) for key in ("mean", "min", "max"))
    if value is None:
        return '<td class="none">–</td>'
    several = low is not None and high is not None and low < high
    spread = f' title="{low:.3g} to {high:.3g} over pairs of parents"' if several else ""
    return td(f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}", extra=spread)


def task_cell(row: Row, group: str, task: str) -> str:
    """A task's score, shaded from chance to all right."""
    value, stderr, n, chance = (
        row.number("scores", group, "tasks", task, key) for key in ("value", "stderr", "n", "chance")
    )
    if value is None:
        return '<td class="absent" title="not scored"></td>'
    start = chance or 0.0
    share = min(1.0, max(0.0, (value - start) / (1 - start))) if start < 1 else 0.0
    return td(percent(value), extra=f' class="heat" style="--h:{share:.2f}" title="{_error(stderr, n)}"')


# ---------------------------------------------------------------------------------------------------------- whiskers


def score_scale(rows: Sequence[Row]) -> tuple[float, float]:
    """The axis of scores: from the lowest interval's end to the highest."""
    ends = [
        row.number(*path) for row in rows for path in (("interval", "low"), ("interval", "high"), ("score", "value"))
    ]
    known = [end for end in ends if end is not None]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def reach_of(rows: Sequence[Row], gains: Sequence[str]) -> float:
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
        return f"{6 + (PLOT_WIDTH - 12) * (point - scale[0]) / (scale[1] - scale[0]):.3g}"

    middle = PLOT_HEIGHT // 2
    span = "" if low is None or high is None else f'<path d="M{at(low)} {middle}H{at(high)}"/>'
    # The axis and its zero are the style's: the same lines in thousands of cells.
    return (
        f'<svg class="span{" zero" if zero else ""}" aria-hidden="true">{span}'
        f'<circle cx="{at(value)}" cy="{middle}" r="3.4"/></svg>'
    )
