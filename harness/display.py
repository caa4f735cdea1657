"""What a person sees while a run goes on, on stderr: live bars on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness.drive import Progress
from harness.job import Job

SCORING = ("generate", "judge")


def choose(kind: str) -> str:
    """`auto` becomes rich on a terminal that is not CI's, else plain."""
    if kind != "auto":
        return kind
    return "rich" if sys.stderr.isatty() and "CI" not in os.environ else "plain"


class Plain:
    """One line for each model made, and for each model and group scored."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self.open: dict[tuple[str, str], int] = {}
        self.spent: dict[tuple[str, str], float] = {}
        for job in jobs.values():
            if job.kind in SCORING:
                self.open[_part(job)] = self.open.get(_part(job), 0) + 1
        self.started = time.monotonic()
        self.told = 0

    def __call__(self, what: str, job: Job, progress: Progress) -> None:
        if what in ("start", "progress") or (what == "cached" and job.kind not in SCORING):
            return
        if what in ("failed", "retry"):
            failure = progress.failed.get(job.id)
            self._say(progress, f"{what:>7}  {job.id}" + (f": {failure.error}" if failure else ""))
        elif what == "skipped":
            self._skipped(job, progress)
        elif job.kind in SCORING:
            self._scored(what, job, progress)
        else:
            self._say(progress, f"{job.id}  {progress.done[job.id].cost.get('seconds', 0):.1f} s")

    def _scored(self, what: str, job: Job, progress: Progress) -> None:
        part = _part(job)
        self.open[part] -= 1
        if what == "ran":
            self.spent[part] = self.spent.get(part, 0.0) + progress.done[job.id].cost.get("seconds", 0)
        if self.open[part] == 0 and part in self.spent:
            self._say(progress, f"score {part[0]} on {part[1]}  {self.spent[part]:.1f} s")

    def _skipped(self, job: Job, progress: Progress) -> None:
        if job.kind not in SCORING:
            self._say(progress, f"skipped  {job.id}: {progress.failed[job.id].cause} failed")

    def _say(self, progress: Progress, text: str) -> None:
        finished = len(progress.done) + len(progress.failed)
        seconds = time.monotonic() - self.started
        print(
            f"[{finished:>{len(str(progress.total))}}/{progress.total} {seconds:5.0f} s] {text}",
            file=sys.stderr,
            flush=True,
        )


class Rich:
    """A bar for the whole run, and one for each job at work."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True)
        self.bars = Bars(
            TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self.console, transient=True,
        )  # fmt: skip
        self.whole = self.bars.add_task("jobs", total=len(jobs))
        self.tasks: dict[str, Any] = {}

    def __call__(self, what: str, job: Job, progress: Progress) -> None:
        if what == "start":
            self.tasks[job.id] = self.bars.add_task(f"  {job.id[:46]}", total=None)
        elif what == "progress":
            done, total, _ = progress.running[job.id]
            self.bars.update(self.tasks[job.id], completed=done, total=total)
        elif job.id in self.tasks:
            self.bars.remove_task(self.tasks.pop(job.id))
        if what == "failed":
            self.console.print(f"failed  {job.id}: {progress.failed[job.id].error}", markup=False)
        elif what == "ran" and job.kind not in SCORING:
            self.console.print(f"{job.id}  {progress.done[job.id].cost.get('seconds', 0):.1f} s", markup=False)
        self.bars.update(self.whole, completed=len(progress.done) + len(progress.failed), total=progress.total)


@contextlib.contextmanager
def display(kind: str, jobs: Mapping[str, Job]) -> Iterator[Any]:
    """The driver's `notice`, for as long as the run goes on."""
    chosen = choose(kind)
    if chosen == "none":
        yield lambda what, job, progress: None
    elif chosen == "plain":
        yield Plain(jobs)
    else:
        rich = Rich(jobs)
        with rich.bars:
            yield rich


def _part(job: Job) -> tuple[str, str]:
    """(model, group) of a scoring job, as its id has them."""
    _, model, rest = job.id.split(" ", 2)
    return model, rest.partition("/")[0]


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of a verb that works in stages, on stderr: a bar for each on a terminal, elsewhere a line for each."""
    if choose("auto") == "plain":
        said: set[str] = set()

        def line(what: str, done: int, total: int) -> None:
            if what not in said:
                said.add(what)
                print(f"{what} ...", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar
