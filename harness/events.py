"""Named moments at which a run may be cut off, so that tests can cut it off at every one of them.

`FUSE_BENCH_KILL_AT=store.renamed:3` makes a process kill itself (SIGKILL, as a crash or the out-of-memory killer would)
the third time that it reaches that moment. Without the variable an event costs one dictionary look-up.
"""

import os
import signal

EVENTS = (
    "store.tmp-made",
    "store.files-written",
    "store.meta-written",
    "store.renamed",
    "store.committed",
    "driver.planned",
    "driver.dispatched",
    "driver.finished",
    "driver.recorded",
    "driver.results-written",
    "worker.started",
    "worker.done",
)

_target, _, _times = os.environ.get("FUSE_BENCH_KILL_AT", "").partition(":")
_left = {_target: int(_times or 1)} if _target else {}


def event(name: str) -> None:
    """Mark the moment `name`, one of EVENTS."""
    if name not in _left:
        return
    _left[name] -= 1
    if _left[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
