"""The page of the verb `kinship`: a heatmap with a dendrogram for each measure, and all pairs as a table.

Self-contained: inline CSS and SVG, and the leaderboard's script to sort tables; no requests.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from harness.html import document, section
from harness.html_cells import escape, table, td, th
from harness.kin_table import left_out, short, statuses, value

# In pixels: the dendrogram with the line above it, the least and the most that a cell takes, what all cells take.
TREE, ABOVE, LEAST, MOST, ROOM = 84, 18, 20, 62, 620
LETTER = 7  # about what a letter of a name takes
LEGIBLE = 34  # the least cell that holds a number
PLOT_WIDTH, PLOT_HEIGHT = 300, 130

STYLE = """
main{--near:#0a6fb4;--far:#c4560a;--mix:58}
@media (prefers-color-scheme:dark){main{--near:#5db1ee;--far:#f08f45;--mix:52}}
.grid{display:flex;flex-wrap:wrap;gap:20px;margin-top:22px}
figure{margin:0;padding:14px 16px;background:var(--card);border:1px solid var(--line);border-radius:8px;max-width:100%;
overflow-x:auto}
figcaption{font-size:14px;margin-bottom:8px;max-width:60ch}
figcaption b{font-size:15.5px}
figcaption span{display:block;color:var(--soft)}
svg text{font-size:12px;fill:var(--ink)}
svg .soft{fill:var(--soft);font-size:11px}
.cell{stroke:var(--card);stroke-width:1.5}
.near{fill:color-mix(in srgb,var(--near) calc(var(--h)*var(--mix)*1%),var(--card))}
.far{fill:color-mix(in srgb,var(--far) calc(var(--h)*var(--mix)*1%),var(--card))}
.self{fill:var(--line)}
.unknown{fill:none;stroke:var(--axis);stroke-dasharray:3 3}
.tree{fill:none;stroke:var(--soft);stroke-width:1.3}
.layer{fill:none;stroke:var(--near);stroke-width:1.5;opacity:.75}
"""


class Join(NamedTuple):
    """Two clusters that become one. Models are numbered from 0, and the joins after them in their order."""

    first: int
    second: int
    height: float


def linkage(distances: Sequence[Sequence[float]]) -> list[Join]:
    """Average linkage (UPGMA; Sokal and Michener 1958) of n models: n - 1 joins, the nearest first.

    distances: a symmetric n by n matrix. The distance of two clusters is the mean over the pairs of their models.
    """
    models = len(distances)
    members: dict[int, list[int]] = {model: [model] for model in range(models)}
    joins: list[Join] = []
    while len(members) > 1:
        height, first, second = min(
            (fmean(distances[i][j] for i in members[a] for j in members[b]), a, b)
            for a in members for b in members if members[a][0] < members[b][0]
        )  # fmt: skip
        joins.append(Join(first, second, height))
        members[models + len(joins) - 1] = members.pop(first) + members.pop(second)
    return joins


def leaves(joins: Sequence[Join], models: int) -> list[int]:
    """The models in the order in which a dendrogram can be drawn without crossings."""
    members = {model: [model] for model in range(models)}
    for number, join in enumerate(joins, models):
        members[number] = members.pop(join.first) + members.pop(join.second)
    return [model for cluster in members.values() for model in cluster]


def page(found: Mapping[str, Any]) -> str:
    """A whole HTML document of what `kin.measure` found; every name in it is escaped."""
    names = short(found["models"])
    measures = found["measures"]
    facts = [f"{len(names)} models", f"{len(found['pairs'])} pairs"]
    facts += [f"base {escape(found['base'])}"] if found["base"] else []
    grid = "\n".join(_heatmap(found, measure, names) for measure in measures)
    brand = '<p class="brand">fuse-bench</p>\n<h1>Kinship</h1>'
    parts = [
        f'<header>\n{brand}\n<p class="facts">{" · ".join(facts)}</p>\n</header>',
        f'<div class="grid">\n{grid}\n</div>',
        _layers(found, names),
        _table_pairs(found, names),
        _table_kinds(found, names),
        _table_lineage(found, names),
        _notes(found, names),
    ]
    return document("Kinship", parts, STYLE)


# ------------------------------------------------------------------------------------------------------------- heatmaps


class _Scale(NamedTuple):
    """How the values of a measure become colours. `reach` is what is drawn strongest, `pale` what is not coloured."""

    pale: float
    reach: float
    signed: bool

    def of(self, number: float) -> tuple[str, float]:
        """The class and the strength, from 0 to 1, of a value."""
        share = (number - self.pale) / (self.reach - self.pale) if self.reach != self.pale else 1.0
        return ("far" if share < 0 else "near"), min(1.0, abs(share))


def _scale(numbers: Sequence[float], higher: bool) -> _Scale:
    """From no colour at zero both ways, where values have both signs; else from the furthest to the closest."""
    low, high = min(numbers), max(numbers)
    if low < 0 < high:
        return _Scale(0.0, max(-low, high), True)
    return _Scale(low, high, False) if higher else _Scale(high, low, False)


def _heatmap(found: Mapping[str, Any], measure: str, names: Mapping[str, str]) -> str:
    models = found["models"]
    known = {(pair["a"], pair["b"]): pair[measure] for pair in found["pairs"]}
    numbers = [number for number in known.values() if number is not None]
    direction = found["measures"][measure]
    about = f"<figcaption><b>{escape(measure)}</b><span>{direction}"
    if not numbers:
        return f"<figure>{about}; undefined for every pair</span></figcaption></figure>"
    higher = direction == "higher is closer"
    scale = _scale(numbers, higher)
    if len(numbers) > 1:
        about += f"; mean {_said(fmean(numbers))}, {_said(min(numbers))} to {_said(max(numbers))}"
    about += f"</span><span>{_colours(scale, higher)}</span></figcaption>"
    values = [[known.get((a, b), known.get((b, a))) for b in models] for a in models]
    joins = linkage(_distances(values, higher))
    order = leaves(joins, len(models))
    cell = max(LEAST, min(MOST, ROOM // len(models)))
    room = LETTER * max(map(len, names.values()))
    width, height = TREE + cell * len(models) + 12 + room, ABOVE + cell * len(models) + 20 + 0.7 * room
    parts = [_tree(joins, order, cell, higher), *_cells(values, order, cell, scale, [names[m] for m in models])]
    label = f"Heatmap of {escape(measure)} between {len(models)} models"
    size = f'width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}"'
    return f'<figure>{about}<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'


def _colours(scale: _Scale, higher: bool) -> str:
    """The legend in words, which needs no colour to be read."""
    if scale.signed:
        return f"blue above zero, orange below, strongest at ±{_said(scale.reach)}"
    return f"the stronger the colour, the closer: {_said(scale.pale)} to {_said(scale.reach)}"


def _distances(values: Sequence[Sequence[float | None]], higher: bool) -> list[list[float]]:
    """What linkage takes: 1 - value where higher is closer. What is undefined counts as the furthest there is."""
    found = [[None if v is None else (1 - v if higher else v) for v in row] for row in values]
    furthest = max(v for row in found for v in row if v is not None)
    return [[furthest if v is None else v for v in row] for row in found]


def _cells(
    values: Sequence[Sequence[float | None]], order: Sequence[int], cell: int, scale: _Scale, names: Sequence[str]
) -> list[str]:
    parts = []
    for y, a in enumerate(order):
        for x, b in enumerate(order):
            left, top, number = TREE + x * cell, ABOVE + y * cell, values[a][b]
            place = f'x="{left}" y="{top}" width="{cell}" height="{cell}"'
            middle = f'x="{left + cell / 2:g}" y="{top + cell / 2 + 4:g}" text-anchor="middle"'
            if a == b:
                parts.append(f'<rect class="cell self" {place}/>')
            elif number is None:
                parts.append(f'<rect class="cell unknown" {place}/><text class="soft" {middle}>–</text>')
            else:
                kind, share = scale.of(number)
                title = f"<title>{escape(names[a])} ~ {escape(names[b])}: {value(number)}</title>"
                parts.append(f'<rect class="cell {kind}" style="--h:{share:.2f}" {place}>{title}</rect>')
                parts += [f'<text {middle} pointer-events="none">{_brief(number)}</text>'] if cell >= LEGIBLE else []
    side = cell * len(order)
    for row, model in enumerate(order):
        middle_of, name = (row + 0.5) * cell, escape(names[model])
        parts.append(f'<text x="{TREE + side + 8}" y="{ABOVE + middle_of + 4:g}">{name}</text>')
        turned = f"translate({TREE + middle_of + 4:g} {ABOVE + side + 12}) rotate(-45)"
        parts.append(f'<text transform="{turned}" text-anchor="end">{name}</text>')
    return parts


def _tree(joins: Sequence[Join], order: Sequence[int], cell: int, higher: bool) -> str:
    """The dendrogram, its leaves at the heatmap's rows; above it the values at its first join and at its last."""
    low, high = joins[0].height, max(join.height for join in joins)

    def at(height: float) -> float:
        return TREE - 14 - (TREE - 30) * ((height - low) / (high - low) if high > low else 1.0)

    places = {model: (float(TREE - 4), ABOVE + (row + 0.5) * cell) for row, model in enumerate(order)}
    path, marks = [], []
    for number, join in enumerate(joins, len(order)):
        (x1, y1), (x2, y2), x = places[join.first], places[join.second], at(join.height)
        path.append(f"M{x1:.1f} {y1:.1f}H{x:.1f}V{y2:.1f}H{x2:.1f}")
        places[number] = (x, (y1 + y2) / 2)
    for end in dict.fromkeys([high, low]):
        met = _brief(1 - end if higher else end)
        marks.append(f'<text class="soft" x="{at(end):.0f}" y="{ABOVE - 6}" text-anchor="middle">{met}</text>')
    return f'<path class="tree" d="{"".join(path)}"/>{"".join(marks)}'


def _brief(number: float) -> str:
    """A number that fits a cell."""
    size = abs(number)
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return (f"{number:.{digits}f}" if size < 10000 and (size >= 0.005 or size == 0) else f"{number:.0e}").replace(
        "-", "−"
    )


def _said(number: float | None) -> str:
    """A number as prose and tables have it."""
    return value(number).replace("-", "−")


# ------------------------------------------------------------------------------------------------ layers, tables, words


def _layers(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Every measure over the layers, a line a pair."""
    plots = [_layer_plot(found, measure, names) for measure in found["measures"]]
    if not any(plots):
        return ""
    about = "From the first layer on the left to the last; a line is a pair of models: point at one for its name."
    return section("By layer", about, f'<div class="grid">{"".join(plots)}</div>')


def _layer_plot(found: Mapping[str, Any], measure: str, names: Mapping[str, str]) -> str:
    lines = []
    for pair in found["pairs"]:
        values = [(int(layer), one.get(measure)) for layer, one in (pair.get("layers") or {}).items()]
        known = sorted((layer, number) for layer, number in values if number is not None)
        if known:
            lines.append((f"{names[pair['a']]} ~ {names[pair['b']]}", known))
    if not lines:
        return ""
    layers = [layer for _, known in lines for layer, _ in known]
    numbers = [number for _, known in lines for _, number in known]
    low, high, first, last = min(numbers), max(numbers), min(layers), max(layers)
    left, right, top, bottom = 58, PLOT_WIDTH - 10, 8, PLOT_HEIGHT - 22

    def at(layer: int, number: float) -> str:
        x = left + (right - left) * ((layer - first) / (last - first) if last > first else 0.5)
        y = bottom - (bottom - top) * ((number - low) / (high - low) if high > low else 0.5)
        return f"{x:.1f} {y:.1f}"

    drawn = [
        f'<path class="layer" d="M{"L".join(at(*point) for point in known)}"><title>{escape(name)}</title></path>'
        for name, known in lines
    ]
    text = [(left - 6, top + 4, "end", _said(high)), (left - 6, bottom + 4, "end", _said(low))] if high > low else []
    text += [(left, bottom + 18, "middle", str(first)), (right, bottom + 18, "middle", str(last))]
    marks = [f'<text class="soft" x="{x}" y="{y}" text-anchor="{side}">{words}</text>' for x, y, side, words in text]
    axes = f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>'
    size = f'width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}"'
    label = f"{escape(measure)} by layer"
    return (
        f"<figure><figcaption><b>{escape(measure)}</b></figcaption>"
        f'<svg {size} role="img" aria-label="{label}">{axes}{"".join(drawn)}{"".join(marks)}</svg></figure>'
    )


def _table_pairs(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    measures = list(found["measures"])
    head = [th("model", left=True), th("and", left=True), *(th(escape(measure)) for measure in measures)]
    lines = [f"<tr>{_two(pair, names)}{_numbers(pair, measures)}</tr>" for pair in found["pairs"]]
    return section("Pairs", "Select a column's head to sort by it.", table([head], lines))


def _table_kinds(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    pairs = [pair for pair in found["pairs"] if pair.get("kinds")]
    if not pairs:
        return ""
    measures = [m for m in found["measures"] if any(m in one for pair in pairs for one in pair["kinds"].values())]
    head = [th("model", left=True), th("and", left=True), th("kind", left=True), *(th(escape(m)) for m in measures)]
    lines = [
        f"<tr>{_two(pair, names)}{td(escape(kind), left=True)}{_numbers(one, measures)}</tr>"
        for pair in pairs
        for kind, one in pair["kinds"].items()
    ]
    return section("By kind of module", "The same measures over the tensors of one kind alone.", table([head], lines))


def _two(pair: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return "".join(td(escape(names[pair[side]]), left=True) for side in ("a", "b"))


def _numbers(values: Mapping[str, Any], measures: Sequence[str]) -> str:
    return "".join(td(_said(values.get(measure)), values.get(measure)) for measure in measures)


def _table_lineage(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    kin = found.get("lineage")
    if not kin:
        return ""
    head = [th("model", left=True), th("kin", left=True), th("cosine"), th("relative distance"), th("lowest layer")]
    lines = []
    for name, about in kin.items():
        layer = about["lowest_layer"]
        lowest = "–" if layer is None else f"{layer} <small>{value(about['layers'][str(layer)])}</small>"
        cells = [td(escape(names[name]), left=True), td("yes" if about["kin"] else "no", left=True)]
        cells += [td(value(about[key]), about[key]) for key in ("cosine", "distance")]
        lines.append(f"<tr>{''.join(cells)}{td(lowest, layer)}</tr>")
    about = "How near each model is to the base, by the weights of its matrices. Against a wrong base all look related."
    return section("Lineage", about, table([head], lines))


def _notes(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What the numbers leave out, and the names in full."""
    lines = [escape(line) for line in statuses(found["pairs"], names)]
    lines += [escape(left_out(found["left_out"]))] if "left_out" in found else []
    lines += [f"{escape(names[name])} is {escape(name)}" for name in found["models"] if names[name] != name]
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<section class="failed">\n<h2>Notes</h2>\n<ul>{items}</ul>\n</section>' if lines else ""
