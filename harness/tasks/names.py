"""What the names of tasks stand for: files, shipped tasks, lm-eval's tasks, and groups and tags of them.

A group stands for its members, a tag for the tasks that bear it. A member may be a name, or a mapping that says more
of it (`{task: arc_challenge, num_fewshot: 25}`), or a group written inside the group.
"""

import difflib
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import TaskError
from harness.store import write_whole
from harness.tasks import files

GROUP_KEYS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag")
"""What a group says of itself; its other keys are its members'."""

_NAME = re.compile(rb"^([\"']?)(group|task)\1[ \t]*:[ \t]+([^\s#]+)", re.MULTILINE)
_TAGS = re.compile(rb"^([\"']?)tag\1[ \t]*:[ \t]*([^\n]*)((?:\n[ \t]*-[ \t]+[^\n]+)*)", re.MULTILINE)
_INCLUDES = re.compile(rb"^([\"']?)include\1[ \t]*:[ \t]*([^\n]*)((?:\n[ \t]*-[ \t]+[^\n]+)*)", re.MULTILINE)
_GROUP = re.compile(rb"^([\"']?)group\1[ \t]*:", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """A task's file, and what a group that it was asked for by says over it."""

    path: Path
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """The files of a folder's tasks and groups by name, relative to it, and the tasks of every tag."""

    folder: Path
    files: Mapping[str, str]
    tags: Mapping[str, Sequence[str]]

    def paths(self) -> dict[str, Path]:
        """The files of all."""
        return {name: self.folder / file for name, file in self.files.items()}


@functools.cache
def shipped() -> dict[str, Path]:
    """The tasks of the pocket world, whose data come with the bench, by name."""
    return _scan(files.SHIPPED / "pocket").paths()


@functools.cache
def benchmarks() -> dict[str, Path]:
    """The tasks and groups of real benchmarks that come with the bench, without their data, by name."""
    return _scan(files.SHIPPED / "tasks").paths()


@functools.lru_cache(maxsize=4)
def builtin(cache: Path) -> Index:
    """lm-eval's own tasks, groups and tags: a scan of its 14,000 files takes seconds, so it is kept in `cache`."""
    folder = files.builtin_folder()
    kept = cache / f"lm-eval-{files.lm_eval_version()}.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("folder") != str(folder):
        found = _scan(folder)
        known = {"folder": str(folder), "files": found.files, "tags": found.tags}
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(known))
    return Index(folder, known["files"], known["tags"])


def find(names: Iterable[str], base_dir: Path, cache: Path) -> dict[str, Found]:
    """The file of every task, by the name it was asked for.

    A name with a slash or ending in .yaml is a path relative to `base_dir`. Other names are shipped tasks and groups,
    and if none matches lm-eval's tasks, groups and tags. `cache`: a folder of files that can be made again.
    Raises TaskError with near names.
    """
    found: dict[str, Found] = {}
    for name in names:
        _add(found, _find(name, Path(base_dir), Path(cache), {}, ()))
    return found


def near(name: str, known: Iterable[str]) -> str:
    """The names that are like one, as the end of a message; empty where none is."""
    alike = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(one) for one in alike)}?" if alike else ""


def _add(found: dict[str, Found], more: Mapping[str, Found]) -> None:
    for name, one in more.items():
        if found.setdefault(name, one) != one:
            raise TaskError(f"task '{name}' is asked for twice, each time with other settings of the groups it is in")


def _find(name: str, base_dir: Path, cache: Path, said: Mapping[str, Any], above: tuple[str, ...]) -> dict[str, Found]:
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = (base_dir / name).expanduser()
        if not path.is_file():
            raise TaskError(f"no task file {path}{near(path.name, [one.name for one in path.parent.glob('*.y*ml')])}")
        return {name: Found(path.resolve(), said)}
    own = shipped() | benchmarks()
    known = builtin(cache) if name not in own else Index(files.SHIPPED, {}, {})
    if name in above:
        raise TaskError(f"group '{name}' is a member of itself: {' > '.join([*above, name])}")
    if name in own or name in known.files:
        path = own[name] if name in own else known.folder / known.files[name]
        if not _GROUP.search(path.read_bytes()):
            return {name: Found(path, said)}
        group = files.parsed(path)
        said = {key: value for key, value in group.items() if key not in GROUP_KEYS} | dict(said)
        return _members(path, group, base_dir, cache, said, (*above, name))
    if name in known.tags:
        found: dict[str, Found] = {}
        for task in known.tags[name]:
            _add(found, _find(task, base_dir, cache, said, (*above, name)))
        return found
    raise TaskError(f"unknown task '{name}'{near(name, [*own, *known.files, *known.tags])}")


def _members(
    path: Path,
    group: Mapping[str, Any],
    base_dir: Path,
    cache: Path,
    said: Mapping[str, Any],
    above: tuple[str, ...],
) -> dict[str, Found]:
    found: dict[str, Found] = {}
    named = group.get("task")
    for member in [named] if isinstance(named, str) else named or []:
        item = {"task": member} if isinstance(member, str) else member
        inside = item.get("group") if isinstance(item, dict) else None
        if inside is not None and isinstance(item.get("task"), list):
            _add(found, _members(path, item, base_dir, cache, said, above))
            continue
        name = inside or (item.get("task") if isinstance(item, dict) else None)
        if not isinstance(name, str) or "include" in item:
            raise TaskError(
                f"{path}: group '{above[-1]}' has a task that is written inside the group ({str(name)[:40]}), and has "
                "no file: write a task file for it, or name the other tasks of the group"
            )
        own = {key: value for key, value in item.items() if key not in ("group", "task", "task_alias", "group_alias")}
        _add(found, _find(name, base_dir, cache, {**said, **own}, above))
    if not found:
        raise TaskError(f"{path}: group '{above[-1]}' names no task")
    return found


# ------------------------------------------------------------------------------------------------------ a quick scan


def _scan(folder: Path) -> Index:
    """The names and tags in all YAML files under a folder, found without parsing them; the first of a name wins."""
    found: dict[str, str] = {}
    tags: dict[str, set[str]] = {}
    inherited: dict[Path, tuple[str, ...]] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        text = path.read_bytes()
        match = _NAME.search(text)
        name = match[3].decode().strip("'\",") if match else ""
        if not name or name in found:
            continue
        found[name] = str(path.relative_to(folder))
        if not _GROUP.search(text):
            for tag in _tags(path, text, inherited):
                tags.setdefault(tag, set()).add(name)
    # A name that is a task or a group is not taken by a tag.
    return Index(folder, found, {tag: sorted(tasks) for tag, tasks in sorted(tags.items()) if tag not in found})


def _tags(path: Path, text: bytes, known: dict[Path, tuple[str, ...]]) -> tuple[str, ...]:
    """A file's own tags, or those of what it includes."""
    own = _TAGS.search(text)
    if own:
        return tuple(_texts(own))
    included = _INCLUDES.search(text)
    for name in _texts(included) if included else ():
        inner = Path(os.path.normpath(path.parent / name))
        if inner not in known:
            known[inner] = ()
            known[inner] = _tags(inner, inner.read_bytes(), known) if inner.is_file() else ()
        if known[inner]:
            return known[inner]
    return ()


def _texts(match: re.Match[bytes]) -> Iterator[str]:
    """The texts of a key's value: one, a list in brackets, or a list of lines."""
    value = match[2].decode().partition(" #")[0].strip().strip("[]")
    below = [line.strip()[1:].partition(b" #")[0].decode() for line in match[3].splitlines() if line.strip()]
    for one in [*value.split(","), *below]:
        if one.strip(" \t\r'\""):
            yield one.strip(" \t\r'\"")
