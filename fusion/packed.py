"""Weights packed into fewer bits: their numbers mean nothing without their scales, so none is computed with."""

from collections.abc import Mapping

from fusion.adapter import Adapted
from fusion.checkpoint import Checkpoint, Source
from fusion.errors import CheckpointError
from fusion.pickled import Pickled


def check_plain(sources: Mapping[str, Source], done: str) -> None:
    """Raises CheckpointError that names the quantised ones of some models; `done`: what they cannot be."""
    stored = {name: source.base if isinstance(source, Adapted) else source for name, source in sources.items()}
    packed = [
        name
        for name, source in stored.items()
        if isinstance(source, Checkpoint | Pickled) and "quantization_config" in source.config
    ]
    if packed:
        raise CheckpointError(f"{', '.join(packed)}: quantised weights cannot be {done}; give the model before that")
