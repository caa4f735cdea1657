"""Task files read as data: what a task consists of, without lm-eval and without running anything.

A task file is lm-eval's YAML (PyYAML's reading of it, as lm-eval does). Two differences: relative `data_files` and
data folders are relative to the file that names them, not to the working directory; and `!function` stays a name
here, which `load.py` has lm-eval resolve if the task is trusted.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from harness.errors import TaskError

BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""`dataset_path` values that mean a file format, not a data set."""

SHIPPED = Path(__file__).resolve().parents[2] / "suites"
"""Where the bench keeps its own tasks."""

MADE = b"# Made by fuse-bench: a task's file, and what is said over it."
"""The first line of a file that `derived.py` makes."""

NOT_COUNTED = "  # not in the task's digest"
"""How a line of such a file ends that says where things lie, or which score counts."""

_REMOTE = re.compile(r"^[a-z0-9+]+://")


@dataclass(frozen=True)
class Function:
    """A `!function module.name` of a task file in `folder`."""

    name: str
    folder: Path

    @property
    def module(self) -> Path:
        """The Python file next to the task file that it names; it may not exist (an installed module is meant)."""
        return self.folder / (self.name.rpartition(".")[0].replace(".", "/") + ".py")


@dataclass(frozen=True)
class Definition:
    """A task file with all that it includes.

    `data`: local files by split, a file given without split under "train", as in `datasets`. `remote`: the data are
    not local files.
    """

    path: Path
    config: Mapping[str, Any]
    sources: tuple[Path, ...]
    data: Mapping[str, tuple[Path, ...]]
    remote: bool

    @property
    def name(self) -> str:
        return str(self.config["task"])

    @property
    def origin(self) -> Path:
        """The task's own file, which a file that was made from it includes first."""
        return self.sources[1] if is_made(self.path) else self.path

    @property
    def place(self) -> str:
        """Where a fault of the task is to be mended."""
        return str(self.path) if self.origin == self.path else f"{self.origin} (task '{self.name}')"

    @property
    def eval_split(self) -> str:
        """The split that is scored: test, else validation."""
        return str(self.config.get("test_split") or self.config.get("validation_split"))

    def files(self) -> list[Path]:
        """Every local file that decides the task: YAML, modules of `!function`, data."""
        return [*self.sources, *(path for split in sorted(self.data) for path in self.data[split])]

    def digest(self) -> str:
        """Of the contents of all files, their order and lm-eval's version; where they lie does not count."""
        total = hashlib.sha256(lm_eval_version().encode())
        for path in self.files():
            content = _counted(path)
            if content:
                total.update(hashlib.sha256(content).digest())
        return total.hexdigest()

    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """A quick stand-in for the digest within one process: path, time and size of every file."""
        return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in self.files())


@functools.cache
def lm_eval_version() -> str:
    """The version of the lm-eval that is installed."""
    return importlib.metadata.version("lm_eval")


@functools.cache
def builtin_folder() -> Path:
    """Where lm-eval keeps its own tasks."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise TaskError("lm-eval is not installed; install fuse-bench with its dependencies")
    return Path(spec.origin).resolve().parent / "tasks"


def read(path: Path, trust: bool = False) -> Definition:
    """Read a task file. TaskError: not readable, a group, no data, or code in it (`!function`) that is not trusted."""
    config, sources = _merged(path.resolve(), ())
    if "group" in config or not isinstance(config.get("task"), str):
        what = "a group of tasks; name its tasks instead" if "group" in config else "not a task file: no 'task: NAME'"
        raise TaskError(f"{path}: {what}")
    code = list(functions(config))
    # lm-eval's own modules are an installed package like any other, and ours come with the bench.
    known = {builtin_folder(), SHIPPED}
    foreign = sorted({function.name for function in code if known.isdisjoint(function.folder.parents)})
    if foreign and not trust:
        named = ", ".join(foreign)
        raise TaskError(
            f"{path}: the task runs code of its own (!function {named}); read it, then set 'trust_task_code: true'"
        )
    if not (config.get("test_split") or config.get("validation_split")):
        raise TaskError(f"{path}: nothing to score: name the split with 'test_split' or 'validation_split'")
    modules = [function.module for function in code if function.module.is_file()]
    data = _data(path, config)
    remote = not data
    return Definition(path.resolve(), config, (*sources, *sorted(set(modules))), data, remote)


def is_made(path: Path) -> bool:
    """Whether `derived.py` made a file."""
    with path.open("rb") as file:
        return file.read(len(MADE)) == MADE


def _counted(path: Path) -> bytes:
    """What of a file counts in the digest: all, of a made file what is said over the file that it includes."""
    content = path.read_bytes()
    if not content.startswith(MADE):
        return content
    end = NOT_COUNTED.encode()
    return b"\n".join(line for line in content.split(b"\n")[1:] if not line.endswith(end)).strip()


def parsed(path: Path) -> dict[str, Any]:
    """The keys of a file, a task's or a group's, with those of all that it includes."""
    return _merged(path.resolve(), ())[0]


def _merged(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """A file's keys over those of what it includes, and all the files read, itself first."""
    if path in above:
        raise TaskError(f"{path}: the file includes itself")
    config = _parse(path)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    sources: tuple[Path, ...] = (path,)
    for name in includes if isinstance(includes, list) else [includes]:
        inner, files = _merged((path.parent / str(name)).resolve(), (*above, path))
        merged |= inner
        sources += files
    return merged | config, sources


def _parse(path: Path) -> dict[str, Any]:
    class Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
        """PyYAML's, with `!function` left as a name."""

    Loader.add_constructor("!function", lambda loader, node: Function(str(loader.construct_scalar(node)), path.parent))
    try:
        config = yaml.load(path.read_bytes(), Loader=Loader)
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise TaskError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise TaskError(f"{path}: not a task file: no keys in it")
    _anchor(config, path.parent)
    return config


def _anchor(config: dict[str, Any], folder: Path) -> None:
    """Make the local data that this file names absolute."""
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict):
        for key in ("data_files", "data_dir"):
            if kwargs.get(key):
                kwargs[key] = _absolute(kwargs[key], folder)
    dataset = config.get("dataset_path")
    if isinstance(dataset, str) and dataset not in BUILDERS and (folder / dataset).exists():
        config["dataset_path"] = str((folder / dataset).resolve())


def _absolute(named: Any, folder: Path) -> Any:
    if isinstance(named, dict):
        return {split: _absolute(files, folder) for split, files in named.items()}
    if isinstance(named, list):
        return [_absolute(file, folder) for file in named]
    return named if _REMOTE.match(str(named)) else str((folder / str(named)).resolve())


def functions(value: Any) -> Iterable[Function]:
    """All `!function` in a value of a task file."""
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from functions(item)


def _data(path: Path, config: Mapping[str, Any]) -> dict[str, tuple[Path, ...]]:
    """The local data files by split; empty for data that are elsewhere. TaskError if one is missing or empty."""
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if named:
        by_split = named if isinstance(named, dict) else {"train": named}
        given = {split: files if isinstance(files, list) else [files] for split, files in by_split.items()}
        if any(_REMOTE.match(file) for files in given.values() for file in files):
            return {}
        return {
            split: tuple(file for name in files for file in _existing(path, name)) for split, files in given.items()
        }
    dataset = Path(str(config.get("dataset_path")))
    if dataset.is_absolute():
        return {"": tuple(sorted(file for file in dataset.rglob("*") if file.is_file()))}
    if config.get("dataset_path") in BUILDERS:
        raise TaskError(f"{path}: no data: 'dataset_kwargs: {{data_files: ...}}' names no file")
    return {}


def _existing(path: Path, name: str) -> list[Path]:
    file = Path(name)
    found = sorted(file.parent.glob(file.name)) if "*" in file.name else [file]
    for one in found:
        if not one.is_file():
            raise TaskError(f"{path}: its data file {one} does not exist")
        if one.stat().st_size == 0:
            raise TaskError(f"{path}: its data file {one} is empty")
    if not found:
        raise TaskError(f"{path}: no data file matches {name}")
    return found
