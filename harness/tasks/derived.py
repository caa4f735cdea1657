"""Task files that are made from others: what differs is written, and all else is included, so no prompt is copied.

    derive(found, cache, data, metric)      # the file itself, or one in `cache` that includes it

A file is derived for local data (`local.py`), for what a group says over its members, for the metric that a suite
says counts, and for lm-eval's BBH, whose own generation cuts answers off (`_bbh`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from harness.errors import TaskError
from harness.store import write_whole
from harness.tasks import files, local, names
from harness.tasks.files import NOT_COUNTED, Definition

CUT, LOOSE = "Q", "Q:"
"""lm-eval ends a BBH generation at any capital Q, also in the reasoning and in option (Q); items begin with Q:."""
ANSWERS = {
    "cot_fewshot": r"(?m)[Tt]he answer is:?[^\S\n]*(.*?)[^\S\n]*(?:\.(?:\s|$)|$)",
    "fewshot": r"(?m)\A\s*(.*?)[^\S\n]*(?:\.(?:\s|$)|$)",
}
"""The answer in a response, without blanks and the full stop that ends it; no answer of BBH has one inside."""
LM_EVAL = "lm-eval"
"""The filter of the score that lm-eval itself would give."""


def derive(found: names.Found, cache: Path, data: local.Given, metric: str | None, trust: bool = False) -> Path:
    """The file that says all that is asked of a task: its own, or one that is made from it under `cache`/tasks.

    data: where local data are; metric: the score that counts, by its label. What lies where, and which score counts,
    are not in the made file's digest: neither changes what a model is asked. Raises TaskError.
    """
    definition = files.read(found.path, trust)
    said = {**_bbh(definition), **found.said}
    definition = replace(definition, config={**definition.config, **said})
    given = local.files_of(definition, data)
    if not said and not given and metric is None:
        return found.path
    text = _text(definition, said, given, metric)
    path = cache / "tasks" / hashlib.sha256(text.encode()).hexdigest()[:16] / f"{definition.name}.yaml"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return path


def _text(definition: Definition, said: Mapping[str, Any], data: Mapping[str, Path], metric: str | None) -> str:
    if any(files.functions(dict(said))):
        raise TaskError(
            f"{definition.path}: what is said over task '{definition.name}' has a `!function`, which has no file here: "
            "give the task a file of its own"
        )
    lines = [files.MADE.decode(), f"include: {json.dumps(str(definition.path))}{NOT_COUNTED}"]
    if data:
        said = {**said, **_unread(definition, data)}
        lines += ["dataset_kwargs:", "  data_files:"]
        lines += [f"    {json.dumps(split)}: {json.dumps(str(file))}{NOT_COUNTED}" for split, file in data.items()]
    if metric is not None:
        lines.append(f"counts: {json.dumps(metric)}{NOT_COUNTED}")
    dumper = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper
    return "\n".join(lines) + "\n" + (yaml.dump(dict(said), Dumper=dumper, width=1000) if said else "")


def _unread(definition: Definition, data: Mapping[str, Path]) -> dict[str, Any]:
    """The data set's own keys, replaced, and the splits that are not given: lm-eval would look for them all."""
    config = definition.config
    keys = ("test_split", "validation_split", "training_split", "fewshot_split")
    said: dict[str, Any] = {"dataset_path": local.READERS[next(iter(data.values())).suffix], "dataset_name": None}
    said |= {key: None for key in keys if config.get(key) is not None and config[key] not in data}
    shots = config.get("fewshot_config") or {}
    if shots.get("split") is not None and shots["split"] not in data:
        said["fewshot_config"] = {key: value for key, value in shots.items() if key != "split"}
    return said


def _bbh(definition: Definition) -> dict[str, Any]:
    """What we say over lm-eval's BBH: where a generation ends, what is taken for its answer, and which score counts.

    With shots it ends where the next item begins. lm-eval's own score is had from the same response, cut at the first
    of lm-eval's stops and read by lm-eval's filters. Without shots lm-eval's stops do no harm; of its two scores the
    one that counts is the one that its group reports.
    """
    folder = definition.path.parent
    if folder.parent != files.builtin_folder() / "bbh":
        return {}
    config = definition.config
    if folder.name not in ANSWERS:
        metadata = {**(config.get("metadata") or {}), "metric": "exact_match,flexible-extract"}
        return {"metadata": metadata}
    stops = list(config["generation_kwargs"]["until"])
    loose = [LOOSE if stop == CUT else stop for stop in stops]
    own = config["filter_list"][0]["filter"] if config.get("filter_list") else [{"function": "take_first"}]
    answer = [{"function": "regex", "regex_pattern": ANSWERS[folder.name]}, {"function": "take_first"}]
    return {
        "generation_kwargs": {**config["generation_kwargs"], "until": loose},
        "filter_list": [
            {"name": "answer", "filter": answer},
            {"name": LM_EVAL, "filter": [{"function": "until", "stops": stops}, *own]},
        ],
    }
