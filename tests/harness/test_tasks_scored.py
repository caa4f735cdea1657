"""How tasks of benchmarks are asked and scored: BBH by two protocols, code by its rows, and all as lm-eval does it."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.evaluate import LiveModel, Settings, respond
from harness.judge import judge
from harness.tasks import benchmarks, files, load, local, names
from tests.harness.test_evaluate import write_model
from tests.harness.test_local_data import BBH, LUA, folder, kept, one, write_rows

__all__ = ["folder", "kept"]


def test_the_metric_that_counts_changes_no_digest(folder: Path, kept: Path) -> None:
    usual, by_acc = one("arc_easy", kept, str(folder)), one("arc_easy", kept, str(folder), "acc")
    assert (usual.metric, by_acc.metric, by_acc.also) == ("acc_norm", "acc", ("acc_norm",))
    assert usual.digest == by_acc.digest and usual.source != by_acc.source
    # The second choice is the likeliest a character, the first the likeliest.
    marks = [[[-4.0, False]], [[-7.0, False]], [[-30.0, False]]]
    responses = [
        {"id": usual.items[1], "doc_id": 1, "resps": marks},
        {"id": usual.items[0], "doc_id": 0, "resps": marks},
    ]
    records = {task.metric: judge(task.source, responses) for task in (usual, by_acc)}
    for normed, plain in zip(records["acc_norm"], records["acc"], strict=True):
        assert (normed["score"], normed["also"]) == (plain["also"]["acc_norm"], {"acc": plain["score"]})
    assert [record["score"] for record in records["acc"]] == [0.0, 1.0]


def _bare(name: str, kept: Path, file: Path, split: str = "test") -> Any:
    """lm-eval's own task on a file, without any of ours."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    index = names.builtin(kept)
    config = dict(load_yaml(index.folder / index.files[name])) | {"dataset_path": "json", "dataset_name": None}
    config |= {key: None for key in ("training_split", "validation_split", "test_split")}
    config |= {f"{split}_split": split, "dataset_kwargs": {"data_files": {split: str(file)}}}
    with load.quiet(), load.offline():
        task = TaskManager(include_defaults=False).load([config])["tasks"][name]
    task.set_fewshot_seed(1234)
    return task


TEXTS = (
    " Take them. So the answer is No.",
    " So the answer is No",
    " So the answer is No. ",
    "Quite so: the answer is No.",
    " the answer is No.\n\nand more",
    " The answer is: No.\nOr not",
    " the answer is Noo.",
    "So the answer is (Q).</s> more",
    "So the answer is",
    "",
)
RIGHT = (1, 1, 1, 1, 1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize("mode", ["cot_fewshot", "fewshot"])
def test_bbh_is_scored_by_two_protocols(folder: Path, kept: Path, mode: str) -> None:
    from lm_eval.api.instance import Instance

    name = f"bbh_{mode}_navigate"
    task = one(name, kept, str(folder))
    texts = (
        TEXTS
        if mode == "cot_fewshot"
        else (" No", "No", " No.", "No. Or so\nQ", "\n No \nYes", "Quite", "No \n\nQ: x", "")
    )
    right = RIGHT if mode == "cot_fewshot" else (1, 1, 1, 1, 1, 0, 1, 0)
    loaded = load.load(Path(task.source))
    assert loaded.task.config.generation_kwargs["until"] == ["</s>", "Q:", "\n\n"]
    bare = _bare(name, kept, folder / "bbh/navigate.jsonl")
    stops = bare.config.generation_kwargs["until"]
    assert stops == ["</s>", "Q", "\n\n"]
    expected = []
    for text in texts:
        instance = Instance(
            request_type="generate_until", doc=BBH[1], arguments=(), idx=0, metadata=(name, 1, 1),
            resps=[text[: min([text.find(stop) for stop in stops if stop in text] or [len(text)])]],
        )  # fmt: skip
        for ensemble in bare._filters:
            ensemble.apply([instance])
        (filtered,) = instance.filtered_resps.values()
        expected.append(float(bare.process_results(BBH[1], [filtered])["exact_match"]))
    responses = [{"id": task.items[1], "doc_id": 1, "resps": [[text]]} for text in texts]
    records = judge(task.source, responses)
    assert [record["also"] for record in records] == [{"exact_match,lm-eval": value} for value in expected]
    assert 0 < sum(expected) < sum(right)
    assert [record["score"] for record in records] == list(map(float, right))
    published = one(name, kept, str(folder), "exact_match,lm-eval")
    assert [record["score"] for record in judge(published.source, responses)] == expected


def test_an_item_without_a_right_choice_is_wrong_for_all(folder: Path, kept: Path) -> None:
    write_rows(folder / "bbh/navigate.jsonl", [*BBH, {"input": "Where?", "target": "Home"}])
    task = one("leaderboard_bbh_navigate", kept, str(folder))
    assert (task.unanswerable, len(task.items)) == (1, 5)
    resps = [[[-1.0, False]], [[-2.0, False]]]
    (record,) = judge(task.source, [{"id": task.items[4], "doc_id": 4, "resps": resps}])
    assert record["score"] == 0.0 and "choices" not in record


def test_mbpp_takes_its_rows_of_a_whole_file(folder: Path, kept: Path) -> None:
    loaded = load.load(Path(one("mbpp", kept, str(folder)).source))
    assert [doc["task_id"] for doc in loaded.docs] == [11, 12, 13, 509, 510]
    loaded.begin([0])
    prompt = loaded.task.fewshot_context(loaded.docs[0], num_fewshot=3)
    assert [f"to add {n}." in prompt for n in (1, 2, 3, 4, 5, 11)] == [False, True, True, True, False, True]
    assert prompt.endswith("assert f(2) == 13\n[BEGIN]\n") and "x + 11" not in prompt


def test_a_stripped_prompt_is_what_is_run(folder: Path, kept: Path) -> None:
    loaded = load.load(Path(one("multiple-lua", kept, str(folder)).source))
    assert loaded.docs[0]["prompt"] == LUA[0]["prompt"].strip() != LUA[0]["prompt"]
    assert loaded.task.config.generation_kwargs["until"] == LUA[0]["stop_tokens"]


def test_the_revision_of_a_data_set() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"

    def of(remote: bool, urls: Sequence[str], files: Sequence[str] = ()) -> str | None:
        info = SimpleNamespace(download_checksums=dict.fromkeys(urls))
        split = SimpleNamespace(info=info, cache_files=[{"filename": name} for name in files])
        definition = SimpleNamespace(remote=remote, eval_split="test", config={})
        return load.revision(SimpleNamespace(definition=definition, task=SimpleNamespace(dataset={"test": split})))

    assert of(True, [f"hf://datasets/a/b@{commit}/x.parquet"]) == commit
    assert of(True, [], [f"/cache/a___b/default/0.0.0/{commit}/b-test.arrow"]) == commit
    assert of(False, [f"hf://datasets/a/b@{commit}/x.parquet"]) is None
    assert of(True, ["hf://datasets/a/b/x.parquet"]) is None
    # Of files of two commits no one can be said.
    assert of(True, [f"a@{commit}/x", f"a@{commit[::-1]}/x"]) is None


# ---------------------------------------------------------------------------------------------------- the real data


@pytest.fixture(scope="module")
def real() -> Path:
    if not os.environ.get(local.VARIABLE):
        pytest.skip("FUSE_BENCH_DATA names no folder with bbh/, commonsense/ and code/")
    return Path(os.environ[local.VARIABLE])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveModel]:
    model = LiveModel("cpu")
    model.load(write_model(tmp_path_factory.mktemp("model") / "m", context=4096))
    yield model


REAL = [
    ("bbh_cot_fewshot_word_sorting", "bbh/word_sorting.jsonl", "test"),
    ("bbh_fewshot_date_understanding", "bbh/date_understanding.jsonl", "test"),
    ("bbh_zeroshot_dyck_languages", "bbh/dyck_languages.jsonl", "test"),
    ("bbh_cot_zeroshot_snarks", "bbh/snarks.jsonl", "test"),
    ("leaderboard_bbh_ruin_names", "bbh/ruin_names.jsonl", "test"),
    ("openbookqa", "commonsense/openbookqa.jsonl", "test"),
    ("winogrande", "commonsense/winogrande.jsonl", "validation"),
]


@pytest.mark.parametrize(("name", "file", "split"), REAL)
def test_prompts_are_lm_evals(real: Path, kept: Path, name: str, file: str, split: str) -> None:
    bare = _bare(name, kept, real / file, split)
    mine = load.load(Path(one(name, kept).source))
    assert [dict(doc) for doc in bare.eval_docs] == mine.docs
    count = 20
    mine.begin(range(count))
    for task in (bare, mine.task):
        with load.quiet():
            task.build_all_requests(limit=count, rank=0, world_size=1)
    asked = [
        [(i.doc_id, [a for a in i.args if isinstance(a, str)]) for i in task.instances] for task in (bare, mine.task)
    ]
    assert asked[0] == asked[1] and len({doc_id for doc_id, _ in asked[0]}) == count


@pytest.mark.parametrize(
    ("name", "file", "split"),
    [row for row in REAL if row[0] in ("leaderboard_bbh_ruin_names", "openbookqa", "winogrande")],
)
def test_likelihoods_are_lm_evals(real: Path, kept: Path, live: LiveModel, name: str, file: str, split: str) -> None:
    from lm_eval.evaluator import evaluate

    task, ids = one(name, kept), [0, 2, 99, 144]
    responses = respond(live, task.source, ids, Settings(batch_size=4))
    bare = _bare(name, kept, real / file, split)
    live.lm.batch_size_per_gpu = 4
    with load.quiet():
        theirs = evaluate(live.lm, {"tasks": {name: bare}}, samples={name: ids}, bootstrap_iters=0, log_samples=True)
    samples = theirs["samples"][name]
    assert [record["id"] for record in responses] == [sample["doc_hash"] for sample in samples]
    mine = [[resp[0][0] for resp in record["resps"]] for record in responses]
    assert mine == [pytest.approx([resp[0][0] for resp in sample["resps"]], abs=1e-4) for sample in samples]
    for sample, record in zip(samples, judge(task.source, responses), strict=True):
        values = {task.metric: record["score"], **record["also"]}
        assert values == {label: float(sample[label]) for label in values}


def test_generations_are_lm_evals_up_to_its_stops(real: Path, kept: Path, live: LiveModel) -> None:
    from lm_eval.evaluator import evaluate

    name, ids = "bbh_fewshot_boolean_expressions", [0, 5, 9]
    task, bare = one(name, kept), _bare(name, kept, real / "bbh/boolean_expressions.jsonl")
    for config in (bare.config, load.load(Path(task.source)).task.config):
        config.generation_kwargs["max_gen_toks"] = 48
    responses = respond(live, task.source, ids, Settings(batch_size=3))
    live.lm.batch_size_per_gpu = 3
    with load.quiet():
        theirs = evaluate(live.lm, {"tasks": {name: bare}}, samples={name: ids}, bootstrap_iters=0, log_samples=True)
    for record, sample in zip(responses, theirs["samples"][name], strict=True):
        (text,), (cut,) = record["resps"][0], sample["resps"][0]
        stops = [text.find(stop) for stop in ("</s>", "Q", "\n\n") if stop in text]
        assert text[: min(stops, default=len(text))] == cut
    load._load.cache_clear()


def test_code_is_asked_as_lm_eval_asks(real: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # lm-eval's code tasks fetch the code of their metric when they are loaded.
    metric = SimpleNamespace(compute=lambda **_: ({"pass@1": 0.0}, {}))
    monkeypatch.setitem(sys.modules, "evaluate", SimpleNamespace(load=lambda name: metric))
    for name, file in (("humaneval", "code/humaneval.jsonl"), ("mbpp", "code/mbpp.jsonl")):
        bare, mine = _bare(name, kept, real / file), load.load(Path(one(name, kept).source))
        theirs = {
            doc["task_id"]: bare.fewshot_context(doc, num_fewshot=bare.config.num_fewshot) for doc in bare.eval_docs
        }
        mine.begin(range(len(mine.docs)))
        for doc in mine.docs:
            assert mine.task.fewshot_context(doc, num_fewshot=mine.task.config.num_fewshot) == theirs[doc["task_id"]]
        assert mine.task.config.generation_kwargs["until"] == bare.config.generation_kwargs["until"]
        assert len(mine.docs) == {"humaneval": 164, "mbpp": 500}[name]


def test_every_language_has_its_stop_tokens(real: Path) -> None:
    for file in sorted((real / "code/multiple").glob("*.jsonl")):
        language = file.stem.removeprefix("humaneval-")
        config = files.read(benchmarks()[f"multiple-{language}"]).config
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert all(row["stop_tokens"] == config["generation_kwargs"]["until"] for row in rows)
        assert config["metadata"]["language"] == language
