"""The verbs that score a model outside a suite, or look at tasks and how they were answered."""

import shlex
import sys
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
from harness.spec import CHAT


@click.command()
@click.argument("model", required=False)
@click.option("--task", "tasks", multiple=True, required=True, metavar="T", help="A task's name or file; again.")
@click.option("--limit", type=click.IntRange(1), help="Items of each task that count, in blocks of 64.")
@click.option("--batch-size", type=click.IntRange(1), help="Prompts at once; moves scores a little.  [default: 32]")
@click.option("--samples", type=click.IntRange(1), help="Programs for each problem of code tasks.  [default: 1]")
@click.option("--temperature", type=float, help="That they are drawn at.  [default: 0, or 0.2 for several]")
@click.option("--top-p", type=float, help="Share of the distribution they are drawn from.  [default: 0.95 for several]")
@click.option("--chat", type=click.Choice(CHAT), default="off", show_default=True, help="Ask in its chat template.")
@weak_sandbox_option
@click.option("--generations", type=click.Path(path_type=Path), help="Programs made elsewhere, in the place of MODEL.")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights, which could run code.")
@click.option("--trust-task-code", is_flag=True, help="Allow task files that bring Python code.")
@out_option
@store_option
@json_option
def evaluate(
    model: str | None,
    tasks: tuple[str, ...],
    limit: int | None,
    batch_size: int | None,
    samples: int | None,
    temperature: float | None,
    top_p: float | None,
    chat: str,
    allow_weak_sandbox: bool,
    generations: Path | None,
    allow_pickle: bool,
    trust_task_code: bool,
    out: Path,
    store: Path | None,
    as_json: bool,
) -> None:
    """Score MODEL, a folder or FOLDER+LORA, on tasks, as a run that `compare` and `leaderboard` take.

    Or --generations FILE: a list of programs for each problem of one code task, in the order of its data.
    """
    from harness import evaluating
    from harness.errors import UsageError
    from harness.evaluated import BATCH_SIZE

    if (model is None) == (generations is None):
        raise UsageError("give a MODEL, or --generations FILE with programs that were made elsewhere")
    if generations is not None:
        if len(tasks) > 1:
            raise UsageError("generations are of one task: give one --task")
        if limit or batch_size or samples or temperature is not None or top_p is not None or chat != "off":
            raise UsageError("all programs of --generations are judged: --limit, --samples and the like are of a MODEL")
        found = evaluating.judge_generations(
            generations, tasks[0], store_of(store) / "facts", allow_weak_sandbox, trust_task_code
        )
        print_json(found) if as_json else click.echo(evaluating.generation_words(found))
        return
    asked = evaluating.Asked(
        str(model),
        tasks,
        limit,
        batch_size or BATCH_SIZE,
        allow_weak_sandbox,
        allow_pickle,
        trust_task_code,
        samples,
        temperature,
        top_p,
        chat,
    )
    again = shlex.join(["fuse-bench", *sys.argv[1:]])
    outcome = evaluating.evaluate(asked, run_options(out, store, None, "auto", again))
    found = evaluating.scores(outcome)
    print_json(found) if as_json else click.echo(evaluating.score_words(found))
    for job, error in outcome.failed.items():
        click.echo(f"failed: {job}: {error}", err=True)
    sys.exit(1 if outcome.failed else 0)


@click.command()
@click.argument("run", default="latest")
@click.option("--model", required=True, help="A model of the run; of one with several seeds NAME@SEED.")
@click.option("--task", required=True, help="A task that it was scored on.")
@click.option("--wrong", is_flag=True, help="Only items with less than the full score.")
@click.option("--flips-against", "against", metavar="MODEL", help="Only items that this model scored otherwise on.")
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="Items to print.")
@click.option(
    "--generations-out", type=click.Path(path_type=Path), help="Write its programs as bigcode's JSON instead."
)
@out_option
@store_option
@json_option
def samples(
    run: str,
    model: str,
    task: str,
    wrong: bool,
    against: str | None,
    limit: int,
    generations_out: Path | None,
    out: Path,
    store: Path | None,
    as_json: bool,
) -> None:
    """How a model of RUN answered a task's test items: target, answer, score, what it said."""
    from harness import samples as kept

    if generations_out is not None:
        from harness import generations

        count = generations.write(run, model, task, generations_out, out, store_of(store))
        said = {"file": str(generations_out), "problems": count}
        print_json(said) if as_json else click.echo(f"{generations_out}: programs for {count} problems")
        return
    found = kept.samples(run, model, task, out, store_of(store), wrong, against)
    print_json(found) if as_json else click.echo(kept.words(found, limit))


@click.command()
@store_option
@json_option
def tasks(store: Path | None, as_json: bool) -> None:
    """The tasks that are shipped. lm-eval's work by their names, and any task file by its path."""
    from harness.report import print_rows, task_rows

    found = task_rows(store_of(store))
    if as_json:
        print_json(found)
    else:
        print_rows(found)
        click.echo("lm-eval's tasks, groups and tags by their names: bbh_cot_fewshot, leaderboard_bbh, gsm8k, ...")


@click.command()
@click.argument("suite")
@store_option
@json_option
def fetch(suite: str, store: Path | None, as_json: bool) -> None:
    """Download the models and data sets of SUITE, so that it runs later without a network.

    Exits 1 where something could not be had; all else is here then.
    """
    from harness import fetching
    from harness.suite import find

    found = fetching.fetch(find(suite), store_of(store))
    print_json(fetching.as_json(found)) if as_json else click.echo(fetching.words(found))
    sys.exit(1 if any(one.error for one in found) else 0)
