"""`make torture`: the quickstart, its driver and workers killed at random moments until it is done.

Compared with an undisturbed run in another store: the same results, and nothing done twice that had been committed.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.runs import canonical
from tests.conftest import ROOT

pytestmark = pytest.mark.torture
KILLS = int(os.environ.get("KILLS", "20"))


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "harness", "run", "quickstart", "--progress", "none", "--json"]
    env = {**os.environ, "FUSE_BENCH_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(folder: Path) -> tuple[dict, dict]:
    process = start(folder)
    document = json.loads(process.communicate(timeout=3600)[0])
    assert process.returncode == 0
    return document, canonical(json.loads(Path(folder, document["results"]).read_text()))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def objects(folder: Path) -> dict[str, int]:
    """The committed objects, and when each was made."""
    found = (folder / "store" / "objects").glob("*/*/meta.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


@pytest.mark.parametrize("seed", [int(os.environ.get("SEED", "1"))])
def test_killed_at_random_it_ends_with_the_results_of_an_undisturbed_run(tmp_path, seed):
    rng = random.Random(seed)
    (tmp_path / "calm").mkdir()
    (tmp_path / "torn").mkdir()
    _, expected = finish(tmp_path / "calm")
    for kill in range(KILLS):
        before = objects(tmp_path / "torn")
        process = start(tmp_path / "torn")
        try:
            process.wait(timeout=rng.uniform(2, 45))
            break
        except subprocess.TimeoutExpired:
            victims = children(process.pid) if kill % 3 else []
            os.kill(rng.choice([*victims, process.pid]), signal.SIGKILL)
            process.kill()
            process.communicate()
        after = objects(tmp_path / "torn")
        assert {key: after[key] for key in before} == before, "a committed object was made again"
    _, results = finish(tmp_path / "torn")
    assert results == expected
