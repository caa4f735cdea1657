"""RegMean++'s Gram matrices: what each model's layers are given behind the layers that are already merged."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion import corpus, teachers
from fusion.calibration import Collect, Made, Text, read, stored_names, writing
from fusion.checkpoint import Checkpoint, check_same
from fusion.corpus import Document
from fusion.digests import folder_digests
from fusion.errors import MismatchError
from fusion.grams import OUTSIDE, Live, add_grams, layer_group
from fusion.layerwise import Batch
from fusion.methods import regmean
from fusion.methods.call import Place
from fusion.methods.regmean import Gram
from fusion.stream import one_thread
from fusion.training import Progress

Chosen = Callable[[str], bool]  # by a live parameter's name


@dataclass
class Member:
    """A model with its corpus: the text, and its hidden states behind the merged layers so far."""

    text: Text
    batches: list[Batch]


def collect_prefix(
    models: Mapping[str, Path],
    corpora: Mapping[str, Sequence[Document]],
    out: Path,
    params: regmean.Params,
    weights: Sequence[float] | None,
    settings: Collect,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Write, for each model, Gram matrices on the merged prefix, into `out/<model>` (Nguyen et al. 2025, RegMean++).

    1. what is before the layers is the weighted average of the models'
    2. layer by layer: each model's own layer is run on the hidden states of that model's corpus behind the merged
       layers so far, which gives its Grams; then its weights are merged as `regmean.merge` does with these params
       and weights, and the merged layer makes the next hidden states of every corpus
    3. what is behind the layers (an untied output head) gets its Grams from the merged model's last hidden states

    A linear layer ahead of the layers enters the prefix as an average, whatever is made of its Gram later. In memory
    are one model, the hidden states of all corpora and one layer's Grams a model. Returns each model's report.
    Raises MismatchError for models that differ in a name or a shape, RecipeError as `regmean.merge` does, and what
    `collect_grams` raises.
    """
    started = time.perf_counter()
    skeleton = _Skeleton(models, params, weights, settings.device)
    texts = {
        name: read(teachers.load_tokenizer(folder), corpora[name], settings, skeleton.model)
        for name, folder in models.items()
    }
    live = Live(skeleton.model, skeleton.stored, next(iter(texts.values())), settings.device)
    skeleton.merge(lambda name: live.group(name) == OUTSIDE, {})
    members = {name: Member(text, [live.decoder.open(ids) for ids in text.batches()]) for name, text in texts.items()}
    made = _made(models, corpora, members, skeleton, settings)
    count = len(live.decoder.layers)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(writing(out / name)) for name in models}
        for index in range(count):
            for name, grams in _merge_layer(skeleton, live, index, members).items():
                add_grams(writers[name], layer_group(index), grams)
            progress(index + 1, count + 1)
        for name, member in members.items():
            grams = live.grams(OUTSIDE, live.decoder.close, member.batches, member.text.tokens)
            add_grams(writers[name], OUTSIDE, grams)
        reports = {name: writers[name].finish(made[name], started) for name in models}
        progress(count + 1, count + 1)
        return reports


class _Skeleton:
    """One live model that takes the weights of any of several models, or merged ones, part by part."""

    def __init__(
        self, models: Mapping[str, Path], params: regmean.Params, weights: Sequence[float] | None, device: str
    ) -> None:
        self.sources = {name: Checkpoint(folder) for name, folder in models.items()}
        check_same(self.sources)
        self.params, self.weights, self.device = params, weights, device
        first = next(iter(models.values()))
        self.model, _ = teachers.load(first)
        self.stored = stored_names(self.model, next(iter(self.sources.values())))
        self._places: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        lost = [name for name in self._places if name not in self.stored]
        if lost:
            raise MismatchError(
                f"{first} stores in another form than {type(self.model).__name__} has them: {', '.join(lost)}; "
                "regmean++ must put merged tensors into the live model: use regmean instead"
            )

    def take(self, model: str, chosen: Chosen) -> None:
        """A model's own weights."""
        self._fill(chosen, lambda stored: self.sources[model].tensor(stored).float())

    def merge(self, chosen: Chosen, grams: Mapping[str, Mapping[str, Gram]]) -> None:
        """The merged weights: by RegMean where each model has a Gram, else the average."""

        def merged(stored: str) -> Tensor:
            at = Place(
                stored, tuple(self.sources), statistics=tuple(grams.get(name, {}).get(stored) for name in self.sources)
            )
            tensors = [source.tensor(stored).to(self.device, torch.float32) for source in self.sources.values()]
            return regmean.merge(tensors, None, self.weights, self.params, at)

        with one_thread():
            self._fill(chosen, merged)

    @torch.no_grad()
    def _fill(self, chosen: Chosen, make: Callable[[str], Tensor]) -> None:
        for name, stored in self.stored.items():
            if chosen(name):
                self._places[name].copy_(make(stored))


def _merge_layer(
    skeleton: _Skeleton, live: Live, index: int, members: Mapping[str, Member]
) -> dict[str, dict[str, Gram]]:
    """Merge a layer in the skeleton and move all hidden states behind it. Returns the Grams of each model."""
    group = layer_group(index)
    grams = {}
    with live.decoder.at_work(index):
        for name, member in members.items():
            skeleton.take(name, lambda parameter: live.group(parameter) == group)
            # What the model's own layer gives goes nowhere: the next layer is given what the merged one gives.
            grams[name] = live.grams(
                group, lambda batch: live.decoder.step(index, batch), member.batches, member.text.tokens
            )
        skeleton.merge(lambda parameter: live.group(parameter) == group, grams)
        for member in members.values():
            for batch in member.batches:
                batch.hidden = live.decoder.step(index, batch)
    return grams


def _made(
    models: Mapping[str, Path],
    corpora: Mapping[str, Sequence[Document]],
    members: Mapping[str, Member],
    skeleton: _Skeleton,
    settings: Collect,
) -> dict[str, Made]:
    digests = tuple(folder_digests(folder)["model"] for folder in models.values())
    texts = tuple(corpus.digest(corpora[name]) for name in models)
    how = {**asdict(skeleton.params), "weights": None if skeleton.weights is None else list(skeleton.weights)}
    return {
        name: Made("gram++", skeleton.sources[name], member.text, settings, digests, texts, {**how, "model": index})
        for index, (name, member) in enumerate(members.items())
    }
