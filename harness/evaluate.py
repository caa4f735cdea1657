"""Models answer tasks: one lm-eval model stays loaded, and the weights of model after model are copied into it.

    live = live_model("cpu")
    live.load(ref)                                       # digests of what is now loaded
    respond(live, source, doc_ids, Settings())           # one record an item; `judge.py` scores them

lm-eval makes the prompts, batches and responses, through `evaluate()` on tasks that stay loaded. Neither of its caches
is used: its response cache knows no model, its request cache no data. Nothing heavy is imported before a model is.
"""

import functools
import gc
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.modelref import Delta, ModelRef, Routed
from harness.errors import FuseBenchError, TaskError
from harness.likelihood import log_likelihoods
from harness.tasks import load, texts

TORCH_SEED = 1234
"""lm-eval's default."""


@dataclass(frozen=True)
class Settings:
    """What decides responses besides model and task. Scores move with the batch size: it is fixed, never tuned."""

    batch_size: int = 16


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
        Raises CheckpointError or MismatchError.
        """
        from fusion.digests import config_digest, model_digest, tokenizer_digest
        from fusion.merge import load_into

        signature = _signature(ref)
        if self._loaded is not None and self._loaded[:2] == (signature, dtype):
            return dict(self._loaded[2])
        self._loaded = None
        with tempfile.TemporaryDirectory(prefix="fuse-bench-") as scratch:
            source, ledger = _open(ref, Path(scratch))
            config, tokenizer = config_digest(source.donor), tokenizer_digest(source.donor)
            wanted = _dtype(source, dtype)
            if self._skeleton != (config, tokenizer, wanted):
                self._skeleton = self._lm = None
                gc.collect()
                self._lm = _skeleton(source.donor, wanted, self.device)
                self._skeleton = (config, tokenizer, wanted)
                self.skeletons_loaded += 1
            weights = load_into(self._lm.model, source)
        self.notes = {name: entry for name, entry in ledger.items() if set(entry) > {"action"}}
        digests = {"weights": weights, "config": config, "tokenizer": tokenizer}
        digests["model"] = model_digest(weights, config, tokenizer)
        self._loaded = (signature, dtype, digests)
        return dict(digests)


@functools.cache
def live_model(device: str) -> LiveModel:
    """This process's live model on a device ("cpu", "cuda", "cuda:1")."""
    return LiveModel(device)


def respond(
    live: LiveModel, source: str, doc_ids: Sequence[int], settings: Settings, trust: bool = False
) -> list[dict[str, Any]]:
    """The loaded model's responses to some items of a task (`source`: its file) or text, in doc_id order.

    A record: "id" (doc hash), "doc_id", "prompt_hash", "target", "resps" (by request, then by repeat: [log-likelihood,
    is greedy] for each choice, or a text) and "truncated" (the prompt did not fit the context and lost its beginning).
    Of a text's documents it has no more than "id", "doc_id", the log-likelihood in "resps", and "truncated".
    The same model, items, batch size and machine give the same bytes. Raises TaskError.
    """
    if texts.is_text(source):
        return log_likelihoods(live.lm, source, doc_ids, settings.batch_size)
    import torch
    from lm_eval.evaluator import evaluate

    loaded = load.load(Path(source), trust)
    name, lm, ids = loaded.definition.name, live.lm, _Ids(sorted(doc_ids))
    _check(loaded, ids, lm)
    if not ids:
        return []
    lm.batch_size_per_gpu = settings.batch_size
    torch.manual_seed(TORCH_SEED)
    loaded.begin(ids)
    with load.quiet():
        results = evaluate(lm, {"tasks": {name: loaded.task}}, samples={name: ids}, bootstrap_iters=0, log_samples=True)
    kept = loaded.scores[0].filter if loaded.kind != "code" else results["samples"][name][0]["filter"]
    cut = frozenset(ids[instance.doc_id] for instance in loaded.task.instances if _too_long(lm, instance))
    return [_record(sample, cut, name) for sample in results["samples"][name] if sample["filter"] == kept]


class _Ids(list[int]):
    """Sorted doc_ids that lm-eval, which asks `in` for every document of the split, is answered fast by."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(ids)
        self._set = frozenset(ids)

    def __contains__(self, item: object) -> bool:
        return item in self._set


def _open(ref: ModelRef, scratch: Path) -> tuple[Any, Mapping[str, Any]]:
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


def _signature(ref: ModelRef) -> Any:
    """Equal for refs that name the same unchanged files."""
    if isinstance(ref, Delta):
        parents = tuple((name, _signature(parent)) for name, parent in ref.parents)
        return repr(ref.recipe), parents, ref.statistics
    if isinstance(ref, Routed):
        return tuple((group, _signature(route)) for group, route in ref.routes)
    folders = [Path(ref.path), *([Path(ref.adapter)] if ref.adapter else [])]
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file())
    return ref, tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _dtype(source: Any, dtype: str) -> str:
    from transformers import AutoConfig

    if dtype != "auto":
        return dtype
    stated = getattr(AutoConfig.from_pretrained(source.donor, local_files_only=True), "dtype", None)
    found = (source.dtype(name) for name in source.names())
    return str(stated or next(kind for kind in found if kind.is_floating_point)).removeprefix("torch.")


def _skeleton(donor: Path, dtype: str, device: str) -> Any:
    """lm-eval's model around the architecture, tokenizer and generation config of a folder, its weights not yet set."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(donor, local_files_only=True)
    with load.quiet(), torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.to(device)
    if (donor / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(donor, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(donor, local_files_only=True)
    with load.quiet():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)


def _check(loaded: load.Loaded, ids: Sequence[int], lm: Any) -> None:
    task = loaded.task
    bad = [doc_id for doc_id in ids if not 0 <= doc_id < len(loaded.docs)]
    if bad or len(set(ids)) < len(ids):
        raise TaskError(
            f"{loaded.definition.path}: doc_ids must differ and be below {len(loaded.docs)}; found {bad or 'repeats'}"
        )
    room = _room(task, lm)
    if room is not None and room >= lm.max_length:
        raise TaskError(
            f"{loaded.definition.path}: max_gen_toks is {room}, but the model's whole context is {lm.max_length} "
            "tokens; lower it under 'generation_kwargs'"
        )


def _room(task: Any, lm: Any) -> int | None:
    """The tokens that a generation may have, None where nothing is generated."""
    if task.OUTPUT_TYPE != "generate_until":
        return None
    return int((task.config.generation_kwargs or {}).get("max_gen_toks", lm.max_gen_toks))


def _too_long(lm: Any, instance: Any) -> bool:
    """Whether lm-eval had to cut the beginning of a prompt off, which it does not tell."""
    if instance.request_type == "generate_until":
        text, options = instance.args
        limit = lm.max_length - int(options.get("max_gen_toks", lm.max_gen_toks))
    elif instance.request_type == "loglikelihood":
        text = "".join(instance.args)
        # The last token is predicted, never read; an empty context is one token.
        limit = lm.max_length + (1 if instance.args[0] else 0)
    else:
        return False
    # A token covers a byte or more but for a few special ones, so most texts need no second tokenization.
    return len(text.encode()) + 8 > limit and len(lm.tok_encode(text)) > limit


def _record(sample: Mapping[str, Any], cut: frozenset[int], name: str) -> dict[str, Any]:
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
    }


def _plain(response: Any) -> Any:
    """(log-likelihood, is greedy) as a list, a text as it is."""
    return [float(response[0]), bool(response[1])] if isinstance(response, tuple) else response
