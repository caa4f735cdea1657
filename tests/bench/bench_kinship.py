"""`make bench-kinship`: all pairs of three models and a base in one pass, beside the same pair by pair.

Both start from nothing (process start included) with the checkpoints in the page cache, in turns. The other side is in
kinship_runs.py: for each pair it loads both models and the base as float32 state dicts, makes two vectors of them and
takes corrcoef, cosine and dist, as the published code does, but by safetensors, which is quicker than a whole model.
Its numbers stand beside ours, as sums in float32 are part of the matter. The larger set is measured for ours only.
What every measure of weights takes together is measured once, on the smaller set.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.bench.bench_merge import ENVIRONMENT, machine, place, versions
from tests.bench.kinship_runs import MEASURES
from tests.bench.measure import measure
from tests.conftest import ROOT
from tests.peers.models import Shape, save_folder

LIMITS = {"wall_ratio": 0.25, "peak_gib": 0.5}
# Length of a task vector's entries, and the correlation of any two of them by construction.
STEP, CORRELATION = 2e-3, 0.5


@dataclass(frozen=True)
class Family:
    """A base and three models, the task vectors of any two of which have a correlation of 0.5. Seeded."""

    shape: Shape
    dtype: torch.dtype
    tools: tuple[str, ...]
    seed: int = 41

    @property
    def parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shape.tensors().values())

    def write(self, folder: Path) -> list[Path]:
        """Write the folders, the base's first, one after the other: no two models are in memory at once."""
        needed = 5 * self.parameters * self.dtype.itemsize
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise SystemExit(f"{folder} has {free / 1e9:.0f} GB free; these models need {needed / 1e9:.0f} GB")
        paths = [folder / name for name in ("base", "m1", "m2", "m3")]
        for member, path in enumerate(paths):
            save_folder(path, {name: self._tensor(name, size, member) for name, size in self._sizes()}, self.shape)
        return paths

    def _sizes(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(self.shape.tensors().items())

    def _tensor(self, name: str, size: tuple[int, ...], member: int) -> torch.Tensor:
        origin = self._noise(name, size, 0).mul_(0.02)
        if member:
            common, own = self._noise(name, size, 100), self._noise(name, size, member)
            origin += common.mul_(CORRELATION**0.5).add_(own, alpha=(1 - CORRELATION) ** 0.5).mul_(STEP)
        return origin.to(self.dtype)

    def _noise(self, name: str, size: tuple[int, ...], number: int) -> torch.Tensor:
        seed = zlib.crc32(f"{self.seed} {number} {name}".encode())
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))


SETS = {
    # Enough to see that the benchmark works.
    "small": Family(
        Shape(layers=4, hidden=256, inner=704, keys=256, vocabulary=4000, heads=4), torch.float32, ("ours", "pairs")
    ),
    "300m": Family(
        Shape(layers=18, hidden=1024, inner=2816, keys=1024, vocabulary=32_000, heads=16),
        torch.float32,
        ("ours", "pairs"),
    ),
    # bf16, so that base and models are 10 GB and not 20.
    "1.2b": Family(
        Shape(layers=24, hidden=2048, inner=5632, keys=512, vocabulary=32_000, heads=32), torch.bfloat16, ("ours",)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each tool; medians are reported")
    parser.add_argument("--set", nargs="+", choices=SETS, default=["300m", "1.2b"], help="which models")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a run is given up")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions("ours"),
        "limits": LIMITS,
        "runs": args.runs,
        "sets": {},
    }
    path = place(args.out, "kinship")
    for name in args.set:
        with tempfile.TemporaryDirectory(prefix="bench-kinship-") as folder:
            report["sets"][name] = measure_set(name, Path(folder), args.runs, args.timeout)
        path.write_text(json.dumps(report, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(report))
    print(f"\n{markdown(report)}\n{path}")
    sys.exit(any(missed(found) for found in report["sets"].values()))


def measure_set(name: str, folder: Path, runs: int, timeout: float) -> dict[str, Any]:
    """All runs on one set, the tools in turns, each first as often as the other."""
    family = SETS[name]
    print(f"{name}: writing models ...", flush=True)
    paths = list(map(str, family.write(folder)))
    found: dict[str, Any] = {
        "parameters": family.parameters,
        "dtype": str(family.dtype).removeprefix("torch."),
        "load": os.getloadavg(),
        "tools": {tool: [] for tool in family.tools},
    }
    for i in range(runs):
        for tool in family.tools[:: 1 if i % 2 == 0 else -1]:
            found["tools"][tool].append(one_run(tool, paths, timeout, folder / "log.txt"))
            print(f"  {tool} {found['tools'][tool][-1]['wall']:.2f} s", flush=True)
    found["median"] = {
        tool: {key: statistics.median(run[key] for run in done) for key in ("wall", "cpu", "peak", "others")}
        for tool, done in found["tools"].items()
    }
    if len(family.tools) > 1:
        found["every"] = one_run("every", paths, timeout, folder / "log.txt")
        walls = [(ours["wall"], theirs["wall"]) for ours, theirs in zip(*found["tools"].values(), strict=True)]
        found["wall_ratio"] = statistics.median(ours / theirs for ours, theirs in walls)
    return found


def one_run(tool: str, paths: list[str], timeout: float, log: Path) -> dict[str, Any]:
    """One process: seconds, its own account of its peak of memory, and the pairs."""
    command = [sys.executable, "-m", "tests.bench.kinship_runs", tool, *paths]
    run = measure(command, {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, timeout, log)
    if run.error:
        raise SystemExit(f"{tool}: {run.error}")
    return {**asdict(run), **json.loads(log.read_text().splitlines()[-1])}


def missed(found: dict[str, Any]) -> bool:
    """Whether a set is beyond a limit. Of the smallest models most is the start of the process, so they have none."""
    if found["parameters"] < 1e8:
        return False
    peak = found["median"]["ours"]["peak"] / 2**30
    return peak > LIMITS["peak_gib"] or found.get("wall_ratio", 0.0) > LIMITS["wall_ratio"]


def markdown(report: dict[str, Any]) -> str:
    """The report for people, each figure beside its limit."""
    machine, ours = report["machine"], report["versions"]["ours"]
    lines = [
        f"# All pairs of three models in one pass, {report['date'][:10]}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; torch {ours['torch']}; "
        f"fuse-bench {ours['commit']}. Medians of {report['runs']}, in turns, process start included, checkpoints in "
        "the page cache. Memory: VmHWM. PCC, cosine and Euclidean distance of all three pairs. Pair by pair: whole "
        "models as float32 state dicts, loaded by safetensors for every pair, flattened, corrcoef / cosine / dist. The "
        "ratio of wall times is the median over neighbouring runs.",
        "",
        "| models | how | wall s | cpu s | others' cpu s | peak GiB | limit | ratio of wall | limit |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for found in report["sets"].values():
        runs = found["median"] | ({"every": found["every"]} if "every" in found else {})
        lines += [_row(_cells(found, tool, runs[tool], report["limits"])) for tool in TITLES if tool in runs]
    lines += [
        "",
        f"What they find of the first pair, made with a correlation of {CORRELATION} and steps of {STEP}:",
        "",
        "| models | how | PCC | cosine | distance |",
        "| --- | --- | --: | --: | --: |",
    ]
    for found in report["sets"].values():
        length = f"{STEP * found['parameters'] ** 0.5:.6g}"
        lines.append(_row([_name(found), "as made, but for chance", f"{CORRELATION}", f"{CORRELATION}", length]))
        for tool, done in found["tools"].items():
            pair = done[0]["pairs"][0]
            lines.append(_row([_name(found), TITLES[tool], *(f"{pair[measure]:#.6g}" for measure in MEASURES)]))
    return "\n".join(lines) + "\n"


TITLES = {"ours": "one pass", "pairs": "pair by pair", "every": "one pass, every measure of weights, once"}


def _name(found: dict[str, Any]) -> str:
    return f"{found['parameters'] / 1e6:,.0f} M, {found['dtype']}"


def _cells(found: dict[str, Any], tool: str, run: dict[str, Any], limits: dict[str, float]) -> list[str]:
    numbers = [*(f"{run[key]:.1f}" for key in ("wall", "cpu", "others")), f"{run['peak'] / 2**30:.2f}"]
    beside = ["", "", ""]
    if tool == "ours":
        ratio = [f"{found['wall_ratio']:.2f}", f"{limits['wall_ratio']:g}"] if "wall_ratio" in found else ["", ""]
        beside = [f"{limits['peak_gib']:g}", *ratio]
    return [_name(found), TITLES[tool], *numbers, *beside]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
