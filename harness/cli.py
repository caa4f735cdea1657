"""The verbs. Each parses, calls one function, and lets an error become a message and an exit code.

Nothing heavy is imported at start-up: every verb imports what it needs.
"""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click

from harness.cli_common import (
    json_option,
    out_option,
    print_json,
    run_options,
    store_of,
    store_option,
    weak_sandbox_option,
)
from harness.cli_models import align, export, fuse, kinship, lineage, merge, overlap, relate
from harness.cli_tasks import evaluate, fetch, samples, tasks
from harness.errors import FuseBenchError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main() -> None:
    """Run the command line: a fault of ours keeps its traceback, one of the user's has a message and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FuseBenchError as error:
        _say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # The engine's errors are only known once the engine was imported.
        errors = sys.modules.get("fusion.errors")
        if errors is None or not isinstance(error, errors.FusionError):
            raise
        _say(error)
        sys.exit(2)


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="fuse-bench")
def cli() -> None:
    """Build merged and fused language models, score them and their sources, and say which is really better."""


seed_option = click.option("--seed", type=int, help="Another seed than the suite's.")


@cli.command()
@click.argument("suite")
@seed_option
@click.option("--jobs", "slots", type=click.IntRange(1), help="Jobs at once.  [default: one a GPU, else one a core]")
@click.option("--progress", type=click.Choice(["auto", "rich", "plain", "none"]), default="auto", show_default=True)
@out_option
@store_option
@weak_sandbox_option
@click.option("--smoke", is_flag=True, help="Rehearse it in minutes with tiny random models, two samples a task.")
@json_option
def run(
    suite: str,
    seed: int | None,
    allow_weak_sandbox: bool,
    smoke: bool,
    slots: int | None,
    progress: str,
    out: Path,
    store: Path | None,
    as_json: bool,
) -> None:
    """Build, score and compare what SUITE names. SUITE is a file, or the name of a shipped suite.

    What is in the store already is not done again; an interrupted run goes on where it was.
    Exits 1 when a job failed (the results of the others are written), 130 after Ctrl-C.
    """
    from harness.report import print_outcome
    from harness.run import run as run_suite
    from harness.suite import find

    again = shlex.join(["fuse-bench", *sys.argv[1:]])
    outcome = run_suite(
        find(suite),
        replace(run_options(out, store, slots, progress, again, seed), smoke=smoke, weak_sandbox=allow_weak_sandbox),
    )
    if as_json:
        print_json(
            {
                "run_dir": str(outcome.run_dir),
                "results": str(outcome.run_dir / "results.json"),
                "jobs": outcome.jobs,
                "seconds": outcome.seconds,
            }
        )
    else:
        print_outcome(outcome)
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
    for job, error in outcome.failed.items():
        click.echo(f"failed: {job}: {error}", err=True)
    sys.exit(1 if outcome.failed else 0)


@cli.command()
@click.argument("suite")
@seed_option
@out_option
@store_option
@json_option
def plan(suite: str, seed: int | None, out: Path, store: Path | None, as_json: bool) -> None:
    """Show the jobs of SUITE: what is cached, what is pending and why, and what disk and memory it needs."""
    from harness.report import plan_json, print_plan, survey
    from harness.suite import find

    surveyed = survey(find(suite), run_options(out, store, None, "none", seed=seed))
    if as_json:
        print_json(plan_json(surveyed))
    else:
        print_plan(surveyed)


@cli.command()
@click.argument("a")
@click.argument("b")
@click.option("--group", help="Compare on this group alone.")
@click.option("--over", multiple=True, metavar="RUN", help="Again for each seed: each run's A against its own B.")
@out_option
@json_option
def compare(a: str, b: str, group: str | None, over: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Is A better than B? Paired on samples. A model is [RUN:]NAME; without RUN, of the latest run.

    A swept row stands for its point that was best on dev.
    """
    from harness.compare import compare as compare_models
    from harness.compare import table

    found = compare_models(a, b, group, out, over)
    if as_json:
        print_json(found)
    else:
        click.echo(table(found))


@cli.command()
@click.argument("run", default="latest")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "wide", "md", "csv", "json", "html"]),
    default="text",
    show_default=True,
)
@out_option
@json_option
def leaderboard(run: str, form: str, out: Path, as_json: bool) -> None:
    """The ranked table of RUN: a folder, a suite's name (its last run), or `latest`."""
    from harness import html, runs
    from harness import leaderboard as board

    results = runs.read(runs.find_run(run, out))
    forms = {
        "text": board.text,
        "wide": lambda results: board.text(results, None),
        "md": board.markdown,
        "csv": board.csv_text,
        "json": board.json_text,
        "html": html.page,
    }
    click.echo(forms["json" if as_json else form](results), nl=False)


@cli.command()
@click.argument("run", default="latest")
@click.option("--uri", help="Where to send it.  [default: mlflow.db beside the run folders]")
@out_option
@json_option
def track(run: str, uri: str | None, out: Path, as_json: bool) -> None:
    """Send the results of RUN to MLflow (again). What is there already is not sent twice."""
    from harness.report import send

    tracked = send(run, uri, out)
    if as_json:
        print_json(tracked)
    else:
        click.echo("\n".join(f"{key}: {value}" for key, value in tracked.items()))


@cli.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@store_option
@json_option
def gc(dry_run: bool, store: Path | None, as_json: bool) -> None:
    """Remove from the store what no run folder needs. A run folder that you delete is no longer kept for."""
    from harness.runs import live_keys
    from harness.store import Store

    opened = Store(store_of(store))
    with opened.in_use(alone=True):
        gone = opened.collect(live_keys(opened), dry_run=dry_run)
    size = sum(entry[1] for entry in gone)
    if as_json:
        print_json({"removed": [key for key, _ in gone], "bytes": size, "dry_run": dry_run})
    else:
        click.echo(f"{'would remove' if dry_run else 'removed'} {len(gone)} objects, {size / 2**20:.1f} MiB")


@cli.command()
@json_option
def methods(as_json: bool) -> None:
    """The ways to merge and fuse, with their formulas, parameters and papers."""
    from harness.report import method_rows, print_rows

    print_json(method_rows()) if as_json else print_rows(method_rows())


@cli.command()
@json_option
def measures(as_json: bool) -> None:
    """The measures of kinship, with their formulas and sources."""
    from harness.report import measure_rows, print_rows

    print_json(measure_rows()) if as_json else print_rows(measure_rows())


@cli.command()
@json_option
def suites(as_json: bool) -> None:
    """The suites that are shipped."""
    from harness.report import print_rows, suite_rows

    print_json(suite_rows()) if as_json else print_rows(suite_rows())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="It is JSON either way.")
def schema(as_json: bool) -> None:
    """The JSON Schema of a suite file, for editors."""
    from harness.schema import schema as suite_schema

    print_json(suite_schema())


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("suite.yaml"))
@json_option
def init(path: Path, as_json: bool) -> None:
    """Write a small suite to start from: two checkpoints, their base, and the merges that people try first."""
    from harness.report import write_starter

    said = write_starter(path)
    print_json({"suite": str(path)}) if as_json else click.echo(said)


@cli.command()
@click.option("--install", type=click.Choice(["bigcode"]), help="Make the environment that tasks bigcode/NAME need.")
@store_option
@json_option
def doctor(install: str | None, store: Path | None, as_json: bool) -> None:
    """What this machine has: cores, memory, GPUs, library versions, sandbox levels, languages, the store."""
    from harness import bigcode
    from harness.report import diagnosis, print_rows

    if install:
        bigcode.install(bigcode.where(store_of(store)), lambda line: click.echo(line, err=True))
    found = diagnosis(store_of(store))
    print_json(found) if as_json else print_rows([{"name": key, "is": value} for key, value in found.items()])


for verb in (evaluate, fetch, samples, tasks, merge, fuse, align, overlap, export, lineage, kinship, relate):
    cli.add_command(verb)


def _say(error: Exception) -> None:
    text = str(error)
    click.echo(text if text.startswith("error") else f"error: {text}", err=True)
