"""A worker process: takes one job after another from its driver, commits what it made, and says so.

Started as `python -m harness.execute.worker FD`, FD being its end of a socket. It leaves when the driver does, however
the driver ended. What a job prints goes to that job's log.
"""

import contextlib
import importlib
import json
import os
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from fusion.errors import FusionError
from harness.errors import FuseBenchError, StoreError, UsageError
from harness.events import event
from harness.store import Entry, Store, folder_stamp, full, is_full
from harness.work import Task

if TYPE_CHECKING:
    from fusion.modelref import ModelRef

PROGRESS_SECONDS = 0.25


def main() -> None:
    """Serve jobs until the driver goes away."""
    line = Connection(int(sys.argv[1]))
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(line, orders), daemon=True).start()
    event("worker.started")
    while True:
        order = orders.get()
        answer = serve(order, lambda message: line.send_bytes(json.dumps(message).encode()))
        line.send_bytes(json.dumps(answer).encode())


def serve(order: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do one job; the answer says `done` or `failed`, and whose fault a failure is."""
    try:
        with open(order["log"], "ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        entry = _do(order, send)
        return {"type": "done", "key": entry.key}
    except Exception as error:
        return {"type": "failed", **_fault(error, Path(order["store"]))}


def _fault(error: Exception, store: Path) -> dict[str, str]:
    """Whose fault an error is; its log gets what helps. A full disk takes no log either, and must not hide itself."""
    with contextlib.suppress(OSError):
        traceback.print_exc() if not isinstance(error, FusionError | FuseBenchError) else print(error, file=sys.stderr)
        sys.stderr.flush()
    if is_full(error):
        return {"fault": "disk", "error": str(error) if isinstance(error, StoreError) else f"{full(store)} ({error})"}
    if isinstance(error, StoreError):
        return {"fault": "disk", "error": str(error)}
    if isinstance(error, FusionError | FuseBenchError):
        return {"fault": "user", "error": str(error)}
    return {"fault": "bug", "error": f"{type(error).__name__}: {error}"}


def _do(order: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> Entry:
    store = Store(Path(order["store"]))
    with store.working(order["key"]):
        return store.get(order["key"]) or _make(order, store, send)


def _make(order: dict[str, Any], store: Store, send: Callable[[dict[str, Any]], None]) -> Entry:
    function = _function(order["function"])
    _check_sources(order["stamps"])
    out = store.begin()
    scratch = store.scratch(order["key"])
    task = Task(
        kind=order["kind"],
        spec=order["spec"],
        where=order["where"],
        inputs={i["role"]: i for i in order["inputs"]},
        refs=_refs(order["refs"]),
        out=out,
        scratch=scratch,
        progress=_throttled(send),
    )
    started, cpu = time.monotonic(), time.process_time()
    _forget_peak()
    try:
        made = function(task)
        _check_sources(order["stamps"])
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    cost = {
        "seconds": round(time.monotonic() - started, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_rss_mb": round(_peak_rss(), 1),
        **_peak_vram(),
        **made.cost,
    }
    event("worker.done")
    inputs = {i["role"]: i["digest"] for i in order["inputs"]}
    return store.commit(
        out, order["key"], kind=order["kind"], spec=order["spec"], inputs=inputs, result=made.result, cost=cost,
        digest=made.digest,
    )  # fmt: skip


def _check_sources(stamps: dict[str, str]) -> None:
    """The given models are what they were when the run was planned: else its keys would be lies."""
    for path, stamp in stamps.items():
        if not Path(path).is_dir() or folder_stamp(Path(path)) != stamp:
            raise UsageError(f"the files in {path} were changed while the run was going on; run again")


def _refs(found: dict[str, Any]) -> "dict[str, ModelRef]":
    """The models of a job; without any, the engine (and torch, a second) is not imported."""
    if not found:
        return {}
    from fusion.modelref import from_json

    return {role: from_json(ref) for role, ref in found.items()}


def _listen(line: Connection, orders: "SimpleQueue[dict[str, Any]]") -> None:
    """Hand on what the driver sends; when it has gone, so does this process, in the middle of a job if need be."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            orders.put(json.loads(line.recv_bytes()))
    os._exit(0)


def _function(name: str) -> Callable[[Task], Any]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _throttled(send: Callable[[dict[str, Any]], None]) -> Callable[[int, int], None]:
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or done == total:
            last = now
            send({"type": "progress", "done": done, "total": total})

    return progress


def _forget_peak() -> None:
    """Let the kernel's high-water mark start anew, so that a job's peak is its own and not an earlier job's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_rss() -> float:
    """Peak resident memory in MiB."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peak_vram() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    return {"peak_vram_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1)}


if __name__ == "__main__":
    main()
