"""Workers on this machine: spawned processes, each with a slot of its own, each in a session of its own.

A worker keeps a model's skeleton loaded between jobs; one that dies is replaced when the next job wants its slot.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Threads are part of what decides a result, so they never follow the machine; see `plan.THREADS`.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    # What is needed was fetched before: a worker that found other data than were planned with would only fail.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONHASHSEED": "0",
}


@dataclass
class Slot:
    """A place for one worker. `job` is what it is doing; `model` is whose weights it has in memory."""

    number: int
    gpu: str | None = None
    job: str | None = None
    model: str | None = None
    process: subprocess.Popen[bytes] | None = None
    line: Connection | None = None


@dataclass(frozen=True)
class Report:
    """News of a job: type is progress, done, failed or died."""

    slot: Slot
    job: str
    type: str
    body: Mapping[str, Any] = field(default_factory=dict)


class LocalExecutor:
    """`slots` workers at once; with GPUs, each slot sees one of them."""

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots = [Slot(n, gpus[n % len(gpus)] if gpus else None) for n in range(slots)]

    def idle(self) -> list[Slot]:
        """Slots that can take a job."""
        return [slot for slot in self.slots if slot.job is None]

    def start(self, slot: Slot, order: Mapping[str, Any]) -> None:
        """Give a slot a job; a worker is started where none lives."""
        if slot.line is None:
            self._spawn(slot)
        assert slot.line is not None
        slot.job = order["id"]
        # A worker that died while idle is noticed by `wait`, which reports the job as lost.
        with contextlib.suppress(OSError):
            slot.line.send_bytes(json.dumps(order).encode())

    def wait(self, timeout: float) -> list[Report]:
        """What happened within `timeout` seconds; empty when nothing did."""
        lines = {slot.line: slot for slot in self.slots if slot.line is not None and slot.job is not None}
        reports = []
        for line in wait(list(lines), timeout):
            slot = lines[line]  # type: ignore[index]
            job = slot.job or ""
            try:
                body = json.loads(line.recv_bytes())  # type: ignore[union-attr]
            except (EOFError, OSError):
                reports.append(Report(slot, job, "died", {"how": self._bury(slot)}))
                continue
            if body["type"] != "progress":
                slot.job = None
            reports.append(Report(slot, job, body["type"], body))
        return reports

    def stop(self) -> None:
        """End every worker at once; what they had committed stays."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()
            if slot.line is not None:
                slot.line.close()
            slot.process = slot.line = slot.job = slot.model = None

    def _spawn(self, slot: Slot) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, **ENVIRONMENT}
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        slot.process = subprocess.Popen(
            [sys.executable, "-m", "harness.execute.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None,
            start_new_session=True,
        )
        theirs.close()
        slot.line = Connection(ours.detach())
        slot.model = None

    def _bury(self, slot: Slot) -> str:
        """Clear a dead worker's slot; returns how it ended."""
        assert slot.process is not None and slot.line is not None
        code = slot.process.wait()
        slot.line.close()
        slot.process = slot.line = slot.job = slot.model = None
        return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def default_slots(gpus: Sequence[str]) -> int:
    """One worker a GPU; without GPUs one a core that this process may use, as each works with one thread."""
    return len(gpus) or len(os.sched_getaffinity(0))


def log_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a job's log, for the message of its failure."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(text[-lines:])
