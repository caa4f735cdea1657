"""What comes out of the benchmark's runs: medians, ratios, and a table."""

import statistics
from typing import Any

# At most this much of mergekit's wall time, and of its memory.
WALL = {"ties": 0.25, "sce": 0.25, "dare_ties": 0.25, "breadcrumbs": 0.25, "della": 0.25}
WALL |= {"slerp": 0.4, "model_stock": 0.4, "linear": 0.65, "task_arithmetic": 0.65}
MEMORY = 0.5
# Processor seconds of others, per second of wall time, from which a run counts as disturbed.
DISTURBED = 0.2
# A copy of fewer seconds says nothing.
SHORT = 0.05


def summary(report: dict[str, Any]) -> None:
    """Put the medians and ratios of all runs into the report, in place."""
    for name, part in report["sets"].items():
        for found in part["methods"].values():
            found["median"] = {tool: _median(found[tool]) for tool in ("ours", "mergekit")}
            found["median"]["copy"] = statistics.median(found["copy"])
            found["ratio"] = _ratios(found["median"])
        if name == "9000" and "start" in report["sets"]:
            _overheads(part, report["sets"]["start"])


def markdown(report: dict[str, Any]) -> str:
    """The table for people."""
    machine, versions, options = report["machine"], report["versions"], report["options"]
    mode = "`--compat mergekit`" if options["compat"] else "its defaults (the papers')"
    lines = [
        f"# Merging beside mergekit {versions['mergekit']['mergekit']}, {report['date'][:10]}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; torch {versions['ours']['torch']}; "
        f"fuse-bench {versions['ours']['commit']}, by {mode}. Medians of {options['runs']}, ours and mergekit's in "
        f"turns, inputs in the page cache, process start included. mergekit computes in {options['dtype']}. "
        "Memory: peak of RssAnon + RssShmem over the tree of processes. "
        "Copy: reading all inputs and writing as much as the result.",
    ]
    for name, part in report["sets"].items():
        size = f"{part['parameters'] / 1e6:,.0f} M" if part["parameters"] >= 1e6 else f"{part['parameters']:,}"
        lines += [
            "",
            f"## {name}: base + {part['models']} models of {size} parameters, {part['tensors']:,} tensors",
            "",
        ]
        overheads = any("overhead_ms" in found for found in part["methods"].values())
        head = ["method", "ours s", "mergekit s", "ratio", "goal", "ours GiB", "mergekit GiB", "ratio", "x of copy"]
        head += ["ours ms a tensor", "mergekit ms a tensor"] if overheads else []
        lines += [_row([*head, "disturbed"]), _row(["---"] * (len(head) + 1))]
        lines += [_row(_cells(method, found, overheads)) for method, found in part["methods"].items()]
    return "\n".join(lines) + "\n"


def _median(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the runs that were finished. None where one failed; only a lower bound where one was given up."""
    if not runs or any(run["error"] and not run["timed_out"] for run in runs):
        return None
    values = {key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak", "others")}
    return values | {"at_least": any(run["timed_out"] for run in runs)}


def _ratios(median: dict[str, Any]) -> dict[str, float]:
    ours, theirs = median["ours"], median["mergekit"]
    found = {}
    if ours and median["copy"] >= SHORT:
        found["copy"] = ours["wall"] / median["copy"]
    if ours and theirs:
        found |= {"wall": ours["wall"] / theirs["wall"], "peak": ours["peak"] / theirs["peak"]}
    return found


def _overheads(part: dict[str, Any], start: dict[str, Any]) -> None:
    """Milliseconds a tensor beyond what a merge of a dozen tensors takes."""
    more = part["tensors"] - start["tensors"]
    for method, found in part["methods"].items():
        first = start["methods"].get(method, {}).get("median", {})
        found["overhead_ms"] = {
            tool: 1000 * (found["median"][tool]["wall"] - first[tool]["wall"]) / more
            for tool in ("ours", "mergekit")
            if found["median"][tool] and first.get(tool)
        }


def _cells(method: str, found: dict[str, Any], overheads: bool) -> list[str]:
    ours, theirs, ratio = found["median"]["ours"], found["median"]["mergekit"], found["ratio"]
    bound = "< " if theirs and theirs["at_least"] else ""
    least = "> " if bound else ""
    busy = max((median["others"] / median["wall"] for median in (ours, theirs) if median), default=0.0)
    cells = [
        method,
        f"{ours['wall']:.2f}" if ours else "failed",
        f"{least}{theirs['wall']:.2f}" if theirs else "failed",
        f"{bound}{ratio['wall']:.2f}" if "wall" in ratio else "",
        f"{WALL[method]:.2f}",
        f"{ours['peak'] / 2**30:.2f}" if ours else "",
        f"{theirs['peak'] / 2**30:.2f}" if theirs else "",
        f"{ratio['peak']:.2f}" if "peak" in ratio else "",
        f"{ratio['copy']:.2f}" if "copy" in ratio else "",
    ]
    if overheads:
        per = {tool: f"{value:.2f}" for tool, value in found.get("overhead_ms", {}).items()}
        cells += [per.get("ours", ""), least + per["mergekit"] if "mergekit" in per else ""]
    return [*cells, f"{busy:.1f} cores" if busy > DISTURBED else ""]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
