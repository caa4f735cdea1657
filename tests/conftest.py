"""The small world that many tests share: trained once, and kept between test runs by the store itself."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.run import Options
from harness.run import run as run_suite

SUITE = """
suite: small
seed: 17
models:
  base: {train: pocket/base, size: tiny}
  reasoner: {train: pocket/specialist, from: base, skill: reasoning, size: tiny}
  scholar: {train: pocket/specialist, from: base, skill: commonsense, size: tiny}
  coder: {train: pocket/specialist, from: base, skill: code, size: tiny}
  teacher: {train: pocket/teacher, size: tiny}
candidates:
  average: {method: linear, models: [reasoner, scholar, coder]}
  arithmetic: {method: task_arithmetic, base: base, models: {reasoner: 1, scholar: 1, coder: 0.5}, lambda: 0.4}
  ties: {method: ties, base: base, models: [reasoner, scholar, coder], density: {sweep: [0.3, 0.6]}}
  slerp: {method: slerp, models: [average, coder]}
  dare: {method: dare_ties, base: base, models: [reasoner, coder], lambda: 0.5, seeds: [1, 2]}
  regmean:
    method: regmean
    models: [reasoner, scholar, coder]
    corpora: {reasoner: pocket/reasoning, scholar: pocket/commonsense, coder: pocket/code}
    calibration: {sequences: 32}
  emr:
    method: emr
    base: base
    models: [reasoner, scholar, coder]
    route: {bbh: reasoner, commonsense: scholar, code: coder}
  fused:
    method: fusellm
    target: base
    teachers: [teacher]
    corpus: pocket/noisy
    lambda: 0.5
    steps: 10
    context: 128
    learning_rate: 0.001
    seeds: [1, 2]
evaluate:
  bbh: {tasks: [pocket_object_counting, pocket_dyck_languages], limit: 60, batch_size: 64}
  commonsense: {tasks: [pocket_goals], limit: 60, batch_size: 64}
  code: {tasks: [pocket_list_functions], limit: 60, batch_size: 64}
split: {dev: 0.3}
kinship: {base: base}
track: {mlflow: sqlite}
sandbox: any
"""
ROOT = Path(__file__).parents[1]


class World:
    """A run of the small suite, and the store that it filled."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.out = folder, folder / "store", folder / "runs"
        self.suite = folder / "small.yaml"
        self.suite.write_text(SUITE)
        self.outcome = run_suite(self.suite, Options(out=self.out, store=self.store, progress="plain"))
        self.run_dir = self.outcome.run_dir
        self.results = json.loads((self.run_dir / "results.json").read_text())

    def model(self, name: str) -> Path:
        """The folder of a trained or fused model."""
        keys = json.loads((self.run_dir / "objects.json").read_text())
        key = next(key for job, key in keys.items() if job in (f"train {name}", f"fuse {name}"))
        return self.store / "objects" / key[:2] / key / "model"


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> World:
    """Trains for half a minute the first time; afterwards everything that has not changed is in the store."""
    return World(Path(request.config.cache.mkdir("small-world")))


@pytest.fixture
def bench(tmp_path: Path):
    """The command line in a folder of its own: bench("run", "suite.yaml") -> a finished process."""

    def bench(*arguments: object, cwd: Path = tmp_path, timeout: float = 300, **environment: str):
        command = [sys.executable, "-m", "harness", *map(str, arguments)]
        env = {**os.environ, "FUSE_BENCH_STORE": str(tmp_path / "store"), "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)

    return bench


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads gain nothing on models this small, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
