"""Chat templates: who is asked in one, and that the prompts and answers are then lm-eval's own."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, LlamaForCausalLM

from harness import facts as looking
from harness import suite as suites
from harness.chat import templated, words
from harness.errors import SuiteError, TaskError, UsageError
from harness.evaluate import LiveModel, Settings, respond
from harness.plan import plan
from harness.spec import Source
from harness.store import Store
from tests.harness.test_evaluate import SHOTS, loaded, write_model
from tests.harness.test_plan import facts
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, GENERATE, QUESTIONS, write_task

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}"
    "{% if not (loop.last and continue_final_message) %} [end]\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT = """
suite: mine
models:
  base: {from: ./base}
  a: {from: ./a}
  b: {from: ./b}
  made: {train: pocket/specialist, from: b, skill: code}
candidates:
  mean: {method: linear, models: [a, b]}
  tuned: {method: clm, target: a, corpus: pocket/noisy}
evaluate:
  g: {tasks: [quiz], limit: 100}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_model(folder / "m", seed=1, context=400)
    (folder / "m" / "chat_template.jinja").write_text(TEMPLATE)
    write_task(folder, "legs", CHOICE, QUESTIONS)
    write_task(folder, "word", GENERATE, QUESTIONS)
    shots = SHOTS + 'description: "Count the legs."\n'
    write_task(folder, "shots", CHOICE.replace("test: ", "train: train.jsonl, test: "), QUESTIONS, shots)
    write_task(folder, "begun", GENERATE, QUESTIONS, 'gen_prefix: "It has"\n')
    # What bare lm-eval may run of a code task without a sandbox: its prompts and responses.
    write_task(folder, "functions", CODE, FUNCTIONS)
    bare = CODE.replace("unsafe_code: true\n", "").replace("kind: code, ", "")
    bare += 'metric_list: [{{metric: bypass, aggregation: bypass, higher_is_better: true}}]\ndoc_to_target: ""\n'
    (folder / "bare").mkdir()
    write_task(folder / "bare", "functions", bare, FUNCTIONS)
    (folder / "train.jsonl").write_text((folder / "legs.jsonl").read_text().replace("has", "had"))
    return folder


def bare(world: Path, task: str) -> list[Any]:
    """lm-eval alone, on a model of its own, over the whole task."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(world / "m"), AutoTokenizer.from_pretrained(world / "m")
    folder = world / "bare" if (world / "bare" / f"{task}.yaml").is_file() else world
    name = str(folder / f"{task}.yaml")
    manager = TaskManager(include_defaults=False)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    # lm-eval takes data files to be relative to where it is called.
    with contextlib.chdir(folder):
        found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, apply_chat_template=True)
    (samples,) = found["samples"].values()
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


@pytest.mark.parametrize("task", ["legs", "word", "shots", "begun", "functions"])
def test_prompts_and_answers_are_lm_evals(world: Path, task: str) -> None:
    live = loaded(world, "m")
    mine = respond(live, str(world / f"{task}.yaml"), range(4), Settings(4, chat=True))
    plain = respond(live, str(world / f"{task}.yaml"), range(4), Settings(4))
    theirs = bare(world, task)[:4]
    for record, sample, without in zip(mine, theirs, plain, strict=True):
        assert record["id"] == sample["doc_hash"]
        assert record["prompt_hash"] == sample["prompt_hash"] != without["prompt_hash"]
        assert "[user]" in sample["arguments"][0][0]
        for said, wanted in zip(record["resps"], sample["resps"], strict=True):
            if isinstance(said[0], str):
                assert said == wanted
            else:
                assert said[0][0] == pytest.approx(wanted[0][0], abs=1e-4) and said[0][1] == wanted[0][1]
    assert [record["resps"] for record in mine] != [record["resps"] for record in plain]


def test_a_chat_is_as_long_as_its_template_makes_it(world: Path, tmp_path: Path) -> None:
    """A prompt that fits the context as it is, and in its template does not."""
    write_model(tmp_path / "m", seed=1, context=96)
    path = str(write_task(tmp_path, "word", GENERATE, [{**QUESTIONS[0], "question": "x" * 80}]))
    (tmp_path / "m" / "chat_template.jinja").write_text(TEMPLATE)
    live = loaded(tmp_path, "m")
    marks = [respond(live, path, [0], Settings(chat=chat))[0]["truncated"] for chat in (False, True)]
    assert marks == [False, True]


def test_a_template_that_refuses_the_prompt_is_named(world: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "m", seed=1)
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    live = loaded(tmp_path, "m")
    with pytest.raises(TaskError, match=r"legs.yaml: the model's chat template .*roles must alternate.*`chat: off`"):
        respond(live, str(world / "legs.yaml"), [0], Settings(chat=True))
    assert len(respond(live, str(world / "legs.yaml"), [0], Settings())) == 1


# ------------------------------------------------------------------------------------------------------- who is asked


@pytest.fixture
def asked(tmp_path: Path) -> Any:
    """The models of a suite that are asked in their templates, where those named in `have` have one."""
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()

    def asked(text: str, *have: str, unknown: tuple[str, ...] = ()) -> frozenset[str]:
        (tmp_path / "suite.yaml").write_text(text)
        known = facts()
        folders = {
            name: replace(found, chat=None if name in unknown else name in have)
            for name, found in known.folders.items()
        }
        return templated(suites.load(tmp_path / "suite.yaml"), replace(known, folders=folders))

    return asked


ALL = {"base", "a", "b", "made", "mean", "tuned", "tuned.control"}
ON = TEXT + "chat: on\n"


def test_all_are_asked_alike(asked: Any) -> None:
    assert asked(TEXT, "base", "a", "b") >= ALL - {"tuned.control"}
    assert asked(TEXT, "a", "b") == asked(TEXT) == frozenset(), "the base has none"
    assert asked(TEXT + "chat: off\n", "base", "a", "b") == frozenset()
    assert asked(ON, "base", "a", "b") == asked(TEXT, "base", "a", "b")


def test_a_base_is_no_chat_model(asked: Any) -> None:
    assert asked(TEXT + "kinship: {base: base}\n", "base", "a", "b") == frozenset()
    ties = TEXT.replace("method: linear,", "method: ties, base: base,")
    assert asked(ties, "base", "a", "b") == frozenset()
    assert asked(ties + "chat: on\n", "base", "a", "b") >= {"base", "mean", "a"}
    # What is merged together with the others is no base, whatever the method calls it.
    assert asked(TEXT.replace("method: linear, models: [a, b]", "method: slerp, models: [a, b], t: 0.5"), *"ab", "base")


def test_a_model_s_own_word_counts_and_what_is_made_of_it_follows(asked: Any) -> None:
    assert asked(TEXT.replace("./base}", "./base, chat: off}"), "a", "b") >= {"a", "b", "made", "mean", "tuned"}
    assert "base" not in asked(TEXT.replace("./base}", "./base, chat: off}"), "a", "b")
    alone = asked(TEXT.replace("./b}", "./b, chat: on}"), "b")
    assert alone == {"b", "made"}
    assert asked(TEXT.replace("./b}", "./b, chat: on}").replace("skill: code", "skill: code, chat: off"), "b") == {"b"}
    assert asked(TEXT.replace("./a}", "./a, chat: on}"), "a") >= {"a", "mean", "tuned"}
    other = TEXT.replace("./b}", "./b, chat: on}").replace("models: [a, b]}", "models: [a, b], tokenizer: b}")
    assert asked(other, "b") == {"b", "made", "mean"}, "the tokenizer's template, and its owner's word"


def test_a_template_that_is_asked_for_and_absent(asked: Any) -> None:
    with pytest.raises(UsageError, match=r"`chat: on` asks for a chat template, and base, a have none"):
        asked(TEXT.replace("tuned: {method: clm, target: a", "tuned: {method: clm, target: b") + "chat: on\n", "b")
    with pytest.raises(UsageError, match="and a has none"):
        asked(TEXT.replace("./a}", "./a, chat: on}"), "b")
    assert asked(ON, "a", "b", unknown=("base",)) >= {"base", "a"}, "not here yet: it may have one"
    assert asked(TEXT, "a", "b", unknown=("base",)) == frozenset()


def test_who_is_asked_in_a_template_is_told() -> None:
    assert words(["a", "b"], frozenset()) is None
    assert words(["a", "b"], {"a", "b"}) == "asked in their chat templates: all models"
    assert words(["a", "b", "c"], {"c", "a"}) == "asked in their chat templates: a, c; plainly: b"


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [("suite: mine", "suite: mine\nchat: yes", ":3:7"), ("./a}", "./a, chat: always}", ":5:24"),
     ("skill: code", "skill: code, chat: 1", ":7:")],
)  # fmt: skip
def test_what_is_no_choice_is_said_at_its_place(asked: Any, old: str, new: str, place: str) -> None:
    with pytest.raises(SuiteError, match=rf"'chat' is .*; expected auto \| on \| off\n.*suite.yaml{place}"):
        asked(TEXT.replace(old, new))


def test_templates_are_found_where_transformers_finds_them(world: Path, tmp_path: Path) -> None:
    def has(folder: str, adapter: str | None = None) -> bool | None:
        return looking.folder_of(Source("m", str(tmp_path / folder), adapter=adapter), Store(tmp_path / "store")).chat

    write_model(tmp_path / "none")
    shutil.copytree(world / "m", tmp_path / "jinja")
    shutil.copytree(tmp_path / "none", tmp_path / "inside")
    config = json.loads((tmp_path / "inside" / "tokenizer_config.json").read_text())
    (tmp_path / "inside" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    assert [has(name) for name in ("none", "jinja", "inside")] == [False, True, True]
    live = LiveModel("cpu")
    for name in ("none", "jinja", "inside"):
        live.load(loaded_ref(tmp_path / name))
        assert (live.lm.tokenizer.chat_template is not None) == has(name)


def loaded_ref(folder: Path) -> Any:
    from fusion.modelref import Folder

    return Folder(str(folder))


def test_programs_are_gone_on_with_in_a_template_only_where_it_is_on(world: Path, tmp_path: Path) -> None:
    """A chat would answer with a whole program between fences."""
    write_task(world, "functions", CODE, FUNCTIONS)
    text = "suite: s\nsandbox: any\nmodels: {m: {from: ./m}}\n"
    text += "evaluate: {g: {tasks: [./legs.yaml, ./functions.yaml]}}\n"

    def asked(more: str) -> set[str]:
        (world / "s.yaml").write_text(text + more)
        suite = suites.load(world / "s.yaml")
        jobs = plan(suite, looking.gather(suite, Store(tmp_path / "store"))).jobs.values()
        return {job.id.split("/")[1] for job in jobs if job.kind == "generate" and job.spec.get("chat")}

    assert asked("") == {"legs"}
    assert asked("chat: on\n") == {"legs", "functions"}
    assert asked("chat: off\n") == set()
