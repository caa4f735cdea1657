"""The verbs that make single models: `merge` a recipe file, `export` a model of a run."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion.errors import CheckpointError
from fusion.merge import check_lineage, make_room, write
from fusion.methods import METHODS
from fusion.modelref import Delta, Ensemble, ModelRef, Routed, from_json, with_pickles
from fusion.params import did_you_mean
from fusion.recipe_file import read_recipe
from harness import runs
from harness.errors import UsageError

# Each holds a tensor of the result: many would take memory that grows with the machine.
MOST_THREADS = 8


def merge_recipe(
    recipe: Path,
    out: Path,
    cache: Path,
    seed: int | None = None,
    compat: str | None = None,
    device: str = "cpu",
    allow_unrelated: bool = False,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Merge as a recipe file says; returns what `fusion.merge.write` does. What is read of corpora stays in `cache`."""
    ref = read_recipe(recipe, seed=seed, compat=compat, allow_unrelated=allow_unrelated)
    ref = with_pickles(ref) if allow_pickle else ref
    if isinstance(ref, Delta):
        row = METHODS[ref.recipe.method]
        if row.routed:
            raise UsageError(
                f"{row.name} makes one model a task, which no plain folder holds: use it in a suite, with `route:`, "
                "and then `fuse-bench export RUN MODEL OUT`, which writes it as one compact file"
            )
        if row.statistics:
            from harness.guided import with_data

            # Before hours of reading what `write` asks before its own work: is there room, and are they kin?
            make_room(out)
            check_lineage(ref)
            ref = with_data(ref, cache, device)
    return {"out": str(out), **write(ref, out, threads=cores(), device=device, check=True)}


def merged_words(report: Mapping[str, Any]) -> str:
    """What a merge came to, in a few lines."""
    actions = Counter(entry["action"] for entry in report["ledger"].values())
    counts = ", ".join(f"{count} {action}" for action, count in actions.items())
    lines = [f"{report['out']}: {report['tensors']} tensors ({counts}), {report['bytes'] / 2**20:.1f} MiB"]
    far = {name: about for name, about in report["lineage"].items() if about["cosine"] is not None}
    lines += [f"  {name}: {kin_words(about)}" for name, about in far.items()]
    if "vocabulary" in report:
        about = report["vocabulary"]
        lines.append(f"  vocabulary: {about['tokens']} tokens of {about['source']} in {about['rows']} rows")
    return "\n".join([*lines, f"  {report['digest']}"])


def cores() -> int:
    """The cores that this process may use."""
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def export(run: str, name: str, out: Path, where: Path) -> dict[str, Any]:
    """Write a model of a run as a folder; a routed one as its compact file. Returns {"out", "digest", ...}.

    Raises UsageError for a name that the run has no weights of, or weights that are not what the run has scored.
    """
    run_dir = runs.find_run(run, where)
    made = models_of(run_dir)
    if name not in made:
        raise UsageError(f"{run_dir.name} made no model '{name}'; {did_you_mean(name, made)}")
    ref, expected = made[name]
    if isinstance(ref, Ensemble):
        names = ", ".join(member for member, _ in ref.models)
        raise UsageError(f"'{name}' is an ensemble: it has no weights to write; export its models one by one: {names}")
    try:
        if isinstance(ref, Routed):
            return {"out": str(out), "digest": expected, **_export_routed(ref, out)}
        report = write(ref, out, threads=cores())
    except CheckpointError as error:
        raise UsageError(
            f"{error}\n(the store of {run_dir.name} may have been cleaned: give its `run` command again)"
        ) from error
    if report["digest"] != expected:
        raise UsageError(f"{out} is written, but is not the model that was scored: its parents have changed since")
    return {"out": str(out), **report}


def models_of(run_dir: Path) -> dict[str, tuple[ModelRef, str]]:
    """The models of a run that have weights: by name, where they are and the digest that was scored.

    Raises UsageError for a run that has not finished.
    """
    file = run_dir / "refs.json"
    if not file.is_file():
        raise UsageError(f"{run_dir} holds no refs.json: its run has not finished; give its `run` command again")
    refs = json.loads(file.read_text(encoding="utf-8"))
    return {name: (from_json(entry["ref"]), entry["digest"]) for name, entry in refs.items()}


def _export_routed(ref: Routed, out: Path) -> dict[str, Any]:
    from fusion.emr_file import write_emr

    first = next(route for _, route in ref.routes if isinstance(route, Delta))
    routes = {group: str(route.recipe.params["task"]) for group, route in ref.routes if isinstance(route, Delta)}
    return write_emr(first, out, routes)


def kin_words(about: Mapping[str, Any]) -> str:
    """A lineage, as JSON has it, in one line."""
    if about["cosine"] is None:
        return "no matrix in common: not kin"
    numbers = f"cosine {about['cosine']:.3f}, relative distance {about['distance']:.3f}"
    odd = {"reshaped": "of another shape", "missing": "missing", "extra": "extra"}
    counts = [f"{about['tensors'][key]} tensors {what}" for key, what in odd.items() if about["tensors"][key]]
    return "; ".join([numbers, *counts]) + (": kin" if about["kin"] else ": not kin")
