"""Names of tasks: groups, groups in groups, members that say more, tags, and what is none of these."""

from pathlib import Path
from typing import Any

import pytest

from harness.errors import TaskError
from harness.tasks import benchmarks, files, names, sources
from harness.tasks.names import Found, Index, find

TASKS = {
    "base_yaml": "dataset_path: nobody/nothing\ntest_split: test\ntag: animals\n",
    "hen.yaml": "include: base_yaml\ntask: hen\n",
    "cow.yaml": "tag:\n  - horned # as oxen are\n  - 'milk givers'\ntask: cow\ninclude: [base_yaml]\n",
    "eel.yaml": '"include": "base_yaml"\n"task": "eel"\n"tag": ["swimmers", "animals"]\n',
    "deep/owl.yaml": 'include: ../hen.yaml\ntask: "owl"\n',
    "_farm.yaml": "group: farm\ntask:\n  - hen\n  - {task: cow, num_fewshot: 2}\n  - water\nnum_fewshot: 1\n",
    "_water.yaml": "group: water\ntask: [eel]\naggregate_metric_list: [{metric: acc}]\nmetadata: {version: 1}\n",
    "_all.yaml": """group: all
task:
  - group: inside
    task: [{task: animals, num_fewshot: 3}]
  - {group: water, limit: 7}
""",
    "_loop.yaml": "group: loop\ntask: [hen, loop]\n",
    "_two.yaml": "group: two\ntask: [{task: hen, num_fewshot: 1}, {task: hen, num_fewshot: 2}]\n",
    "_inline.yaml": "group: inline\ntask: [{dataset_path: x, output_type: generate_until}]\n",
    "_none.yaml": "group: none\n",
    "_code.yaml": "group: code\ntask: [{task: hen, process_docs: !function mine.docs}]\n",
}


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """lm-eval's folder of tasks, replaced by one that is known by heart."""
    for name, text in TASKS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(files, "builtin_folder", lambda: tmp_path)
    names.builtin.cache_clear()
    yield tmp_path
    names.builtin.cache_clear()


def said(found: dict[str, Found]) -> dict[str, Any]:
    return {name: dict(one.said) for name, one in found.items()}


def test_the_scan_finds_what_lm_eval_finds(farm: Path) -> None:
    from lm_eval.tasks import TaskManager

    theirs = TaskManager(include_path=str(farm), include_defaults=False).task_index
    mine = names._scan(farm)
    tags = {name: sorted(entry.tags) for name, entry in theirs.items() if entry.kind.name == "TAG"}
    assert mine.tags == tags == {
        "animals": ["eel", "hen", "owl"], "horned": ["cow"], "milk givers": ["cow"], "swimmers": ["eel"],
    }  # fmt: skip
    assert mine.paths() == {name: Path(entry.yaml_path) for name, entry in theirs.items() if name not in tags}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hen", {"hen": {}}),
        ("swimmers", {"eel": {}}),
        # What a member says wins over its group, what a group is given wins over what it says.
        ("farm", {"hen": {"num_fewshot": 1}, "cow": {"num_fewshot": 2}, "eel": {"num_fewshot": 1}}),
    ],
)
def test_groups_and_tags_become_their_tasks(farm: Path, name: str, expected: dict[str, Any]) -> None:
    assert said(find([name], farm, farm / "cache")) == expected


def test_a_task_by_two_ways_is_one_task_only_if_they_say_the_same(farm: Path) -> None:
    assert said(find(["hen", "animals"], farm, farm / "cache")) == {"hen": {}, "eel": {}, "owl": {}}
    for asked in (["two"], ["hen", "farm"], ["all"]):
        with pytest.raises(TaskError, match="is asked for twice, each time with other settings"):
            find(asked, farm, farm / "cache")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("farn", "unknown task 'farn'; did you mean 'farm'"),
        ("swimers", "did you mean 'swimmers'"),
        ("fusellm_commonsens", "did you mean 'fusellm_commonsense'"),
        ("loop", "group 'loop' is a member of itself: loop > loop"),
        ("inline", "_inline.yaml: group 'inline' has a task that is written inside the group.*write a task file"),
        ("none", "group 'none' names no task"),
    ],
)
def test_names_that_stand_for_nothing(farm: Path, name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        find([name], farm, farm / "cache")


def test_what_a_group_says_is_in_the_file_that_is_made(farm: Path) -> None:
    found = sources(["farm"], farm, farm / "cache")
    definition = files.read(found["cow"])
    assert (definition.name, definition.config["num_fewshot"], definition.origin) == ("cow", 2, farm / "cow.yaml")
    assert files.read(farm / "cow.yaml").digest() != definition.digest()
    with pytest.raises(TaskError, match="what is said over task 'hen' has a `!function`"):
        sources(["code"], farm, farm / "cache")


def test_the_scan_is_kept_until_lm_eval_is_another(farm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names.builtin(farm / "cache")
    names.builtin.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(names, "_scan", lambda folder: Index(folder, {"bat": "bat.yaml"}, {}))
        assert "hen" in names.builtin(farm / "cache").files
        names.builtin.cache_clear()
        patch.setattr(files, "lm_eval_version", lambda: "99")
        assert set(names.builtin(farm / "cache").files) == {"bat"}
    (farm / "cache" / f"lm-eval-{files.lm_eval_version()}.json").write_text("{")
    names.builtin.cache_clear()
    assert "hen" in names.builtin(farm / "cache").files


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share, for the scan of lm-eval's names."""
    return tmp_path_factory.mktemp("cache")


def test_lm_evals_own_names(kept: Path) -> None:
    tasks = {name: find([name], Path(), kept) for name in ("bbh", "ai2_arc", "openllm", "mmlu", "bbh_zeroshot")}
    assert {name: len(found) for name, found in tasks.items()} == {
        "bbh": 27, "ai2_arc": 2, "openllm": 64, "mmlu": 57, "bbh_zeroshot": 27,
    }  # fmt: skip
    assert all(name.startswith("bbh_cot_fewshot_") for name in tasks["bbh"])
    assert tasks["openllm"]["arc_challenge"].said == {"fewshot_split": "train", "num_fewshot": 25}
    assert tasks["openllm"]["mmlu_anatomy"].said["num_fewshot"] == 5
    assert find(["leaderboard_bbh"], Path(), kept).keys() >= {"leaderboard_bbh_navigate"}


def test_groups_that_are_shipped(kept: Path) -> None:
    everyday = find(["commonsense"], Path(), kept)
    assert len(everyday) == 9
    assert set(find(["fusellm_commonsense"], Path(), kept)) < set(everyday)
    assert find(["humaneval", "mbpp"], Path(), kept).keys() == {"humaneval", "mbpp"}
    languages = ["py", "cpp", "java", "js", "ts", "rs", "go", "php", "r", "rb", "lua", "pl", "sh", "cs"]
    assert {name for name in benchmarks() if name.startswith("multiple-")} == {f"multiple-{one}" for one in languages}
    for name, path in benchmarks().items():
        if "group" not in files.parsed(path):
            assert files.read(path).name == name
