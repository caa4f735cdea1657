"""Models as lm-eval's: an architecture that weights are copied into, or a whole model from its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion.modelref import ModelRef
from harness.tasks import load


def open_source(ref: ModelRef, scratch: Path) -> tuple[Any, Mapping[str, Any]]:
    """The model's tensors, and the ledger that a merge keeps of them.

    A model whose vocabulary or number of layers is not its donor's fits no skeleton that is there: it is written first.
    """
    from fusion.checkpoint import Checkpoint
    from fusion.merge import write
    from fusion.methods.apply import Merge, reshapes
    from fusion.modelref import open_ref

    source = open_ref(ref)
    if reshapes(source):
        report = write(ref, scratch / "model")
        return Checkpoint(scratch / "model"), report.get("ledger", {})
    return source, source.ledger if isinstance(source, Merge) else {}


def number_format(source: Any, dtype: str) -> str:
    """The name of the torch dtype that a model is loaded in: the one that is asked for, or its own for \"auto\"."""
    from transformers import AutoConfig

    if dtype != "auto":
        return dtype
    stated = getattr(AutoConfig.from_pretrained(source.donor, local_files_only=True), "dtype", None)
    found = (source.dtype(name) for name in source.names())
    return str(stated or next(kind for kind in found if kind.is_floating_point)).removeprefix("torch.")


def skeleton(donor: Path, dtype: str, device: str) -> Any:
    """lm-eval's model around the architecture, tokenizer and generation config of a folder, its weights not yet set."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(donor, local_files_only=True)
    with load.quiet(), torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.to(device)
    return _wrapped(model, donor)


def whole(ref: ModelRef, source: Any, dtype: str, device: str, scratch: Path) -> tuple[Any, str]:
    """lm-eval's model of `ref` as transformers loads it from files, and the digest of its weights.

    source: what `open_source` gave. What is no folder as it stands is written to `scratch` first, so this takes longer
    than filling a skeleton. Raises MismatchError where a tensor is missing or left over, of which transformers itself
    would only warn.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from fusion.checkpoint import Checkpoint
    from fusion.digests import weights_digest
    from fusion.errors import MismatchError
    from fusion.merge import write
    from fusion.pickled import Pickled

    folder, digest = source.donor, ""
    if not isinstance(source, Checkpoint | Pickled):
        folder = scratch / "whole"
        digest = write(ref, folder)["weights"]
    with load.quiet():
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise MismatchError(f"transformers cannot load the model in {source.donor}: {error}") from error
    lines = [f"{name} {what}" for key, what in _WRONG.items() for name in sorted(map(str, found.get(key) or ()))]
    if lines:
        raise MismatchError(f"the model in {source.donor} does not fit its architecture:\n  " + "\n  ".join(lines))
    return _wrapped(model.to(device), folder), digest or weights_digest(source)


_WRONG = {
    "missing_keys": "is missing",
    "unexpected_keys": "has no place in it",
    "mismatched_keys": "is of another shape",
}


def _wrapped(model: Any, donor: Path) -> Any:
    """lm-eval's model around a transformers model, with the tokenizer and generation config of a folder."""
    from transformers import AutoTokenizer, GenerationConfig

    from harness.lm import Live

    if (donor / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(donor, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(donor, local_files_only=True)
    with load.quiet():
        return Live(pretrained=model, tokenizer=tokenizer, batch_size=1)
