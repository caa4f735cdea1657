"""Jobs that cost nothing, for tests of the driver: `python -m tests.harness.toy STORE RUN` does a small graph of them.

Each job adds up its inputs, and writes a line to RUN/done.txt when it really works: so a test can see what was done
twice. The outcome goes to RUN/results.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

from harness.drive import Driver, stopping
from harness.errors import UsageError
from harness.events import event
from harness.execute.local import LocalExecutor
from harness.job import Input, Job
from harness.store import Store, write_whole
from harness.work import Made, Task

FUNCTIONS = {"toy": "tests.harness.toy:work"}


def job(name: str, *needs: str, **spec: object) -> Job:
    inputs = tuple(Input(f"in.{i}", job=need) for i, need in enumerate(needs))
    return Job(name, "toy", {"name": name, **spec}, inputs, {"where": os.environ.get("TOY_LOG", "")})


GRAPH = [
    job("a", value=1),
    job("b", value=2),
    job("c", "a", "b", value=3),
    job("d", "c", value=4),
    job("e", "c", value=5),
    job("f", "d", "e", value=6),
]


def work(task: Task) -> Made:
    """The job's value and its inputs', in the result and in a file; `fault` makes it fail in a chosen way."""
    with open(task.where["where"], "a") as file:
        file.write(f"{task.spec['name']}\n")
    fault = task.spec.get("fault")
    if fault == "die":
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "die once" and not task.scratch.exists():
        task.scratch.mkdir(parents=True)
        os._exit(9)
    if fault == "user":
        raise UsageError("this toy is the user's fault")
    if fault == "bug":
        raise ZeroDivisionError("this toy is broken")
    if fault == "touch":
        Path(str(task.spec["path"])).write_text("changed while the job was at work")
    if fault == "full":
        raise OSError(28, "No space left on device")
    total = task.spec["value"] + sum(i["result"]["total"] for i in task.inputs.values())
    (task.out / "total.txt").write_text(str(total))
    task.progress(1, 1)
    return Made({"total": total})


def refuse(task: Task) -> Made:
    """A job that never works."""
    raise UsageError(f"{task.kind} is refused")


def run(store: Path, run_dir: Path, jobs: list[Job], slots: int = 2, stamps: dict[str, str] | None = None) -> Driver:
    """Drive jobs on local workers; `stamps` are of folders that jobs read."""
    executor = LocalExecutor(slots)
    models = {"refs": {}, "stamps": stamps or {}}
    driver = Driver(Store(store), executor, run_dir, FUNCTIONS, lambda job, done: models)
    with stopping(executor):
        driver.drive({j.id: j for j in jobs})
    return driver


if __name__ == "__main__":
    done = run(Path(sys.argv[1]), Path(sys.argv[2]), GRAPH).progress.done
    results = {name: [entry.digest, entry.result["total"]] for name, entry in sorted(done.items())}
    write_whole(Path(sys.argv[2]) / "results.json", json.dumps(results))
    event("driver.results-written")
