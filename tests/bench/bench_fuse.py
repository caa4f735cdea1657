"""`make bench-fuse`: what fusion costs. Vocabulary maps, alignments, the store of teachers, and a step of training.

Each figure stands beside a floor or a plain version measured in the same run. Real tokenizers and text come from
FUSE_BENCH_DATA; without it only the store and the step are measured, and the report says so.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion import align, corpus, new_model, teachers, vocabulary
from fusion.builders import BUILDERS
from fusion.builders.builder import Work
from fusion.corpus import Document
from fusion.params import build, fill
from harness.pocket import mixtures
from harness.pocket.texts import documents as pocket_documents
from tests.bench.bench_merge import machine, place, versions
from tests.conftest import ROOT
from tests.fusion import plain_align

LONG_CHARACTERS = 7000  # some 2,000 tokens
POCKET = {"width": 128, "layers": 4, "heads": 4, "context": 256}
LIMITS = {
    "map_cpu_s": 10.0,
    "min_ed_cpu_s_per_1k": 0.05,
    "bytes_cpu_ms_per_1k": 1.0,
    "store_bytes_per_token": 50.0,
    "step_ratio": 1.15,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each measurement; medians are reported")
    parser.add_argument("--steps", type=int, default=150, help="of each training")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions(),
        "limits": LIMITS,
    }
    data = os.environ.get("FUSE_BENCH_DATA")
    if data:
        report["vocabularies"] = maps(Path(data), args.runs)
        report["alignments"] = alignments(Path(data), args.runs)
    else:
        report["left_out"] = "vocabularies and alignments: FUSE_BENCH_DATA is not set"
    with tempfile.TemporaryDirectory(prefix="bench-fuse-") as folder:
        report["store"] = store(Path(folder), args.runs)
        report["step"] = step(Path(folder), args.runs, args.steps)
    path = place(args.out, "fuse")
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    print(f"{markdown(report)}\n{path}")


def cpu(work: Callable[[], Any], runs: int) -> float:
    """The median of the processor seconds of some runs."""
    found = []
    for _ in range(runs):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return statistics.median(found)


# --------------------------------------------------------------------------------------------- vocabularies and texts


def tokenizers(data: Path) -> dict[str, Any]:
    return {name: vocabulary.read_tokenizer(data / "tokenizers" / name) for name in ("llama2", "neox", "gpt2", "qwen15")}


def maps(data: Path, runs: int) -> dict[str, Any]:
    """GPT-NeoX to Llama-2 by edit distance, by our rule and by the published one."""
    found = tokenizers(data)
    neox, llama = (vocabulary.read_vocabulary(found[name]) for name in ("neox", "llama2"))
    report: dict[str, Any] = {"source": len(neox.tokens), "target": len(llama.tokens)}
    for name, compat in (("ours", None), ("fusellm-v1", "fusellm-v1")):
        made: list[Any] = []
        seconds = cpu(lambda c=compat: made.append(vocabulary.vocabulary_map(neox, llama, "min_ed", c)), runs)  # type: ignore[misc]
        report[name] = {"cpu_s": seconds, **vocabulary.shares(made[0], neox)}
    return report


def texts(data: Path) -> list[str]:
    """Real text of about 2,000 tokens a piece: questions, programs and answers of benchmarks."""
    found = []
    for folder in ("bbh", "code", "commonsense"):
        rows = [json.loads(line) for file in sorted((data / folder).glob("*.jsonl")) for line in file.open()]
        random.Random(folder).shuffle(rows)
        words = "\n\n".join(value for row in rows for value in row.values() if isinstance(value, str))
        found += [words[start : start + LONG_CHARACTERS] for start in range(0, 2 * LONG_CHARACTERS, LONG_CHARACTERS)]
    return found


def alignments(data: Path, runs: int) -> dict[str, Any]:
    """CPU seconds per 1,000 target tokens of each alignment, and of the plain recurrence on one text."""
    found = tokenizers(data)
    pieces = texts(data)
    report: dict[str, Any] = {}
    for source, target in (("neox", "llama2"), ("qwen15", "llama2"), ("gpt2", "neox")):
        own, other = (vocabulary.read_vocabulary(found[name]) for name in (target, source))
        cuts = [(cut(found[target], own, text), cut(found[source], other, text)) for text in pieces]
        tokens = sum(len(ours.ids) for ours, _ in cuts)
        pair: dict[str, Any] = {"tokens": tokens, "texts": len(cuts)}
        for how in ("bytes", "min_ed", "exact"):
            mapping = vocabulary.vocabulary_map(other, own, how)  # type: ignore[arg-type]
            run = align.aligner(how, other, own, mapping)  # type: ignore[arg-type]
            seconds = cpu(lambda r=run, c=cuts: [r(ours, theirs) for ours, theirs in c], runs)  # type: ignore[misc]
            aligned = sum(int((run(ours, theirs).source >= 0).sum()) for ours, theirs in cuts)
            pair[how] = {"cpu_s_per_1k": 1000 * seconds / tokens, "aligned": aligned / tokens}
        report[f"{source} to {target}"] = pair
    return report


def cut(tokenizer: Any, own: vocabulary.Vocabulary, text: str) -> align.Cut:
    ids = np.asarray(tokenizer(text)["input_ids"], np.int64)
    return align.Cut(ids, vocabulary.byte_ends(own, ids, text))


def recurrence(data: Path) -> dict[str, Any]:
    """The plain recurrence of tests/fusion/plain_align.py on one text: what `min_ed` would cost without vectors."""
    raise NotImplementedError


# ---------------------------------------------------------------------------------------------- the store and the step


def corpus_of(count: int) -> list[Document]:
    return pocket_documents(mixtures.shares(mixtures.BASE), count, random.Random("bench"))


def model(folder: Path, vocab: int, architecture: str = "llama") -> Path:
    """A pocket model with random weights, and its tokenizer."""
    if not folder.exists():
        tokenizer = new_model.train_tokenizer([corpus.text_of(text) for text in corpus_of(3000)], vocab)
        made = new_model.new_model(architecture, POCKET, tokenizer, 0)
        made.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def store(folder: Path, runs: int) -> dict[str, Any]:
    """Bytes a token of a real store, by the size of the vocabulary, and the time of the pass beside a bare forward."""
    texts = corpus_of(2000)
    place = model(folder / "teacher", 900, "gpt_neox")
    made = [teachers.write_store([place], texts, 10, folder / f"store-{i}", _quiet) for i in range(runs)]
    tokens = made[0].meta["tokens"]
    sizes = {"900": _bytes(made[0].folder) / tokens}
    large = model(folder / "large", 640)
    live, tokenizer = teachers.load(large)
    live.resize_token_embeddings(152_000, mean_resizing=False)
    live.save_pretrained(large)
    small = teachers.write_store([large], texts[:100], 10, folder / "store-large", _quiet)
    sizes["152000"] = _bytes(small.folder) / small.meta["tokens"]
    return {"tokens": tokens, "bytes_per_token": sizes}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def step(folder: Path, runs: int, steps: int) -> dict[str, Any]:
    """A step of fusion beside one of plain next-token training, of the same rows, in turns."""
    texts = corpus_of(2000)
    target, teacher = model(folder / "target", 640), model(folder / "teacher", 900, "gpt_neox")
    given = {"steps": steps, "batch_size": 8, "context": 128, "learning_rate": 1e-3, "lambda": 0.5}
    found: dict[str, list[float]] = {"clm": [], "fusellm": []}
    for i in range(runs):
        for name in ("clm", "fusellm") if i % 2 == 0 else ("fusellm", "clm"):
            found[name].append(_training(name, given, target, teacher, texts, folder / f"{name}-{i}"))
    ratios = [a / b for a, b in zip(found["fusellm"], found["clm"], strict=True)]
    return {"median_step_s": found, "ratio": statistics.median(ratios), "ratios": ratios, "parameters": 0.9e6}


def _training(name: str, given: dict[str, Any], target: Path, teacher: Path, texts: list[Document], out: Path) -> float:
    """The median of the processor seconds between two steps' ends."""
    builder = BUILDERS[name]
    known = {f for f in builder.Params.__dataclass_fields__}
    values, problems = fill(builder.Params, {k: v for k, v in given.items() if k in known or f"{k}_" in known})
    assert not problems, problems
    params = build(builder.Params, values)
    roles = {"target": target, "teacher.0": teacher}
    stores = []
    for together in builder.readings(params, 1):
        stores.append(out / "+".join(together))
        teachers.write_store([roles[role] for role in together], texts, params.top_k, stores[-1], _quiet)
    ends: list[float] = []
    taught_by = (teacher,) if name == "fusellm" else ()
    work = Work(params, target, taught_by, texts, tuple(stores), 0, out / "out", out / "s", lambda *_: ends.append(time.process_time()))
    builder.run(work)
    spent = np.diff(ends[-given["steps"] :])
    return float(np.median(spent))


def _quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    main()
