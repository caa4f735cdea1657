"""The verb `samples`: how a model of a run answered a task's test items, one by one, as the store keeps them."""

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusion.params import did_you_mean
from harness import runs
from harness.blocks import RESPONSES, SCORES, read_block
from harness.errors import UsageError
from harness.store import Store

Sample = dict[str, Any]
ASKED = ("id", "doc_id", "prompt_hash", "target", "truncated", "unfinished")
WAYS = 4
"""How many ways to end are shown of one problem's programs."""
JUDGED = ("score", "also", "answer", "verdict", "programs")


def samples(
    run: str, model: str, task: str, out: Path, store: Path, wrong: bool = False, against: str | None = None
) -> dict[str, Any]:
    """{"run", "model", "task", "group", "n", "samples"[, "against"]}: the test items that count, by doc_id.

    A sample: "id" (hash of the document), "doc_id", "prompt_hash", "target", "score", "also", "answer" (what was taken
    for the answer), "verdict" and "programs" (of programs, each with "passed" and "reason"), "truncated", "unfinished",
    and "responses" (texts) or "likelihoods" (of the choices).
    wrong: only those whose score is below 1. against: another model of the run; only those that one of the two scores
    higher on, with "other" for what that one did.

    Raises UsageError for a model or task that the run has not, and for responses that the store no longer has.
    """
    run_dir = runs.find_run(run, out)
    group, mine = _of_model(run_dir, model, task, Store(store))
    found: dict[str, Any] = {"run": run_dir.name, "model": model, "task": task, "group": group, "n": len(mine)}
    chosen = {key: sample for key, sample in mine.items() if not wrong or sample["score"] < 1}
    if against is not None:
        others = _of_model(run_dir, against, task, Store(store))[1]
        flips = {key: others[key] for key in chosen if key in others and others[key]["score"] != chosen[key]["score"]}
        found["against"] = against
        chosen = {key: {**chosen[key], "other": other} for key, other in flips.items()}
    return {**found, "samples": [chosen[key] for key in sorted(chosen)]}


def responses(run_dir: Path, model: str, task: str, store: Store) -> list[dict[str, Any]]:
    """All responses of a model to a task, of dev and of test items, as the store keeps them. Raises UsageError."""
    keys, mine = _blocks(run_dir, model, task)
    found = []
    for place, _, _ in mine:
        entry = store.get(keys[f"generate {model} {place}"])
        if entry is None:
            raise _gone(store, f"{model} {place}")
        found += read_block(entry.path, RESPONSES)
    return found


def _of_model(run_dir: Path, model: str, task: str, store: Store) -> tuple[str, dict[int, Sample]]:
    """The group of a task, and its counted test items by doc_id."""
    keys, mine = _blocks(run_dir, model, task)
    counted, task = _read(run_dir / "scores" / "items.json", run_dir)["test"], task.rpartition("/")[2]
    found: dict[int, Sample] = {}
    group = ""
    for place, group, block in mine:
        if block.startswith("test."):
            wanted = {item.partition("#")[0] for item in counted[group][task]}
            blocks = _block(store, keys, f"{model} {place}")
            found |= {sample["doc_id"]: sample for sample in blocks if sample["id"] in wanted}
    return group, found


def _blocks(run_dir: Path, model: str, task: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The store's keys by job, and (place, group, block) of all that a model was asked of a task."""
    keys: dict[str, str] = _read(run_dir / "objects.json", run_dir)
    jobs = [job.split(" ") for job in keys if job.startswith("judge ")]
    names = list(dict.fromkeys(job[1] for job in jobs))
    if model not in names:
        seeds = [name for name in names if name.startswith(f"{model}@")]
        hint = f"it has several seeds: name one of {', '.join(seeds)}" if seeds else did_you_mean(model, names)
        raise UsageError(f"{run_dir.name} has no answers of '{model}'; {hint}")
    mine = [(job[2], *job[2].split("/")) for job in jobs if job[1] == model]
    asked_group, _, asked = task.rpartition("/")
    if asked_group:
        mine, task = [one for one in mine if one[1] == asked_group], asked
    groups = list(dict.fromkeys(group for _, group, name, _ in mine if name == task))
    if len(groups) > 1:
        named = " or ".join(f"{group}/{task}" for group in groups)
        raise UsageError(f"'{task}' was asked in several groups: name one as {named}")
    known = list(dict.fromkeys(name for _, _, name, _ in mine))
    if task not in known:
        raise UsageError(f"'{model}' was not scored on '{task}'; it was on {', '.join(known)}")
    return keys, [(place, group, block) for place, group, name, block in mine if name == task]


def _block(store: Store, keys: Mapping[str, str], name: str) -> Iterator[Sample]:
    """The samples of one block: what was said, and what came of it."""
    said, judged = (store.get(keys[f"{kind} {name}"]) for kind in ("generate", "judge"))
    if said is None or judged is None:
        raise _gone(store, name)
    responses, records = read_block(said.path, RESPONSES), read_block(judged.path, SCORES)
    for response, record in zip(responses, records, strict=True):
        kept = {key: response[key] for key in ASKED if key in response}
        repeats = [repeat for request in response["resps"] for repeat in request]
        texts = all(isinstance(repeat, str) for repeat in repeats)
        what = {"responses": repeats} if texts else {"likelihoods": [_number(repeat) for repeat in repeats]}
        yield {**kept, **{key: record[key] for key in JUDGED if key in record}, **what}


def _gone(store: Store, name: str) -> UsageError:
    return UsageError(
        f"the store {store.root} has no more answers of {name}: give the run's command again, or the store that it "
        "used (--store)"
    )


def _number(repeat: Any) -> float:
    return float(repeat[0] if isinstance(repeat, list) else repeat)


def _read(path: Path, run_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{run_dir} holds no {path.name}: its run has not finished; give its command again") from None
    return found


def words(found: Mapping[str, Any], most: int) -> str:
    """The first samples for people, a few lines each."""
    width = max(80, shutil.get_terminal_size((80, 24)).columns)
    shown = found["samples"][:most]
    against = f" that {found['against']} did otherwise on" if "against" in found else ""
    lines = [f"{found['model']} on {found['task']}: {len(found['samples'])} of {found['n']} test items{against}"]
    for sample in shown:
        lines += ["", f"item {sample['doc_id']}: score {sample['score']:g}, target {_brief(sample.get('target'), 60)}"]
        lines += _said("", sample, width)
        if "other" in sample:
            lines += [f"  {found['against']}: score {sample['other']['score']:g}", *_said("  ", sample["other"], width)]
    if len(found["samples"]) > len(shown):
        lines += ["", f"and {len(found['samples']) - len(shown)} more: --limit N shows more, --json all"]
    return "\n".join(lines)


def _said(indent: str, sample: Sample, width: int) -> list[str]:
    if len(sample.get("programs", ())) > 1:
        parts = _drawn(sample, width)
    else:
        parts = [f"answer {_brief(sample['answer'], width)}"] if sample["answer"] is not None else ["no answer found"]
        parts += [f"verdict {sample['verdict']}"] if sample["verdict"] else []
        if "likelihoods" in sample:
            parts.append("log-likelihoods " + ", ".join(f"{value:.2f}" for value in sample["likelihoods"]))
        else:
            parts += [f"said {_brief(text, 4 * width)}" for text in sample["responses"]]
    parts += ["the prompt did not fit the context and lost its beginning"] if sample.get("truncated") else []
    parts += [f"{sample['unfinished']} cut off at the most tokens allowed"] if sample.get("unfinished") else []
    lead = f"  {indent}"
    return [
        line
        for part in parts
        for line in textwrap.wrap(part, width, initial_indent=lead, subsequent_indent=f"{lead}  ")
    ]


def _drawn(sample: Sample, width: int) -> list[str]:
    """Of several programs for one problem: how many pass, and of each way to end how many did and one that did."""
    ends: dict[str, list[str]] = {}
    for program, text in zip(sample["programs"], sample["responses"], strict=True):
        ends.setdefault(program["reason"], []).append(text)
    first = f"{sum(program['passed'] for program in sample['programs'])} of {len(sample['programs'])} programs pass"
    often = sorted(ends.items(), key=lambda end: -len(end[1]))
    lines = [f"{len(texts)} x {reason[:width]}: {_brief(texts[0], 2 * width)}" for reason, texts in often[:WAYS]]
    rest = sum(len(texts) for _, texts in often[WAYS:])
    return [first, *lines, *([f"{rest} ended in {len(often) - WAYS} other ways"] if rest else [])]


def _brief(value: Any, most: int) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
