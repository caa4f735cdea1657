"""Suite and facts -> the jobs that compare models with each other, and whose parents' kinship they tell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusion.kinship import MEASURES
from harness.facts import Facts
from harness.job import Input, Job
from harness.making import common, input_of
from harness.spec import Candidate, Suite

RELATE_VERSION, PROBE_VERSION = 2, 1
# Of a long corpus the first documents are read: what is known of kinship changes little after some hundreds.
PROBES = 512


@dataclass(frozen=True)
class Related:
    """How the kinship of a candidate's parents is known: who they are, and the jobs that compare them.

    models: the parents, sorted, without the base. by_weights, by_texts: ids of jobs, None where nothing is asked of
    them, or weights cannot be compared. Measures that need records need no job.
    """

    models: tuple[str, ...]
    base: str | None
    by_weights: str | None
    by_texts: str | None


def kinship_base(suite: Suite, model: Candidate) -> str | None:
    """What the task vectors of a candidate's parents are taken from."""
    return suite.kinship_base if model.merges_base else model.base or suite.kinship_base


def relating(suite: Suite, facts: Facts) -> tuple[dict[str, Related], list[Job]]:
    """How each candidate's kinship is known, by its name, and the jobs for it.

    Models that are given or trained are compared all at once, so that each is read once; parents that are themselves
    candidates go with their child alone, so that no kinship waits for, or fails with, a model it is not about.
    """
    jobs: dict[str, Job] = {}
    found: dict[str, Related] = {}
    parents = {m.name: (m, _parents(suite, m)) for m in suite.models.values() if isinstance(m, Candidate)}
    compared = {name: (model, names) for name, (model, names) in parents.items() if len(names) > 1}
    for name, (model, names) in compared.items():
        base = kinship_base(suite, model)
        same = [mine for other, mine in compared.values() if kinship_base(suite, other) == base and _weighable(other)]
        weighed = texted = None
        if base is not None and _weighable(model) and measures(suite, "weights"):
            weighed = _by_weights(suite, facts, _together(suite, names, same), base, jobs)
        if measures(suite, "texts"):
            every = [mine for _, mine in compared.values()]
            texted = _by_texts(suite, facts, _together(suite, names, every), jobs)
        if weighed or texted or measures(suite, "records"):
            found[name] = Related(names, base, weighed, texted)
    return found, list(jobs.values())


def measures(suite: Suite, needs: str) -> list[str]:
    """Those of the suite's measures that are computed from weights, texts or records."""
    return [name for name in suite.measures if MEASURES[name].needs == needs]


def _parents(suite: Suite, model: Candidate) -> tuple[str, ...]:
    base = kinship_base(suite, model) if _weighable(model) else None
    return tuple(sorted({parent for parent in model.parents if parent != base}))


def _weighable(model: Candidate) -> bool:
    """Whether a candidate's parents have tensors of the same shapes: merging needs that, fusing does not."""
    return model.kind == "merged"


def _together(suite: Suite, mine: tuple[str, ...], all_: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The models that are compared in one job with these."""
    if _built(suite, mine):
        return mine
    return tuple(sorted({name for names in all_ if not _built(suite, names) for name in names}))


def _built(suite: Suite, names: Sequence[str]) -> bool:
    return any(isinstance(suite.models[name], Candidate) for name in names)


def _by_weights(suite: Suite, facts: Facts, names: Sequence[str], base: str, jobs: dict[str, Job]) -> str:
    job_id = f"relate {_listed(suite, names)} to {base}"
    if job_id not in jobs:
        inputs = [input_of(suite, facts, "base", base), *_inputs(suite, facts, names)]
        spec = {"version": RELATE_VERSION, "by": "weights", "measures": measures(suite, "weights")}
        jobs[job_id] = Job(job_id, "relate", spec, tuple(inputs))
    return job_id


def _by_texts(suite: Suite, facts: Facts, names: Sequence[str], jobs: dict[str, Job]) -> str:
    corpus = str(suite.kinship_texts)
    wanted = measures(suite, "texts")
    text = {"corpora": [facts.corpora[corpus]], "documents": PROBES, "seed": suite.seed, "measures": wanted}
    where = {"corpora": [corpus], "corpus_seed": suite.seed}
    probes: list[Input] = []
    for name in names:
        job_id = f"probe {name}"
        spec = {"version": PROBE_VERSION, **text, **common(facts)}
        jobs[job_id] = Job(job_id, "probe", spec, (input_of(suite, facts, "model", name),), where, name)
        probes.append(Input(f"probe.{len(probes)}", job=job_id))
    job_id = f"relate {_listed(suite, names)} by texts"
    spec = {"version": RELATE_VERSION, "by": "texts", **text, **common(facts)}
    jobs[job_id] = Job(job_id, "relate", spec, (*probes, *_inputs(suite, facts, names)), where)
    return job_id


def _inputs(suite: Suite, facts: Facts, names: Sequence[str]) -> Iterator[Input]:
    yield from (input_of(suite, facts, f"model.{i}", name) for i, name in enumerate(names))


def _listed(suite: Suite, names: Sequence[str]) -> str:
    """Models as a part of a job's name; of those that are compared all at once their number."""
    return " ".join(names) if _built(suite, names) else f"{len(names)} models"


def pairs_of(related: Related) -> list[tuple[str, str]]:
    """The pairs of a candidate's parents, each in sorted order."""
    return [(a, b) for i, a in enumerate(related.models) for b in related.models[i + 1 :]]


def known(found: Mapping[str, Related]) -> list[str]:
    """All models whose kinship is asked for."""
    return sorted({name for related in found.values() for name in related.models})
