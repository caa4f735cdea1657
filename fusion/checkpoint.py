"""Models on disk: open safetensors folders tensor by tensor, compare them, and give them an identity.

A `Source` is anything that hands out a model's tensors one at a time. `Checkpoint` is the one on disk; a merge that is
computed on demand is another. The format: https://huggingface.co/docs/safetensors, 8 bytes of header length, a JSON
header of names, dtypes, shapes and offsets, then the tensors' bytes.
"""

import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fusion.errors import CheckpointError, MismatchError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Any one of these holds a vocabulary; the others only qualify it.
VOCABULARY_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
CHAT_TEMPLATES = "additional_chat_templates"
# The head of a model whose config ties it to the input embedding: some tools store the copy all the same.
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@runtime_checkable
class Source(Protocol):
    """A model whose tensors can be had one at a time, by the names of its checkpoint."""

    @property
    def donor(self) -> Path:
        """The folder whose config, generation config and tokenizer files the model uses."""
        ...

    def names(self) -> list[str]:
        """Every tensor's name, sorted; weights that are tied to another are named once."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which `tensor` gives it."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The tensor, on the CPU. It may be a view of the file: never write to it."""
        ...


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `start` is its offset in the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """A transformers folder, opened by mmap: single-file or sharded safetensors, with its config.

    Raises CheckpointError: no such folder or config.json, pickled weights, a missing, truncated or corrupt file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.donor = Path(folder)
        self.config = read_config(self.donor)
        self._entries: dict[str, Entry] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for file in _weight_files(self.donor):
            self._maps[file], entries = _open_file(file)
            self._entries.update(entries)
        _check_index(self.donor, self._entries)
        self._names = sorted(self._entries)
        for copy in stored_copies(self.config, self):
            del self._entries[copy]
        self._names = sorted(self._entries)

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def tensor(self, name: str) -> Tensor:
        entry = self._entry(name)
        count = math.prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        buffer = self._maps[entry.file]
        return torch.frombuffer(buffer, dtype=entry.dtype, count=count, offset=entry.start).reshape(entry.shape)

    def blocks(self, name: str, start: int, stop: int, size: int) -> Iterator[Tensor]:
        """Elements `start` to `stop` of a tensor, row-major, in blocks of at most `size`.

        They are read and not mapped: of a checkpoint that is gone through once no page stays with the process. Raises
        CheckpointError where the file has become shorter.
        """
        entry = self._entry(name)
        width = entry.dtype.itemsize
        with entry.file.open("rb", buffering=0) as file:
            for first in range(start, stop, size):
                block = torch.empty(min(size, stop - first), dtype=entry.dtype)
                got = os.preadv(file.fileno(), [block.view(torch.uint8).numpy().data], entry.start + first * width)
                if got != block.numel() * width:
                    raise _damaged(entry.file, f"ended within {name}, though it was whole when it was opened")
                yield block

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.donor} has no tensor '{name}'")
        return self._entries[name]


def stored_copies(config: Mapping[str, Any], source: Source) -> list[str]:
    """Output heads that repeat the input embedding they are tied to, which must not be counted twice.

    A head that differs is no copy: transformers then leaves it untied, and so do we.
    """
    if not config.get("tie_word_embeddings", True):
        return []
    names = source.names()
    return [
        head
        for head in OUTPUT_HEADS
        if head in names and any(_repeats(source, head, other) for other in names if other != head)
    ]


def _repeats(source: Source, head: str, other: str) -> bool:
    same = source.shape(head) == source.shape(other) and source.dtype(head) == source.dtype(other)
    return same and torch.equal(source.tensor(head), source.tensor(other))


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json. Raises CheckpointError when the folder or the file is missing or is not JSON."""
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}: give a folder with {CONFIG} and *.safetensors")
    if not (folder / CONFIG).is_file():
        hint = "give the folder of a transformers model"
        if (folder / "adapter_config.json").is_file():
            hint = "it is a LoRA adapter: write base+adapter in a recipe, or `from:` and `adapter:` in a suite"
        raise CheckpointError(f"{folder} has no {CONFIG}: {hint}")
    return read_json(folder / CONFIG)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files, vocabulary and chat templates alike, sorted. Raises CheckpointError when it has none."""
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer: looked for {', '.join(VOCABULARY_FILES)}; "
            "copy the tokenizer's files there, or save it there with tokenizer.save_pretrained(...)"
        )
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return sorted([*files, *(folder / CHAT_TEMPLATES).glob("*.jinja")])


def header(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """How a safetensors file begins whose tensors (name, dtype, shape) follow in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape in tensors:
        stop = start + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def check_same(sources: Mapping[str, Source]) -> None:
    """Models that are combined tensor by tensor must agree; all are compared with the first.

    Raises MismatchError that names every missing, extra and differently shaped tensor of every model.
    """
    lines = mismatches(sources)
    if lines:
        many = "1 tensor differs" if len(lines) == 1 else f"{len(lines)} tensors differ"
        raise MismatchError(
            f"these models cannot be combined tensor by tensor: {many} from '{next(iter(sources))}'\n  "
            + "\n  ".join(lines)
            + "\nuse models of one architecture, one size and one vocabulary"
        )


def mismatches(sources: Mapping[str, Source]) -> list[str]:
    """Every missing, extra and differently shaped tensor of every model beside the first, a line each."""
    (_, reference), *others = sources.items()
    expected = dict.fromkeys(reference.names())
    lines = []
    for model, source in others:
        found = dict.fromkeys(source.names())
        lines += [f"{model}: {name} is missing" for name in expected if name not in found]
        lines += [f"{model}: {name} {list(source.shape(name))} is extra" for name in found if name not in expected]
        for name in expected:
            if name in found:
                lines += [f"{model}: {name} {what}" for what in _differences(name, reference, source)]
    return lines


def check_finite(tensor: Tensor, name: str, model: str) -> None:
    """Raises CheckpointError that names the tensor when it holds a NaN or an infinity."""
    # The sum is one cheap pass and is finite only if every term is; only a suspect is looked at closely.
    if not tensor.is_floating_point() or math.isfinite(tensor.sum(dtype=torch.float32).item()):
        return
    wide = tensor.float()
    nans, infinities = int(wide.isnan().sum()), int(wide.isinf().sum())
    if nans or infinities:
        raise CheckpointError(
            f"{model}: tensor {name} holds {nans} NaN and {infinities} infinite of {tensor.numel()} values; "
            "its training diverged or the file is damaged: use another checkpoint"
        )


def _differences(name: str, a: Source, b: Source) -> list[str]:
    if a.shape(name) != b.shape(name):
        return [f"is {list(b.shape(name))} instead of {list(a.shape(name))}"]
    if a.dtype(name).is_floating_point != b.dtype(name).is_floating_point:
        return [f"is {b.dtype(name)} instead of {a.dtype(name)}"]
    return []


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, chosen as transformers chooses them."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        files = [folder / shard for shard in sorted(dict.fromkeys(weight_map(folder / INDEX).values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}, which {INDEX} names: copy or download the missing shards"
            )
        return files
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds {len(found)} safetensors files but neither {SINGLE} nor {INDEX}: restore the index"
        )
    return found or _no_weights(folder)


def _no_weights(folder: Path) -> list[Path]:
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickled)}), which can run code when they are read: "
            "save the model again with model.save_pretrained(FOLDER), as safetensors, or allow it: --allow-pickle, or "
            "`allow_pickle: true` on the model of a suite"
        )
    raise CheckpointError(f"{folder} holds no weights: looked for {SINGLE}, {INDEX} and *.safetensors")


def _check_index(folder: Path, entries: Mapping[str, Entry]) -> None:
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return
    lost = [f"{name} (in {shard})" for name, shard in sorted(weight_map(folder / INDEX).items()) if name not in entries]
    if lost:
        raise CheckpointError(f"{folder / INDEX} names tensors that its shards lack: {', '.join(lost)}; copy it again")


def weight_map(index: Path) -> dict[str, str]:
    """Which shard holds which tensor, as an index says. Raises CheckpointError."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict):
        raise CheckpointError(f"{index} has no 'weight_map': download the file again")
    return found


def _open_file(file: Path) -> tuple[mmap.mmap, dict[str, Entry]]:
    """Map a safetensors file and check that its header accounts for every byte of it."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(file, f"is {size} bytes, too short for its own header")
        try:
            header = json.loads(handle.read(length))
            entries = {
                name: _entry(file, about, 8 + length) for name, about in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(file, f"has a header that cannot be read ({error})") from error
        # A private mapping: torch wants writable memory, and nothing that is written there reaches the file.
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, math.prod(entry.shape))):
        if entry.start != end:
            raise _damaged(file, "has a header whose offsets leave gaps or overlap")
        end += math.prod(entry.shape) * entry.dtype.itemsize
    if end != size:
        raise _damaged(file, f"is {size} bytes where its header says {end}: it is truncated or was not fully written")
    return mapped, entries


def _entry(file: Path, about: dict[str, Any], data: int) -> Entry:
    if about["dtype"] not in DTYPES:
        raise ValueError(f"dtype {about['dtype']} is not supported; supported: {', '.join(DTYPES)}")
    shape = tuple(int(size) for size in about["shape"])
    start, stop = about["data_offsets"]
    if stop - start != math.prod(shape) * DTYPES[about["dtype"]].itemsize:
        raise ValueError(f"{stop - start} bytes cannot be {about['dtype']} {list(shape)}")
    return Entry(file, DTYPES[about["dtype"]], shape, data + start)


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} {what}: copy or download it again")


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object. Raises CheckpointError when it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not readable as JSON ({error}): copy or download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__} where a JSON object belongs")
    return content
