"""Watching a training: its curve, its speed, its checkpoints, and the stop at a loss that is not finite."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from fusion.errors import TrainingError
from fusion.training import Progress

MARK = "fuse_bench.json"

# Dense bfloat16 multiply-adds on the matrix cores, in floating-point operations a second, from the makers' data sheets.
# The first name that the card's own contains counts.
MATRIX_PEAK = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
    "A10": 125e12,
    "L4": 121e12,
}


def matrix_peak(device: torch.device) -> float | None:
    """A card's peak by its name, in floating-point operations a second; None for one that MATRIX_PEAK does not know."""
    if device.type != "cuda":
        return None
    card = torch.cuda.get_device_name(device)
    return next((peak for name, peak in MATRIX_PEAK.items() if name in card), None)


def over_processes(values: Tensor) -> Tensor:
    """The sum over all processes that train together, in place."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def check_weights(model: Any, step: int, scratch: Path) -> None:
    """A gradient can spoil the weights although the step's loss was finite."""
    # Where weights are sharded, a process has its part of each, which may be empty.
    local = ((name, getattr(weight, "_local_tensor", weight)) for name, weight in model.named_parameters())
    bad = [name for name, weight in local if not bool(torch.isfinite(weight).all())]
    device = next(model.parameters()).device
    if bool(over_processes(torch.tensor(float(len(bad)), device=device)) > 0):
        what = bad[0] if bad else "a weight in another process"
        raise TrainingError(f"{what} is not finite after step {step}; {kept(scratch)}")


def kept(scratch: Path) -> str:
    """What there is to go on from, for a message."""
    last = checkpoints(scratch)
    return f"the last good checkpoint is {last[-1]}" if last else "no checkpoint had been written yet"


def checkpoints(scratch: Path) -> list[Path]:
    """Whole checkpoints, oldest first: the mark is written last."""
    folders = [mark.parent for mark in scratch.glob(f"checkpoint-*/{MARK}")]
    return sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))


@dataclass
class Watch(TrainerCallback):
    """Collects the curve, stops at a loss that is not finite, marks checkpoints as whole, reports progress.

    Losses stay on the device until a line of the curve is due, so that no step waits for the GPU. Every process keeps
    the curve; the first one alone reports and writes. `forward_rows`: rows of a forward pass, fewer once the memory
    did not do; `operations`: a token's forward and backward pass as a share of all that the cards can do in a second.
    """

    steps: int
    log_every: int
    fingerprint: str
    progress: Progress
    forward_rows: int
    operations: float | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    _seen: list[dict[str, Any]] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def restore(self, scratch: Path, first: bool) -> Path | None:
        """The checkpoint to go on from, with the curve up to it. The first process clears half-written ones away."""
        whole = checkpoints(scratch)
        for folder in set(scratch.glob("checkpoint-*")) - set(whole) if first else ():
            shutil.rmtree(folder)
        if not whole:
            return None
        mark = json.loads((whole[-1] / MARK).read_text(encoding="utf-8"))
        if mark["fingerprint"] != self.fingerprint:
            raise TrainingError(f"{scratch}: holds checkpoints of another training; give an empty folder")
        self.curve, self.tokens, self.seconds = mark["curve"], mark["tokens"], mark["seconds"]
        self.forward_rows = min(mark["forward_rows"], self.forward_rows)
        return whole[-1]

    def see(self, values: Mapping[str, Tensor], tokens: int, learning_rate: float) -> None:
        """One step's loss and its parts, before its update: this process's share of them, which add up."""
        self._seen.append({"values": values, "tokens": tokens, "learning_rate": learning_rate})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.log_every == 0 or state.global_step == self.steps:
            self._flush(state.global_step, Path(args.output_dir))
        if state.is_world_process_zero:
            self.progress(state.global_step, self.steps)

    def _flush(self, step: int, scratch: Path) -> None:
        names = list(self._seen[0]["values"])
        values = torch.stack([torch.stack([seen["values"][name] for name in names]) for seen in self._seen]).double()
        tokens = values.new_tensor([seen["tokens"] for seen in self._seen])
        table = over_processes(torch.cat([values, tokens[:, None]], 1)).cpu()
        values, tokens_seen = table[:, :-1], int(table[:, -1].sum())
        bad = torch.nonzero(~torch.isfinite(values[:, 0])).flatten().tolist()
        if bad:
            at = step - len(self._seen) + 1 + bad[0]
            rate = self._seen[bad[0]]["learning_rate"]
            raise TrainingError(
                f"the loss is {values[bad[0], 0].item()} at step {at} of {self.steps} "
                f"(learning rate {rate:.3g}); {kept(scratch)}. Try a lower learning rate"
            )
        now = time.perf_counter()
        means = dict(zip(names, values.mean(0).tolist(), strict=True))
        line = {"learning_rate": self._seen[-1]["learning_rate"], "tokens": tokens_seen}
        self.curve.append({"step": step, **means, **line, "wall": self._speed(tokens_seen, now - self._since)})
        self.tokens += tokens_seen
        self.seconds += now - self._since
        self._since = now
        self._seen = []

    def _speed(self, tokens: int, seconds: float) -> dict[str, float]:
        rate = tokens / max(seconds, 1e-9)
        used = {} if self.operations is None else {"matrix_peak_share": self.operations * rate}
        return {"tokens_per_second": rate, **used}

    def wall(self) -> dict[str, float]:
        """What depends on the machine, over the whole training."""
        return {"seconds": self.seconds, **self._speed(self.tokens, self.seconds), "forward_rows": self.forward_rows}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process has a part of a checkpoint to write.
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        mark = {
            "fingerprint": self.fingerprint,
            "curve": self.curve,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "forward_rows": self.forward_rows,
        }
        partial = folder / f"{MARK}.partial"
        partial.write_text(json.dumps(mark), encoding="utf-8")
        os.replace(partial, folder / MARK)
