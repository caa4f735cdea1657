"""The verbs that make or look at single models, tokenizers and texts, without a suite."""

from pathlib import Path

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
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="The model that the others may come from.")
@json_option
def lineage(models: tuple[Path, ...], base: Path | None, as_json: bool) -> None:
    """Do MODELS come from BASE? Without --base: which of them could come from which other?"""
    from harness.merging import kin, kin_table

    found = kin(models, base)
    print_json(found) if as_json else click.echo(kin_table(found))


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--base", required=True, type=click.Path(path_type=Path), help="The model that task vectors are taken from."
)
@json_option
def kinship(models: tuple[Path, ...], base: Path, as_json: bool) -> None:
    """How related the folders MODELS are: similarity of their task vectors, pair by pair."""
    from harness.report import kinship_table, measure_kinship

    found = measure_kinship(models, base)
    if as_json:
        print_json(found)
    else:
        click.echo(kinship_table(found))
