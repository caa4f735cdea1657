"""Kinship and lineage as text in 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from harness.board import clipped, columns_of, plain
from harness.merging import kin_words

WIDTH = 80
LONGEST = 18


def kinship_words(found: Mapping[str, Any]) -> str:
    """Of two models one line a measure; of more one line a pair, or where that is too wide one matrix a measure."""
    names = short(found["models"])
    count = len(found["models"])
    head = [f"base: {plain(found['base'])}"] if found["base"] else []
    head += [f"{names[name]} = {plain(name)}" for name in found["models"] if names[name] != plain(name)]
    parts = [head] if head else []
    if count == 2:
        parts.append(_pair(found, names))
    else:
        lines = _pairs(found, names)
        fits = max(map(columns_of, lines)) <= WIDTH
        parts += [lines, _directions(found["measures"])] if fits else _matrices(found, names)
    parts += [part for pair in found["pairs"] for part in _divided(found, pair, names)]
    parts.append(_notes(found, names))
    return "\n\n".join("\n".join(part) for part in parts if part)


def lineage_words(found: Mapping[str, Any]) -> str:
    """One line a model against one base; of several bases which one each model comes from, with the next beside it."""
    if found["base"] is not None:
        lines = [f"base: {plain(found['base'])}"]
        for name, about in found["models"].items():
            lines += [f"{plain(name)}: {kin_words(about)}", *_lowest(about)]
    else:
        lines = [line for name in found["models"] for line in _nearest(name, found)]
    least = f"kin: a median cosine over matrices of at least {found['kin_cosine']}; strangers have about 0"
    return "\n".join([*lines, least])


def value(number: float | None) -> str:
    """A kinship to four digits; a dash where it is undefined."""
    if number is None:
        return "–"
    return f"{number:.4f}" if number == 0 or 0.0001 <= abs(number) < 1000 else f"{number:.3g}"


def short(names: Sequence[str], longest: int = LONGEST) -> dict[str, str]:
    """Every name by what tells it from the others: the last parts of its path, or its place in the list.

    One line each, of at most `longest` columns.
    """
    parts = [plain(name).strip("/").split("/") for name in names]
    for count in range(1, max(map(len, parts), default=0) + 1):
        found = ["/".join(part[-count:]) for part in parts]
        if len(set(found)) == len(names) and max(map(columns_of, found)) <= longest:
            return dict(zip(names, found, strict=True))
    cut = [clipped(plain(name), longest - len(str(len(names))) - 1, end=2) for name in names]
    return {name: f"{place}:{rest}" for place, (name, rest) in enumerate(zip(names, cut, strict=True), 1)}


def statuses(pairs: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """What is odd about pairs, each reason once."""
    by: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.get("status"):
            by.setdefault(plain(pair["status"]), []).append(f"{names[pair['a']]} ~ {names[pair['b']]}")
    return [f"{those[0] if len(those) == 1 else f'{len(those)} pairs'}: {status}" for status, those in by.items()]


def left_out(counts: Mapping[str, int]) -> str:
    """What is not compared, in one line."""
    return (
        f"not compared, since not all models have them alike: {counts['tensors']} tensors, "
        f"and {counts['rows']} vocabulary rows of one model"
    )


# --------------------------------------------------------------------------------------------------------------- tables


def _pair(found: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """The one pair there is, a line a measure."""
    [pair] = found["pairs"]
    rows = [[measure, value(pair[measure]), direction] for measure, direction in found["measures"].items()]
    return _aligned([[f"{names[pair['a']]} ~ {names[pair['b']]}", "", ""], *rows], left=(0, 2), rule=False)


def _pairs(found: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    measures = list(found["measures"])
    rows = [[names[pair["a"]], names[pair["b"]], *(value(pair[m]) for m in measures)] for pair in found["pairs"]]
    over = [
        [what, "", *(value((found["summary"].get(m) or {}).get(what)) for m in measures)]
        for what in ("mean", "min", "max")
        if found["summary"]
    ]
    return _aligned([["a", "b", *measures], *rows, *over], left=(0, 1), rule=True, apart=len(over))


def _matrices(found: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    """One triangle a measure: each model but the first against those before it, as many columns at once as fit."""
    models = found["models"]
    pairs = {(pair["a"], pair["b"]): pair for pair in found["pairs"]}
    rows, columns = models[1:], models[:-1]
    wide = 2 + max(columns_of(text) for text in [*names.values(), "000.0000"])
    at_once = max(1, (WIDTH - wide) // wide)
    parts = []
    for measure, direction in found["measures"].items():
        over = found["summary"].get(measure)
        said = f", mean {value(over['mean'])} ({value(over['min'])} to {value(over['max'])})" if over else ""
        parts.append([f"{measure}: {direction}{said}"])
        for start in range(0, len(columns), at_once):
            chosen = columns[start : start + at_once]
            lines = [
                [names[b], *(value(pairs[a, b][measure]) if (a, b) in pairs else "" for a in chosen)]
                for b in rows[start:]
            ]
            parts[-1] += _aligned([["", *(names[a] for a in chosen)], *lines], left=(0,), rule=False)
    return parts


def _divided(found: Mapping[str, Any], pair: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    """A pair's kinship by layer and by kind of module, as far as it was asked for."""
    tables = []
    for key, title in (("layers", "layer"), ("kinds", "kind")):
        if pair.get(key):
            measures = [m for m in found["measures"] if any(m in one for one in pair[key].values())]
            rows = [[part, *(value(one.get(m)) for m in measures)] for part, one in pair[key].items()]
            about = f"{names[pair['a']]} ~ {names[pair['b']]} by {title}"
            tables.append([about, *_aligned([[title, *measures], *rows], left=(0,), rule=True)])
    return tables


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int], rule: bool, apart: int = 0) -> list[str]:
    """Rows in columns, the first as heads, which break at underscores; the last `apart` rows stand apart."""
    heads = [
        text.replace("_", "_\n").split("\n") if rule and place not in left else [text]
        for place, text in enumerate(rows[0])
    ]
    depth = max(map(len, heads))
    tops = [
        [head[line - depth + len(head)] if line >= depth - len(head) else "" for head in heads] for line in range(depth)
    ]
    body = list(rows[1:])
    widths = [max(columns_of(row[place]) for row in [*tops, *body]) for place in range(len(heads))]
    rules = [["─" * width for width in widths]] if rule else []
    split = len(body) - apart
    lines = [*tops, *rules, *body[:split], *([[""] * len(widths)] if apart else []), *body[split:]]
    return [_line(line, widths, left) for line in lines]


def _line(cells: Sequence[str], widths: Sequence[int], left: Sequence[int]) -> str:
    padded = []
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - columns_of(cell))
        padded.append(cell + space if place in left else space + cell)
    return "  ".join(padded).rstrip()


# ---------------------------------------------------------------------------------------------------------------- words


def _directions(measures: Mapping[str, str]) -> list[str]:
    by = {direction: [m for m, d in measures.items() if d == direction] for direction in measures.values()}
    return _wrapped("; ".join(f"{direction}: {', '.join(those)}" for direction, those in by.items()))


def _notes(found: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """What is undefined and why, what was left out, and how the models stand to their base."""
    lines = statuses(found["pairs"], names)
    lines += [left_out(found["left_out"])] if "left_out" in found else []
    kin = {names[name]: about for name, about in (found.get("lineage") or {}).items()}
    strangers = [f"{name} to the base: {kin_words(about)}" for name, about in kin.items() if not about["kin"]]
    if kin and not strangers:
        cosines = [about["cosine"] for about in kin.values()]
        lines.append(f"all are kin to the base: cosine {min(cosines):.3f} to {max(cosines):.3f}")
    return [line for text in [*lines, *strangers] for line in _wrapped(text)]


def _nearest(name: str, found: Mapping[str, Any]) -> list[str]:
    """The base that a model comes from, with the next beside it. Among models alone nobody knows who came first."""
    (first, about), *rest = found["models"][name].items()
    kin, bases = found["nearest"][name] is not None, bool(found["bases"])
    said = {
        (True, True): "comes from", (True, False): "is nearest to",
        (False, True): "comes from none of these; least far is", (False, False): "is kin to none; least far is",
    }[kin, bases]  # fmt: skip
    lines = [f"{plain(name)} {said} {plain(first)}", f"  {plain(first)}: {kin_words(about)}", *_lowest(about)]
    return lines + [f"  next, {plain(other)}: {kin_words(far)}" for other, far in rest[:1]]


def _lowest(about: Mapping[str, Any]) -> list[str]:
    """Of kin, the layer that has moved most."""
    layer = about["lowest_layer"]
    return (
        [f"    lowest in layer {layer}: {about['layers'][str(layer)]:.3f}"]
        if about["kin"] and layer is not None
        else []
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
