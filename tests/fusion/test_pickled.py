import json
import pickle
from pathlib import Path

import pytest
import torch

from fusion.checkpoint import Checkpoint
from fusion.digests import weights_digest
from fusion.errors import CheckpointError
from fusion.merge import write
from fusion.modelref import Delta, Folder, from_json, open_ref, to_json, with_pickles
from fusion.pickled import INDEX, Pickled
from fusion.recipe import Recipe
from tests.fusion.models import save_llama, tiny_llama


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same model, in safetensors and pickled, its tied head stored twice."""
    safe, old = (save_llama(tmp_path / name, tiny_llama(1)) for name in ("safe", "old"))
    torch.save(tiny_llama(1).state_dict(), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    return safe, old


def test_pickled_weights_are_the_same_model(folders: tuple[Path, Path]) -> None:
    safe, old = folders
    assert weights_digest(Pickled(old)) == weights_digest(Checkpoint(safe))
    assert weights_digest(open_ref(Folder(str(old), pickled=True))) == weights_digest(Checkpoint(safe))


def test_they_are_refused_unless_they_are_allowed(folders: tuple[Path, Path]) -> None:
    _, old = folders
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model.bin\).*--allow-pickle"):
        open_ref(Folder(str(old)))


def test_safetensors_win_where_both_are_there(folders: tuple[Path, Path]) -> None:
    safe, _ = folders
    (safe / "pytorch_model.bin").write_bytes(b"never read")
    assert isinstance(open_ref(Folder(str(safe), pickled=True)), Checkpoint)


def test_shards_and_a_missing_one(folders: tuple[Path, Path]) -> None:
    safe, old = folders
    state = torch.load(old / "pytorch_model.bin", weights_only=True)
    (old / "pytorch_model.bin").unlink()
    names = sorted(state)
    for part, some in (("a.bin", names[:5]), ("b.bin", names[5:])):
        torch.save({name: state[name].clone() for name in some}, old / part)
    with pytest.raises(CheckpointError, match="holds neither"):
        Pickled(old)
    where = {name: "a.bin" if name in names[:5] else "b.bin" for name in names}
    (old / INDEX).write_text(json.dumps({"weight_map": where}))
    assert weights_digest(Pickled(old)) == weights_digest(Checkpoint(safe))
    (old / "b.bin").unlink()
    with pytest.raises(CheckpointError, match="lacks b.bin"):
        Pickled(old)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/should-not-be-there"),))


def test_a_pickle_that_wants_to_run_code_is_not_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, old = folders
    (old / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        Pickled(old)
    (old / "pytorch_model.bin").write_bytes(b"PK broken")
    with pytest.raises(CheckpointError, match="is damaged"):
        Pickled(old)
    torch.save({"w": torch.ones(2), "step": 3}, old / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is no state dict: step are no tensors"):
        Pickled(old)


def test_allowing_reaches_every_parent() -> None:
    inner = Delta(Recipe("linear", ("a",), None, None, {}), (("a", Folder("a")),))
    ref = with_pickles(Delta(Recipe("linear", ("x", "y"), None, None, {}), (("x", inner), ("y", Folder("y")))))
    assert isinstance(ref, Delta) and isinstance(ref.parents[0][1], Delta)
    assert ref.parents[0][1].parents[0][1] == Folder("a", pickled=True) and ref.parents[1][1] == Folder("y", None, True)
    assert from_json(to_json(ref)) == ref


def test_a_merge_of_pickled_models_is_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    safe, old = folders
    recipe = Recipe("task_arithmetic", ("safe",), "old", None, {})
    ref = with_pickles(Delta(recipe, (("old", Folder(str(old))), ("safe", Folder(str(safe))))))
    report = write(ref, tmp_path / "out")
    assert report["weights"] == weights_digest(Checkpoint(safe))
