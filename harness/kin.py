"""The verbs `kinship` and `lineage`: how related models are, pair by pair, and which base they come from."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from fusion import lineage
from fusion.checkpoint import Source, read_config
from fusion.errors import LineageError
from fusion.kinship import DEFAULT, MEASURES
from fusion.kinship.weights import kinship, misfits, summary
from fusion.lineage import Lineage
from fusion.modelref import Folder, ModelRef, open_ref, to_json, with_pickles
from fusion.params import did_you_mean
from fusion.recipe_yaml import Models
from harness import answers, runs
from harness.build import folder_of
from harness.errors import UsageError
from harness.merging import models_of

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]

# What is measured where nothing is asked for: of the weights, of a run's records, of texts.
OF_WEIGHTS = tuple(name for name in DEFAULT if MEASURES[name].needs == "weights")
OF_RECORDS = tuple(name for name in DEFAULT if MEASURES[name].needs == "records")
OF_TEXTS = ("cka",)
SEED = 0  # of the continuations that models are asked for
DOCUMENT = '{"text": ...} or {"prompt": ..., "answer": ...}'
LACKING = {
    "weights": "compared is what was added to a base; give --base BASE",
    "records": "compared is what a run has scored; give --run RUN and models by their\n"
    "names there (`fuse-bench run SUITE` makes the records)",
    "texts": f"compared is what models make of texts; give --texts FILE.jsonl with\n{DOCUMENT} a line",
}
WITHOUT_WEIGHTS = (
    "models of any kind are compared by what a run has scored (--measure capa\n"
    "--run RUN) or by what they make of texts (--measure cka --texts FILE.jsonl)"
)


@dataclass(frozen=True)
class Asked:
    """What `kinship` is asked for.

    A model is named as a recipe would (a folder, FOLDER+LORA, a LoRA folder) or, with `run`, by its name in that run.
    measures: the usual ones where none is named. by: "layer", "kind" of module, or both. common: leave out what not all
    models share. texts: the documents that models read. out: where run folders lie.
    """

    models: tuple[str, ...]
    base: str | None = None
    measures: tuple[str, ...] = ()
    by: tuple[Literal["layer", "kind"], ...] = ()
    common: bool = False
    allow_unrelated: bool = False
    allow_pickle: bool = False
    texts: Path | None = None
    run: str | None = None
    out: Path = Path("runs")


def measure(asked: Asked, progress: Progress) -> dict[str, Any]:
    """Contract 6: {"base", "models", "pairs": [{"a", "b", measure: value | None, ...}]}, and what they rest on.

    "measures" says of each which way it points. "lineage" is how the models stand to their base, where weights are
    compared, "left_out" how many tensors and vocabulary rows `common` does not compare. "summary" has each measure's
    mean, min and max over pairs, of three models or more.

    Raises UsageError for models, measures and options that do not go together, LineageError for models that do not come
    from the base, MismatchError with every tensor that the models and the base do not share.
    """
    measures = _measures(asked)
    run_dir = None if asked.run is None else runs.find_run(asked.run, asked.out)
    refs = _refs(asked.models, run_dir, asked.allow_pickle)
    _check_distinct(refs)
    found: dict[str, Any] = {"base": asked.base, "models": list(refs)}
    rows: dict[tuple[str, str], Row] = {pair: {} for pair in combinations(refs, 2)}
    of = {need: [m for m in measures if MEASURES[m].needs == need] for need in ("weights", "records", "texts")}
    if of["weights"] and asked.base is not None:
        (origin,) = _refs([asked.base], run_dir, asked.allow_pickle).values()
        found["lineage"], pairs = _by_weights(refs, origin, of["weights"], asked)
        _add(rows, pairs)
    if of["records"] and run_dir is not None:
        _add(rows, _by_records(run_dir, list(refs), of["records"]))
    if of["texts"] and asked.texts is not None:
        _add(rows, _by_texts(asked.texts, refs, of["texts"], "layer" in asked.by, progress))
    left_out = [row.pop("left_out") for row in rows.values() if "left_out" in row]
    in_order = [{"a": a, "b": b, **{m: row.pop(m) for m in measures}, **row} for (a, b), row in rows.items()]
    found |= {"measures": {name: MEASURES[name].direction for name in measures}, "pairs": in_order}
    found |= {"left_out": left_out[0]} if left_out else {}
    return found | ({"summary": summary(in_order)} if len(refs) > 2 else {})


def write_page(file: Path, found: Mapping[str, Any]) -> None:
    """Write what was measured as a page for a browser. Raises UsageError where it cannot be written."""
    from harness.kinship_page import page

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({error.strerror}): give --html another file") from error


# ------------------------------------------------------------------------------------------------------ what is asked


def _measures(asked: Asked) -> list[str]:
    """The measures, in the table's order. Raises UsageError for unknown ones and for what they need and lack."""
    if len(asked.models) < 2:
        raise UsageError(f"kinship is between models: got {len(asked.models)}, give at least two")
    unknown = [f"there is no measure '{m}': {did_you_mean(m, MEASURES)}" for m in asked.measures if m not in MEASURES]
    if unknown:
        raise UsageError("\n".join([*unknown, "fuse-bench measures lists them all"]))
    chosen = asked.measures or _usual(asked)
    measures = [name for name in MEASURES if name in chosen]
    given = {"weights": asked.base, "records": asked.run, "texts": asked.texts}
    lacking = {need: [m for m in measures if MEASURES[m].needs == need] for need, value in given.items() if not value}
    wrong = [f"{', '.join(those)}: {LACKING[need]}" for need, those in lacking.items() if those]
    if wrong:
        raise UsageError("\n".join(wrong))
    return measures


def _usual(asked: Asked) -> tuple[str, ...]:
    if asked.base is not None:
        return OF_WEIGHTS
    usual = (OF_RECORDS if asked.run else ()) + (OF_TEXTS if asked.texts else ())
    if not usual:
        raise UsageError(f"give --base BASE, the model that the others were trained from;\n{WITHOUT_WEIGHTS}")
    return usual


def _refs(names: Sequence[str], run_dir: Path | None, allow_pickle: bool = False) -> dict[str, ModelRef]:
    """Models by the names they were given. Raises UsageError with all that are none."""
    made = {} if run_dir is None else models_of(run_dir)
    named = Models(Path())
    found: dict[str, ModelRef] = {}
    for name in names:
        if name in made:
            found[name] = made[name][0]
        elif (known := named.name(name, ())) is not None:
            found[name] = named.refs[known]
    if named.problems:
        lines = [problem.message for problem in named.problems]
        lines += [f"models of {run_dir.name}: {', '.join(made)}"] if run_dir is not None else []
        raise UsageError("\n".join(lines))
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UsageError(f"{', '.join(repeated)} is given more than once")
    return {name: with_pickles(ref) for name, ref in found.items()} if allow_pickle else found


def _check_distinct(refs: Mapping[str, ModelRef]) -> None:
    """Raises UsageError where two spellings name one model."""
    known: dict[str, str] = {}
    for name, ref in refs.items():
        first = known.setdefault(_identity(ref), name)
        if first != name:
            raise UsageError(f"'{name}' and '{first}' are the same model: give it once")


def _identity(ref: ModelRef) -> str:
    """What is the same for two spellings of a folder, and for links to it."""
    if not isinstance(ref, Folder):
        return str(to_json(ref))
    return " + ".join(str(Path(path).resolve()) for path in (ref.path, ref.adapter) if path is not None)


# ---------------------------------------------------------------------------------------------------- what is measured


def _add(rows: dict[tuple[str, str], Row], pairs: Sequence[Mapping[str, Any]]) -> None:
    """What was found of each pair, beside what is known of it already; a status is added to a status."""
    for pair in pairs:
        row = rows[pair["a"], pair["b"]]
        status = "; ".join(part["status"] for part in (row, pair) if part.get("status"))
        layers = {layer: dict(one) for layer, one in (row.get("layers") or {}).items()}
        for layer, one in (pair.get("layers") or {}).items():
            layers.setdefault(layer, {}).update(one)
        row |= {key: value for key, value in pair.items() if key not in ("a", "b")}
        row |= ({"status": status} if status else {}) | ({"layers": layers} if layers else {})


def _by_weights(
    refs: Mapping[str, ModelRef], origin: ModelRef, measures: Sequence[str], asked: Asked
) -> tuple[dict[str, Any], list[Row]]:
    """How the models stand to the base, and their pairs by measures of their weights."""
    base, sources = open_ref(origin), {name: open_ref(ref) for name, ref in refs.items()}
    kin = {name: lineage.lineage(source, base) for name, source in sources.items()}
    _check_comparable(kin, sources, base)
    strangers = [name for name, about in kin.items() if not about.kin]
    # Tensors that do not fit say more than a cosine over the few that do.
    if strangers and not asked.allow_unrelated and (asked.common or not misfits(sources, base)):
        _refuse(strangers, kin, str(asked.base))
    return lineage.to_json(kin), kinship(sources, base, measures, by=asked.by, common=asked.common)


def _check_comparable(kin: Mapping[str, Lineage], sources: Mapping[str, Source], base: Source) -> None:
    """Raises LineageError for models that have no tensor of the base's, in whatever shape."""
    others = [name for name, about in kin.items() if about.same + about.reshaped == 0]
    if others:
        lines = [f"  {name}: {_architecture(sources[name])}, {len(sources[name].names())} tensors" for name in others]
        raise LineageError(
            "no tensor in common with the base, so no weights to compare:\n"
            + "\n".join(lines)
            + f"\n  the base: {_architecture(base)}, {len(base.names())} tensors\n"
            + f"give the base that they were trained from;\n{WITHOUT_WEIGHTS}"
        )


def _refuse(strangers: Sequence[str], kin: Mapping[str, Lineage], base: str) -> None:
    lines = [f"  {name}: {kin[name].words()}" for name in strangers]
    raise LineageError(
        f"not kin to the base, {base}, by the weights of their matrices:\n"
        + "\n".join(lines)
        + f"\nkin have a cosine of at least {lineage.KIN_COSINE} (fine-tuned: .9 and more; strangers: about 0).\n"
        "Against a wrong base all models look related. Give the base that they were\n"
        "trained from (`fuse-bench lineage MODEL --base A --base B` tells which it is);\n"
        "--allow-unrelated measures all the same"
    )


def _architecture(source: Source) -> str:
    config = read_config(source.donor)
    return ", ".join(config.get("architectures") or [str(config.get("model_type") or "unknown architecture")])


def _by_records(run_dir: Path, names: Sequence[str], measures: Sequence[str]) -> list[Row]:
    """The pairs by what a run has scored."""
    rows = answers.pairs(names, answers.answers(run_dir, names), measures)
    for row in rows:
        undefined = [name for name in measures if row[name] is None]
        if undefined:
            row["status"] = (
                f"{', '.join(undefined)}: these items do not define it (without choices, or chance alone agrees)"
            )
    return rows


def _by_texts(
    texts: Path, refs: Mapping[str, ModelRef], measures: Sequence[str], by_layer: bool, progress: Progress
) -> list[Row]:
    """The pairs by what the models make of documents; what they made of them is not kept."""
    import transformers

    from fusion.jsonl import read_jsonl
    from fusion.kinship import probe

    # Ours is the one progress to be seen.
    transformers.utils.logging.disable_progress_bar()
    documents = read_jsonl(texts)
    with tempfile.TemporaryDirectory(prefix="fuse-bench-kinship-") as folder:
        models = {name: folder_of(ref, Path(folder, f"model-{i}")) for i, (name, ref) in enumerate(refs.items())}
        probes = {name: Path(folder, f"probe-{i}") for i, name in enumerate(refs)}
        for name, model in models.items():
            said = f"{name} reads {texts.name}"
            probe.write_probe(model, documents, probes[name], measures, SEED, partial(progress, said))
        rows = probe.relate(models, documents, probes, measures)
    return rows if by_layer else [{key: row[key] for key in row if key != "layers"} for row in rows]


# -------------------------------------------------------------------------------------------------------------- lineage


def trace(models: Sequence[str], bases: Sequence[str]) -> dict[str, Any]:
    """Which base each model comes from: {"base", "models", "nearest", ...}.

    Of one base, "models" is {model: lineage}. Of several, and without any (then each model may come from each other),
    it is {model: {base: lineage}}, the likeliest base first, and "base" is None. "nearest" is the base that a model
    comes from, None where it comes from none: where no median cosine is at least "kin_cosine".
    """
    if not bases and len(models) < 2:
        raise UsageError("lineage is between models: give a --base, or two models or more")
    sources = {name: open_ref(ref) for name, ref in _refs(models, None).items()}
    origins = {name: open_ref(ref) for name, ref in _refs(bases, None).items()} or sources
    found = {
        name: {base: lineage.lineage(source, origin) for base, origin in origins.items() if base != name or bases}
        for name, source in sources.items()
    }
    ranked = {name: {base: of[base] for base in lineage.ranked(of)} for name, of in found.items()}
    by_base = {name: lineage.to_json(of) for name, of in ranked.items()}
    return {
        "base": bases[0] if len(bases) == 1 else None,
        "bases": list(bases),
        "kin_cosine": lineage.KIN_COSINE,
        "models": {name: of[bases[0]] for name, of in by_base.items()} if len(bases) == 1 else by_base,
        "nearest": {name: lineage.nearest(of) for name, of in found.items()},
    }
