"""The first part of `make bench-evaluate`, in a process of its own.

`python -m tests.bench.evaluate_runs FOLDER ITEMS RUNS` writes models and tasks into the folder, reads one model in
three ways, and prints what it found as a line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from fusion.modelref import Folder
from harness.evaluate import TORCH_SEED, LiveModel, Settings, respond
from harness.plan import BLOCK, FIRST_BLOCK
from harness.tasks import load
from tests.bench.evaluate_world import write_models, write_tasks

Answers = list[tuple[float, bool]]
BATCH_SIZE = 16


def bare(lm: Any, path: Path) -> Answers:
    """One call of lm-eval's over all items."""
    loaded = load.load(path)
    torch.manual_seed(TORCH_SEED)
    loaded.begin(range(len(loaded.docs)))
    with load.quiet():
        name = loaded.definition.name
        results = evaluate(lm, {"tasks": {name: loaded.task}}, bootstrap_iters=0, log_samples=True)
    samples = [sample for sample in results["samples"][name] if sample["filter"] == loaded.scores[0].filter]
    return [response[0] for sample in sorted(samples, key=lambda one: one["doc_id"]) for response in sample["resps"]]


def blocks(live: Any, path: Path) -> Answers:
    """Our calls, a block of items each."""
    records = [
        record
        for ids in _blocks(len(load.load(path).docs))
        for record in respond(live, str(path), ids, Settings(batch_size=BATCH_SIZE))
    ]
    return [tuple(response[0]) for record in records for response in record["resps"]]


def _blocks(items: int) -> Iterator[Sequence[int]]:
    starts = [0, FIRST_BLOCK, *range(2 * FIRST_BLOCK, items, BLOCK)]
    for start, end in zip(starts, [*starts[1:], items], strict=True):
        if start < items:
            yield range(start, min(end, items))


def timed(run: Callable[[], Answers]) -> tuple[float, Answers]:
    """Processor seconds, and what was answered."""
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def compare(live: LiveModel, path: Path, runs: int) -> dict[str, Any]:
    """One task read in the three ways, in turns; the quickest run of each counts."""
    plain = HFLM(pretrained=live.lm.model, tokenizer=live.lm.tokenizer, batch_size=BATCH_SIZE)
    ways: dict[str, Callable[[], Answers]] = {
        "bare": lambda: bare(plain, path),
        "blocks": lambda: blocks(SimpleNamespace(lm=plain), path),
        "live": lambda: blocks(live, path),
    }
    found: dict[str, list[tuple[float, Answers]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, run in ways.items():
            found[way].append(timed(run))
    right = found["bare"][0][1]
    cpu = {way: min(seconds for seconds, _ in done) for way, done in found.items()}
    answers = found["live"][0][1]
    return {
        "items": len(load.load(path).docs),
        "requests": len(right),
        "cpu": cpu,
        "delta": max(abs(one[0] - other[0]) for one, other in zip(answers, right, strict=True)),
        "greedy": all(one[1] == other[1] for one, other in zip(answers, right, strict=True)),
    }


def main() -> None:
    folder, items, runs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    models, tasks = write_models(folder), write_tasks(folder / "tasks", items)
    write_tasks(folder / "few", 2)
    live = LiveModel("cpu")
    live.load(Folder(str(models["one"])))
    warm = write_tasks(folder / "warm", 2)
    for path in warm.values():
        compare(live, path, 1)
    found = {name: compare(live, path, runs) for name, path in tasks.items()}
    parameters = sum(weight.numel() for weight in live.lm.model.parameters())
    print(json.dumps({"parameters": parameters, "tasks": found}))


if __name__ == "__main__":
    main()
