"""Suite and facts -> jobs. Pure: no disk, no clock, no model; what `fuse-bench plan` shows is what `run` does."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusion.ensemble import DOMAINS
from fusion.modelref import Delta, Ensemble, Folder, ModelRef, Routed, to_json
from harness.chat import insisted, templated
from harness.errors import TaskError
from harness.facts import Facts
from harness.job import Input, Job
from harness.making import (
    THREADS,
    corpus_names,
    dtype_of,
    input_of,
    instances,
    made_by,
    making,
    recipe_of,
    statistics_of,
)
from harness.relating import Related, relating
from harness.spec import Candidate, Group, Model, Source, Suite
from harness.store import Entry, canonical, digest_of
from harness.tasks import Task

FIRST_BLOCK, BLOCK = 64, 128
GENERATE_VERSION, JUDGE_VERSION, OVERLAP_VERSION = 2, 3, 1


@dataclass(frozen=True)
class Block:
    """A slice of one task's items, in the order in which all models see them."""

    task: str
    split: str
    index: int
    ids: tuple[str, ...]
    doc_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.task}/{self.split}.{self.index}"


@dataclass(frozen=True)
class TaskItems:
    """The blocks of a task, and the ids that count under the suite's limit, by split."""

    blocks: tuple[Block, ...]
    counted: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Plan:
    """The jobs of a suite in an order in which they can be done, and how to find each model's weights.

    kinship: by candidate, how its parents' kinship is known. overlaps: by corpus, the job that looks for the
    suite's items in it. chat: the models that are asked in their chat templates.
    """

    suite: Suite
    facts: Facts
    jobs: Mapping[str, Job]
    items: Mapping[str, Mapping[str, TaskItems]]
    kinship: Mapping[str, Related]
    overlaps: Mapping[str, str]
    chat: frozenset[str]

    def ref(self, instance: str, done: Mapping[str, Entry]) -> ModelRef:
        """Where a model's weights are, or how to make them, once the jobs it needs are done."""
        model, seed = instances(self.suite)[instance]
        if isinstance(model, Source):
            return Folder(self.facts.folders[instance].path, model.adapter, model.pickled)
        if isinstance(model, Candidate) and model.kind == "routed":
            return Routed(tuple((group, self._merge(model, seed, done, task)) for group, task in model.route.items()))
        if isinstance(model, Candidate) and model.kind == "merged":
            return self._merge(model, seed, done)
        if isinstance(model, Candidate) and model.kind == "ensemble":
            return self._ensemble(model, done)
        return Folder(str(done[made_by(instance, model)].path / "model"))

    def _merge(self, model: Candidate, seed: int, done: Mapping[str, Entry], task: str | None = None) -> Delta:
        """A merged candidate; of a routed one, as it is for one of its tasks."""
        names = [*model.models, *([model.base] if model.base and model.base not in model.models else [])]
        recipe = recipe_of(model, seed)
        if task is not None:
            recipe = replace(recipe, params={**recipe.params, "task": task})
        return Delta(
            recipe,
            tuple((name, self.ref(name, done)) for name in names),
            tuple((name, str(done[job].path / folder)) for name, job, folder in statistics_of(model, self.facts)),
        )

    def _ensemble(self, model: Candidate, done: Mapping[str, Entry]) -> Ensemble:
        """Models that answer together; the domains of a routed one are known once its own job is done."""
        built = done.get(made_by(model.name, model))
        return Ensemble(
            tuple((name, self.ref(name, done)) for name in model.models),
            tuple(dtype_of(self.suite, name) for name in model.models),
            model.params["combine"],
            model.weights,
            str(built.path / DOMAINS) if built is not None and model.corpora else None,
        )

    def made(self, done: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
        """Every model that is there: its digest, and where its weights are or how they are made, as JSON."""
        found = {}
        for name, (model, _) in instances(self.suite).items():
            entry = None if isinstance(model, Source) else done.get(made_by(name, model))
            if isinstance(model, Source) or entry is not None:
                digest = self.facts.folders[name].digest if entry is None else entry.digest
                found[name] = {"digest": digest, "ref": to_json(self.ref(name, done))}
        return found

    def models_of(self, job: Job, done: Mapping[str, Entry]) -> dict[str, Any]:
        """The models that a job works on, as its worker is told: `refs` by role, and `stamps` of the given folders."""
        refs = self.refs(job, done)
        text = canonical(refs)
        used = (facts for facts in self.facts.folders.values() if canonical(facts.path) in text)
        return {"refs": refs, "stamps": {path: stamp for facts in used for path, stamp in facts.stamps.items()}}

    def refs(self, job: Job, done: Mapping[str, Entry]) -> dict[str, Any]:
        """The models that a job works on, by role."""
        roles = {i.role: i.model for i in job.inputs if i.model}
        if job.kind == "build":
            roles = {"self": str(job.model)}
        refs = {role: self.ref(name, done) for role, name in roles.items()}
        if job.kind == "generate" and isinstance(whole := refs["model"], Routed):
            refs["model"] = dict(whole.routes)[job.where["group"]]
        return {role: to_json(ref) for role, ref in refs.items()}


def plan(suite: Suite, facts: Facts) -> Plan:
    """All jobs of a suite: parents before children, a model before its blocks, kinship where it can be measured."""
    jobs: dict[str, Job] = {}
    for group in suite.groups:
        _check_samples(group, facts)
    chat = templated(suite, facts)
    items = {g.name: {task: _items(suite, facts, g, task) for task in facts.groups[g.name]} for g in suite.groups}
    for name, (model, seed) in instances(suite).items():
        for job in making(suite, facts, name, model, seed):
            jobs[job.id] = job
        for group in suite.groups:
            for task in facts.groups[group.name]:
                for block in items[group.name][task].blocks:
                    for job in _scoring(suite, facts, name, model, group, block, chat):
                        jobs[job.id] = job
    kinship, comparing = relating(suite, facts)
    jobs |= {job.id: job for job in comparing}
    overlaps = dict(_overlaps(suite, facts, jobs))
    return Plan(suite, facts, jobs, items, kinship, overlaps, chat)


def _check_samples(group: Group, facts: Facts) -> None:
    """Samples are of programs: a group that draws some has a code task, unless one may still have to be fetched."""
    kinds = [facts.tasks[task].kind for task in facts.groups[group.name]]
    absent = any(missing.kind == "tasks" for missing in facts.missing)
    if group.temperature and "code" not in kinds and not absent:
        raise TaskError(
            f"group '{group.name}' asks for {group.samples} samples at temperature {group.temperature:g}, and none of "
            "its tasks is a code task: take `samples`, `temperature` and `top_p` out"
        )


def in_order(ids: Sequence[str], seed: int) -> list[int]:
    """The positions of items in the seeded order that every model of a suite shares."""
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}:{ids[i]}".encode()).digest())


def is_dev(item: str, share: float) -> bool:
    """Whether an item is for choosing rather than for reporting: decided by its content alone."""
    return int.from_bytes(hashlib.sha256(f"dev:{item}".encode()).digest()[:8]) < share * 2**64


def unique_ids(hashes: Sequence[str]) -> list[str]:
    """Doc hashes, the second and later copies of one document numbered."""
    seen: dict[str, int] = {}
    ids = []
    for value in hashes:
        seen[value] = seen.get(value, 0) + 1
        ids.append(value if seen[value] == 1 else f"{value}#{seen[value]}")
    return ids


def _items(suite: Suite, facts: Facts, group: Group, task: str) -> TaskItems:
    ids = unique_ids(facts.tasks[task].items)
    order = in_order(ids, suite.seed)
    counted = order[: group.limit]
    blocks: list[Block] = []
    by_split: dict[str, tuple[str, ...]] = {}
    for split in ("dev", "test"):
        mine = [i for i in order if is_dev(ids[i].split("#")[0], suite.dev_share) == (split == "dev")]
        # A rehearsal has something to do in each part, however few its samples are.
        wanted = frozenset(mine[: group.limit]) if suite.smoke else frozenset(counted) & frozenset(mine)
        by_split[split] = tuple(ids[i] for i in mine if i in wanted)
        for index, part in enumerate(_slices(mine, len(wanted), whole=not suite.smoke)):
            # lm-eval wants sorted positions; the order inside a block has no meaning of its own.
            part = sorted(part)
            blocks.append(Block(task, split, index, tuple(ids[i] for i in part), tuple(part)))
    if not by_split["test"]:
        raise TaskError(
            f"task '{task}' has no item left to report: {len(ids)} in all, limit {group.limit}, dev {suite.dev_share}"
        )
    return TaskItems(tuple(blocks), by_split)


def _slices(positions: Sequence[int], wanted: int, *, whole: bool) -> Iterator[Sequence[int]]:
    """Blocks that cover the first `wanted`: whole ones, two small ones first, so that a small limit stays cheap."""
    start, size = 0, FIRST_BLOCK if whole else wanted
    while start < wanted:
        yield positions[start : start + size]
        start += size
        size = FIRST_BLOCK if start < 2 * FIRST_BLOCK else BLOCK


def _scoring(
    suite: Suite, facts: Facts, name: str, model: Model, group: Group, block: Block, chat: Collection[str]
) -> Iterator[Job]:
    task = facts.tasks[block.task]
    generate = f"generate {name} {group.name}/{block.name}"
    spec = {
        "version": GENERATE_VERSION,
        **_asked(task),
        **_said(suite, group, task, model.name, chat),
        "items": digest_of(block.ids),
        "route": model.route.get(group.name) if isinstance(model, Candidate) else None,
        "backend": "transformers",
        "batch_size": group.batch_size,
        "dtype": dtype_of(suite, name),
        "device": facts.device,
        "threads": THREADS,
        "versions": {name: facts.versions[name] for name in ("torch", "transformers", "tokenizers", "lm_eval")},
    }
    where = {
        "source": task.source,
        "doc_ids": block.doc_ids,
        "ids": block.ids,
        "trust": suite.trust_task_code,
        "group": group.name,
    }
    yield Job(generate, "generate", spec, (input_of(suite, facts, "model", name),), where, name)
    judge = {
        "version": JUDGE_VERSION,
        **{key: value for key, value in _asked(task).items() if key in ("task", "task_digest")},
        **({"metric": group.metric} if group.metric else {}),
        "sandbox": facts.sandbox if task.kind == "code" else None,
        **({"toolchain": facts.toolchains.get(str(task.language))} if task.kind == "code" else {}),
        "versions": {name: facts.versions[name] for name in ("lm_eval", "python")},
    }
    where = {"source": task.source, "trust": suite.trust_task_code}
    yield Job(f"judge {name} {group.name}/{block.name}", "judge", judge, (Input("responses", job=generate),), where)


def _asked(task: Task) -> dict[str, Any]:
    """What decides the responses besides the items; of a text nothing, its documents are all there is."""
    if task.kind == "text":
        return {"task": task.metric, "task_version": task.version}
    return {
        "task": task.name, "task_version": task.version, "task_digest": task.digest, "shots": task.shots,
        "prompts": task.prompts,
    }  # fmt: skip


def _said(suite: Suite, group: Group, task: Task, model: str, chat: Collection[str]) -> dict[str, Any]:
    """How a model is asked, where that is not one greedy answer to a plain prompt.

    A program is gone on with, and a chat answers with one of its own in a fence: so only who insists gets that.
    """
    asked = chat if task.kind in ("likelihood", "generate") else insisted(suite) if task.kind == "code" else ()
    said: dict[str, Any] = {"chat": True} if model in asked else {}
    if group.temperature and task.kind == "code":
        drawn = {"samples": group.samples, "temperature": group.temperature, "top_p": group.top_p}
        said["sampling"] = {**drawn, "seed": suite.seed}
    return said


def _overlaps(suite: Suite, facts: Facts, jobs: dict[str, Job]) -> Iterator[tuple[str, str]]:
    """(corpus, id of the job that looks for the suite's items in it), for the text that candidates are made with."""
    tasks = {name: task for name, task in facts.tasks.items() if task.kind != "text"}
    corpora = dict.fromkeys(c for m in suite.models.values() if isinstance(m, Candidate) for c in m.corpora)
    # The pocket world's generators give no test item, and what is made of few phrases shares 13 words by chance.
    given = [corpus for corpus in corpora if not corpus.startswith("pocket/")]
    for corpus in given if tasks else ():
        job_id = f"overlap {corpus_names(facts, [corpus])}"
        spec = {
            "version": OVERLAP_VERSION,
            "corpus": facts.corpora[corpus],
            "tasks": {name: task.digest for name, task in tasks.items()},
            "versions": {"lm_eval": facts.versions["lm_eval"]},
        }
        where = {
            "corpus": corpus,
            "corpus_seed": suite.seed,
            "sources": {name: task.source for name, task in tasks.items()},
            "trust": suite.trust_task_code,
        }
        jobs[job_id] = Job(job_id, "overlap", spec, (), where)
        yield corpus, job_id
