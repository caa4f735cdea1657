"""Planning: what decides a job's key and what does not, blocks, splits, and the reasons that a plan gives."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from harness import suite as suites
from harness.errors import TaskError
from harness.facts import LIBRARIES, Facts, FolderFacts, Missing
from harness.plan import in_order, is_dev, plan, unique_ids
from harness.relating import Related
from harness.status import failures, needs, previous_plan, status
from harness.store import Store
from harness.tasks import Task
from harness.work import numbered

TEXT = """
suite: planned
seed: 7
models:
  base: {from: ./base}
  a: {from: ./a}
  b: {from: ./b}
candidates:
  average: {method: linear, models: [a, b]}
  ties: {method: ties, base: base, models: [a, b], density: 0.3}
  fused: {method: fusellm, target: base, teachers: [a], corpus: pocket/noisy, seeds: [1, 2]}
evaluate:
  g: {tasks: [quiz], limit: 100, batch_size: 8}
split: {dev: 0.3}
kinship: {base: base}
"""


def quiz(n=500, **changes):
    items = tuple(hashlib.sha256(f"item {i}".encode()).hexdigest() for i in range(n))
    task = Task(
        name="quiz", source="/quiz.yaml", version="1", digest="d1", output_type="multiple_choice", kind="likelihood",
        metric="acc", also=(), chance=0.25, shots=0, items=items,
    )  # fmt: skip
    return replace(task, **changes)


def facts(**changes):
    versions = dict.fromkeys((*LIBRARIES, "python"), "1.0")
    folders = {
        name: FolderFacts(f"/models/{name}", f"digest of {name}", 10**6, {f"/models/{name}": "stamp"})
        for name in ("base", "a", "b")
    }
    found = Facts(
        folders=folders, tasks={"quiz": quiz()}, groups={"g": ("quiz",)}, corpora={"pocket/noisy": "v1"},
        versions=versions, device="cpu", gpus=(), sandbox=None,
    )  # fmt: skip
    return replace(found, **changes)


@pytest.fixture
def read(tmp_path):
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()

    def read(text=TEXT):
        (tmp_path / "suite.yaml").write_text(text)
        return suites.load(tmp_path / "suite.yaml")

    return read


def keys(planned):
    """Every job's key, with the recipe of its inputs standing for what they will turn out to be."""
    found = {}
    for job in planned.jobs.values():
        found[job.id] = job.key(found)
    return found


def test_parents_come_before_children_and_every_block_is_generated_then_judged(read):
    planned = plan(read(), facts())
    seen = set()
    for job in planned.jobs.values():
        assert set(job.needs) <= seen
        seen.add(job.id)
    generates = [j for j in planned.jobs.values() if j.kind == "generate"]
    judges = [j for j in planned.jobs.values() if j.kind == "judge"]
    assert len(generates) == len(judges) > 0
    assert {j.needs for j in judges} == {(j.id,) for j in generates}
    assert {j.id for j in planned.jobs.values() if j.kind == "fuse"} == {
        "fuse fused@1", "fuse fused@2", "fuse fused.control@1", "fuse fused.control@2",
    }  # fmt: skip


def test_planning_twice_gives_the_same_jobs(read):
    assert list(keys(plan(read(), facts())).items()) == list(keys(plan(read(), facts())).items())


def changed(before, after):
    """The kinds of jobs, by model, whose keys differ."""
    return {" ".join(i.split(" ")[:2]) for i in before if i in after and before[i] != after[i]}


def test_what_changes_a_key_and_how_far_it_reaches(read):
    before = keys(plan(read(), facts()))
    ties = changed(before, keys(plan(read(TEXT.replace("density: 0.3", "density: 0.4")), facts())))
    assert ties == {"build ties", "generate ties", "judge ties"}
    folders = facts().folders | {"b": FolderFacts("/models/b", "another digest", 10**6, "stamp")}
    assert changed(before, keys(plan(read(), facts(folders=folders)))) == {
        "generate b", "judge b", "build average", "generate average", "judge average", "build ties", "generate ties",
        "judge ties", "relate 2",
    }  # fmt: skip
    task = changed(before, keys(plan(read(), facts(tasks={"quiz": quiz(digest="d2")}))))
    assert {kind.split(" ")[0] for kind in task} == {"generate", "judge"}
    torch = changed(before, keys(plan(read(), facts(versions=facts().versions | {"torch": "2.0"}))))
    assert {kind.split(" ")[0] for kind in torch} == {"build", "read", "fuse", "generate", "judge"}
    batch = changed(before, keys(plan(read(TEXT.replace("batch_size: 8", "batch_size: 9")), facts())))
    assert {kind.split(" ")[0] for kind in batch} == {"generate", "judge"}
    moved = facts(folders={n: replace(f, path=f"/elsewhere/{n}") for n, f in facts().folders.items()})
    assert not changed(before, keys(plan(read(), moved))), "where a model lies decides nothing"
    named = TEXT.replace("  average:", "  mean:")
    renamed = keys(plan(read(named), facts()))
    assert renamed["build mean"] == before["build average"], "nor what it is called"


def test_a_text_is_searched_for_the_items_once_unless_it_is_the_pocket_worlds(read, tmp_path):
    assert not plan(read(), facts()).overlaps
    (tmp_path / "text.jsonl").write_text('{"text": "a"}')
    text = str(tmp_path / "text.jsonl")
    suite = read(TEXT.replace("pocket/noisy", text))
    found = plan(suite, facts(corpora={text: "v1"}))
    (job,) = found.overlaps.values()
    assert found.jobs[job].where["sources"] == {"quiz": "/quiz.yaml"} and not found.jobs[job].needs
    before, after = keys(found), keys(plan(suite, facts(corpora={text: "v1"}, tasks={"quiz": quiz(digest="d2")})))
    assert {kind.split(" ")[0] for kind in changed(before, after)} == {"generate", "judge", "overlap"}


def test_a_limit_is_a_prefix_and_is_in_no_key(read):
    small = plan(read(TEXT.replace("limit: 100", "limit: 40")), facts())
    large = plan(read(TEXT.replace("limit: 100", "limit: 400")), facts())
    kept = keys(small)
    assert {job: key for job, key in keys(large).items() if job in kept} == kept
    for split in ("dev", "test"):
        few, many = small.items["g"]["quiz"].counted[split], large.items["g"]["quiz"].counted[split]
        assert many[: len(few)] == few
    counted = small.items["g"]["quiz"].counted
    assert len(counted["dev"]) + len(counted["test"]) == 40


def test_blocks_cover_what_counts_once_and_splits_share_nothing(read):
    items = plan(read(TEXT.replace("limit: 100", "limit: 500")), facts()).items["g"]["quiz"]
    covered = [i for block in items.blocks for i in block.ids]
    assert len(covered) == len(set(covered)) == 500
    assert set(items.counted["dev"]).isdisjoint(items.counted["test"])
    assert 0.3 - 0.07 < len(items.counted["dev"]) / 500 < 0.3 + 0.07  # 3 standard errors of 500 draws at .3
    for block in items.blocks:
        assert list(block.doc_ids) == sorted(block.doc_ids)
        assert {is_dev(i, 0.3) for i in block.ids} == {block.split == "dev"}


def test_dev_is_decided_by_the_item_alone():
    ids = [str(i) for i in range(200)]
    assert {i for i in ids if is_dev(i, 0.2)} < {i for i in ids if is_dev(i, 0.5)}
    assert not any(is_dev(i, 0.0) for i in ids)
    assert in_order(ids, 1) != in_order(ids, 2)
    assert sorted(in_order(ids, 1)) == list(range(200))


def test_repeated_documents_are_told_apart_and_stay_in_one_split(read):
    assert unique_ids(["x", "y", "x", "x"]) == ["x", "y", "x#2", "x#3"]
    doubled = quiz(items=quiz(40).items * 2)
    items = plan(read(), facts(tasks={"quiz": doubled})).items["g"]["quiz"]
    dev = {i.split("#")[0] for i in items.counted["dev"]}
    assert dev.isdisjoint({i.split("#")[0] for i in items.counted["test"]})


def test_a_task_without_an_item_to_report_is_refused(read):
    with pytest.raises(TaskError, match="task 'quiz' has no item left to report: 0 in all"):
        plan(read(), facts(tasks={"quiz": quiz(0)}))


def test_parents_that_two_candidates_share_are_related_once(read):
    planned = plan(read(), facts())
    related = Related(("a", "b"), "base", "relate 2 models to base", None)
    fused = Related(("a", "base"), "base", None, None)
    assert planned.kinship == {"average": related, "ties": related, "fused": fused}
    assert sum(job.kind == "relate" for job in planned.jobs.values()) == 1


EVOLVED = TEXT.replace(
    "  fused:", "  second: {method: linear, models: [ties, b]}\n  third: {method: slerp, pairs: [base, a, b]}\n  fused:"
)


def test_given_models_are_compared_all_at_once_and_a_built_parent_with_its_child_alone(read):
    planned = plan(read(EVOLVED), facts())
    jobs = {name: related.by_weights for name, related in planned.kinship.items()}
    assert jobs == {
        "average": "relate 2 models to base",
        "ties": "relate 2 models to base",
        "second": "relate b ties to base",
        "third[a+b]": "relate 2 models to base",
        "fused": None,
    }, "a pair of which one is the base has one task vector, and so no kinship"
    roles = {i.role: i.model for i in planned.jobs["relate b ties to base"].inputs}
    assert roles == {"base": "base", "model.0": "b", "model.1": "ties"}
    assert "build ties" in planned.jobs["relate b ties to base"].needs


def test_what_is_measured_on_texts_is_read_once_a_model(read):
    asked = EVOLVED.replace("{base: base}", "{base: base, measures: [pcc, cka, js], texts: pocket/noisy}")
    planned = plan(read(asked), facts())
    probes = sorted(job.id for job in planned.jobs.values() if job.kind == "probe")
    assert probes == ["probe a", "probe b", "probe base", "probe ties"]
    assert planned.kinship["fused"].by_texts == planned.kinship["average"].by_texts == "relate 3 models by texts"
    assert planned.kinship["second"].by_texts == "relate b ties by texts"
    texts = planned.jobs["relate 3 models by texts"]
    assert [i.role for i in texts.inputs] == [*(f"probe.{i}" for i in range(3)), *(f"model.{i}" for i in range(3))]
    assert texts.spec["measures"] == ["cka", "js"] and planned.jobs["relate b ties to base"].spec["measures"] == ["pcc"]


def test_without_measures_nothing_is_related(read):
    planned = plan(read(TEXT.replace("{base: base}", "{measures: []}")), facts())
    assert planned.kinship == {} and not [job for job in planned.jobs.values() if job.kind in ("relate", "probe")]


def test_status_gives_reasons(read, tmp_path):
    store = Store(tmp_path / "store")
    planned = plan(read(), facts())
    before = {job.id: job.spec for job in planned.jobs.values()}
    fresh = status(planned, store, {}, {})
    assert {(s.state, s.reason) for s in fresh} == {("pending", "new")}
    job = planned.jobs["build average"]
    key = job.key({})
    store.commit(store.begin(), key, kind="build", spec=job.spec, inputs={}, result={}, cost={}, digest="made")
    changed_suite = plan(read(TEXT.replace("density: 0.3", "density: 0.4")), facts())
    states = {s.job.id: s for s in status(changed_suite, store, before, {"build ties": "no room\nat all"})}
    assert states["build average"].state == "cached"
    assert (states["build ties"].state, states["build ties"].reason) == ("failed", "failed before: no room")
    states = {s.job.id: s for s in status(changed_suite, store, before, {})}
    assert states["build ties"].reason == "density 0.3 -> 0.4"
    waiting = [s for s in states.values() if s.job.kind == "generate" and s.job.model == "ties"]
    assert {s.reason for s in waiting} == {"needs build ties"}
    disk = 5 * 10**6
    assert needs(planned, store, fresh) == {"disk": disk, "memory": 10**6}, "2 fusions, 2 controls, the best merge"


def test_the_last_plan_and_failures_are_read_from_run_folders(tmp_path):
    assert previous_plan([tmp_path]) == {}
    assert failures(tmp_path) == {}
    (tmp_path / "events.jsonl").write_text(
        '{"event": "failed", "job": "x", "fault": "user", "error": "bad"}\n'
        '{"event": "failed", "job": "y", "fault": "death", "error": "dead"}\n'
        '{"event": "ran", "job": "y"}\n{"event": "fai'
    )
    assert failures(tmp_path) == {"x": "bad"}


def test_refs_of_merges_name_their_parents(read):
    planned = plan(read(TEXT + "keep: all\n"), facts())
    ref = planned.ref("ties", {})
    assert [name for name, _ in ref.parents] == ["a", "b", "base"]
    assert [Path(parent.path).name for _, parent in ref.parents] == ["a", "b", "base"]
    assert planned.jobs["write ties"].needs == ("build ties",)


GUIDED = """
suite: guided
models:
  base: {from: ./base}
  a: {from: ./a}
  b: {from: ./b}
candidates:
  one: {method: fisher, models: [a, b], corpora: {a: x/text.jsonl, b: x/text.jsonl}}
  two: {method: fisher, models: [a, b], corpora: {a: y/text.jsonl, b: x/text.jsonl}}
  emr: {method: emr, base: base, models: [a, b], route: {g: a, h: b}}
evaluate:
  g: {tasks: [quiz]}
  h: {tasks: [quiz]}
"""


@pytest.fixture
def guided(read, tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.jsonl").write_text(f'{{"text": "{name}"}}')
    corpora = {str(tmp_path / name / "text.jsonl"): f"digest of {name}" for name in ("x", "y")}
    found = facts(groups={"g": ("quiz",), "h": ("quiz",)}, corpora=corpora)

    def planned(text=GUIDED):
        return plan(read(text), found).jobs

    return planned


def test_two_corpora_of_one_name_are_two_and_one_corpus_is_read_once(guided):
    jobs = {name: job for name, job in guided().items() if job.kind == "statistics"}
    read = {(job.inputs[0].model, job.spec["corpora"][0]) for job in jobs.values()}
    assert len(jobs) == 3 and read == {("a", "digest of x"), ("a", "digest of y"), ("b", "digest of x")}
    assert len([need for need in guided()["build two"].needs if need.startswith("statistics")]) == 2


def test_the_mask_of_a_routed_model_is_in_the_key_of_its_answers(guided):
    jobs = guided()
    one, other = (jobs[f"generate emr {group}/quiz/test.0"] for group in ("g", "h"))
    made = {"build emr": "digest of emr"}
    assert one.key(made) != other.key(made)
    swapped = guided(GUIDED.replace("{g: a, h: b}", "{g: b, h: a}"))
    assert swapped["generate emr g/quiz/test.0"].key(made) != one.key(made)


DRAWN = TEXT.replace("tasks: [quiz]", "tasks: [quiz, sums], samples: 3")


def test_samples_are_in_the_keys_of_code_tasks_alone(read):
    found = facts(tasks={"quiz": quiz(), "sums": quiz(name="sums", kind="code")}, groups={"g": ("quiz", "sums")})
    plain, drawn = (plan(read(text), found) for text in (DRAWN.replace(", samples: 3", ""), DRAWN))
    spec = drawn.jobs["generate a g/sums/test.0"].spec
    assert spec["sampling"] == {"samples": 3, "temperature": 0.2, "top_p": 0.95, "seed": 7}
    one, other = keys(plain), keys(drawn)
    differing = {name.split("/")[1] for name in one if name.startswith("generate") and one[name] != other[name]}
    assert differing == {"sums"}
    assert not {"sampling", "chat"} & set(plain.jobs["generate a g/sums/test.0"].spec)
    greedy = keys(plan(read(DRAWN.replace("samples: 3", "samples: 1, temperature: 0")), found))
    assert greedy == one, "what is said anyway changes no key"


def test_samples_of_what_is_no_program_are_refused(read):
    with pytest.raises(TaskError, match="group 'g' asks for 3 samples at temperature 0.2, and none of its tasks"):
        plan(read(TEXT.replace("[quiz]", "[quiz], samples: 3")), facts())
    absent = facts(tasks={}, groups={"g": ()}, missing=(Missing("tasks", "humaneval"),))
    plan(read(TEXT.replace("[quiz]", "[humaneval], samples: 3")), absent)


def test_a_chat_template_is_in_the_key_of_who_is_asked_in_it(read):
    folders = {name: replace(one, chat=True) for name, one in facts().folders.items()}
    before, after = (plan(read(TEXT + f"chat: {word}\n"), facts(folders=folders)) for word in ("auto", "on"))
    assert before.chat == frozenset() and after.chat == set(after.suite.models), "kinship has a base"
    assert {name.split(" ")[0] for name in changed(keys(before), keys(after))} == {"generate", "judge"}
    assert after.jobs["generate ties g/quiz/test.0"].spec["chat"] is True
    one = plan(read(TEXT.replace("./b}", "./b, chat: on}")), facts(folders=folders))
    assert {name.split(" ")[1] for name in changed(keys(before), keys(one))} == {"b"} == one.chat


def test_a_merge_of_strangers_is_another_job_than_one_that_was_checked(guided):
    allowed = guided(GUIDED.replace("route:", "allow_unrelated: true, route:"))
    assert allowed["build emr"].spec != guided()["build emr"].spec


def test_the_models_of_a_job_keep_their_order_beyond_nine():
    refs = {f"model.{i}": f"ref {i}" for i in (10, 2, 0, 1, 11)} | {"base": "ref"}
    assert numbered(refs, "model") == ["ref 0", "ref 1", "ref 2", "ref 10", "ref 11"]
