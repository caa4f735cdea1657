"""LoRA adapters as models: a base and a peft folder, read together one tensor at a time.

W' = W + s B A, s = alpha / r (Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1) or alpha / sqrt(r)
(rsLoRA, https://arxiv.org/abs/2312.03732); with a magnitude m, W' = m (W + s B A) / ||W + s B A||, a norm for each
output (DoRA, https://arxiv.org/abs/2402.09353, equation 5). The format is peft's: adapter_config.json and
adapter_model.safetensors, whose names are the base's with `base_model.model.` before them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoint import OUTPUT_HEADS, Source, read_config
from fusion.errors import CheckpointError, MismatchError
from fusion.stream import one_thread
from fusion.tokens import has_tokenizer, tokenizer_folder, vocabulary_table

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# How peft names what belongs to one module; the last is a table that was replaced as a whole.
PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(\.weight)?"
)
FACTORS = {"lora_embedding_A": "a", "lora_embedding_B": "b", "lora_A.weight": "a", "lora_B.weight": "b"}
# Initialisations that leave the base as it is; the others move a part of it into the adapter.
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
UNSUPPORTED = (
    *("trainable_token_indices", "target_parameters", "layer_replication", "use_qalora", "use_bdlora"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
)


@dataclass
class Change:
    """What an adapter does to one of the base's tensors, by the names of its own.

    `whole` takes the tensor's place; `a` and `b` are the factors, `transposed` where W is stored as (in, out);
    `magnitude` is DoRA's; `added` is a vector that is added, times the scale.
    """

    whole: str | None = None
    a: str | None = None
    b: str | None = None
    magnitude: str | None = None
    added: str | None = None
    scale: float = 1.0
    transposed: bool = False


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter and no model of its own."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_base(folder: Path) -> str | None:
    """The model that an adapter says it was trained on: a path or a name. Raises CheckpointError for a bad config."""
    base = _read_config(folder).get("base_model_name_or_path")
    return str(base) if base else None


class Adapted:
    """A base with a LoRA adapter, as a Source; no tensor is computed before it is asked for.

    Tensors that the adapter changes are given in float32 whatever the base holds: in bfloat16 a change smaller than
    1/256 of a weight is rounded away, and with it most of the task vector that a merge is after. With
    `precise=False` they are rounded once to the base's dtype, as `merge_and_unload` writes them.

    donor: the base's folder. tokenizer: the adapter's folder where it holds a tokenizer, else the base's.
    config_changes: what the base's config must say instead (`vocab_size` of a resized vocabulary).

    Raises CheckpointError when the adapter cannot be read or asks for what is not supported, and MismatchError that
    names every one of its tensors that the base has no place for or whose shape does not fit.
    """

    def __init__(self, base: Source, folder: str | Path, precise: bool = True) -> None:
        self.base = base
        self.donor = base.donor
        self.folder = Path(folder)
        self.tokenizer = self.folder if has_tokenizer(self.folder) else tokenizer_folder(base)
        self._precise = precise
        self._config = _read_config(self.folder)
        self._check_config()
        self._file = _open(self.folder)
        self._shapes = _shapes(self._file)
        self._names = base.names()
        self._known = frozenset(self._names)
        self._table = vocabulary_table(base)
        self._changes: dict[str, Change] = {}
        problems = [*self._assign(), *self._drop_tied_head()]
        problems += [problem for name, change in self._changes.items() for problem in self._fit(name, change)]
        problems += self._undecided()
        if problems:
            raise MismatchError(
                f"the adapter {self.folder} does not fit its base {base.donor}:\n  "
                + "\n  ".join(problems)
                + f"\nit was trained on {self._config.get('base_model_name_or_path') or 'an unnamed model'}"
            )
        self.config_changes = self._resized()

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        change = self._changes.get(name)
        return self._shapes[change.whole] if change is not None and change.whole else self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        stored = self.base.dtype(name)
        return torch.float32 if self._precise and name in self._changes and stored.is_floating_point else stored

    def tensor(self, name: str) -> Tensor:
        change = self._changes.get(name)
        if change is None:
            return self.base.tensor(name)
        stored = self._part(change.whole) if change.whole else self.base.tensor(name)
        with one_thread():
            return self._changed(stored.float(), change).to(self.dtype(name))

    def low_rank(self, name: str) -> tuple[Tensor, Tensor] | None:
        """What is added to a tensor as the factors, (m, r) and (r, n) in float64, of a matrix of the tensor's shape.

        None for a change that is no such product (a table that is replaced, a bias, a magnitude, a result that is
        rounded to the base's dtype) and for a tensor that is not changed.
        """
        change = self._changes.get(name)
        if change is None or not self._precise or change.a is None or change.b is None:
            return None
        if change.whole or change.added or change.magnitude:
            return None
        b, a = change.scale * self._part(change.b).double(), self._part(change.a).double()
        return (a.T, b.T) if change.transposed else (b, a)

    def changes(self, name: str) -> bool:
        """Whether the adapter changes a tensor of the base."""
        return name in self._changes

    def _changed(self, weight: Tensor, change: Change) -> Tensor:
        if change.added is not None:
            weight = weight + change.scale * self._part(change.added).float()
        if change.a is None or change.b is None:
            return weight
        delta = change.scale * (self._part(change.b).float() @ self._part(change.a).float())
        weight = weight + (delta.T if change.transposed else delta)
        if change.magnitude is None:
            return weight
        outputs = 0 if change.transposed else 1
        norm = torch.linalg.vector_norm(weight, dim=outputs, keepdim=True, dtype=torch.float64).float()
        return weight * (self._part(change.magnitude).float().unsqueeze(outputs) / norm)

    def _part(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def _check_config(self) -> None:
        kind = self._config.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{self.folder} is an adapter of type {kind}; only LORA (with rsLoRA, DoRA) is read")
        used = [key for key in UNSUPPORTED if self._config.get(key)]
        if used:
            raise CheckpointError(
                f"{self.folder} uses {', '.join(used)}, which is not supported: merge it into its base with peft "
                "(merge_and_unload) and give that folder"
            )
        start = self._config.get("init_lora_weights", True)
        if start not in HARMLESS_STARTS:
            raise CheckpointError(
                f"{self.folder} was started with init_lora_weights='{start}', which moves a part of the base's weights "
                "into the adapter: save it with path_initial_model_for_weight_conversion=..., or merge it with peft"
            )

    def _assign(self) -> list[str]:
        """Give each of the adapter's tensors its place in the base; what has none is a problem."""
        problems = []
        for name in sorted(self._shapes):
            own = name.removeprefix(PREFIX)
            part = PART.fullmatch(own)
            place = self._place(own, part)
            if own == name or place is None:
                problems.append(f"{name} {list(self._shapes[name])} has no place in the base")
                continue
            change = self._changes.setdefault(place, Change())
            if part is None:
                change.whole = name
            elif part["part"] == "lora_B.bias":
                change.added, change.scale = name, self._scale(part["module"])[0]
            elif part["part"] == "lora_magnitude_vector":
                change.magnitude = name
            else:
                setattr(change, FACTORS[part["part"]], name)
                change.scale = self._scale(part["module"])[0]
                change.transposed = "embedding" in part["part"]
        return problems

    def _place(self, own: str, part: re.Match[str] | None) -> str | None:
        """The base's tensor that one of the adapter's belongs to. Checkpoints come without the name of the body too."""
        if part is not None:
            own = f"{part['module']}.{'bias' if part['part'] == 'lora_B.bias' else 'weight'}"
        own = own.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if own in self._known or own in OUTPUT_HEADS:
            return own
        return own.partition(".")[2] if own.partition(".")[2] in self._known else None

    def _scale(self, module: str) -> tuple[float, int]:
        """A module's factor s and rank r; patterns are matched as peft matches them, on the end of the name."""
        rank = int(_by_pattern(self._config.get("rank_pattern") or {}, module, self._config.get("r", 8)))
        alpha = float(_by_pattern(self._config.get("alpha_pattern") or {}, module, self._config.get("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank), rank

    def _drop_tied_head(self) -> list[str]:
        """An output head that the base ties to its embedding is one tensor with it, and must be changed alike."""
        table = self._table
        heads = [name for name in OUTPUT_HEADS if name in self._names]
        changed = [name for name in OUTPUT_HEADS if name in self._changes and name not in heads]
        tables = [] if table is None or heads else [name for name in table.names if name in self._changes]
        if not changed and not (tables and read_config(self.donor).get("tie_word_embeddings", True)):
            return []
        head = self._changes.pop(changed[0]) if changed else None
        if table is None or len(table.names) != 1:
            return [f"{changed[0]} has no place in the base"]
        if head is not None and tables and self._alike(head, self._changes[tables[0]]):
            return []
        return [
            f"the base ties its output head to {table.names[0]}, and the adapter does not change both alike: give a "
            "base with tie_word_embeddings: false and a head of its own, or train with ensure_weight_tying"
        ]

    def _alike(self, head: Change, table: Change) -> bool:
        """Whether a head and the embedding it is tied to are changed alike: as a table, (B A)^T = A^T B^T."""
        pairs = [(head.whole, table.whole, False), (head.a, table.b, True), (head.b, table.a, True)]
        if head.magnitude or table.magnitude or any((one is None) != (two is None) for one, two, _ in pairs):
            return False
        given = [(self._part(one), self._part(two), turned) for one, two, turned in pairs if one and two]
        return all(torch.equal(one, two.T if turned else two) for one, two, turned in given)

    def _fit(self, name: str, change: Change) -> list[str]:
        if not self.base.dtype(name).is_floating_point:
            return [f"{name} is {self.base.dtype(name)} in the base: give the base before it was quantised"]
        shape = self.base.shape(name)
        problems = []
        if change.whole:
            table, found = self._table, self._shapes[change.whole]
            if found != shape and not (table and name in table.names and found[1:] == shape[1:]):
                return [f"{change.whole} is {list(found)} instead of {list(shape)}"]
            shape = found
        if change.added and self._shapes[change.added] != shape:
            problems.append(f"{change.added} is {list(self._shapes[change.added])} instead of {list(shape)}")
        if change.a or change.b or change.magnitude:
            problems += self._fit_factors(name, change, shape)
        return problems

    def _fit_factors(self, name: str, change: Change, shape: tuple[int, ...]) -> list[str]:
        """Check the factors' shapes, and read off them whether the base stores the matrix as (in, out)."""
        if change.a is None or change.b is None:
            given = change.a or change.b or change.magnitude
            return [f"{given} lacks its lora_{'A' if change.a is None else 'B'}"]
        a, b = self._shapes[change.a], self._shapes[change.b]
        _, rank = self._scale(change.a.removeprefix(PREFIX).rpartition(".lora_")[0])
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            return [f"{name}: factors {list(b)} x {list(a)} are not of rank {rank}, as {ADAPTER_CONFIG} says"]
        product = (b[0], a[1])
        if "embedding" not in change.a:
            square = shape == product[::-1] == product
            change.transposed = bool(self._config.get("fan_in_fan_out")) if square else shape == product[::-1]
        if shape != (product[::-1] if change.transposed else product):
            return [f"{name} is {list(shape)}, the adapter's product {list(b)} x {list(a)}"]
        if change.magnitude and math.prod(self._shapes[change.magnitude]) != b[0]:
            return [f"{change.magnitude} is {list(self._shapes[change.magnitude])} instead of {[b[0]]}"]
        return []

    def _undecided(self) -> list[str]:
        """Square matrices whose storage cannot be told: peft forgets fan_in_fan_out where a model mixes both kinds."""
        linear = {n: c for n, c in self._changes.items() if c.a and "embedding" not in c.a}
        square = [name for name in linear if len(set(self.shape(name))) == 1]
        turned = [name for name, change in linear.items() if change.transposed and name not in square]
        if self._config.get("fan_in_fan_out") or not turned:
            return []
        return [
            f"{name} is square, and fan_in_fan_out is false though {turned[0]} is stored as (in, out): set it right in "
            f"{ADAPTER_CONFIG}"
            for name in square
        ]

    def _resized(self) -> dict[str, Any]:
        table, before = vocabulary_table(self), self._table
        if table is None or before is None or table.rows == before.rows:
            return {}
        if table.names != before.names:
            raise MismatchError(
                f"the adapter {self.folder} resizes {', '.join(table.names)} to {table.rows} rows, but not "
                f"{', '.join(name for name in before.names if name not in table.names)}"
            )
        return {"vocab_size": table.rows}


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_CONFIG}: give the folder of a peft adapter")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not readable as JSON ({error}): copy or download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__} where a JSON object belongs")
    return content


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    names: list[str] = list(file.keys())
    return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _open(folder: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise CheckpointError(
                f"{folder} holds only adapter_model.bin, which is pickled and can run code when it is read: load the "
                "adapter with peft where you trust it and save it again, as safetensors"
            )
        raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS}: copy or download the whole adapter")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): copy or download it again") from error
