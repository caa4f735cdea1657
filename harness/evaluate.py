"""Models answer tasks: one lm-eval model stays loaded, and the weights of model after model are copied into it.

    live = live_model("cpu")
    live.load(ref)                                       # digests of what is now loaded
    respond(live, source, doc_ids, Settings())           # one record an item; `judge.py` scores them

lm-eval makes the prompts, batches and responses, through `evaluate()` on tasks that stay loaded. Neither of its caches
is used: its response cache knows no model, its request cache no data. Nothing heavy is imported before a model is.
"""

import contextlib
import functools
import gc
import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from fusion.modelref import Delta, Ensemble, ModelRef, Routed
from harness import loading
from harness.endings import endings, room
from harness.errors import FuseBenchError, TaskError
from harness.likelihood import log_likelihoods
from harness.tasks import load, texts

TORCH_SEED = 1234
"""lm-eval's default."""


@dataclass(frozen=True)
class Settings:
    """What decides responses besides model and task. Scores move with the batch size: it is fixed, never tuned.

    samples, temperature, top_p: of code tasks; at temperature 0 a task's own `generation_kwargs` hold. seed: of what is
    drawn. chat: items are asked in the model's chat template.
    """

    batch_size: int = 16
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    chat: bool = False


class LiveModel:
    """A model on a device whose weights are swapped.

    `skeletons_loaded` counts how often architecture and tokenizer had to be loaded, too; `notes` is what the last merge
    noted of its tensors.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.skeletons_loaded = 0
        self.notes: dict[str, Any] = {}
        self._lm: Any = None
        self._skeleton: tuple[str, str, str] | None = None
        self._members: list[LiveModel] = []
        self._whole: set[str] = set()
        self._loaded: tuple[Any, str, dict[str, str]] | None = None

    @property
    def lm(self) -> Any:
        """lm-eval's HFLM of the model that is loaded."""
        if self._loaded is None:
            raise RuntimeError("no model is loaded: the last load did not finish, or there was none")
        return self._lm

    def load(self, ref: ModelRef, dtype: str = "auto") -> dict[str, str]:
        """Make `ref` the model that answers; the digests "weights", "config", "tokenizer" and "model" of it.

        dtype: a torch dtype's name, or "auto" for the one that its config or else its weights have. A model of the same
        config, tokenizer and dtype as the last costs no more than copying its weights; the same model again, nothing.
        Of an ensemble there is the digest "model" alone, and each member has a dtype of its own, and stays loaded.
        Raises CheckpointError or MismatchError.
        """
        from fusion.digests import config_digest, model_digest, tokenizer_digest

        signature = _signature(ref)
        if self._loaded is not None and self._loaded[:2] == (signature, dtype):
            return dict(self._loaded[2])
        self._loaded = None
        if isinstance(ref, Ensemble):
            digests = self._load_members(ref)
            self._loaded = (signature, dtype, digests)
            return dict(digests)
        with tempfile.TemporaryDirectory(prefix="fuse-bench-") as scratch:
            source, ledger = loading.open_source(ref, Path(scratch))
            config, tokenizer = config_digest(source.donor), tokenizer_digest(source.donor)
            skeleton = config, tokenizer, loading.number_format(source, dtype)
            weights = self._fill(ref, source, skeleton, Path(scratch))
        self.notes = {name: entry for name, entry in ledger.items() if set(entry) > {"action"}}
        digests = {"weights": weights, "config": config, "tokenizer": tokenizer}
        digests["model"] = model_digest(weights, config, tokenizer)
        self._loaded = (signature, dtype, digests)
        return dict(digests)

    def _fill(self, ref: ModelRef, source: Any, skeleton: tuple[str, str, str], scratch: Path) -> str:
        """Get the source's weights into the live model; their digest. skeleton: digests of config, tokenizer; dtype."""
        from fusion.errors import MismatchError
        from fusion.merge import load_into

        if skeleton[0] not in self._whole:
            if self._skeleton != skeleton:
                self._drop()
                self._lm, self._skeleton = loading.skeleton(source.donor, skeleton[2], self.device), skeleton
                self.skeletons_loaded += 1
            try:
                return load_into(self._lm.model, source)
            except MismatchError:
                # An architecture whose tensors transformers renames or joins as it loads them, if it is no error.
                self._whole.add(skeleton[0])
        self._drop()
        self._lm, weights = loading.whole(ref, source, skeleton[2], self.device, scratch)
        self.skeletons_loaded += 1
        return weights

    def _drop(self) -> None:
        """Let go of what is loaded, so that it is not in memory beside what comes."""
        self._skeleton = self._lm = None
        self._members.clear()
        gc.collect()

    def _load_members(self, ref: Ensemble) -> dict[str, str]:
        """Every member into a live model of its own, which the next ensemble's member at its place takes over."""
        from fusion.ensemble import identity
        from harness.ensembles import EnsembleLM

        self._skeleton = self._lm = None
        del self._members[len(ref.models) :]
        gc.collect()
        self._members += [LiveModel(self.device) for _ in ref.models[len(self._members) :]]
        before = sum(member.skeletons_loaded for member in self._members)
        models = [
            member.load(model, dtype)["model"]
            for member, (_, model), dtype in zip(self._members, ref.models, ref.dtypes, strict=True)
        ]
        self.skeletons_loaded += sum(member.skeletons_loaded for member in self._members) - before
        with load.quiet():
            self._lm = EnsembleLM([member.lm for member in self._members], ref)
        self.notes = {}
        domains = None if ref.domains is None else Path(ref.domains)
        return {"model": identity(models, ref.dtypes, ref.combine, ref.weights, domains)}


@functools.cache
def live_model(device: str) -> LiveModel:
    """This process's live model on a device ("cpu", "cuda", "cuda:1")."""
    return LiveModel(device)


def respond(
    live: LiveModel, source: str, doc_ids: Sequence[int], settings: Settings, trust: bool = False
) -> list[dict[str, Any]]:
    """The loaded model's responses to some items of a task (`source`: its file) or text, in doc_id order.

    A record: "id" (doc hash), "doc_id", "prompt_hash", "target", "resps" (by request, then by repeat: [log-likelihood,
    is greedy] for each choice, or a text), "truncated" (the prompt did not fit the context and lost its beginning) and
    "unfinished" (how many of its texts had come to no stop after the most tokens that they may have).
    Of a text's documents it has no more than "id", "doc_id", the log-likelihood in "resps", and "truncated".
    The same model, items, settings and machine give the same bytes. Raises TaskError.
    """
    if texts.is_text(source):
        return log_likelihoods(live.lm, source, doc_ids, settings.batch_size)
    from lm_eval.evaluator import evaluate

    loaded = load.load(Path(source), trust)
    name, lm, ids = loaded.definition.name, live.lm, _Ids(sorted(doc_ids))
    _check(loaded, ids, lm)
    if not ids:
        return []
    lm.batch_size_per_gpu = settings.batch_size
    loaded.begin(ids)
    chat = {"apply_chat_template": settings.chat, "fewshot_as_multiturn": settings.chat}
    with load.quiet(), _templates(loaded), _drawing(loaded, ids, settings), endings(lm) as ended:
        results = evaluate(lm, {"tasks": {name: loaded.task}}, samples={name: ids}, bootstrap_iters=0, **chat)
    kept = loaded.scores[0].filter if loaded.kind != "code" else results["samples"][name][0]["filter"]
    readers = getattr(lm, "members", (lm,))
    long = (instance for instance in loaded.task.instances if any(_too_long(one, instance) for one in readers))
    cut = frozenset(ids[instance.doc_id] for instance in long)
    endless = Counter({ids[instance.doc_id]: ended.cut_off(instance) for instance in loaded.task.instances})
    return [_record(sample, cut, endless, name) for sample in results["samples"][name] if sample["filter"] == kept]


class _Ids(list[int]):
    """Sorted doc_ids that lm-eval, which asks `in` for every document of the split, is answered fast by."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(ids)
        self._set = frozenset(ids)

    def __contains__(self, item: object) -> bool:
        return item in self._set


def _signature(ref: ModelRef) -> Any:
    """Equal for refs that name the same unchanged files."""
    if isinstance(ref, Delta):
        parents = tuple((name, _signature(parent)) for name, parent in ref.parents)
        return repr(ref.recipe), parents, ref.statistics
    if isinstance(ref, Routed):
        return tuple((group, _signature(route)) for group, route in ref.routes)
    if isinstance(ref, Ensemble):
        return replace(ref, models=()), tuple(_signature(model) for _, model in ref.models)
    folders = [Path(ref.path), *([Path(ref.adapter)] if ref.adapter else [])]
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file())
    return ref, tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _check(loaded: load.Loaded, ids: Sequence[int], lm: Any) -> None:
    task = loaded.task
    bad = [doc_id for doc_id in ids if not 0 <= doc_id < len(loaded.docs)]
    if bad or len(set(ids)) < len(ids):
        raise TaskError(
            f"{loaded.definition.path}: doc_ids must differ and be below {len(loaded.docs)}; found {bad or 'repeats'}"
        )
    most = room(task.config.generation_kwargs, lm) if task.OUTPUT_TYPE == "generate_until" else 0
    if most >= lm.max_length:
        raise TaskError(
            f"{loaded.definition.path}: max_gen_toks is {most}, but the model's whole context is {lm.max_length} "
            "tokens; lower it under 'generation_kwargs'"
        )


@contextlib.contextmanager
def _templates(loaded: load.Loaded) -> Iterator[None]:
    """The task's own templates have made a prompt of every item before: one that fails now is the model's."""
    try:
        yield
    except jinja2.TemplateError as error:
        raise TaskError(
            f"{loaded.definition.path}: the model's chat template makes no prompt of it ({error}): mend the template, "
            "or say `chat: off`"
        ) from None


@contextlib.contextmanager
def _drawing(loaded: load.Loaded, ids: Sequence[int], settings: Settings) -> Iterator[None]:
    """Have samples drawn for this call only, as the task stays loaded; the same items and seed draw the same ones."""
    import torch

    config = loaded.task.config
    before = config.repeats, config.generation_kwargs
    if loaded.kind != "code" or not settings.temperature:
        torch.manual_seed(TORCH_SEED)
        yield
        return
    items = "\n".join((str(settings.seed), *(loaded.ids[doc_id] for doc_id in ids)))
    torch.manual_seed(int.from_bytes(hashlib.sha256(items.encode()).digest()[:8]))
    # The model's own generation config may limit the choice to a few tokens, which is no part of the protocol.
    drawn = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    try:
        config.repeats, config.generation_kwargs = settings.samples, {**(before[1] or {}), **drawn}
        yield
    finally:
        config.repeats, config.generation_kwargs = before


def _too_long(lm: Any, instance: Any) -> bool:
    """Whether lm-eval had to cut the beginning of a prompt off, which it does not tell."""
    if instance.request_type == "generate_until":
        text, options = instance.args
        limit = lm.max_length - room(options, lm)
    elif instance.request_type == "loglikelihood":
        text = "".join(instance.args)
        # The last token is predicted, never read; an empty context is one token.
        limit = lm.max_length + (1 if instance.args[0] else 0)
    else:
        return False
    # A token covers a byte or more but for a few special ones, so most texts need no second tokenization.
    return len(text.encode()) + 8 > limit and len(lm.tok_encode(text)) > limit


def _record(sample: Mapping[str, Any], cut: frozenset[int], endless: Mapping[int, int], name: str) -> dict[str, Any]:
    resps = [[_plain(repeat) for repeat in repeats] for repeats in sample["resps"]]
    numbers = [repeat[0] for repeats in resps for repeat in repeats if isinstance(repeat, list)]
    if not all(math.isfinite(number) for number in numbers):
        raise FuseBenchError(
            f"the model gives a log-likelihood of {numbers} for item {sample['doc_id']} of task '{name}': its weights "
            "are not finite or overflow in its dtype; no score can be had from it"
        )
    target = sample["target"]
    return {
        "id": sample["doc_hash"],
        "doc_id": sample["doc_id"],
        "prompt_hash": sample["prompt_hash"],
        "target": target if isinstance(target, str | int | float | list) else str(target),
        "resps": resps,
        "truncated": sample["doc_id"] in cut,
        "unfinished": endless[sample["doc_id"]],
    }


def _plain(response: Any) -> Any:
    """(log-likelihood, is greedy) as a list, a text as it is."""
    return [float(response[0]), bool(response[1])] if isinstance(response, tuple) else response
