"""The verbs that make or look at single models, tokenizers and texts, without a suite."""

from pathlib import Path
from typing import Any

import click

from harness.cli_common import json_option, out_option, print_json, store_of, store_option


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=int, help="Seed of random methods, instead of the recipe's.")
@click.option(
    "--compat", type=click.Choice(["mergekit"]), help="That tool's numbers where they differ from the paper's."
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda (all GPUs), cuda:1.")
@click.option("--allow-unrelated", is_flag=True, help="Merge models that share no ancestor, too.")
@click.option(
    "--allow-pickle", is_flag=True, help="Read pickled weights, which could run code, where there are no others."
)
@store_option
@json_option
def merge(
    recipe: Path,
    out: Path,
    seed: int | None,
    compat: str | None,
    device: str,
    allow_unrelated: bool,
    allow_pickle: bool,
    store: Path | None,
    as_json: bool,
) -> None:
    """Merge models as the file RECIPE says, into the new folder OUT, which transformers can load.

    RECIPE is our own YAML or an unmodified recipe of mergekit. OUT gets a model card that says what was done.
    """
    from harness.merging import merge_recipe, merged_words

    cache = store_of(store) / "statistics"
    report = merge_recipe(recipe, out, cache, seed, compat, device, allow_unrelated, allow_pickle)
    print_json(report) if as_json else click.echo(merged_words(report))


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=int, help="Another seed than the recipe's.")
@store_option
@json_option
def fuse(recipe: Path, out: Path, seed: int | None, store: Path | None, as_json: bool) -> None:
    """Train a model by others' distributions as the file RECIPE says, into the new folder OUT.

    RECIPE is YAML: method, target, teachers, corpus, seed and the method's parameters (see: fuse-bench methods).
    Interrupted, the same command goes on where it was. A fusion wants a control: `method: clm`, all else the same.
    """
    from harness.display import stages
    from harness.fusing import fuse_recipe, fused_words

    with stages() as progress:
        report = fuse_recipe(recipe, out, store_of(store), seed, progress)
    if report is not None:
        print_json(report) if as_json else click.echo(fused_words(report))


@click.command()
@click.option("--source", required=True, type=click.Path(path_type=Path), help="The teacher's tokenizer.")
@click.option("--target", required=True, type=click.Path(path_type=Path), help="The target's tokenizer.")
@click.option("--text", type=click.Path(path_type=Path), help="Text to align: a .jsonl corpus, or plain text.")
@click.option(
    "--alignment",
    type=click.Choice(["bytes", "min_ed", "exact"]),
    default="bytes",
    show_default=True,
    help="By the text's bytes, or by edit distances with the nearest or the same token (FuseLLM's MinED and EM).",
)
@click.option("--compat", type=click.Choice(["fusellm-v1"]), help="The published code's rules, its defects included.")
@click.option("--map", "map_file", type=click.Path(path_type=Path), help="Write {source id: target id or null} here.")
@json_option
def align(
    source: Path,
    target: Path,
    text: Path | None,
    alignment: str,
    compat: str | None,
    map_file: Path | None,
    as_json: bool,
) -> None:
    """How well two tokenizers meet: which tokens of --source have one of --target, and which positions of a text.

    A tokenizer is a folder that holds one, or a tokenizer.json.
    """
    from harness.aligning import align_report, align_words

    found = align_report(source, target, text, alignment, compat, map_file)
    print_json(found) if as_json else click.echo(align_words(found))


@click.command()
@click.argument("corpus")
@click.option("--tasks", "named", required=True, metavar="TASK,...", help="Tasks by name or file, with commas between.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of a generated corpus (pocket/...).")
@json_option
def overlap(corpus: str, named: str, seed: int, as_json: bool) -> None:
    """Which items of tasks occur in CORPUS, a .jsonl file: items that share 13 words in a row with a document."""
    from harness.overlap import overlap_report, overlap_words

    found = overlap_report(corpus, [name.strip() for name in named.split(",")], Path.cwd(), seed)
    print_json(found) if as_json else click.echo(overlap_words(found))


@click.command()
@click.argument("run")
@click.argument("model")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@out_option
@json_option
def export(run: str, model: str, target: Path, out: Path, as_json: bool) -> None:
    """Write MODEL of RUN (a folder, a suite's name, or `latest`) into the new folder OUT.

    A replicate is named with its seed: dare@1. A routed model, one mask a task, becomes one compact file.
    """
    from harness.merging import export as export_model

    report = export_model(run, model, target, out)
    print_json(report) if as_json else click.echo(f"{target}: {report['digest']}")


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--base", "bases", multiple=True, help="A model that the others may come from; again for each.")
@json_option
def lineage(models: tuple[str, ...], bases: tuple[str, ...], as_json: bool) -> None:
    """Which BASE do MODELS come from? Without --base: which of them is nearest to which other?"""
    from harness.kin import trace
    from harness.kin_table import lineage_words

    found = trace(models, bases)
    print_json(found) if as_json else click.echo(lineage_words(found))


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--base", help="The model that the others were trained from; measures of weights need it.")
@click.option("--measure", "measures", multiple=True, metavar="M", help="See: fuse-bench measures. Again for each.")
@click.option("--by", type=click.Choice(["layer", "kind"]), multiple=True, help="Weights by layer, or kind of module.")
@click.option("--common", is_flag=True, help="Leave out tensors and tokens that not all models share.")
@click.option("--allow-unrelated", is_flag=True, help="Measure models that do not come from the base, too.")
@click.option(
    "--allow-pickle", is_flag=True, help="Read pickled weights, which could run code, where there are no others."
)
@click.option("--texts", type=click.Path(path_type=Path), help="Documents that the models read, for what needs texts.")
@click.option("--run", metavar="RUN", help="A run, whose models may be named, for what needs its records.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write heatmaps and dendrograms here."
)
@out_option
@json_option
def kinship(page: Path | None, as_json: bool, **asked: Any) -> None:
    """How related MODELS are, pair by pair: what each added to BASE, what they make of texts, or what they answered.

    A model is a folder, BASE+LORA, or with --run its name in that run.
    """
    from harness.display import stages
    from harness.kin import Asked, measure, write_page
    from harness.kin_table import kinship_words

    with stages() as progress:
        found = measure(Asked(**asked), progress)
    if page is not None:
        write_page(page, found)
    print_json(found) if as_json else click.echo(kinship_words(found))


@click.command()
@click.argument("run", required=False)
@click.option("--table", type=click.Path(path_type=Path), help="A CSV file, one line a merge, in the place of a run.")
@out_option
@json_option
def relate(run: str | None, table: Path | None, out: Path, as_json: bool) -> None:
    """Does kinship go with gain, among the merges of RUN (the latest), or of a table made elsewhere?

    Columns of a table: name, gain, kinship (a measure's name, or kinship:NAME); where known gain_mean, parent_mean,
    parent_gap, parents (a|b), lineage, method.
    """
    from harness.errors import UsageError
    from harness.relate_table import of_run, relate_table, relation_words

    if run is not None and table is not None:
        raise UsageError("give a run or a --table, not both")
    found = of_run(run or "latest", out) if table is None else relate_table(table)
    print_json(found) if as_json else click.echo(relation_words(found))
