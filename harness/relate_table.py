"""Kinship and gain of a table made elsewhere: read a CSV file, relate its columns, print what came out.

One line a merge. Columns: `name`; `gain`, the headline; kinship, a column for each measure, by a name of `fuse-bench
measures` or as `kinship:NAME`. And where known: `gain_mean`; `parent_mean` and `parent_gap`, the mean and the range of
the parents' scores, which are held fixed; `parents`, with | between them; `lineage`; `method`. Numbers may be blank
where unknown, but for `gain`.
"""

import csv
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.kinship import MEASURES
from fusion.params import did_you_mean
from harness import runs
from harness.errors import UsageError
from harness.merges import GIVEN
from harness.relate import kinship_vs_gain

Row = Mapping[str, Any]
PREFIX = "kinship:"
GAINS = {"best": "gain", "mean": "gain_mean"}
NUMBERS = ("gain", "gain_mean", *GIVEN)
WORDS = ("name", "parents", "lineage", "method")
ROWS = 3
SHOWN = 20
WIDTH = 80
LABEL, CELL = 34, 23
MISSING = {
    "gain_mean": "no column gain_mean: only one gain is related",
    "parent_mean": "no column parent_mean: strong parents are not held fixed",
    "parent_gap": "no column parent_gap: how unequal the parents are is not held fixed",
    "parents": "no column parents: which merges share models is not known",
    "lineage": "no column lineage: a prediction cannot leave lineages out",
    "method": "no column method: all rows count as of one method",
}


def relate_table(path: Path) -> dict[str, Any]:
    """The relation of kinship and gain in a table: {"table", "missing", ...} and all of relate.kinship_vs_gain.

    Raises UsageError with every problem of the file, each with its line and column.
    """
    header, lines = _read(path)
    rows = _rows(path, header, lines)
    missing = [said for column, said in MISSING.items() if column not in header]
    if "parents" not in header and "lineage" not in header:
        missing.append("rows are taken as independent, which merges of one family are not")
    return {"table": str(path), "missing": missing, **kinship_vs_gain(rows, gain="gain")}


# -------------------------------------------------------------------------------------------------------- reading


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns' names, and every line that is not empty with its number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text in UTF-8: {error}") from None
    reader = csv.reader(text.splitlines(keepends=True), strict=True, skipinitialspace=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: not comma-separated values ({error})") from None
    if not lines:
        raise UsageError(f"{path} is empty; its first line names the columns: name, gain, and a measure of kinship")
    (number, header), *rest = lines
    _refuse([f"{path}:{number}: {said}" for said in _columns(header)])
    return header, rest


def _columns(header: Sequence[str]) -> list[str]:
    """What is wrong with the columns."""
    known = [*WORDS, *NUMBERS, *MEASURES]
    found = [f"column '{name}' is there {count} times" for name, count in Counter(header).items() if count > 1]
    for name in dict.fromkeys(header):
        if name not in known and not (name.startswith(PREFIX) and name[len(PREFIX) :]):
            hint = "columns have commas between them" if ";" in name or "\t" in name else did_you_mean(name, known)
            found.append(f"unknown column '{name}'; {hint} (kinship of another name is written {PREFIX}NAME)")
    found += [f"there is no column '{name}'" for name in ("name", "gain") if name not in header]
    if not _measures(header):
        found.append(f"there is no column of kinship: a name of `fuse-bench measures`, or {PREFIX}NAME")
    return found


def _measures(header: Sequence[str]) -> dict[str, str]:
    """Columns of kinship, with the measure's name."""
    return {name: name.removeprefix(PREFIX) for name in header if name in MEASURES or name.startswith(PREFIX)}


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UsageError("\n".join([*problems[:SHOWN], *more]))


def _rows(path: Path, header: list[str], lines: Sequence[tuple[int, list[str]]]) -> list[dict[str, Any]]:
    """The rows as relate.kinship_vs_gain takes them."""
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for number, cells in lines:
        at = f"{path}:{number}"
        if len(cells) != len(header):
            problems.append(f"{at}: {len(cells)} cells, where the first line has {len(header)} columns")
            continue
        row = dict(zip(header, cells, strict=True))
        problems += [f"{at}: {said}" for said in _wrong_words(row)]
        if row["name"] and first.setdefault(row["name"], number) != number:
            problems.append(f"{at}: column 'name': '{row['name']}' is on line {first[row['name']]}, too")
        values = {}
        for column in (*_measures(header), *(name for name in NUMBERS if name in header)):
            values[column], wrong = _number(column, row[column])
            problems += [f"{at}: column '{column}': {wrong}"] if wrong else []
        rows.append(_row(row, values, header))
    _refuse(problems)
    if len(rows) < ROWS:
        raise UsageError(f"{path} has {len(rows)} rows; a correlation needs {ROWS}")
    return rows


def _wrong_words(row: Mapping[str, str]) -> list[str]:
    found = [f"column '{column}' is blank" for column in WORDS if column in row and not row[column]]
    parents = [parent.strip() for parent in row.get("parents", "").split("|")]
    if row.get("parents") and (len(set(parents)) < max(2, len(parents)) or "" in parents or row["name"] in parents):
        found.append(f"column 'parents': '{row['parents']}'; expected two or more other models, as in a|b")
    return found


def _number(column: str, cell: str) -> tuple[float | None, str | None]:
    """A number, or None for a blank; and what is wrong with it."""
    if not cell:
        return None, "it is blank; leave out rows without a gain" if column == "gain" else None
    try:
        value = float(cell)
    except ValueError:
        return None, f"'{cell}' is not a number"
    if not math.isfinite(value):
        return None, f"'{cell}' is not a finite number; leave unknown cells blank"
    if column == "parent_gap" and value < 0:
        return None, f"{cell} is below 0; it is the largest score of the parents less the smallest"
    return value, None


def _row(row: Mapping[str, str], values: Mapping[str, float | None], header: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": row["name"],
        "parents": [parent.strip() for parent in row["parents"].split("|")] if "parents" in row else [],
        "kinship": {name: {"mean": values[column]} for column, name in _measures(header).items()},
        "gain": {
            key: {"value": values[column]}
            for key, column in (("best", "gain"), ("mean", "gain_mean"))
            if column in values
        },
        "given": {key: values[key] for key in GIVEN if key in values},
    }
    return found | {key: row[key] for key in ("lineage", "method") if key in row}


def of_run(run: str, out: Path) -> dict[str, Any]:
    """What a run's results say of kinship and gain. Raises UsageError where it related nothing."""
    run_dir = runs.find_run(run, out)
    found: dict[str, Any] = runs.read(run_dir).get("kinship_vs_gain") or {}
    if not found.get("measures"):
        raise UsageError(
            f"{run_dir.name} measured no kinship of merges: it needs merges of two models or more, and "
            "`kinship: {base: model}` in its suite"
        )
    return found


# -------------------------------------------------------------------------------------------------------- printing


def relation_words(found: Mapping[str, Any]) -> str:
    """What a table or a run's results say, for 80 columns: a block for each measure, signed gain beside its size.

    Of a run the gains over the best parent and over the parents' mean are printed; results.json has all.
    """
    lines = _wrapped(found["says"])
    for measure, gains in found["measures"].items():
        direction = f"  ({MEASURES[measure].direction})" if measure in MEASURES else ""
        parts = [([GAINS[gain], f"size of the {GAINS[gain]}"], gains[gain]) for gain in GAINS if gain in gains]
        kin = (found.get("kin") or {}).get(measure)
        parts += [(["gain, kin alone", "its size"], kin)] if kin else []
        for titles, kinds in parts:
            lines += ["", _line(f"{measure}{direction}", titles), "-" * WIDTH]
            lines += _block([kinds["signed"], kinds["absolute"]])
        said = found["predictor"][measure].get("says")
        lines += ["", *_wrapped(said)] if said else []
    notes = dict.fromkeys([*_reasons(found), *found.get("missing", ())])
    if notes:
        lines += ["", "What is missing:", *(line for note in notes for line in _wrapped(f"- {note}", "  "))]
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


COEFFICIENTS = {
    "r": "pearson",
    "r of ranks": "spearman",
    "partial r": "partial",
    "partial r of ranks": "partial_rank",
}
INFLUENTIAL = {
    "r without one row": ("influential",),
    "r without one model": ("influential_model",),
    "r without one lineage": ("influential_lineage",),
    "partial r without one row": ("partial", "influential"),
}


def _block(leaves: Sequence[Row]) -> list[str]:
    lines = [_line("rows", [str(leaf["n"]) for leaf in leaves])]
    lines += _optional("  left out, alone in a method", [str(leaf.get("left_out", "")) for leaf in leaves])
    for label, key in COEFFICIENTS.items():
        lines += _coefficient(label, [leaf.get(key) or {} for leaf in leaves])
    for label, path in INFLUENTIAL.items():
        entries = [_at(leaf, path) for leaf in leaves]
        lines += _optional(label, [_value(entry["without"]) if entry else "" for entry in entries])
        lines += _optional("  the most influential", [_clipped(entry.get("name", "")) for entry in entries])
        lines += _optional("  without any one", [_span(entry) for entry in entries])
    lines += _optional("rows for 80 % power at this r", [str(leaf.get("needed", "")) for leaf in leaves])
    given: list[str] = next((leaf["partial"]["given"] for leaf in leaves if "given" in leaf.get("partial", {})), [])
    return lines + (_wrapped(f"partial: given {' and '.join(given)}") if given else [])


def _at(leaf: Row, path: Sequence[str]) -> Row:
    for key in path:
        leaf = leaf.get(key) or {}
    return leaf


def _coefficient(label: str, entries: Sequence[Row]) -> list[str]:
    if not any("value" in entry for entry in entries):
        return []
    return [
        _line(label, [_value(entry["value"]) if "value" in entry else "–" for entry in entries]),
        *_optional("  95 % interval", [_span(entry) if "value" in entry else "" for entry in entries]),
        *_optional("  p", [f"{entry['p']:.2g}" if "p" in entry else "" for entry in entries]),
        *_optional("  q over the measures", [f"{entry['q']:.2g}" if "q" in entry else "" for entry in entries]),
    ]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<{LABEL}}{''.join(f'{cell:>{CELL}}' for cell in cells)}".rstrip()


def _optional(label: str, cells: Sequence[str]) -> list[str]:
    return [_line(label, cells)] if any(cells) else []


def _value(value: float) -> str:
    return f"{value:+.2f}"


def _span(entry: Row) -> str:
    return f"{entry['low']:+.2f} to {entry['high']:+.2f}" if "low" in entry else ""


def _clipped(name: str) -> str:
    return name if len(name) < CELL else name[: CELL - 2] + "…"


def _reasons(found: Mapping[str, Any]) -> list[str]:
    """Why numbers are absent, each once."""
    leaves = [leaf for gains in found["measures"].values() for kinds in gains.values() for leaf in kinds.values()]
    entries = [*leaves, *(leaf.get("partial") or {} for leaf in leaves), *found["predictor"].values()]
    said = [part for entry in entries for part in str(entry.get("reason", "")).split("; ")]
    return [part for part in dict.fromkeys(said) if part]
