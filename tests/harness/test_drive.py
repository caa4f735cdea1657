"""The driver and its workers on jobs that cost nothing: order, cache, failures, and being killed anywhere."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.events import EVENTS
from harness.store import folder_stamp
from tests.harness import toy

ROOT = Path(__file__).parents[2]
EXPECTED = {"a": 1, "b": 2, "c": 6, "d": 10, "e": 11, "f": 27}


@pytest.fixture(autouse=True)
def toy_log(tmp_path, monkeypatch):
    """Jobs are made after this is set, so that they know where to write."""
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "done.txt"))
    return tmp_path / "done.txt"


def drive(tmp_path, jobs, slots=2):
    return toy.run(tmp_path / "store", tmp_path / "run", jobs, slots)


def graph():
    return [toy.job(j.id, *j.needs, value=j.spec["value"]) for j in toy.GRAPH]


def test_jobs_run_once_and_are_cached_afterwards(tmp_path, toy_log):
    first = drive(tmp_path, graph()).progress
    assert {name: entry.result["total"] for name, entry in first.done.items()} == EXPECTED
    assert not first.cached
    second = drive(tmp_path, graph()).progress
    assert second.cached == set(EXPECTED)
    assert Counter(toy_log.read_text().split()) == Counter(EXPECTED.keys())


def test_a_changed_input_is_recomputed_and_the_same_output_reaches_no_further(tmp_path, toy_log):
    drive(tmp_path, graph())
    toy_log.unlink()
    changed = graph()
    changed[0] = toy.job("a", value=1, note="another spec, the same result")
    progress = drive(tmp_path, changed).progress
    assert toy_log.read_text().split() == ["a"], "what a turned out to be is what it was, so c is cached"
    assert progress.cached == {"b", "c", "d", "e", "f"}


def test_a_users_error_is_not_tried_again_and_skips_what_depends_on_it(tmp_path, toy_log):
    jobs = [toy.job("a", value=1), toy.job("bad", fault="user"), toy.job("after", "bad"), toy.job("last", "after", "a")]
    progress = drive(tmp_path, jobs).progress
    assert set(progress.done) == {"a"}
    assert progress.failed["bad"].fault == "user"
    assert progress.failed["bad"].error == "this toy is the user's fault"
    assert progress.failed["last"].fault == "skipped"
    assert progress.failed["last"].cause == "bad"
    assert toy_log.read_text().split().count("bad") == 1


def test_a_dead_worker_is_tried_again_on_a_fresh_one(tmp_path):
    progress = drive(tmp_path, [toy.job("once", value=5, fault="die once"), toy.job("next", "once", value=1)]).progress
    assert progress.done["next"].result["total"] == 6


def test_a_job_that_kills_its_worker_twice_fails_with_the_end_of_its_log(tmp_path, toy_log):
    progress = drive(tmp_path, [toy.job("deadly", fault="die"), toy.job("fine", value=1)], slots=1).progress
    assert "killed by signal 9, 2 times" in progress.failed["deadly"].error
    assert "about to die" in progress.failed["deadly"].error
    assert progress.done["fine"].result["total"] == 1
    assert toy_log.read_text().split().count("deadly") == 2


def test_a_bug_is_named_and_its_traceback_is_in_the_log(tmp_path):
    failure = drive(tmp_path, [toy.job("broken", fault="bug")]).progress.failed["broken"]
    assert failure.fault == "bug"
    assert failure.error == "ZeroDivisionError: this toy is broken"
    assert "Traceback" in Path(failure.log).read_text()


def test_a_full_disk_stops_the_run_and_keeps_what_was_done(tmp_path):
    with pytest.raises(StoreError, match="the disk is full.*Nothing that was finished is lost"):
        drive(tmp_path, [toy.job("a", value=1), toy.job("full", "a", fault="full"), toy.job("b", "full", value=2)])
    progress = drive(tmp_path, [toy.job("a", value=1)]).progress
    assert progress.cached == {"a"}


def test_a_model_that_changes_under_a_job_fails_it(tmp_path):
    """Its key was made for what the model was: committed, the result would be found for that for ever."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("as planned")
    stamps = {str(model): folder_stamp(model)}
    jobs = [toy.job("fine", value=1), toy.job("touched", "fine", value=2, fault="touch", path=str(model / "weights"))]
    progress = toy.run(tmp_path / "store", tmp_path / "run", jobs, stamps=stamps).progress
    assert set(progress.done) == {"fine"}
    assert "were changed while the run was going on" in progress.failed["touched"].error
    assert not list((tmp_path / "store" / "tmp").iterdir()), "what a failed job began is removed"


def test_events_tell_what_happened(tmp_path):
    drive(tmp_path, graph())
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["job"] for e in lines if e["event"] == "ran"].index("c") > 1
    assert sum(e["event"] == "start" for e in lines) == len(EXPECTED)


def run_toy(tmp_path, kill_at=None):
    environment = {**os.environ, "TOY_LOG": str(tmp_path / "done.txt")}
    environment.pop("FUSE_BENCH_KILL_AT", None)
    if kill_at:
        environment["FUSE_BENCH_KILL_AT"] = kill_at
    command = [sys.executable, "-m", "tests.harness.toy", str(tmp_path / "store"), str(tmp_path / "run")]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_toy(folder).returncode == 0
    return json.loads((folder / "run" / "results.json").read_text())


@pytest.mark.parametrize("moment", EVENTS)
@pytest.mark.parametrize("time", [1, 3])
def test_killed_anywhere_a_second_run_ends_with_the_same_results(tmp_path, undisturbed, moment, time):
    """Workers and driver all kill themselves at the moment, whichever reaches it."""
    run_toy(tmp_path, f"{moment}:{time}")
    committed = {path.name for path in (tmp_path / "store" / "objects").glob("*/*")}
    worked_before = (
        Counter((tmp_path / "done.txt").read_text().split()) if (tmp_path / "done.txt").exists() else Counter()
    )
    second = run_toy(tmp_path)
    assert second.returncode == 0, second.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == undisturbed
    worked = Counter((tmp_path / "done.txt").read_text().split()) if (tmp_path / "done.txt").exists() else Counter()
    again = sum((worked - worked_before).values())
    assert again == len(EXPECTED) - len(committed), "only what had not been committed is done again"
