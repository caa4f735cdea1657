"""The models of the benchmark: seeded, Llama-shaped, bf16; a base and what descends from it."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.peers.models import Shape, save_folder


@dataclass(frozen=True)
class Set:
    """Models of one shape: a base and `models` descendants."""

    shape: Shape
    models: int
    seed: int = 31

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shape.tensors().values())

    def write(self, folder: Path) -> dict[str, Path]:
        """Write the folders and return them by name: base, m1, m2, ...

        Each is made tensor by tensor from generators of its own, so that two models at most are in memory.
        """
        needed = 2 * self.parameters * (self.models + 3)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise SystemExit(f"{folder} has {free / 1e9:.0f} GB free; these models need {needed / 1e9:.0f} GB")
        names = ["base", *(f"m{i + 1}" for i in range(self.models))]
        base = self._base()
        for i, name in enumerate(names):
            save_folder(folder / name, base if i == 0 else self._descendant(base, i), self.shape)
        return {name: folder / name for name in names}

    def _base(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        found = {}
        for name, shape in self.shape.tensors().items():
            noise = torch.randn(shape, generator=generator).mul_(0.02)
            found[name] = (noise + 1 if name.endswith("norm.weight") else noise).bfloat16()
        return found

    def _descendant(self, base: dict[str, torch.Tensor], member: int) -> dict[str, torch.Tensor]:
        """Steps of a tenth of the weights' size: fine-tuning that bf16 does not swallow."""
        generator = torch.Generator().manual_seed(self.seed + member)
        return {
            name: torch.randn(tensor.shape, generator=generator).mul_(0.002).add_(tensor.float()).bfloat16()
            for name, tensor in base.items()
        }


SETS = {
    # Enough to see that the benchmark works.
    "small": Set(Shape(layers=4, hidden=256, inner=704, keys=128, vocabulary=4000, heads=4), models=3),
    "254m": Set(Shape(layers=16, hidden=1024, inner=2816, keys=512, vocabulary=32_000, heads=16), models=3),
    "1.2b": Set(Shape(layers=24, hidden=2048, inner=5632, keys=512, vocabulary=32_000, heads=32), models=2),
    "9000": Set(Shape(layers=1000, hidden=16, inner=24, keys=8, vocabulary=64, heads=2), models=3),
    # What a process costs before its first tensor; subtracted from "9000".
    "start": Set(Shape(layers=1, hidden=16, inner=24, keys=8, vocabulary=64, heads=2), models=3),
}
