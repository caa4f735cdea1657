"""What the smaller verbs print: plans, tables of methods and tasks, a run's last words, what this machine has."""

import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from harness.errors import UsageError
from harness.execute.local import default_slots
from harness.facts import Missing
from harness.run import Options, Outcome, free_bytes
from harness.status import Status
from harness.store import disk_errors

STARTER = """\
# fuse-bench run {name}        (fuse-bench plan {name} shows what that will do)
suite: my-comparison
seed: 17

models:
  base:     {{from: ./checkpoints/base}}        # the model that the others were fine-tuned from
  chat:     {{from: ./checkpoints/chat}}        # a folder, or a hub repository as owner/name
  maths:    {{from: ./checkpoints/maths}}

candidates:
  average:  {{method: linear, models: [chat, maths]}}
  ties:     {{method: ties, base: base, models: [chat, maths], density: {{sweep: [0.3, 0.5]}}}}
  slerp:    {{method: slerp, models: [chat, maths]}}

evaluate:                                     # a task: a shipped name, an lm-eval name, or the path of a task file
  commonsense: {{tasks: [arc_easy, piqa], limit: 500}}

split: {{dev: 0.3}}                             # sweeps are chosen on dev, the leaderboard reports the rest
kinship: {{base: base}}
track: {{mlflow: sqlite}}
"""


def print_outcome(outcome: Outcome) -> None:
    """The ranked table, where the files lie, and how to open MLflow."""
    from harness import leaderboard

    width = shutil.get_terminal_size((80, 24)).columns
    click.echo(leaderboard.text(outcome.results, max(80, width)))
    jobs = outcome.jobs
    parts = [
        f"{jobs[key]} {key}" for key in ("ran", "cached", "failed", "skipped") if jobs[key] or key in ("ran", "cached")
    ]
    click.echo(f"{jobs['total']} jobs: {', '.join(parts)}; {outcome.seconds:.0f} s")
    click.echo(f"results:     {shown(outcome.run_dir / 'results.json')}")
    for name, folder in outcome.kept.items():
        click.echo(f"weights:     {shown(folder)}  ({name})")
    click.echo(f"leaderboard: {shown(outcome.run_dir / 'leaderboard.html')}  (and .md, .csv, .json)")
    if outcome.ui:
        click.echo(f"MLflow:      {outcome.ui}")


def shown(path: Path) -> str:
    """A path as short as the working folder allows."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


MEASURED_FROM = {
    "weights": "needs the models' weights, and those of their base",
    "texts": "needs texts that every model reads: --texts FILE.jsonl",
    "records": "needs what a run has scored: --run RUN",
}


@dataclass(frozen=True)
class Survey:
    """A plan with its state. Bytes are None where no model's size is known yet; `missing` would be fetched first.

    chat: who is asked in a chat template, in words.
    """

    suite: str
    states: list[Status]
    disk_needed: int | None
    disk_free: int
    memory_needed: int | None
    memory: int
    gpus: int
    slots: int
    missing: tuple[Missing, ...]
    chat: str | None


def survey(path: Path, options: Options) -> Survey:
    """What `run` would do now. Nothing is fetched."""
    from harness.chat import words
    from harness.facts import gather
    from harness.plan import plan
    from harness.status import failures, needs, previous_plan, status
    from harness.store import Store
    from harness.suite import load

    suite = load(path, options.seed, planning=True)
    store = Store(options.store)
    planned = plan(suite, gather(suite, store, offline=True))
    folders = [p.parent for p in options.out.glob(f"{suite.name}-*/plan.json")]
    run_dir = options.out / f"{suite.name}-{suite.digest[:8]}"
    states = status(planned, store, previous_plan(folders), failures(run_dir))
    needed = needs(planned, store, states)
    known = bool(needed["memory"])  # a model that is not here has no size
    slots = options.slots or default_slots(planned.facts.gpus)
    return Survey(
        suite=suite.name,
        states=states,
        disk_needed=needed["disk"] if known else None,
        disk_free=free_bytes(options.store),
        memory_needed=needed["memory"] if known else None,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=len(planned.facts.gpus),
        slots=slots,
        missing=planned.facts.missing,
        chat=words(list(suite.models), planned.chat),
    )


def plan_json(found: Survey) -> dict[str, Any]:
    """The survey as JSON: every job with state and reason, then the needs."""
    jobs = [{"id": s.job.id, "kind": s.job.kind, "state": s.state, "reason": s.reason} for s in found.states]
    disk = {"needed": found.disk_needed, "free": found.disk_free}
    memory = {"largest_model": found.memory_needed, "workers": found.slots, "machine": found.memory}
    missing = [{"kind": m.kind, "name": m.name, "tasks": m.count, "text": str(m)} for m in found.missing]
    return {
        "suite": found.suite, "jobs": jobs, "missing": missing, "disk": disk, "memory": memory, "gpus": found.gpus,
        **({"chat": found.chat} if found.chat else {}),
    }  # fmt: skip


def print_plan(found: Survey) -> None:
    """Models job by job; scoring summed up by model and group; then counts and needs."""
    click.echo(f"{found.suite}: {len(found.states)} jobs\n")
    for line in _plan_lines(found.states):
        click.echo(line)
    click.echo()
    for kind in dict.fromkeys(s.job.kind for s in found.states):
        mine = [s for s in found.states if s.job.kind == kind]
        cached = sum(s.state == "cached" for s in mine)
        click.echo(f"{kind:>9}: {len(mine):>5} jobs, {cached} cached")
    disk = "not known before the first is made" if found.disk_needed is None else f"about {gib(found.disk_needed)}"
    for line in ["", *_wrapped(found.chat)] if found.chat else []:
        click.echo(line)
    for line in _missing_lines(found.missing):
        click.echo(line)
    click.echo(f"\ndisk for weights still to be made: {disk}; free in the store: {gib(found.disk_free)}")
    if found.memory_needed is not None:
        each = f"{found.slots} workers with a model of {gib(found.memory_needed)} each"
        click.echo(f"memory: {each} and about 0.6 GiB beside it; this machine has {gib(found.memory)}")
    if found.disk_needed is not None and found.disk_needed > found.disk_free:
        click.echo(
            "warning: that is more than is free; `fuse-bench gc` removes what no run needs, `keep: none` writes less"
        )


def _missing_lines(missing: Sequence[Missing]) -> list[str]:
    """What is not here, and what that keeps out of the plan."""
    fetched = [str(one) for one in missing if one.kind in ("model", "tasks")]
    lines = ["", *_wrapped(f"not here: {', '.join(fetched)}: would be fetched by run")] if fetched else []
    if any(one.kind == "tasks" for one in missing):
        lines.append("the evaluation jobs of those tasks are not counted: their items are not known yet")
    made = [str(one) for one in missing if one.kind == "corpus"]
    lines += _wrapped(f"not here: {', '.join(made)}: yours to make before run") if made else []
    return lines + [line for one in missing if one.kind == "sandbox" for line in ["", *_wrapped(f"not here: {one}")]]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def _plan_lines(states: Sequence[Status]) -> list[str]:
    scoring: dict[tuple[str, str], list[Status]] = {}
    lines = []
    for one in states:
        if one.job.kind in ("generate", "judge"):
            _, model, rest = one.job.id.split(" ", 2)
            scoring.setdefault((model, rest.partition("/")[0]), []).append(one)
        else:
            lines.append(_line(one.state, one.job.id, one.reason))
    for (model, group), mine in scoring.items():
        left = [s for s in mine if s.state != "cached"]
        state = "cached" if not left else "failed" if any(s.state == "failed" for s in left) else "pending"
        reason = "" if not left else f"{len(left)} of {len(mine)} jobs: {left[0].reason}"
        lines.append(_line(state, f"score {model} on {group}", reason))
    return lines


def _line(state: str, what: str, reason: str) -> str:
    return f"  {state:<8} {what}" + (f"  ({reason})" if reason else "")


def send(run: str, uri: str | None, out: Path) -> dict[str, Any]:
    """Send a run's results to MLflow."""
    from harness import runs
    from harness.track import track, ui_command

    run_dir = runs.find_run(run, out)
    target = uri or f"sqlite:///{out.absolute() / 'mlflow.db'}"
    tracked = track(runs.read(run_dir), run_dir, target)
    if tracked.hint:
        raise UsageError(tracked.hint)
    counts = {"sent": len(tracked.sent), "already": len(tracked.already)}
    return {"uri": target, "experiment": tracked.experiment, **counts, "ui": ui_command(target)}


# ------------------------------------------------------------------------------------------------------ tables of names


def method_rows() -> list[dict[str, Any]]:
    """METHODS and BUILDERS, for people and programs."""
    from fusion.builders import BUILDERS
    from fusion.methods import METHODS
    from fusion.params import describe

    merges = [
        {
            "name": m.name, "kind": "merged", "formula": m.formula, "paper": m.paper, "base": m.base,
            "models": list(m.models), "random": m.random, "statistics": m.statistics, "routed": m.routed,
            "parameters": describe(m.Params),
        }
        for m in METHODS.values()
    ]  # fmt: skip
    builds = [
        {
            "name": b.name, "kind": b.kind, "formula": b.formula, "paper": b.paper, "parameters": describe(b.Params),
            "roles": [role.name for role in b.roles],
        }
        for b in BUILDERS.values()
    ]  # fmt: skip
    return [*merges, *builds, _ensemble_row()]


def _ensemble_row() -> dict[str, Any]:
    from fusion.ensemble import COMBINE, GIVEN

    return {
        "name": "ensemble",
        "kind": "ensemble",
        "formula": "the models' next-token distributions, combined for every token",
        "paper": "routed: arXiv:2210.05320; perplexity_weighted: arXiv:2404.11531",
        "parameters": [
            {
                "name": "combine",
                "type": "text",
                "per_model": False,
                "required": True,
                "default": None,
                "low": None,
                "high": None,
                "choices": list(COMBINE),
                "help": f"how; {' and '.join(sorted(GIVEN))} take weights, routed needs corpora",
            }
        ],
    }


def measure_rows() -> list[dict[str, Any]]:
    """MEASURES, for people and programs."""
    from fusion.kinship import MEASURES

    return [
        {
            "name": m.name, "formula": m.formula, "source": m.source, "direction": m.direction, "needs": m.needs,
            "cost": m.cost,
        }
        for m in MEASURES.values()
    ]  # fmt: skip


def task_rows(store: Path) -> list[dict[str, Any]]:
    """The shipped tasks with what is scored and what guessing would score; then those that read other people's data."""
    from harness import bigcode
    from harness.tasks import benchmarks, describe, shipped

    tasks = describe(shipped(), Path(), store / "facts").values()
    rows: list[dict[str, Any]] = [
        {
            "name": task.name, "about": f"{task.kind}, {task.metric}, {len(task.items)} items, chance {task.chance}",
            "metric": task.metric, "items": len(task.items), "task_kind": task.kind, "chance": task.chance,
            "version": task.version,
        }
        for task in tasks
    ]  # fmt: skip
    rows += [{"name": name, "about": _first_comment(path)} for name, path in benchmarks().items()]
    venv = bigcode.where(store)
    if bigcode.missing(venv) is None:
        known = {name: why for name, why in bigcode.catalogue(venv).items() if why is None}
        rows += [{"name": bigcode.PREFIX + name, "about": "of bigcode-evaluation-harness"} for name in known]
    return rows


def _first_comment(path: Path) -> str:
    """What a file's opening comment says, up to its first full stop."""
    lines = path.read_text(encoding="utf-8").splitlines()
    words = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return words.partition(". ")[0].rstrip(".")


def suite_rows() -> list[dict[str, Any]]:
    """The shipped suites, each with the first line of its opening comment."""
    from suites import shipped

    rows = []
    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append({"name": name, "about": first.lstrip("# ")})
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Entries with their names in front; parameters below, one a line."""
    width = max((len(str(row["name"])) for row in rows), default=0)
    for row in rows:
        rest = [
            str(row[key]) for key in ("about", "formula", "paper", "source", "direction", "cost", "is") if row.get(key)
        ]
        click.echo(f"{row['name']:<{width}}  {rest[0] if rest else ''}")
        for text in rest[1:]:
            click.echo(f"{'':<{width}}  {text}")
        if row.get("roles"):
            click.echo(f"{'':<{width}}  needs {', '.join(row['roles'])}")
        for line in _needs(row):
            click.echo(f"{'':<{width}}  {line}")
        for parameter in row.get("parameters", ()):
            click.echo(f"{'':<{width}}    {_parameter(parameter)}")


def _needs(row: Mapping[str, Any]) -> list[str]:
    """What a method takes besides parameters, or what a measure is computed from."""
    lines = [MEASURED_FROM[row["needs"]]] if row.get("needs") else []
    if row.get("models"):
        least, most = row["models"]
        count = f"{least} or more" if most is None else f"{least}" if least == most else f"{least} to {most}"
        base = {"required": ", and a base", "optional": ", and a base if you like"}.get(row["base"], "")
        lines.append(f"takes {count} model{'' if count == '1' else 's'}{base}")
    if row.get("statistics"):
        lines.append("reads text of each model's own domain: corpora: {model: corpus}")
    if row.get("routed"):
        lines.append("makes one model a task: route: {group: model}")
    if row.get("random"):
        lines.append("draws at random: seeds: [1, 2, 3] makes replicates")
    return lines


def _parameter(parameter: Mapping[str, Any]) -> str:
    limits = [f">= {parameter['low']}" if parameter["low"] is not None else ""]
    limits.append(f"<= {parameter['high']}" if parameter["high"] is not None else "")
    own = "may differ by model" if parameter.get("per_model") else ""
    kind = ", ".join([parameter["type"], *filter(None, [*limits, own])])
    default = "required" if parameter["required"] else f"default {parameter['default']}"
    return f"{parameter['name']}: {parameter['help']} ({kind}; {default})"


def write_starter(path: Path) -> str:
    """Write a suite to start from, where no file is; returns what to do next."""
    if path.exists():
        raise UsageError(f"{path} is there already; give another name")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STARTER.format(name=path), encoding="utf-8")
    return f"wrote {path}: put your models' folders in, then\n  fuse-bench plan {path}\n  fuse-bench run {path}"


def diagnosis(store: Path) -> dict[str, str]:
    """What a question about a failing run should be asked with."""
    from harness import bigcode, sandbox
    from harness.facts import environment
    from harness.sandbox import languages

    found = environment()
    machine = found["machine"]
    tools = {name: said if here else f"no ({said})" for name, (here, said) in languages.probe().items()}
    return {
        "cores": str(machine["cores"]),
        "memory": f"{machine['memory_gib']} GiB",
        "gpus": str(machine["gpus"]) if machine["gpus"] else "none: everything runs on the CPU",
        "store": f"{store}, {gib(free_bytes(store))} free",
        "sandbox": "; ".join(f"{level}: {why or 'yes'}" for level, why in sandbox.probe().items()),
        **{f"language {name}": said for name, said in tools.items()},
        "bigcode": bigcode.missing(bigcode.where(store)) or "installed",
        **{name: text for name, text in found["versions"].items()},
    }
