"""Weights in PyTorch's pickled format (*.bin), read only where the user asks for it.

A pickle can run code when it is read. torch's `weights_only` unpickler builds nothing but tensors, so a file that wants
more is refused; it has had holes before, which is why asking is needed all the same.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from fusion.checkpoint import read_config, stored_copies, weight_map
from fusion.errors import CheckpointError

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Pickled:
    """A transformers folder with pickled weights, as a Source: mapped, so that a tensor is read when it is asked for.

    Raises CheckpointError: no weights, a missing shard, a file that is damaged or holds more than tensors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.donor = Path(folder)
        self.config = read_config(self.donor)
        self._tensors: dict[str, Tensor] = {}
        for file in _files(self.donor):
            self._tensors |= _load(file)
        for copy in stored_copies(self.config, self):
            del self._tensors[copy]

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensor(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensor(name).dtype

    def tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.donor} has no tensor '{name}'")
        return self._tensors[name]


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        shards = weight_map(folder / INDEX).values()
        files = [folder / shard for shard in sorted(set(shards))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names: copy the missing shards")
        return files
    if not (folder / SINGLE).is_file():
        raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}: only these pickled weights are read")
    return [folder / SINGLE]


def _load(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{file} is damaged or holds more than tensors, and is not read ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is no state dict but {type(content).__name__}")
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(f"{file} is no state dict: {', '.join(odd)} are no tensors")
    return {str(name): tensor.detach() for name, tensor in content.items()}
