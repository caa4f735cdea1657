"""`plan` without a network: what is not here is said, all else is planned, and nothing is asked of anybody."""

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import TaskError, UsageError
from harness.facts import Missing, gather
from harness.report import survey
from harness.run import Options
from harness.store import Store
from harness.suite import load
from harness.tasks import describe, describe_here
from tests.harness.test_evaluate import write_model
from tests.harness.test_tasks import CHOICE, QUESTIONS, write_task

SUITE = """
suite: far
seed: 1
models:
  here: {from: ./here}
  mpt: {from: mosaicml/mpt-7b}
candidates:
  clm: {method: clm, target: mpt, corpus: pocket/noisy}
evaluate:
  own: {tasks: [./legs.yaml]}
  bbh: {tasks: [bbh_cot_fewshot_navigate, far/away.yaml]}
track: {mlflow: "off"}
"""
REMOTE = """
task: NAME
dataset_path: nobody/nothing
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list:
    """Every attempt to reach another machine; none succeeds, and no cache of this machine's user is seen."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("there is no network")

    monkeypatch.delenv("FUSE_BENCH_DATA", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tried


@pytest.fixture
def suite(tmp_path) -> Path:
    write_model(tmp_path / "here")
    write_task(tmp_path, "legs", CHOICE, QUESTIONS)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "away.yaml").write_text(REMOTE.replace("NAME", "away"))
    text = SUITE.replace("  many: {tasks: [far_group]}\n", "")
    (tmp_path / "far.yaml").write_text(text)
    return tmp_path / "far.yaml"


def test_what_is_missing_is_named_and_the_rest_is_planned(suite, asked, tmp_path):
    found = survey(suite, Options(out=tmp_path / "runs", store=tmp_path / "store", progress="none"))
    assert asked == []
    assert [str(one) for one in found.missing] == [
        "model 'mpt' (mosaicml/mpt-7b)",
        "data of bbh_cot_fewshot_navigate",
        "data of far/away.yaml",
    ]
    jobs = {state.job.id for state in found.states}
    assert {"fuse clm", "generate mpt own/legs/test.0", "generate clm own/legs/test.0"} <= jobs
    assert not any("bbh" in job for job in jobs)
    assert {state.state for state in found.states} == {"pending"}
    assert found.memory_needed is not None, "the size of the model that is here is known"


def test_the_verb_says_it_in_words_and_in_json(suite, asked, tmp_path):
    options = [str(suite), "--out", str(tmp_path / "runs"), "--store", str(tmp_path / "store")]
    text = CliRunner().invoke(cli, ["plan", *options], catch_exceptions=False).output
    assert (
        "not here: model 'mpt' (mosaicml/mpt-7b), data of bbh_cot_fewshot_navigate, data of far/away.yaml: "
        "would be fetched by run"
    ) in " ".join(text.split())
    assert "the evaluation jobs of those tasks are not counted" in text
    document = json.loads(CliRunner().invoke(cli, ["plan", *options, "--json"], catch_exceptions=False).stdout)
    assert [one["kind"] for one in document["missing"]] == ["model", "tasks", "tasks"]
    assert asked == []


def test_a_run_still_fails_with_its_reason(suite, asked, tmp_path):
    suite.write_text(suite.read_text().replace("[bbh_cot_fewshot_navigate, far/away.yaml]", "./legs.yaml"))
    with pytest.raises(UsageError, match="'mpt': mosaicml/mpt-7b is no folder, and the hub did not give it"):
        gather(load(suite), Store(tmp_path / "store"))
    assert asked, "it tried"


def test_a_task_that_was_described_before_needs_no_data(suite, asked, tmp_path, monkeypatch):
    cache = tmp_path / "facts"
    found, absent = describe_here(["far/away.yaml"], tmp_path, cache)
    assert (found, absent) == ({}, {"far/away.yaml": (1, 1)})
    described = describe(["./legs.yaml"], tmp_path, cache)["./legs.yaml"]
    monkeypatch.setattr("harness.tasks._read", lambda *_: described)
    assert describe(["far/away.yaml"], tmp_path, cache)["far/away.yaml"].items == described.items
    monkeypatch.undo()
    found, absent = describe_here(["far/away.yaml"], tmp_path, cache)
    assert absent == {} and found["far/away.yaml"].items == described.items


def test_what_is_wrong_with_a_task_is_no_absence(suite, asked, tmp_path):
    (tmp_path / "far" / "away.yaml").write_text(REMOTE.replace("NAME", "away") + "num_fewshot: 2\n")
    with pytest.raises(TaskError, match="2 shots, but no examples to take them from"):
        gather(load(suite), Store(tmp_path / "store"), offline=True)


def test_a_snapshot_that_is_not_whole_is_not_here(suite, asked, tmp_path):
    repo = tmp_path / "hub" / "models--mosaicml--mpt-7b"
    (repo / "snapshots" / "0a1b").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0a1b")
    (repo / "snapshots" / "0a1b" / "config.json").write_text("{}")
    found = gather(load(suite), Store(tmp_path / "store"), offline=True)
    assert "model 'mpt' (mosaicml/mpt-7b)" in map(str, found.missing)
    assert asked == []


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (Missing("tasks", "bbh_cot_fewshot", "", 27, 27), "data of bbh_cot_fewshot (27 tasks)"),
        (Missing("tasks", "bbh_cot_fewshot", "", 3, 27), "data of bbh_cot_fewshot (3 of 27 tasks)"),
        (Missing("tasks", "arc_easy"), "data of arc_easy"),
        (Missing("corpus", "/x/minipile.jsonl"), "corpus /x/minipile.jsonl"),
    ],
)
def test_how_it_is_said(missing, said):
    assert str(missing) == said
