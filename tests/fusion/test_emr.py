"""The compact file of EMR-Merging: the same models as the method's, at the size it promises."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.checkpoint import Checkpoint
from fusion.emr_file import ABOUT, ELECTED, MASKS, EmrFile, write_emr
from fusion.errors import CheckpointError, MismatchError, RecipeError
from fusion.methods.apply import Merge
from fusion.modelref import Delta, Folder, open_ref
from fusion.recipe import Recipe
from tests.fusion.models import save_plain

TASKS = ("math", "code", "talk")
SHAPES = {"a": (70, 1000), "b": (13,), "c": (3, 2, 5), "d": ()}


def parents(root: Path, dtype: torch.dtype = torch.float32, **extra: torch.Tensor) -> tuple[tuple[str, Folder], ...]:
    generator = torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = []
    for task in ("base", *TASKS):
        moved = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
        tensors = {name: t.to(dtype) for name, t in (base if task == "base" else moved).items()}
        found.append((task, Folder(str(save_plain(root / task, {**tensors, **extra})))))
    return tuple(found)


def delta(refs: tuple[tuple[str, Folder], ...], method: str = "emr", **params: Any) -> Delta:
    given = {"task": "math", "rescaler": "paper", **params} if method == "emr" else params
    return Delta(Recipe(method, TASKS, "base", None, given), refs)


@pytest.mark.parametrize("rescaler", ["paper", "code"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_task_read_back_is_the_method_to_the_bit(tmp_path: Path, rescaler: str, threads: int) -> None:
    refs = parents(tmp_path, steps=torch.arange(3))
    about = write_emr(delta(refs, rescaler=rescaler), tmp_path / "out", {"bbh": "math"}, threads)
    file = EmrFile(tmp_path / "out", Checkpoint(tmp_path / "base"))
    assert list(file.tasks) == list(TASKS) == list(about["tasks"]) and file.routes == {"bbh": "math"}
    for task in TASKS:
        merge = open_ref(delta(refs, rescaler=rescaler, task=task))
        found = file.task(task)
        assert found.names() == merge.names() and found.donor == merge.donor
        for name in merge.names():
            assert found.dtype(name) == merge.dtype(name) and found.shape(name) == merge.shape(name)
            assert torch.equal(found.tensor(name), merge.tensor(name)), (task, name)


def test_the_rounding_of_a_narrow_base_is_all_that_is_lost(tmp_path: Path) -> None:
    refs = parents(tmp_path, torch.bfloat16)
    write_emr(delta(refs), tmp_path / "out")
    file = EmrFile(tmp_path / "out", Checkpoint(tmp_path / "base"))
    for task in TASKS:
        merge = open_ref(delta(refs, task=task))
        for name in merge.names():
            found, expected = file.task(task).tensor(name).double(), merge.tensor(name).double()
            base = Checkpoint(tmp_path / "base").tensor(name).double()
            # Half a step of bfloat16 of the task vector, and a step of the result.
            allowed = (expected - base).abs() * 2.0**-8 + expected.abs() * 2.0**-7
            assert ((found - expected).abs() <= allowed).all(), (task, name)


def test_the_size_is_one_task_vector_and_a_bit_a_task(tmp_path: Path) -> None:
    write_emr(delta(parents(tmp_path, torch.bfloat16)), tmp_path / "out")
    numel = sum(int(np.prod(shape)) for shape in SHAPES.values())
    files = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    assert set(files) == {ELECTED, MASKS, ABOUT}
    headers = 2000
    assert 2 * numel <= files[ELECTED] <= 2 * numel + headers
    assert len(TASKS) * numel / 8 <= files[MASKS] <= len(TASKS) * (numel / 8 + len(SHAPES)) + headers


def test_the_files_are_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_emr(delta(parents(tmp_path)), tmp_path / "out")
    elected, masks = load_file(tmp_path / "out" / ELECTED), load_file(tmp_path / "out" / MASKS)
    assert {name: tuple(t.shape) for name, t in elected.items()} == SHAPES
    assert {name: tuple(t.shape) for name, t in masks.items()} == {
        "a": (3, 8750),
        "b": (3, 2),
        "c": (3, 4),
        "d": (3, 1),
    }
    sources = {task: Checkpoint(tmp_path / task) for task in ("base", *TASKS)}
    tau = sources["code"].tensor("b") - sources["base"].tensor("b")
    bits = np.unpackbits(masks["b"][1].numpy(), bitorder="little")[:13]
    np.testing.assert_array_equal(bits, (tau * elected["b"] > 0).numpy())


def test_another_base_is_refused(tmp_path: Path) -> None:
    write_emr(delta(parents(tmp_path)), tmp_path / "out")
    with pytest.raises(MismatchError, match="made from another base"):
        EmrFile(tmp_path / "out", Checkpoint(tmp_path / "math"))
    with pytest.raises(CheckpointError, match="no task 'x' in this EMR model; its tasks: math, code, talk"):
        EmrFile(tmp_path / "out", Checkpoint(tmp_path / "base")).task("x")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    refs = parents(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        write_emr(delta(refs), tmp_path / "full")
    with pytest.raises(RecipeError, match="merged by emr"):
        write_emr(delta(refs, "task_arithmetic"), tmp_path / "out")
    wrong = save_plain(tmp_path / "wrong", {name: torch.zeros(shape) for name, shape in SHAPES.items() if name != "b"})
    mixed = (*refs[:2], ("code", Folder(str(wrong))), refs[3])
    with pytest.raises(MismatchError, match="code: b is missing"):
        write_emr(delta(mixed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_room_for_the_next(tmp_path: Path) -> None:
    refs = parents(tmp_path)
    tensors = {name: Checkpoint(tmp_path / "code").tensor(name) for name in SHAPES}
    broken = save_plain(tmp_path / "broken", {**tensors, "c": torch.full(SHAPES["c"], torch.nan)})
    with pytest.raises(CheckpointError, match="code: tensor c holds 30 NaN"):
        write_emr(delta((*refs[:2], ("code", Folder(str(broken))), refs[3])), tmp_path / "out")
    write_emr(delta(refs), tmp_path / "out")


def test_integers_must_agree(tmp_path: Path) -> None:
    refs = parents(tmp_path, steps=torch.arange(3))
    tensors = {name: Checkpoint(tmp_path / "code").tensor(name) for name in SHAPES}
    odd = save_plain(tmp_path / "odd", {**tensors, "steps": torch.arange(1, 4)})
    mixed = (*refs[:2], ("code", Folder(str(odd))), refs[3])
    with pytest.raises(MismatchError, match="steps holds torch.int64.*differs from the base in code"):
        write_emr(delta(mixed), tmp_path / "out")


def test_a_task_without_anything_in_common_is_the_base(tmp_path: Path) -> None:
    base = {"a": torch.ones(9)}
    folders = {"base": base, "math": base, "code": {"a": torch.full((9,), 3.0)}, "talk": base}
    refs = tuple((name, Folder(str(save_plain(tmp_path / name, tensors)))) for name, tensors in folders.items())
    write_emr(delta(refs), tmp_path / "out")
    file = EmrFile(tmp_path / "out", Checkpoint(tmp_path / "base"))
    assert torch.equal(file.task("math").tensor("a"), base["a"])
    assert torch.equal(file.task("code").tensor("a"), folders["code"]["a"])
    assert isinstance(open_ref(delta(refs)), Merge)
