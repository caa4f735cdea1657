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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from fusion import align, corpus, new_model, teachers, vocabulary
from fusion.builders import BUILDERS
from fusion.builders.builder import Work
from fusion.corpus import Document
from fusion.params import build, fill
from harness.pocket import mixtures
from harness.pocket.texts import documents as pocket_documents
from tests.bench.bench_merge import machine, place, versions
from tests.conftest import ROOT

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
        "versions": versions("ours"),
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
    names = ("llama2", "neox", "gpt2", "qwen15")
    return {name: vocabulary.read_tokenizer(data / "tokenizers" / name) for name in names}


def maps(data: Path, runs: int) -> dict[str, Any]:
    """GPT-NeoX to Llama-2 by edit distance, by our rule and by the published one."""
    read = tokenizers(data)
    neox, llama = (vocabulary.read_vocabulary(read[name]) for name in ("neox", "llama2"))
    report: dict[str, Any] = {"source": len(neox.tokens), "target": len(llama.tokens)}
    rules: dict[str, vocabulary.Compat | None] = {"ours": None, "fusellm-v1": "fusellm-v1"}
    for name, compat in rules.items():
        seconds = cpu(partial(vocabulary.vocabulary_map, neox, llama, "min_ed", compat), runs)
        found = vocabulary.vocabulary_map(neox, llama, "min_ed", compat)
        report[name] = {"cpu_s": seconds, **vocabulary.shares(found, neox)}
    # What a loop over all pairs would cost, from some tokens.
    some = [token.decode("latin-1") for token in neox.tokens[1000:1020] if token]
    every = [token.decode("latin-1") for token in llama.tokens if token]
    loop = cpu(lambda: [Levenshtein.distance(a, b) for a in some for b in every], 1)
    inexact = (1 - report["ours"]["exact"]) * len(neox.tokens)
    report["loop_cpu_s"] = loop / len(some) * inexact
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
        kinds: tuple[vocabulary.Alignments, ...] = ("bytes", "min_ed", "exact")
        for how in kinds:
            run = align.aligner(how, other, own, vocabulary.vocabulary_map(other, own, how))
            seconds = cpu(partial(every, run, cuts), runs)
            aligned = sum(int((found.source >= 0).sum()) for found in every(run, cuts))
            pair[how] = {"cpu_s_per_1k": 1000 * seconds / tokens, "aligned": aligned / tokens}
        report[f"{source} to {target}"] = pair
    return report


def every(run: Callable[..., align.Alignment], cuts: list[tuple[align.Cut, align.Cut]]) -> list[align.Alignment]:
    return [run(ours, theirs) for ours, theirs in cuts]


def cut(tokenizer: Any, own: vocabulary.Vocabulary, text: str) -> align.Cut:
    ids = np.asarray(tokenizer(text)["input_ids"], np.int64)
    return align.Cut(ids, vocabulary.byte_ends(own, ids, text))


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
    live, _ = teachers.load(large)
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

    def tick(done: int, total: int) -> None:
        ends.append(time.process_time())

    builder.run(Work(params, target, taught_by, texts, tuple(stores), 0, out / "out", out / "scratch", tick))
    spent = np.diff(ends[-given["steps"] :])
    return float(np.median(spent))


def markdown(report: dict[str, Any]) -> str:
    """The report for people, each figure beside its limit."""
    machine, ours = report["machine"], report["versions"]["ours"]
    limits = report["limits"]
    lines = [
        f"# What fusion costs, {report['date'][:10]}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, one thread; torch {ours['torch']}; "
        f"fuse-bench {ours['commit']}. Processor seconds, medians. Not measured on a GPU yet.",
        "",
        "| what | measured | limit |",
        "| --- | --: | --: |",
    ]
    if "vocabularies" in report:
        maps = report["vocabularies"]
        for name in ("ours", "fusellm-v1"):
            seconds = maps[name]["cpu_s"]
            limit = limits["map_cpu_s"]
            lines.append(f"| map GPT-NeoX to Llama-2 by edit distance, {name} | {seconds:.1f} s | {limit:g} s |")
        lines.append(f"| the same by a loop over all pairs, from 20 tokens | {maps['loop_cpu_s']:.0f} s | |")
        for pair, found in report["alignments"].items():
            for how, key in (("bytes", 1000), ("min_ed", 1000), ("exact", 1000)):
                limit = limits["bytes_cpu_ms_per_1k"] if how == "bytes" else key * limits["min_ed_cpu_s_per_1k"]
                lines.append(
                    f"| align {pair}, `{how}`, 1,000 tokens ({found[how]['aligned']:.0%} aligned) "
                    f"| {1000 * found[how]['cpu_s_per_1k']:.2f} ms | {limit:g} ms |"
                )
    for size, found in report["store"]["bytes_per_token"].items():
        limit = f"{limits['store_bytes_per_token']:g}" if size == "152000" else ""
        lines.append(f"| store, vocabulary {int(size):,} | {found:.1f} bytes a token | {limit} |")
    step = report["step"]
    lines.append(
        f"| a step of fusion over a step of next-token training | {step['ratio']:.3f} | {limits['step_ratio']:g} |"
    )
    if "left_out" in report:
        lines += ["", f"Left out: {report['left_out']}."]
    return "\n".join(lines) + "\n"


def _quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    main()
