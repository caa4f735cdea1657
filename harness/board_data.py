"""The leaderboard for programs: CSV with one line a model, and JSON."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from harness.board import COSTS, LEGEND, Board, Published, Row, board, number

SCHEMA = 1


def csv_text(results: Mapping[str, Any]) -> str:
    """Everything as numbers, one line a model, the unscored ones too; an absent value is an empty cell.

    What is published elsewhere follows, of kind "published".
    """
    found = board(results)
    records = [_record(found, row) for row in (*found.rows, *found.left_out)]
    records += [_published(one) for one in found.published]
    header = list(dict.fromkeys(key for record in records for key in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def json_text(results: Mapping[str, Any]) -> str:
    """{"schema", "suite", "models": [ranked], "not_scored", "published", "kinship_vs_gain", "legend"}.

    Absent is absent.
    """
    found = board(results)
    document = {
        "schema": SCHEMA,
        "suite": found.suite,
        "models": [_entry(row) for row in found.rows],
        "not_scored": [{"name": row.name, "kind": row.kind, "reason": row.reason} for row in found.left_out],
        "not_numbers": list(found.damaged),
        "published": [{"name": one.name, "kind": "published", **one.entry} for one in found.published] or None,
        "kinship_vs_gain": results.get("kinship_vs_gain"),
        "legend": LEGEND,
    }
    return json.dumps(_clean(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
    record |= {f"clean.{key}": row.number("clean_score", key) for key in ("value", "stderr", "n")}
    for group in found.groups:
        record |= {f"{group}.{key}": row.number("scores", group, key) for key in ("value", "stderr", "n")}
    for group, task in found.tasks:
        path = ("scores", group, "tasks", task)
        record |= {f"{group}/{task}.{key}": row.number(*path, key) for key in ("value", "stderr", "n", "chance")}
    for gain in found.gains:
        record |= {f"gain.{gain}.{key}": row.number("gain", gain, key) for key in ("value", "low", "high", "p")}
        record[f"gain.{gain}.against"] = ((entry.get("gain") or {}).get(gain) or {}).get("against")
    record["gain.best.p_holm"] = row.p_holm
    for group in found.texts:
        record |= {f"bits_per_byte.{group}.{key}": row.number("text", group, key) for key in ("value", "stderr", "n")}
        for other in found.savings:
            name, keys = f"bits_per_byte.{group}.saved.{other}", ("value", "low", "high", "p")
            record |= {f"{name}.{key}": row.number("text_gain", group, other, key) for key in keys}
            saved = ((entry.get("text_gain") or {}).get(group) or {}).get(other) or {}
            record[f"{name}.against"] = saved.get("against")
    if any(other.taught for other in found.rows):
        record["taught"] = row.taught or None
    for measure in found.measures:
        record |= {f"kinship.{measure}.{key}": row.number("kinship", measure, key) for key in ("mean", "min", "max")}
    record |= {f"cost.{key}": row.number("cost", key) for key in COSTS}
    return {key: _whole(value) for key, value in record.items()}


def _published(one: Published) -> dict[str, Any]:
    """A line of what a paper reports: the groups' and tasks' values, under the names that ours have."""
    record: dict[str, Any] = {"model": one.name, "kind": "published", "source": one.source}
    record |= {"beside": one.entry.get("beside"), "note": one.note}
    for group, score in (one.entry.get("scores") or {}).items():
        record[f"{group}.value"] = one.score(group)
        for task in score.get("tasks") or {}:
            record[f"{group}/{task}.value"] = number(one.entry, "scores", group, "tasks", task)
    return record


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
