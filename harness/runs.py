"""Run folders as they are read: found by name, their results and per-sample scores. Nothing heavy is imported."""

import base64
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import StoreError, UsageError
from harness.stats import Scores
from harness.store import Store, digest_of

SCHEMA = 1


def read(run_dir: Path) -> dict[str, Any]:
    """results.json of a run folder.

    Raises UsageError where there is none, StoreError where it is damaged or of a newer schema.
    """
    path = run_dir / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{run_dir} holds no results.json: its run has not finished; give its `run` command again"
        ) from None
    except json.JSONDecodeError as error:
        raise StoreError(
            f"{path} is damaged ({error}); give the run's command again, it is rebuilt from the store"
        ) from error
    if results.get("schema", 0) > SCHEMA:
        raise StoreError(
            f"{path} has schema {results['schema']}; this fuse-bench knows up to {SCHEMA}: install a newer one"
        )
    return results


def read_scores(run_dir: Path, model: str, split: str = "test") -> Scores | None:
    """The per-sample scores of a model of a run, or None where it has none."""
    path = run_dir / "scores" / f"{file_name(model)}.json"
    if not path.is_file():
        return None
    packed = json.loads(path.read_text(encoding="utf-8"))["scores"].get(split)
    return None if packed is None else _unpack(packed)


def find_run(name: str, out: Path) -> Path:
    """A run folder by its path, by its suite's name (the last run), or `latest`."""
    path = Path(name)
    if path.is_dir() and ((path / "results.json").exists() or (path / "plan.json").exists()):
        return path
    runs = sorted((p.parent for p in out.glob("*/plan.json")), key=lambda p: (p / "plan.json").stat().st_mtime_ns)
    mine = runs if name == "latest" else [p for p in runs if re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", p.name)]
    if not mine:
        known = ", ".join(sorted({p.name.rpartition("-")[0] for p in runs})) or "none yet"
        raise UsageError(f"there is no run '{name}' in {out}; suites with runs there: {known} (elsewhere: --out)")
    return mine[-1]


def live_keys(store: Store) -> set[str]:
    """The keys that some run folder stands on."""
    live: set[str] = set()
    for run_dir in store.roots():
        path = run_dir / "objects.json"
        if path.is_file():
            live.update(json.loads(path.read_text()).values())
        live.update(_keys_in_events(run_dir / "events.jsonl"))
    return live


def canonical(results: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal between two runs of one suite on one machine: all but cost, paths and the executor."""
    models = {
        name: {k: v for k, v in row.items() if k not in ("cost", "folder")} for name, row in results["models"].items()
    }
    suite = {k: v for k, v in results["suite"].items() if k != "path"}
    return {**results, "models": models, "suite": suite}


def file_name(model: str) -> str:
    """A model's name as a file's: what a file system may dislike replaced, and then told apart by a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.=,@-]+", "-", model)
    return safe if safe == model else f"{safe}-{digest_of(model)[:6]}"


def _unpack(packed: Mapping[str, Any]) -> Scores:
    def one(part: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        shape = tuple(part["shape"])
        if "bits" in part:
            raw = np.frombuffer(base64.b64decode(part["bits"]), dtype=np.uint8)
            return np.unpackbits(raw)[: int(np.prod(shape))].reshape(shape).astype(np.float64)
        return np.array(part["values"], dtype=np.float64).reshape(shape)

    return {group: {task: one(part) for task, part in tasks.items()} for group, tasks in packed.items()}


def _keys_in_events(path: Path) -> Iterator[str]:
    """Keys of an interrupted run, which has no objects.json yet."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if "key" in entry:
                yield entry["key"]
