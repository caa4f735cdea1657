"""`make bench-merge`: wall time and peak memory of `fuse-bench merge` beside mergekit 0.1.5, on the same recipes.

Both start from nothing (process start included) with the inputs in the page cache, in turns; the copy beside them reads
the same inputs and writes as many bytes as the result has. Both compute in float32 and write bf16, unless --dtype says
that mergekit is to compute in bf16, as it does by default; ours is always float32.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.measure import Measured, copy, measure
from tests.bench.sets import SETS
from tests.bench.table import markdown, summary
from tests.conftest import ROOT

TIES = {"weight": 0.5, "density": 0.5}
# What each method is given for all models; slerp joins the base and one model.
METHODS: dict[str, dict[str, float]] = {
    "ties": TIES,
    "sce": {"select_topk": 0.5},
    "dare_ties": TIES,
    "breadcrumbs": {**TIES, "gamma": 0.01},
    "della": {**TIES, "epsilon": 0.1},
    "slerp": {"t": 0.5},
    "model_stock": {},
    "linear": {"weight": 0.5},
    "task_arithmetic": {"weight": 0.5},
}
BASELESS = ("linear",)
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Options:
    runs: int
    timeout: float
    compat: bool
    dtype: str


def main() -> None:
    args = arguments()
    options = Options(args.runs, args.timeout, args.compat, args.dtype)
    sets = [*args.set, *(["1.2b"] if args.large else [])]
    # The cost of a start is needed wherever an overhead per tensor is asked for.
    sets = ["start", *sets] if "9000" in sets else sets
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions("ours", "mergekit"),
        "options": asdict(options),
        "sets": {},
    }
    path = place(args.out, "merge")
    for name in dict.fromkeys(sets):
        with tempfile.TemporaryDirectory(prefix="bench-merge-") as folder:
            report["sets"][name] = {"load": os.getloadavg(), "methods": {}} | size_of(name)
            for method, found in measure_set(name, args.methods, options, Path(folder)):
                report["sets"][name]["methods"][method] = found
                summary(report)
                # Written after each method: a long benchmark that is stopped has not been in vain.
                path.write_text(json.dumps(report, indent=1) + "\n")
                path.with_suffix(".md").write_text(markdown(report))
    print(f"\n{markdown(report)}\n{path}")
    sys.exit(any("error" in found for part in report["sets"].values() for found in part["methods"].values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each tool; medians are reported")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--set", nargs="+", choices=SETS, default=["254m", "9000"], help="which models")
    parser.add_argument("--large", action="store_true", help="the models of 1.2 B parameters as well")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a run is given up")
    parser.add_argument("--compat", action="store_true", help="run ours with --compat mergekit: equal numbers too")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="mergekit's arithmetic")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    return parser.parse_args()


def place(folder: Path, what: str) -> Path:
    """A new file named after the benchmark and the day."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{what}-{datetime.date.today()}"
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(path for path in (folder / f"{name}.json" for name in names) if not path.exists())


def size_of(name: str) -> dict[str, Any]:
    chosen = SETS[name]
    return {"parameters": chosen.parameters, "tensors": len(chosen.shape.tensors()), "models": chosen.models}


def measure_set(name: str, methods: list[str], options: Options, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method on one set, with all runs of it."""
    print(f"{name}: writing models ...", flush=True)
    parents = SETS[name].write(folder)
    for method in methods:
        recipe = folder / f"{method}.yaml"
        used = write_recipe(method, parents, options.dtype, recipe)
        yield method, measure_method(method, recipe, [parents[model] for model in used], options)


def write_recipe(method: str, parents: dict[str, Path], dtype: str, path: Path) -> list[str]:
    """Write one recipe for both tools, and return the names of the models that it reads."""
    names = [name for name in parents if name != "base"]
    used = names[:1] if method == "slerp" else names
    document: dict[str, Any] = {"merge_method": method, "dtype": dtype, "out_dtype": "bfloat16"}
    based = method not in BASELESS
    document |= {"base_model": str(parents["base"])} if based else {}
    document["models"] = [{"model": str(parents[name])} for name in used]
    document |= {"parameters": METHODS[method]} if METHODS[method] else {}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return [*(["base"] if based else []), *used]


def measure_method(method: str, recipe: Path, parents: list[Path], options: Options) -> dict[str, Any]:
    """All runs of one method: ours, theirs and the copy in turns, each first as often as the others."""
    out, log = recipe.parent / "out", recipe.parent / "log.txt"
    plain = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    mode = ["--compat", "mergekit"] if options.compat else []
    commands = {
        "ours": [str(ROOT / ".venv/bin/fuse-bench"), "merge", str(recipe), str(out), "--seed", "42", *mode],
        "mergekit": [str(ROOT / ".venv-peers/bin/mergekit-yaml"), str(recipe), str(out), "--random-seed", "42", *plain],
    }
    inputs = [parent / "model.safetensors" for parent in parents]
    size = inputs[0].stat().st_size
    copy(inputs, size, recipe.parent / "copy")
    runs: dict[str, list[Measured]] = {tool: [] for tool in commands}
    copies = []
    for i in range(options.runs):
        for tool in list(commands)[:: 1 if i % 2 == 0 else -1]:
            if any(run.error for run in runs[tool]):
                continue
            shutil.rmtree(out, ignore_errors=True)
            runs[tool].append(measure(commands[tool], ENVIRONMENT, options.timeout, log))
            print(f"  {method} {tool} {_said(runs[tool][-1])}", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        copies.append(copy(inputs, size, recipe.parent / "copy"))
    found: dict[str, Any] = {tool: [asdict(run) for run in measured] for tool, measured in runs.items()}
    errors = [run.error for measured in runs.values() for run in measured if run.error and not run.timed_out]
    return found | {"copy": copies} | ({"error": errors[0]} if errors else {})


def _said(run: Measured) -> str:
    if run.timed_out:
        return f"given up after {run.wall:.0f} s"
    return f"{run.wall:.2f} s, {run.peak / 2**30:.2f} GiB" + (f", FAILED: {run.error}" if run.error else "")


def machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text()
    memory = Path("/proc/meminfo").read_text().split("\n")[0].split()[1]
    return {
        "cpu": next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "?"),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg(),
    }


PLACES = {"ours": (".venv", "fuse-bench"), "mergekit": (".venv-peers", "mergekit")}


def versions(*tools: str) -> dict[str, Any]:
    """What the tools are made of, each in its own environment."""
    wanted = "import importlib.metadata as m, json, platform; print(json.dumps({'python': platform.python_version()} | "
    wanted += "{name: m.version(name) for name in %r}))"
    common = ("torch", "safetensors", "transformers")
    found = {}
    for tool in tools:
        venv, package = PLACES[tool]
        command = [str(ROOT / venv / "bin" / "python"), "-c", wanted % ((package, *common),)]
        found[tool] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    found["ours"]["commit"] = commit.stdout.strip()
    return found


if __name__ == "__main__":
    main()
