"""Suite and facts -> the jobs that make models: trained, merged, fused, and what must be read for it before."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.builders import BUILDERS
from fusion.ensemble import apart
from fusion.methods import METHODS
from fusion.params import build as build_params
from fusion.recipe import Recipe
from harness.chat import donor
from harness.errors import TaskError
from harness.facts import Facts
from harness.job import Input, Job
from harness.pocket import TRAINERS, VERSION, recipe
from harness.spec import Candidate, Source, Suite, Trained
from harness.store import digest_of

STATISTICS_VERSION, STORE_VERSION, ENSEMBLE_VERSION = 1, 1, 1
THREADS = 1


def instances(suite: Suite) -> dict[str, tuple[Source | Trained | Candidate, int]]:
    """Every single model: one for each seed of a candidate; the names of replicates carry their seed."""
    found: dict[str, tuple[Source | Trained | Candidate, int]] = {}
    for name, model in suite.models.items():
        if isinstance(model, Candidate):
            for seed in model.seeds:
                found[instance_name(model, seed)] = (model, seed)
        else:
            found[name] = (model, suite.seed)
    return found


def instance_name(model: Candidate, seed: int) -> str:
    """A candidate's name, with the seed where it has several."""
    return model.name if len(model.seeds) == 1 else f"{model.name}@{seed}"


def made_by(instance: str, model: Trained | Candidate) -> str:
    """The id of the job that makes a model."""
    return f"{_kind(model)} {instance}"


def recipe_of(model: Candidate, seed: int) -> Recipe:
    """A merged candidate's recipe, as the engine takes it."""
    return Recipe(
        method=model.method,
        models=model.models,
        base=model.base,
        weights=model.weights,
        params=model.params,
        seed=seed,
        own=model.own,
        allow_unrelated=model.allow_unrelated,
        tokenizer=None if model.tokenizer is None else {"source": model.tokenizer},
    )


def statistics_of(model: Candidate, facts: Facts) -> Iterator[tuple[str, str, str]]:
    """(model, id of the job that reads its corpus, folder in what the job makes), for a method guided by data."""
    kind = METHODS[model.method].statistics if model.method in METHODS else None
    for i, (name, corpus) in enumerate(zip(model.models, model.corpora, strict=False)):
        if kind == "gram++":
            # What reaches a layer depends on all the models that were merged below it.
            yield name, f"statistics {kind} {model.name}", str(i)
        elif kind is not None:
            yield name, f"statistics {kind} {name} on {corpus_names(facts, [corpus])} {_brief(model.calibration)}", "0"


def _kind(model: Trained | Candidate) -> str:
    if isinstance(model, Trained):
        return "train"
    return "build" if model.kind in ("merged", "routed", "ensemble") else "fuse"


def input_of(suite: Suite, facts: Facts, role: str, name: str) -> Input:
    """A model as a job's input: given, or made by another job."""
    model, _ = instances(suite)[name]
    if isinstance(model, Source):
        return Input(role, digest=facts.folders[name].digest, model=name)
    return Input(role, job=made_by(name, model), model=name)


def making(suite: Suite, facts: Facts, name: str, model: Source | Trained | Candidate, seed: int) -> Iterator[Job]:
    """The jobs that make a model, what must be read for it first; none for a model that is given."""
    if isinstance(model, Trained):
        yield _train(suite, facts, name, model)
    elif isinstance(model, Candidate) and model.kind in ("merged", "routed"):
        yield from _merge(suite, facts, name, model, seed)
    elif isinstance(model, Candidate) and model.kind == "ensemble":
        yield _ensemble(suite, facts, name, model)
    elif isinstance(model, Candidate):
        yield from _fuse(suite, facts, name, model, seed)


def _train(suite: Suite, facts: Facts, name: str, model: Trained) -> Job:
    spec = {
        "trainer": model.trainer,
        "version": [TRAINERS[model.trainer].version, VERSION],
        "params": model.params,
        "recipe": recipe(model.params),
        "seed": model.seed,
        **common(facts),
    }
    inputs = [input_of(suite, facts, "parent", model.parent)] if model.parent else []
    return Job(f"train {name}", "train", spec, tuple(inputs), model=name)


def _merge(suite: Suite, facts: Facts, name: str, model: Candidate, seed: int) -> Iterator[Job]:
    read = list(_statistics(suite, facts, model))
    yield from read
    spec = {
        "method": model.method,
        "version": METHODS[model.method].version,
        "params": model.params,
        "weights": model.weights,
        "own": list(model.own),
        "route": dict(model.route),
        "allow_unrelated": model.allow_unrelated,
        **({"tokenizer": model.tokenizer} if model.tokenizer else {}),
        "seed": seed if METHODS[model.method].random else None,
        "threads": THREADS,
        "versions": {name: facts.versions[name] for name in ("torch", "numpy", "transformers", "tokenizers")},
    }
    inputs = [input_of(suite, facts, f"model.{i}", parent) for i, parent in enumerate(model.models)]
    inputs += [input_of(suite, facts, "base", model.base)] if model.base else []
    inputs += [Input(f"statistics.{i}", job=job.id) for i, job in enumerate(read)]
    yield Job(f"build {name}", "build", spec, tuple(inputs), {"device": facts.device}, name)
    if suite.keep == "all" and model.kind == "merged":
        yield write_job(name, f"build {name}")


def _ensemble(suite: Suite, facts: Facts, name: str, model: Candidate) -> Job:
    """Nothing is built for an ensemble: its members are looked at together, and a routed one's domains are fitted.

    Raises TaskError where its members are known to have different tokenizers, and a task needs one.
    """
    asked = [task for group in facts.groups.values() for task in group]
    tokenwise = sorted({task for task in asked if facts.tasks[task].output_type != "multiple_choice"})
    numberings = {_vocabulary(suite, facts, parent) for parent in model.models} - {None}
    if len(numberings) > 1 and tokenwise:
        raise TaskError(f"candidate '{name}': {apart(model.models, tokenwise)}")
    spec = {
        "method": model.method,
        "version": ENSEMBLE_VERSION,
        "params": model.params,
        "weights": model.weights,
        "dtypes": [dtype_of(suite, parent) for parent in model.models],
        "corpora": [facts.corpora[corpus] for corpus in model.corpora],
        "by_token": bool(tokenwise),
        **common(facts),
    }
    inputs = [input_of(suite, facts, f"model.{i}", parent) for i, parent in enumerate(model.models)]
    where = {"device": facts.device, "corpora": model.corpora, "corpus_seed": suite.seed, "tokenwise": tokenwise}
    return Job(f"build {name}", "build", spec, tuple(inputs), where, name)


def _vocabulary(suite: Suite, facts: Facts, name: str) -> str | None:
    """Which numbers a model's tokens have; None where that shows once it is made."""
    model = suite.models[name]
    if isinstance(model, Source):
        return facts.folders[name].vocabulary
    parent = donor(model)
    new = isinstance(model, Candidate) and model.tokenizer == "union"
    return None if parent is None or new else _vocabulary(suite, facts, parent)


def dtype_of(suite: Suite, instance: str) -> str:
    """The number format that a model is evaluated in: its source's, handed down to what is made of it, else its own.

    Of an ensemble it is "auto": each member keeps its own.
    """
    model: Any = instances(suite)[instance][0]
    while not isinstance(model, Source):
        if isinstance(model, Candidate) and model.kind == "ensemble":
            return "auto"
        parent = model.parent if isinstance(model, Trained) else model.base or model.target or model.models[0]
        if parent is None:
            return "auto"
        model = suite.models[parent]
    return model.dtype or "auto"


def _fuse(suite: Suite, facts: Facts, name: str, model: Candidate, seed: int) -> Iterator[Job]:
    stores = list(_stores(suite, facts, model))
    yield from stores
    spec = {
        "method": model.method,
        "version": BUILDERS[model.method].version,
        "params": model.params,
        "seed": seed,
        "corpora": [facts.corpora[corpus] for corpus in model.corpora],
        **common(facts),
    }
    inputs = [input_of(suite, facts, role, parent) for role, parent in _roles(model).items()]
    inputs += [Input(f"store.{i}", job=job.id) for i, job in enumerate(stores)]
    where = {"corpora": model.corpora, "corpus_seed": suite.seed}
    yield Job(f"fuse {name}", "fuse", spec, tuple(inputs), where, name)


def _roles(model: Candidate) -> dict[str, str]:
    """Who plays which part of a training."""
    return {"target": model.target or "", **{f"teacher.{i}": name for i, name in enumerate(model.models)}}


def _stores(suite: Suite, facts: Facts, model: Candidate) -> Iterator[Job]:
    """The jobs that read the text with a fusion's sources; fusions of the same source and corpus share them."""
    builder, roles = BUILDERS[model.method], _roles(model)
    for together in builder.readings(build_params(builder.Params, model.params), len(model.models)):
        names = [roles[role] for role in together]
        top_k = model.params["top_k"]
        corpora = [facts.corpora[corpus] for corpus in model.corpora]
        spec = {"version": STORE_VERSION, "top_k": top_k, "corpora": corpora, **common(facts)}
        inputs = tuple(input_of(suite, facts, f"model.{i}", name) for i, name in enumerate(names))
        job = f"read {'+'.join(names)} on {corpus_names(facts, model.corpora)} top_k={top_k}"
        yield Job(job, "read", spec, inputs, {"corpora": model.corpora, "corpus_seed": suite.seed})


def corpus_names(facts: Facts, corpora: Sequence[str]) -> str:
    """Corpora as a part of a job's name: two files of one name are two corpora."""
    digests = (digest_of(facts.corpora[corpus]).removeprefix("sha256:")[:8] for corpus in corpora)
    return "+".join(f"{Path(corpus).name} {digest}" for corpus, digest in zip(corpora, digests, strict=True))


def _statistics(suite: Suite, facts: Facts, model: Candidate) -> Iterator[Job]:
    """The jobs that read the corpora of a merge that is guided by data; equal ones are shared by several merges."""
    kind = METHODS[model.method].statistics
    if kind is None:
        return
    settings = {**model.calibration, "seed": suite.seed}
    shared = {"kind": kind, "version": STATISTICS_VERSION, "settings": settings, **common(facts)}
    jobs = list(dict.fromkeys(job for _, job, _ in statistics_of(model, facts)))
    for i, job in enumerate(jobs):
        mine = range(len(model.models)) if kind == "gram++" else (i,)
        spec = {**shared, "corpora": [facts.corpora[model.corpora[n]] for n in mine]}
        if kind == "gram++":
            spec |= {"params": model.params, "weights": model.weights}
        inputs = [input_of(suite, facts, f"model.{n}", model.models[n]) for n in mine]
        where = {"corpora": [model.corpora[n] for n in mine], "corpus_seed": suite.seed}
        yield Job(job, "statistics", spec, tuple(inputs), where)


def _brief(settings: Mapping[str, Any]) -> str:
    """Settings as a part of a job's name."""
    return " ".join(f"{key}={value}" for key, value in sorted(settings.items()) if key in ("sequences", "context"))


def write_job(instance: str, build: str) -> Job:
    """Writes a merged model's weights to the store, for `keep: best` and `keep: all`."""
    return Job(f"write {instance}", "write", {}, (Input("model", job=build, model=instance),), model=instance)


def common(facts: Facts) -> dict[str, Any]:
    """What decides the numbers of every job that runs a model, besides its inputs."""
    versions = {name: facts.versions[name] for name in ("torch", "transformers", "tokenizers", "accelerate", "numpy")}
    return {"threads": THREADS, "device": facts.device, "versions": versions}
