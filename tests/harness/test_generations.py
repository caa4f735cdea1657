"""What a model wrote, as the bigcode harness reads it, and judged again from there."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import UsageError
from tests.harness.test_evaluate import write_model
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, QUESTIONS, write_task

SUITE = """
suite: wrote
models:
  a: {from: ./a}
evaluate:
  code: {tasks: [./functions.yaml], samples: 3, temperature: 0.7}
  more: {tasks: [./legs.yaml]}
split: {dev: 0.4}
sandbox: any
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrote")
    write_model(folder / "a", seed=1)
    write_task(folder, "functions", CODE, FUNCTIONS * 3)
    write_task(folder, "legs", CHOICE, QUESTIONS)
    (folder / "s.yaml").write_text(SUITE)
    done = CliRunner().invoke(cli, ["run", str(folder / "s.yaml"), "--progress", "none", *places(folder)])
    assert done.exit_code == 0, done.output
    return folder


def places(folder: Path) -> list[str]:
    return ["--out", str(folder / "runs"), "--store", str(folder / "store")]


def write(folder: Path, *options: str):
    file = folder / "generations.json"
    return CliRunner().invoke(
        cli, ["samples", "wrote", "--model", "a", *options, "--generations-out", str(file), *places(folder)]
    )


def test_programs_of_all_problems_are_written_in_the_datas_order(folder: Path) -> None:
    done = write(folder, "--task", "functions", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["problems"] == 3 * len(FUNCTIONS), "dev items, too"
    written = json.loads((folder / "generations.json").read_text())
    assert [len(programs) for programs in written] == [3] * (3 * len(FUNCTIONS))
    for row, programs in zip(FUNCTIONS * 3, written, strict=True):
        assert all(program.startswith(row["prompt"]) for program in programs)
    command = ["evaluate", "--generations", str(folder / "generations.json"), "--task", str(folder / "functions.yaml")]
    judged = CliRunner().invoke(cli, [*command, "--allow-weak-sandbox", "--json", "--store", str(folder / "store")])
    assert judged.exit_code == 0, judged.output
    kept = CliRunner().invoke(
        cli, ["samples", "wrote", "--model", "a", "--task", "functions", "--json", *places(folder)]
    )
    verdicts = json.loads(judged.stdout)["verdicts"]
    samples = json.loads(kept.stdout)["samples"]
    assert samples and all(verdicts[one["doc_id"]]["programs"] == one["programs"] for one in samples)


def test_what_has_no_programs(folder: Path) -> None:
    assert isinstance((done := write(folder, "--task", "legs")).exception, UsageError)
    assert "'legs' is no code task" in str(done.exception)


def test_data_that_have_changed(folder: Path, tmp_path: Path) -> None:
    before = (folder / "functions.jsonl").read_text()
    lines = before.splitlines()
    # In another order, and shorter by the last rows.
    for after in (lines[::-1], lines[:-2]):
        (folder / "functions.jsonl").write_text("\n".join(after) + "\n")
        done = write(folder, "--task", "functions")
        (folder / "functions.jsonl").write_text(before)
        assert isinstance(done.exception, UsageError) and "no longer those that wrote-" in str(done.exception)


def test_what_has_no_place_beside_generations(folder: Path) -> None:
    command = ["evaluate", "--generations", str(folder / "generations.json"), "--task", "humaneval", "--limit", "3"]
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, UsageError) and "all programs of --generations are judged" in str(done.exception)
