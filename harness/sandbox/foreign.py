"""The supervisor's part for programs of other languages than Python: one process, that of launcher.py, is watched."""

import marshal
import os
import re
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

from harness.sandbox import limits, processes
from harness.sandbox.languages import LANGUAGES
from harness.sandbox.start import start

OUTPUT_CAP = 1 << 20
"""The most bytes that a program may print."""

POLL_S = 0.02
"""How often to look whether a program has ended, where a process that it left keeps its output open."""

COMPLAINT = re.compile(
    r"([Ee]rror|Exception)\b[^:]*:|Exception in |Assertion\b|Assert failed|panicked|Failure|expected:? |"
    r"not found|No such file"
)
"""What a line has that says why a program did not pass."""


def run(job: dict[str, Any], started: Callable[[int], None]) -> dict[str, Any]:
    """One job -> its verdict.

    job: as of supervisor.run, with "language", "build_timeout", and "build", "run" and "env" of its Toolchain.
    """
    begin = time.monotonic()
    token = secrets.token_hex(16)
    try:
        files = LANGUAGES[job["language"]].files(job["program"], job["test"], token)
    except ValueError as error:
        return {"passed": False, "reason": f"test error: {error}", "seconds": 0.0, "cpu": 0.0}
    folder = tempfile.mkdtemp(dir=job["folder"])
    try:
        if job["user"] is not None and not (job["spaces"] or job["wrap"]):
            os.chown(folder, job["user"], job["user"])
        program = start(job, folder)
        started(program.pid)
        watched = _Watched(program)
        try:
            reason = _outcome(job, watched, files, token)
            used = processes.cpu_of_descendants() if reason == "timeout" else 0.0
        finally:
            processes.clear(program)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if reason is None:
        return {"fault": "its process ended before the program began"}
    said = reason.replace(folder, ".")
    return {"passed": said == "passed", "reason": said, "seconds": time.monotonic() - begin, "cpu": used}


def _outcome(job: dict[str, Any], watched: "_Watched", files: dict[str, str], token: str) -> str | None:
    """ "passed", or why not; None if the process ended before it could begin."""
    deadline = time.monotonic() + job["build_timeout"]
    if watched.line(deadline) != b"up":
        return None
    known = LANGUAGES[job["language"]]
    number = limits.numbers(
        job["memory_mb"], int(job["timeout"]) + 1, 256, known.processes, known.file_mb, known.reserve_mb
    )
    watched.send({key: job[key] for key in ("build", "run", "env")} | {"files": files, "limits": number})
    built = watched.line(deadline)
    if built is None:
        return "timeout" if watched.runs() else "not built: the process that builds it ended"
    if built != b"built":
        said = watched.rest(deadline)[0]
        return f"not built: {_complaint(said, token) or said[:200].decode('utf-8', 'replace').strip()}"
    output, status = watched.rest(time.monotonic() + job["timeout"])
    if len(output) > OUTPUT_CAP:
        return "failed: output limit"
    if status is None:
        return "timeout"
    if status:
        return f"failed: {_complaint(output, token) or f'status {status}'}"
    # Read back whole, so that what the program prints without a line's end before it does not hide it.
    return "passed" if token.encode() in output else "ended: the program ended before the tests did"


def _complaint(output: bytes, token: str) -> str:
    """The first line that names a fault, else nothing."""
    text = output.decode("utf-8", "replace").replace(token, "")
    found = next((line for line in text.splitlines() if COMPLAINT.search(line)), "")
    return re.sub(r"0x[0-9a-fA-F]+| \(\d+\)(?= panicked)", "", " ".join(found.split()))[:200]


class _Watched:
    """A process with the pipe of its output."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the program was started without pipes")
        self.process, self.stdin, self.descriptor = process, process.stdin, process.stdout.fileno()
        self.read, self.open = b"", True

    def send(self, job: dict[str, Any]) -> None:
        try:
            self.stdin.write(marshal.dumps(job))
            self.stdin.close()
        except BrokenPipeError:
            pass

    def runs(self) -> bool:
        return self.process.poll() is None

    def line(self, deadline: float) -> bytes | None:
        """The next line; None at the deadline or the end."""
        while b"\n" not in self.read:
            if not self._more(deadline):
                return None
        line, _, self.read = self.read.partition(b"\n")
        return line

    def rest(self, deadline: float) -> tuple[bytes, int | None]:
        """All that is printed before the process ends, and its status; None at the deadline or beyond OUTPUT_CAP."""
        while len(self.read) <= OUTPUT_CAP and time.monotonic() < deadline:
            # The order matters: what was printed before the end is read after the end is known.
            ended = not self.runs()
            more = self._more(time.monotonic() + (0 if ended else POLL_S))
            if ended and not more:
                return self.read, self.process.returncode
        return self.read, None

    def _more(self, deadline: float) -> bool:
        """Read what there is by the deadline; False if nothing."""
        left = max(0.0, deadline - time.monotonic())
        if not self.open:
            time.sleep(min(left, POLL_S))
            return False
        if not select.select([self.descriptor], [], [], left)[0]:
            return False
        block = os.read(self.descriptor, 1 << 16)
        self.open = bool(block)
        self.read += block
        return self.open
