"""What a worker does for each kind of job: unpack the task, call the station, hand back the result."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusion.errors import CheckpointError
from harness.blocks import RESPONSES, SCORES, read_block, write_block
from harness.errors import TaskError
from harness.store import digest_of

if TYPE_CHECKING:
    from fusion.modelref import Ensemble, ModelRef

T = TypeVar("T")

FUNCTIONS = {
    "train": "harness.work:train",
    "read": "harness.work:read",
    "fuse": "harness.work:fuse",
    "statistics": "harness.work:statistics",
    "build": "harness.work:build",
    "write": "harness.work:write",
    "generate": "harness.work:generate",
    "judge": "harness.work:judge",
    "relate": "harness.work:relate",
    "overlap": "harness.work:overlap",
    "probe": "harness.work:probe",
}


@dataclass(frozen=True)
class Task:
    """A job as its worker sees it.

    `inputs` and `refs` are by role; files go to `out`; what helps a second try goes to `scratch`, which may not exist.
    """

    kind: str
    spec: Mapping[str, Any]
    where: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    refs: "Mapping[str, ModelRef]"
    out: Path
    scratch: Path
    progress: Callable[[int, int], None]


@dataclass(frozen=True)
class Made:
    """A job's small result; the digest of what it made, if not simply of its files; what it cost besides time."""

    result: Mapping[str, Any]
    digest: str | None = None
    cost: Mapping[str, float] = field(default_factory=dict)


def train(task: Task) -> Made:
    """A model trained from nothing or from a parent; `model/` holds it."""
    from harness import build

    return Made(*build.train(task.spec, task.refs.get("parent"), task.out / "model", task.scratch, task.progress))


def read(task: Task) -> Made:
    """What a model, or several together, say of a corpus; `store/` holds it."""
    from harness import build

    models = numbered(task.refs, "model")
    text = (task.where["corpora"], task.spec["corpora"], task.where["corpus_seed"])
    return Made(build.read_text(task.spec, models, text, task.out / "store", task.scratch, task.progress))


def fuse(task: Task) -> Made:
    """A target trained on a corpus, with or without teachers; `model/` holds it."""
    from harness import build

    teachers = numbered(task.refs, "teacher")
    text = (task.where["corpora"], task.spec["corpora"], task.where["corpus_seed"])
    stores = [Path(found["path"]) / "store" for found in numbered(task.inputs, "store")]
    target = task.refs["target"]
    return Made(*build.fuse(task.spec, target, teachers, stores, text, task.out / "model", task.scratch, task.progress))


def statistics(task: Task) -> Made:
    """What a data-guided merge must know of one model or several on their corpora; a folder a model."""
    from harness import build

    models = numbered(task.refs, "model")
    text = (task.where["corpora"], task.spec["corpora"], task.where["corpus_seed"])
    return Made(build.read_data(task.spec, models, text, task.out, task.scratch, task.progress))


def build(task: Task) -> Made:
    """A merge made straight in the live model's memory: what is kept is its identity, and what became of its tensors.

    A routed model has an identity for each of its routes, and one of them all.
    """
    from fusion.digests import join_digests
    from fusion.merge import check_lineage
    from fusion.modelref import Ensemble, Routed
    from harness.evaluate import live_model

    if isinstance(task.refs["self"], Ensemble):
        return _ensemble(task, task.refs["self"])
    live, ref = live_model(task.where["device"]), task.refs["self"]
    routes = dict(ref.routes) if isinstance(ref, Routed) else {"": ref}
    check_lineage(next(iter(routes.values())))
    digests = {group: live.load(route) for group, route in routes.items()}
    result = {"notes": live.notes}
    if not isinstance(ref, Routed):
        return Made({"digests": digests[""], **result}, digests[""]["model"])
    models = {group: found["model"] for group, found in digests.items()}
    return Made({"routes": models, **result}, join_digests(f"{group}={digest}" for group, digest in models.items()))


def _ensemble(task: Task, ref: "Ensemble") -> Made:
    """An ensemble's identity; `domains.safetensors` holds what a routed one knows its members' domains by."""
    from fusion.ensemble import DOMAINS, apart
    from harness.build import joined
    from harness.ensembles import fit
    from harness.evaluate import live_model

    live = live_model(task.where["device"])
    if task.where["corpora"]:
        live.load(ref.models[0][1], ref.dtypes[0])
        given = zip(ref.models, task.where["corpora"], task.spec["corpora"], strict=True)
        seed = task.where["corpus_seed"]
        texts = {name: joined(((corpus,), (digest,), seed)) for (name, _), corpus, digest in given}
        fit(live.lm, texts).save(task.out / DOMAINS)
        ref = replace(ref, domains=str(task.out / DOMAINS))
    found = live.load(ref)
    if not live.lm.by_token and task.where["tokenwise"]:
        raise TaskError(apart(live.lm.names, task.where["tokenwise"]))
    return Made({"by_token": live.lm.by_token}, found["model"])


def write(task: Task) -> Made:
    """A merge written as a model folder."""
    from fusion.merge import write as write_model

    return Made(write_model(task.refs["model"], task.out / "model"))


def generate(task: Task) -> Made:
    """A model's responses to one block of a task."""
    from harness.evaluate import Settings, live_model, respond

    live = live_model(task.spec["device"])
    loaded = live.load(task.refs["model"], task.spec["dtype"])
    model = task.inputs["model"]
    if loaded["model"] != _expected(model, task.where["group"]):
        raise CheckpointError(
            f"model '{model['model']}' is not what it was when it was {'made' if model['path'] else 'looked at'}: its "
            f"weights, config or tokenizer have changed ({loaded['model']} for {model['digest']}). Run again"
        )
    drawn, chat = task.spec.get("sampling", {}), task.spec.get("chat", False)
    settings = Settings(batch_size=task.spec["batch_size"], chat=chat, **drawn)
    responses = respond(live, task.where["source"], task.where["doc_ids"], settings, trust=task.where["trust"])
    if [response["id"] for response in responses] != [item.split("#")[0] for item in task.where["ids"]]:
        raise TaskError(
            f"{task.where['source']}: its data have changed since this run was planned; run again "
            "(of data of the hub first remove facts/task-*.json in the store, where they are described)"
        )
    write_block(task.out, RESPONSES, responses)
    counts = {key: sum(response.get(key, 0) for response in responses) for key in ("truncated", "unfinished")}
    cost = {"skeletons_loaded": live.skeletons_loaded}
    return Made({"n": len(responses), **counts}, digest_of(responses), cost)


def judge(task: Task) -> Made:
    """The scores of one block of responses."""
    from harness.judge import judge as judge_responses

    responses = read_block(Path(task.inputs["responses"]["path"]), RESPONSES)
    scores = judge_responses(task.where["source"], responses, sandbox=task.spec["sandbox"], trust=task.where["trust"])
    write_block(task.out, SCORES, scores)
    return Made({"n": len(scores)})


def probe(task: Task) -> Made:
    """What a model makes of some texts, for comparing it with others; `probe/` holds it."""
    from harness import compared

    text = (task.where["corpora"], task.spec["corpora"], task.where["corpus_seed"])
    return Made(compared.probe(task.spec, task.refs["model"], text, task.out / "probe", task.scratch, task.progress))


def relate(task: Task) -> Made:
    """The kinship of some models, pair by pair, in `kinship.json`."""
    from harness import compared

    names = [str(one["model"]) for one in numbered(task.inputs, "model")]
    models = dict(zip(names, numbered(task.refs, "model"), strict=True))
    if task.spec["by"] == "weights":
        found = compared.by_weights(task.spec, models, task.refs["base"])
    else:
        text = (task.where["corpora"], task.spec["corpora"], task.where["corpus_seed"])
        probes = [Path(one["path"]) / "probe" for one in numbered(task.inputs, "probe")]
        found = compared.by_texts(task.spec, models, probes, text, task.scratch)
    _write_json(task.out / "kinship.json", found)
    return Made({"models": len(models), "pairs": len(found["pairs"])})


def overlap(task: Task) -> Made:
    """Which items of tasks stand in a corpus, in `overlap.json`: by task, ids as plans name them."""
    from harness.build import joined
    from harness.overlap import search

    sources = {name: Path(source) for name, source in task.where["sources"].items()}
    text = joined(([task.where["corpus"]], [task.spec["corpus"]], task.where["corpus_seed"]))
    found = search(sources, text, task.where["trust"])
    _write_json(
        task.out / "overlap.json",
        {name: {"found": sorted(one.found), "unjudged": sorted(one.unjudged)} for name, one in found.items()},
    )
    return Made({name: {"items": len(one.ids), "overlapping": len(one.found)} for name, one in found.items()})


def numbered(given: "Mapping[str, T]", role: str) -> "list[T]":
    """Who plays a part `role.0`, `role.1`, ..., in that order: the tenth after the second."""
    mine = [name for name in given if name.startswith(f"{role}.")]
    return [given[name] for name in sorted(mine, key=lambda name: int(name.rpartition(".")[2]))]


def _expected(model: Mapping[str, Any], group: str) -> str:
    """The digest that a model must have when it answers a group."""
    return str(((model["result"] or {}).get("routes") or {}).get(group, model["digest"]))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8")
