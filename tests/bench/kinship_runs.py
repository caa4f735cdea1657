"""One run of `make bench-kinship` in a process of its own: `python -m tests.bench.kinship_runs TOOL BASE MODEL...`.

Prints one line of JSON: the pairs, and the peak of memory (VmHWM: mapped pages of files count).
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

MEASURES = ("pcc", "cosine", "euclidean")


def one_pass(base: Path, models: list[Path]) -> list[dict[str, Any]]:
    """All pairs from one pass over all checkpoints: ours."""
    return _kinship(base, models, MEASURES)


def every(base: Path, models: list[Path]) -> list[dict[str, Any]]:
    """The same by every measure of weights."""
    from fusion.kinship.weights import WEIGHTS

    return _kinship(base, models, tuple(WEIGHTS))


def _kinship(base: Path, models: list[Path], measures: tuple[str, ...]) -> list[dict[str, Any]]:
    from fusion.checkpoint import Checkpoint
    from fusion.kinship.weights import kinship

    return kinship({path.name: Checkpoint(path) for path in models}, Checkpoint(base), measures)


def pair_by_pair(base: Path, models: list[Path]) -> list[dict[str, Any]]:
    """Pair by pair in float32, of whole models as state dicts: what is commonly written, and published."""
    import torch
    from safetensors.torch import load_file

    found = []
    for a, b in itertools.combinations(models, 2):
        origin, first, second = (load_file(path / "model.safetensors") for path in (base, a, b))
        one = torch.cat([(first[name] - origin[name]).flatten() for name in origin])
        other = torch.cat([(second[name] - origin[name]).flatten() for name in origin])
        values = (
            torch.corrcoef(torch.stack([one, other]))[0, 1],
            torch.dot(one, other) / (torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)),
            torch.dist(one, other),
        )
        found.append({"a": a.name, "b": b.name, **{key: float(v) for key, v in zip(MEASURES, values, strict=True)}})
    return found


TOOLS = {"ours": one_pass, "pairs": pair_by_pair, "every": every}


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    tool, base, *models = sys.argv[1:]
    pairs = TOOLS[tool](Path(base), [Path(model) for model in models])
    print(json.dumps({"pairs": pairs, "peak": peak()}))
