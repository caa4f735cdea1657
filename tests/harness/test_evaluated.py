"""`evaluate:` with a text and `published:`: what they become, and what is said of ones that are wrong."""

import json

import pytest

from harness import suite as suites
from harness.errors import SuiteError
from harness.facts import LIBRARIES, Facts, FolderFacts
from harness.plan import plan
from harness.schema import schema
from harness.tasks import describe_text

TEXT = """
suite: read
models:
  a: {from: ./a}
  b: {from: ./b}
candidates:
  swept: {method: ties, base: a, models: [a, b], density: {sweep: [0.3, 0.5]}}
  emr: {method: emr, base: a, models: [a, b], route: {own: a, text: b}}
evaluate:
  own: {tasks: quiz}
  text: {bits_per_byte: held_out.jsonl, limit: 30, batch_size: 4}
published:
  Llama-2 CLM:
    source: "arXiv:2401.10491, tables 1-3"
    beside: swept
    note: one seed
    scores:
      own: {value: 0.4044, tasks: {quiz: 0.5}}
      elsewhere: {value: 1}
"""


@pytest.fixture
def load(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "held_out.jsonl").write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(40)))

    def load(text=TEXT):
        (tmp_path / "suite.yaml").write_text(text)
        return suites.load(tmp_path / "suite.yaml")

    return load


def test_a_text_is_a_group_without_tasks_and_what_is_published_is_kept(load, tmp_path):
    suite = load()
    own, text = suite.groups
    assert (own.tasks, own.text) == (("quiz",), None)
    assert (text.tasks, text.text) == ((), str(tmp_path / "held_out.jsonl"))
    assert (text.limit, text.batch_size) == (30, 4)
    assert suite.published["Llama-2 CLM"]["scores"]["elsewhere"] == {"value": 1}
    assert load(TEXT.replace("held_out.jsonl", "pocket/held_out")).groups[1].text == "pocket/held_out"


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("held_out.jsonl", "gone.jsonl", ":11:25", "there is no file"),
        ("held_out.jsonl", "pocket/noisy", ":11:25", "'bits_per_byte' is 'pocket/noisy'; expected a text"),
        ("held_out.jsonl", "[a]", ":11:25", "expected a text"),
        ("limit: 30", "limits: 30", ":11:", "unknown key 'limits'"),
        ("{bits_per_byte: ", "{tasks: quiz, bits_per_byte: ", ":11:", "needs `tasks:`, or `bits_per_byte:`"),
        ("  own: {tasks: quiz}\n", "", ":10:", "bits per byte stand beside a score"),
        ("route: {own: a, text: b}", "route: {own: a}", ":8:", "no model is named for group 'text'"),
        ("published:\n  Llama-2 CLM:", "published:\n  3:", ":13:3", "3 is not a name"),
        ('source: "arXiv:2401.10491, tables 1-3"', "paper: x", ":14:5", "unknown key 'paper'"),
        ('    source: "arXiv:2401.10491, tables 1-3"\n', "", ":14:", "needs `source:`"),
        ("beside: swept", "beside: sweept", ":15:13", "there is no model or candidate 'sweept'"),
        ("note: one seed", "note: [1]", ":16:11", "'note' is [1]; expected text"),
        ("value: 0.4044", "value: 40.44", ":18:20", "40.44; expected a share from 0 to 1"),
        ("value: 0.4044", "value: .nan", ":18:20", "expected a share from 0 to 1"),
        ("value: 1}", "value: yes}", ":19:26", "'value' is 'yes'; expected a share"),
        ("value: 1}", "value: true}", ":19:26", "'value' is True; expected a share"),
        ("{quiz: 0.5}", "{quiz: null}", ":18:4", "'quiz' is None; expected a share"),
        ("{quiz: 0.5}", "{3: 0.5}", ":18:", "expected a task's name"),
        ("elsewhere: {value: 1}", "elsewhere: {}", ":19:18", "'elsewhere' is {}"),
        ("elsewhere: {value: 1}", "elsewhere: {tasks: {}}", ":19:", "'tasks' is {}"),
        ("elsewhere: {value: 1}", "else where: {value: 1}", ":19:7", "'else where' is not a name"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(load, old, new, place, said):
    assert old in TEXT
    with pytest.raises(SuiteError) as caught:
        load(TEXT.replace(old, new, 1))
    assert said in str(caught.value)
    assert f"suite.yaml{place}" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ("", (1, 0.0, 1.0)),
        (", samples: 1", (1, 0.0, 1.0)),
        (", temperature: 0", (1, 0.0, 1.0)),
        (", samples: 20", (20, 0.2, 0.95)),
        (", samples: 20, temperature: 0.8", (20, 0.8, 0.95)),
        (", samples: 2, temperature: 1, top_p: 1", (2, 1.0, 1.0)),
        (", temperature: 0.5", (1, 0.5, 0.95)),
    ],
)
def test_how_programs_are_drawn(load, given, drawn):
    own, _ = load(TEXT.replace("tasks: quiz", f"tasks: quiz{given}")).groups
    assert (own.samples, own.temperature, own.top_p) == drawn and own.metric is None
    assert load(TEXT.replace("tasks: quiz", "tasks: quiz, metric: acc")).groups[0].metric == "acc"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("samples: 0", "'samples' is 0; expected a whole number from 1"),
        ("samples: 2.5", "'samples' is 2.5"),
        ("samples: true", "'samples' is True"),
        ("temperature: -1", "'temperature' is -1; expected a number from 0"),
        ("temperature: .inf", "'temperature' is inf"),
        ("temperature: hot", "'temperature' is 'hot'"),
        ("temperature: true", "'temperature' is True"),
        ("temperature: 1, top_p: 0", "'top_p' is 0; expected a share above 0, up to 1"),
        ("temperature: 1, top_p: 1.5", "'top_p' is 1.5"),
        ("samples: 5, temperature: 0", "5 samples at temperature 0 are all the same"),
        ("top_p: 0.9", "'top_p' is of samples that are drawn: add a `temperature:` above 0"),
        ("samples: 1, temperature: 0, top_p: 0.9", "'top_p' is of samples that are drawn"),
        ("metric: [acc]", "'metric' is ['acc']; expected the name of one of the tasks' scores"),
        ("metric: 3", "'metric' is 3"),
    ],
)
def test_how_programs_are_not_drawn(load, given, said):
    with pytest.raises(SuiteError) as caught:
        load(TEXT.replace("tasks: quiz", f"tasks: quiz, {given}"))
    assert said in str(caught.value) and "suite.yaml:10:" in str(caught.value)


def test_a_text_is_not_drawn(load):
    with pytest.raises(SuiteError, match="unknown key 'samples'"):
        load(TEXT.replace("limit: 30", "limit: 30, samples: 3"))


def test_the_json_schema_knows_texts_and_what_is_published():
    made = schema()["properties"]
    assert [set(one["properties"]) for one in made["evaluate"]["additionalProperties"]["oneOf"]] == [
        {"tasks", "limit", "batch_size", "metric", "samples", "temperature", "top_p"},
        {"bits_per_byte", "limit", "batch_size"},
    ]
    assert made["published"]["additionalProperties"]["required"] == ["source", "scores"]


def test_a_text_s_jobs_are_known_by_its_documents_and_not_by_its_name(load, tmp_path):
    def planned(text, file="held_out.jsonl"):
        suite = load(text)
        tasks = {group.name: describe_text(group.name, group.text) for group in suite.groups if group.text}
        quiz = {"quiz": describe_text("quiz", suite.groups[1].text)}
        folders = {name: FolderFacts(f"/{name}", name, 1, {}) for name in ("a", "b")}
        found = Facts(
            folders=folders, tasks=tasks | quiz, groups={"own": ("quiz",)} | {name: (name,) for name in tasks},
            corpora={}, versions=dict.fromkeys((*LIBRARIES, "python"), "1"), device="cpu", gpus=(), sandbox=None,
        )  # fmt: skip
        return plan(suite, found)

    first = planned(TEXT)
    job = first.jobs["generate a text/text/test.0"]
    assert job.spec["task"] == "bits_per_byte" and job.where["source"].endswith("held_out.jsonl")
    assert len(first.items["text"]["text"].counted["test"]) == 30
    assert [i.job for i in first.jobs["judge a text/text/test.0"].inputs] == [job.id]
    (tmp_path / "moved.jsonl").write_text((tmp_path / "held_out.jsonl").read_text())
    renamed = TEXT.replace("held_out.jsonl", "moved.jsonl").replace("text: {bits", "prose: {bits")
    same = planned(renamed.replace("text: b}", "prose: b}")).jobs["generate a prose/prose/test.0"]
    assert same.key({}) == job.key({})
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": "another"}))
    assert planned(TEXT).jobs[job.id].key({}) != job.key({})
