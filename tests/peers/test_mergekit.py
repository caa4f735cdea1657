"""`make peers`: every method of mergekit 0.1.5 beside ours under `compat: mergekit`, on the same unmodified recipes."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from fusion.errors import FusionError
from tests.conftest import ROOT
from tests.peers import models
from tests.peers.cases import CASES, Case
from tests.peers.differences import DIFFERENCES, REFUSED

pytestmark = pytest.mark.peers
VENV = ROOT / ".venv-peers" / "bin"
# Of the largest value in a tensor: two steps of float32.
TOLERANCE = 2e-7
# One thread, because the order of a sum that is shared by threads depends on how many there are.
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


class Mergekit:
    """mergekit 0.1.5 in its own virtual environment."""

    def __init__(self, log: Path) -> None:
        assert (VENV / "mergekit-yaml").exists(), "mergekit is not installed: run `make peers`"
        command = [VENV / "python", ROOT / "tests" / "peers" / "mergekit_worker.py"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log.open("w"), text=True, env=ALONE)

    def merge(self, recipe: Path, out: Path, case: Case) -> None:
        job = {"recipe": str(recipe), "out": str(out), "seed": case.seed, "tokenizer": case.tokenizer}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        assert answer["error"] is None, (
            f"mergekit refuses this recipe, which says nothing about ours: {answer['error']}"
        )

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mergekit]:
    found = Mergekit(tmp_path_factory.mktemp("mergekit") / "log.txt")
    yield found
    found.close()


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every model, by `family/member`."""
    root = tmp_path_factory.mktemp("models")
    written = {name: models.write(family, root / name) for name, family in models.FAMILIES.items()}
    return {f"{name}/{member}": path for name, family in written.items() for member, path in family.items()}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def placed(value: Any, parents: dict[str, Path]) -> Any:
    """The document with a folder in the place of every {family/member}."""
    if isinstance(value, dict):
        return {key: placed(part, parents) for key, part in value.items()}
    if isinstance(value, list):
        return [placed(part, parents) for part in value]
    named = isinstance(value, str) and value.startswith("{")
    return str(parents[value.strip("{}")]) if named else value


def ours(recipe: Path, out: Path, seed: int) -> None:
    """What `fuse-bench merge` does, without starting a process for it."""
    from harness.cli import cli

    cli.main(["merge", str(recipe), str(out), "--compat", "mergekit", "--seed", str(seed)], standalone_mode=False)


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                assert name not in found, f"{name} is in two shards of {folder}"
                found[name] = file.get_tensor(name)
    return found


def by_token(found: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The same with the rows of embeddings in the order of their tokens' texts, then those that have no token."""
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    order = [vocabulary[token] for token in sorted(vocabulary)]
    rows = {name for name in found if name in ("model.embed_tokens.weight", "lm_head.weight")}
    return {
        name: torch.cat([tensor[order], tensor[len(order) :]]) if name in rows else tensor
        for name, tensor in found.items()
    }


def faults(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> list[str]:
    """What is wrong, tensor by tensor; `tolerance` is relative to the largest value of each."""
    found = [f"{name}: only mergekit writes it" for name in theirs if name not in mine]
    found += [f"{name}: only we write it" for name in mine if name not in theirs]
    for name in (name for name in theirs if name in mine):
        a, b = mine[name], theirs[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            found.append(f"{name}: ours is {a.dtype} {tuple(a.shape)}, theirs {b.dtype} {tuple(b.shape)}")
            continue
        apart, scale = (a.double() - b.double()).abs(), float(b.double().abs().max()) or 1.0
        wrong = ~(apart <= tolerance * scale)
        if wrong.any():
            found.append(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ, by up to {float(apart.max()):.3g} "
                f"({float(apart.max()) / scale:.2g} of the largest)"
            )
    return found


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_same_numbers(case: Case, mergekit: Mergekit, parents: dict[str, Path], tmp_path: Path, one_thread: None):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(placed(case.document, parents), sort_keys=False))
    mergekit.merge(recipe, tmp_path / "theirs", case)
    if case.name in REFUSED:
        with pytest.raises(FusionError, match=REFUSED[case.name]):
            ours(recipe, tmp_path / "ours", case.seed)
        return
    ours(recipe, tmp_path / "ours", case.seed)
    mine, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    if case.tokenizer:
        mine, theirs = by_token(mine, tmp_path / "ours"), by_token(theirs, tmp_path / "theirs")
    found = faults(mine, theirs, 0.0 if case.exact else TOLERANCE)
    if case.name in DIFFERENCES:
        difference = DIFFERENCES[case.name]
        assert found, f"no longer different: {difference.reason}"
        found = faults(mine, theirs, difference.within)
    assert not found, "\n".join(found)


def test_names_of_cases_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert set(DIFFERENCES) | set(REFUSED) <= set(names)


def test_the_command_lines_agree_as_well(parents: dict[str, Path], tmp_path: Path):
    """Two processes started as a user would, on a recipe with a random method and more than one layer of digits."""
    case = next(case for case in CASES if case.name == "dare_ties")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(placed(case.document, parents)))
    plain = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    theirs = [VENV / "mergekit-yaml", recipe, tmp_path / "theirs", "--random-seed", "42", *plain]
    mine = [ROOT / ".venv/bin/fuse-bench", "merge", recipe, tmp_path / "ours", "--compat", "mergekit", "--seed", "42"]
    for command in (theirs, mine):
        done = subprocess.run(command, env=ALONE, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    found = faults(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"), 0.0)
    assert not found, "\n".join(found)


def test_several_stages_in_one_file(parents: dict[str, Path], tmp_path: Path):
    """mergekit-multi's files: named documents are made first, and the one without a name is the result."""
    first = {"name": "half", "merge_method": "task_arithmetic", "base_model": "{plain/base}", "dtype": "float32"}
    first["models"] = [{"model": "{plain/a}", "parameters": {"weight": 0.5}}]
    last = {**first, "models": [{"model": "half"}, {"model": "{plain/b}"}], "merge_method": "ties"}
    last |= {"parameters": {"weight": 1.0, "density": 0.4}}
    del last["name"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump_all(placed([first, last], parents), sort_keys=False))
    plain = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet", "--random-seed", "42"]
    theirs = [VENV / "mergekit-multi", recipe, "-I", tmp_path / "between", "--out-path", tmp_path / "theirs", *plain]
    done = subprocess.run(theirs, env=ALONE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ours(recipe, tmp_path / "ours", 42)
    found = faults(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"), 0.0)
    assert not found, "\n".join(found)


def test_a_wrong_bit_is_found():
    one = {"x": torch.tensor([1.0, -2.0, 0.0])}
    near = {"x": torch.tensor([1.0, -2.0 - 2.0**-22, 0.0])}
    assert not faults(one, one, 0.0)
    assert not faults(near, one, TOLERANCE)
    assert faults(near, one, 0.0)
    assert faults({"x": one["x"] + 1e-6}, one, TOLERANCE)
    assert faults({"x": one["x"] * float("nan")}, one, TOLERANCE)
    assert len(faults({"y": one["x"]}, one, TOLERANCE)) == 2
    assert faults({"x": one["x"].half()}, one, TOLERANCE)
