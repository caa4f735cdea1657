"""The diagonal Fisher information of a model on a corpus, for Fisher merging."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion import corpus, teachers
from fusion.calibration import Collect, Made, Writer, read, stored_names, writing
from fusion.checkpoint import Checkpoint
from fusion.corpus import Document
from fusion.digests import folder_digests
from fusion.layout import layers_of
from fusion.training import Progress


def collect_fisher(
    model: Path, documents: Sequence[Document], out: Path, settings: Collect, progress: Progress
) -> dict[str, Any]:
    """Write the diagonal Fisher information of every parameter of a model on a corpus (Matena and Raffel 2022).

    F = sum_s (d/dtheta sum_t log p(y_t | x_<=t))^2 / n over sequences s of the corpus, one gradient each, and their n
    predictions; y_t is drawn from the model's own p(. | x_<=t), seeded by (seed, sequence). Terms of two positions are
    0 in the mean over y, so F estimates the Fisher information of one prediction. Positions are those that predict a
    token of the sequence. A tied parameter has one Fisher, of all its uses. Forward, gradients and sums are float32.

    Memory holds the model, its Fisher and one sequence's activations: each gradient is freed as soon as it is squared.
    Returns the report that `statistics.collect` describes. Raises TrainingError for an empty corpus, CheckpointError as
    `teachers.load` does.
    """
    started = time.perf_counter()
    with writing(out) as writer:
        live, tokenizer = teachers.load(model)
        text = read(tokenizer, documents, settings, live)
        information = Information(live.to(settings.device))
        count = len(text.sequences)
        for done, (ids, number) in enumerate(zip(text.sequences, text.numbers, strict=True), 1):
            information.add(ids, sampler(settings.seed, number))
            progress(done, count)
        _write(writer, information.per_prediction(), stored_names(live, Checkpoint(model)))
        digests = (folder_digests(model)["model"],), (corpus.digest(documents),)
        return writer.finish(Made("fisher", Checkpoint(model), text, settings, *digests), started)


class Information:
    """Sums squared gradients of a live causal model, sequence by sequence."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.predictions = 0
        self._sums: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(True)
            self._sums[name] = torch.zeros_like(parameter, requires_grad=False)
            parameter.register_post_accumulate_grad_hook(self._hook(name))

    def add(self, ids: Int[Tensor, " length"], generator: torch.Generator) -> None:
        """One sequence, of at least two tokens: labels drawn from the model, the gradient of their log-likelihood."""
        device = next(iter(self._sums.values())).device
        logits = self.model(input_ids=ids[None].to(device), use_cache=False).logits[0, :-1].float()
        log_probs = logits.log_softmax(-1)
        labels = draw(log_probs.detach(), generator).to(device)
        log_probs.gather(-1, labels[:, None]).sum().backward()
        self.predictions += len(labels)

    def per_prediction(self) -> dict[str, Tensor]:
        """The Fisher of each parameter, by its live name; those that tied ones share are named once."""
        return {name: total / self.predictions for name, total in self._sums.items()}

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def square(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._sums[name].addcmul_(parameter.grad, parameter.grad)
            parameter.grad = None

        return square


def sampler(seed: int, sequence: int) -> torch.Generator:
    """The random numbers of one sequence, whatever was drawn for others; on the CPU, so the same on every device."""
    digest = hashlib.sha256(f"fisher {seed} {sequence}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw(log_probs: Float[Tensor, "n vocabulary"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """One token a row, from the distribution that the row gives."""
    return torch.multinomial(log_probs.cpu().exp(), 1, generator=generator)[:, 0]


def _write(writer: Writer, information: dict[str, Tensor], stored: dict[str, str]) -> None:
    """One file a decoder layer and one for all else; each tensor with the root mean square over the whole model."""
    elements = sum(total.numel() for total in information.values())
    squares = sum(float(total.double().square().sum()) for total in information.values())
    scale = (squares / elements) ** 0.5
    named = {stored[name]: total for name, total in information.items() if name in stored}
    layers = layers_of(list(named))
    files: dict[str, dict[str, Tensor]] = {}
    for name, total in named.items():
        file = f"layer-{layers[name]:05d}" if name in layers else "outside"
        files.setdefault(file, {})[name] = total
    for file, content in files.items():
        writer.add(f"{file}.safetensors", content, {name: {"key": name, "scale": scale} for name in content})
