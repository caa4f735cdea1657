"""The leaderboard's account of kinship: each measure against the gain it is to foretell, and what may be concluded.

One path holds all markers of a method, and one all whiskers: a page of 90 candidates by 15 measures stays small.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.board import Board, Row, clipped, number, plain, points
from harness.html_cells import LONGEST_NAME, escape, table, td, th

WIDTH, HEIGHT = 580, 330
LEFT, RIGHT, TOP, BOTTOM = 54, 568, 10, 288
RELATED = {
    "best": "best parent", "mean": "the parents' mean", "base": "the base", "retention": "what the best parents keep",
    "worst": "the best parent, worst group",
}  # fmt: skip
# A dot (by its wide round stroke), a square, a diamond, triangles up and down, a cross: told apart without colour.
SHAPES = (
    "h0", "m-3-3h6v6h-6z", "m0-4 4 4-4 4-4-4z", "m0-4 4 7h-8z", "m0 4-4-7h8z",
    "m-3-3 6 6m0-6-6 6",
)  # fmt: skip

STYLE = """
.fit{display:flex;flex-wrap:wrap;gap:8px 28px;align-items:flex-start;margin-top:14px}
.fit>svg{flex:0 1 auto;max-width:100%;height:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
.fit dl{flex:1 1 260px;grid-template-columns:max-content 1fr;align-content:start;gap:4px 14px}
.fit text{font-size:11.5px;fill:var(--soft)}
.fit .said{fill:var(--ink)}
.fit .zero{stroke:var(--soft);stroke-width:1}
.fit .band{fill:var(--heat);opacity:.16}.fit .line{stroke:var(--heat);stroke-width:2}
.fit .spans{fill:none;stroke:var(--soft);stroke-width:1;opacity:.45}
.fit rect{fill:transparent}
.fit .ring{fill:none;stroke:var(--ink);stroke-width:1.3}
.keys{display:flex;flex-wrap:wrap;gap:2px 18px;margin:10px 0 0;font-size:13.5px}
.keys svg{margin-right:3px}
.s0{--k:#0072b2}.s1{--k:#c4560a}.s2{--k:#00805d}.s3{--k:#a8528a}.s4{--k:#7d6300}.s5{--k:#5b5b9b}
@media (prefers-color-scheme:dark){.s0{--k:#56b4e9}.s1{--k:#f08f45}.s2{--k:#4fc29c}.s3{--k:#dd92c0}.s4{--k:#d3b23c}
.s5{--k:#a5a5e6}}
.mark{fill:var(--k);stroke:var(--k);stroke-width:1.2}.dot{stroke-width:6.6;stroke-linecap:round}
"""


class _Point(NamedTuple):
    """A candidate: the kinship of its parents, and its gain with the interval, in points."""

    row: Row
    x: float
    y: float
    low: float
    high: float


class _Axes(NamedTuple):
    """What a plot shows: the least and the most of either axis."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        """Pixels from the left; what is beyond an end is at the end."""
        return LEFT + (RIGHT - LEFT) * _share(value, self.left, self.right)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return BOTTOM - (BOTTOM - TOP) * _share(value, self.bottom, self.top)


def kinship_section(found: Board) -> str:
    """Kinship and gain: what may be concluded, a scatter for each measure (the first open), and all coefficients."""
    if not found.says:
        return ""
    relation = found.results.get("kinship_vs_gain") or {}
    measures, foretold, kin = (relation.get(key) or {} for key in ("measures", "predictor", "kin"))
    drawn = {measure: _points(found, measure) for measure in measures}
    drawn = {measure: those for measure, those in drawn.items() if len(those) > 1}
    methods = list(dict.fromkeys(_method(point.row) for those in drawn.values() for point in those))
    parts = [f'<p class="lead">{escape(found.says)}</p>', _keys(methods) if drawn else ""]
    for place, (measure, those) in enumerate(drawn.items()):
        leaf = _leaf(measures[measure], "best", "signed")
        beside = _numbers(leaf, foretold.get(measure) or {}, (kin.get(measure) or {}).get("signed"))
        figure = f'<div class="fit">{_plot(measure, those, leaf, methods, named=place == 0)}{beside}</div>'
        if place == 0:
            parts.append(figure)
        else:
            r = _coefficient(leaf, "pearson")
            parts.append(f"<details><summary>{escape(measure)}: r {r}</summary>{figure}</details>")
    parts.append(_every(measures))
    return f"<section>\n<h2>Kinship and gain</h2>\n{chr(10).join(part for part in parts if part)}\n</section>"


# ------------------------------------------------------------------------------------------------------------ a scatter


def _points(found: Board, measure: str) -> list[_Point]:
    these = []
    for row in (row for row in found.rows if row.kind == "merged"):
        x, y = row.number("kinship", measure, "mean"), row.number("gain", "best", "value")
        if x is not None and y is not None:
            low, high = row.number("gain", "best", "low"), row.number("gain", "best", "high")
            these.append(
                _Point(row, x, 100 * y, 100 * (y if low is None else low), 100 * (y if high is None else high))
            )
    return these


def _method(row: Row) -> str:
    return plain(row.entry.get("method") or row.kind)


def _plot(measure: str, those: Sequence[_Point], leaf: Any, methods: Sequence[str], named: bool) -> str:
    """The scatter with its fit; `named`: every marker says which candidate it is."""
    axes = _axes(those)
    parts = [*_frame(axes, measure), *_fit(axes, leaf, [p.x for p in those])]
    spans = "".join(f"M{axes.x(p.x):.0f} {axes.y(p.low):.0f}V{axes.y(p.high):.0f}" for p in those)
    parts.append(f'<path class="spans" d="{spans}"/>')
    for place, method in enumerate(methods):
        marks = "".join(
            f"M{axes.x(p.x):.0f} {axes.y(p.y):.0f}{_shape(place)}" for p in those if _method(p.row) == method
        )
        parts.append(f'<path class="{_style(place)}" d="{marks}"/>' if marks else "")
    parts.append(_ringed(axes, those, leaf))
    parts += [_name(axes, point, measure) for point in those] if named else []
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    label = f"{escape(measure)} of the parents against gain over the best parent, {len(those)} candidates"
    return f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _axes(those: Sequence[_Point]) -> _Axes:
    """All of the whiskers, and no gain at all, with a little room around."""
    xs, ys = [p.x for p in those], [0.0, *(end for p in those for end in (p.low, p.high))]
    wide, tall = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    return _Axes(min(xs) - wide / 25, max(xs) + wide / 25, min(ys) - tall / 25, max(ys) + tall / 25)


def _frame(axes: _Axes, measure: str) -> list[str]:
    """Both axes with their ticks and titles, and the line of no gain."""
    parts = [f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>']
    parts.append(f'<path class="zero" d="M{LEFT} {axes.y(0):.0f}H{RIGHT}"/>')
    across = [f'<text x="{axes.x(tick):.0f}" y="{BOTTOM + 16}">{text}</text>' for tick, text in _ticks(*axes[:2])]
    up = [f'<text x="{LEFT - 7}" y="{axes.y(tick) + 4:.0f}">{text}</text>' for tick, text in _ticks(*axes[2:])]
    parts.append(f'<g text-anchor="middle">{"".join(across)}</g><g text-anchor="end">{"".join(up)}</g>')
    middle = (LEFT + RIGHT) / 2
    parts.append(
        f'<text class="said" x="{middle}" y="{HEIGHT - 7}" text-anchor="middle">{escape(measure)} of the parents</text>'
    )
    turned = f'transform="translate(14 {(TOP + BOTTOM) / 2}) rotate(-90)"'
    return [*parts, f'<text class="said" {turned} text-anchor="middle">gain over the best parent, points</text>']


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Some five round numbers of an axis."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    counts = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(count * step, f"{count * step + 0.0:.{digits}f}".replace("-", "−")) for count in counts]


def _fit(axes: _Axes, leaf: Any, seen: Sequence[float]) -> list[str]:
    """The band of the fitted line, and the line, over the range of kinship that was seen."""
    band = [tuple(100 * value if place else value for place, value in enumerate(one)) for one in leaf.get("band") or ()]
    slope, intercept = number(leaf, "line", "slope"), number(leaf, "line", "intercept")
    parts = []
    if band and number(leaf, "pearson", "low") is not None:
        over = [f"{axes.x(x):.0f} {axes.y(high):.0f}" for x, _, high in band]
        under = [f"{axes.x(x):.0f} {axes.y(low):.0f}" for x, low, _ in reversed(band)]
        parts.append(f'<path class="band" d="M{"L".join([*over, *under])}z"/>')
    if slope is not None and intercept is not None:
        ends = [(x, 100 * (intercept + slope * x)) for x in (min(seen), max(seen))]
        parts.append(f'<path class="line" d="M{"L".join(f"{axes.x(x):.0f} {axes.y(y):.0f}" for x, y in ends)}"/>')
    return parts


def _ringed(axes: _Axes, those: Sequence[_Point], leaf: Any) -> str:
    """The candidate that the correlation leans on most, with its name."""
    name = (leaf.get("influential") or {}).get("name")
    for point in those:
        if point.row.name == name:
            x, y = axes.x(point.x), axes.y(point.y)
            side, at = ("start", x + 9) if x < (LEFT + RIGHT) / 2 else ("end", x - 9)
            text = f'<text class="said" x="{at:.0f}" y="{y - 6:.0f}" text-anchor="{side}">{_short(point.row)}</text>'
            return f'<circle class="ring" cx="{x:.0f}" cy="{y:.0f}" r="7"/>{text}'
    return ""


def _name(axes: _Axes, point: _Point, measure: str) -> str:
    said = f"{_short(point.row)}: {escape(measure)} {point.x:.3g}, gain {points(point.y / 100)}"
    place = f'x="{axes.x(point.x) - 6:.0f}" y="{axes.y(point.y) - 6:.0f}"'
    return f'<rect {place} width="12" height="12"><title>{said}</title></rect>'


def _short(row: Row) -> str:
    return escape(clipped(plain(row.name), LONGEST_NAME))


def _shape(place: int) -> str:
    """Colour and shape go on together at first; past the sixth method, colours meet other shapes."""
    return SHAPES[(place + place // 6) % 6]


def _style(place: int) -> str:
    return f"mark s{place % 6}{' dot' if _shape(place) == SHAPES[0] else ''}"


def _keys(methods: Sequence[str]) -> str:
    marks = [
        f'<span><svg width="12" height="12" aria-hidden="true"><path class="{_style(place)}" '
        f'd="M6 6{_shape(place)}"/></svg>{escape(method)}</span>'
        for place, method in enumerate(methods)
    ]
    return f'<p class="keys">{"".join(marks)}</p>'


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


# -------------------------------------------------------------------------------------------------------------- numbers


def _numbers(leaf: Any, foretold: Any, kin: Any) -> str:
    """What stands beside a plot: the coefficients, what they lean on, and whether kinship foretells anything."""
    partial = leaf.get("partial") or {}
    given = f"given {' and '.join(map(plain, partial['given']))}" if partial.get("given") else "partial r"
    count = number(leaf, "needed")
    said = [
        ("r", _coefficient(leaf, "pearson")),
        ("by rank", _coefficient(leaf, "spearman")),
        (given, _coefficient(leaf, "partial")),
        ("kin alone", _coefficient(kin, "pearson") if kin else ""),
        ("leaning on", _influence(leaf.get("influential"))),
        ("and on model", _influence(leaf.get("influential_model"))),
        ("needed", f"{count:,.0f} independent candidates for 80&nbsp;% power at this r" if count is not None else ""),
        ("foretelling", escape(foretold.get("says") or foretold.get("reason") or "")),
        ("absent", escape(leaf.get("reason") or "")),
    ]
    return (
        f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{text}</dd>' for term, text in said if text and text != '–')}</dl>"
    )


def _influence(found: Any) -> str:
    """Who moves the correlation most, and what it is without them."""
    rest, low, high = (number(found, key) for key in ("without", "low", "high"))
    if rest is None or low is None or high is None:
        return ""
    name = escape(clipped(plain(found.get("name")), LONGEST_NAME))
    return f"<b>{name}</b>: " + _minus(f"{rest:+.2f} without it; {low:+.2f} to {high:+.2f} without any one")


def _every(measures: Mapping[str, Any]) -> str:
    """All coefficients in a fold: with the gain, and with its size."""
    rows = [
        (measure, gain, [_leaf(gains, gain, kind) for kind in ("signed", "absolute")])
        for measure, gains in measures.items()
        for gain in RELATED
        if isinstance(gains, Mapping) and gain in gains
    ]
    if not rows:
        return ""
    head = [th("kinship", left=True), th("gain over", left=True), th("r"), th("by rank"), th("partial")]
    head += [th("r of its size"), th("by rank"), th("candidates"), th("models")]
    lines = []
    for measure, gain, (signed, absolute) in rows:
        cells = [td(escape(measure), left=True), td(RELATED[gain], left=True)]
        cells += [td(_value(signed, name)) for name in ("pearson", "spearman", "partial")]
        cells += [td(_value(absolute, name)) for name in ("pearson", "spearman")]
        lines.append(
            f"<tr>{''.join(cells)}{td(escape(signed.get('n', '')))}{td(escape(signed.get('models', '')))}</tr>"
        )
    reasons = dict.fromkeys(str(leaf["reason"]) for _, _, both in rows for leaf in both if leaf.get("reason"))
    notes = "".join(f'<p class="about">{escape(reason)}.</p>' for reason in reasons)
    return f"<details><summary>Every measure and gain</summary>{table([head], lines)}{notes}</details>"


def _leaf(gains: Any, gain: str, kind: str) -> Mapping[str, Any]:
    leaf = ((gains or {}).get(gain) or {}).get(kind)
    return leaf if isinstance(leaf, Mapping) else {}


def _value(leaf: Any, name: str) -> str:
    """A coefficient alone; its interval is beside the plot, or in results.json."""
    value = number(leaf, name, "value")
    return "–" if value is None else _minus(f"{value:+.2f}")


def _coefficient(leaf: Any, name: str) -> str:
    """A coefficient with its interval, its p and, of several measures, its q."""
    value, low, high, p, q = (number(leaf, name, key) for key in ("value", "low", "high", "p", "q"))
    if value is None:
        return "–"
    span = "" if low is None or high is None else f", {low:+.2f} to {high:+.2f}"
    chance = "" if p is None else f", p = {p:.2g}"
    return _minus(f"{value:+.2f}<small>{span}{chance}{'' if q is None else f', q = {q:.2g}'}</small>")


def _minus(text: str) -> str:
    """Numbers with a true minus sign; p-values such as 1e-05 included."""
    return text.replace("-", "−")
