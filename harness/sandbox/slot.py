"""The bench's side of a supervisor: starts its process, gives it programs one by one, and starts it again when lost."""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import SandboxError

GRACE_S = 10.0
"""How long a supervisor may take beyond a program's own limit before it counts as lost."""


class Slot:
    """The process of `supervisor.py`: started when needed, and again when a program has managed to end it.

    contained: its programs have a root of their own, whoever owns the folders on the way to the interpreter.
    """

    def __init__(self, contained: bool) -> None:
        self.contained = contained
        # Not the supervisor's own: it may be killed before it clears up. A user without rights must get through it.
        self.folder = tempfile.mkdtemp(prefix="fuse-bench-")
        os.chmod(self.folder, 0o711)
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, job: Mapping[str, Any], patience: float) -> dict[str, Any]:
        """What supervisor.run says of a job, within `patience` seconds and GRACE_S.

        Raises SandboxError if the program could not be started.
        """
        begin = time.monotonic()
        # Twice, because another program may have ended this one's supervisor.
        for _ in range(2):
            self.process = self.process or _launch()
            user = _own_user(self.contained, self.process.pid)
            said = _converse(
                self.process,
                json.dumps({**job, "folder": self.folder, "user": user}),
                time.monotonic() + patience + GRACE_S,
            )
            if said is not None and "fault" in said:
                raise SandboxError(f"a program could not be started: {said['fault']}")
            if said is not None:
                return said
            self.end()
        reason = "failed: it ended the process that watches it"
        return {"passed": False, "reason": reason, "seconds": time.monotonic() - begin, "cpu": 0.0}

    def close(self) -> None:
        """End the process and remove its folder."""
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """End the process, which takes the program that it runs with it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.process = None


def _launch() -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from harness.sandbox.supervisor import main; main()"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=pipe, stdout=pipe, env={}, start_new_session=True
    )


def _converse(process: "subprocess.Popen[bytes]", job: str, deadline: float) -> dict[str, Any] | None:
    """Send a job, and wait for its verdict; None, with the program killed, if none comes."""
    if process.stdin is None or process.stdout is None:
        raise SandboxError("the sandbox's supervisor was started without pipes")
    group = None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.encode() + b"\n")
        process.stdin.flush()
        while (line := _line(process.stdout.fileno(), deadline)) is not None:
            said = json.loads(line)
            if "pid" not in said:
                return dict(said)
            group = said["pid"]
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    return None


def _line(descriptor: int, deadline: float) -> bytes | None:
    """One line, read byte by byte so that nothing of the next is taken; None at the deadline or the end."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        byte = os.read(descriptor, 1)
        if not byte:
            return None
        line += byte
    return line


def _own_user(contained: bool, supervisor: int) -> int | None:
    """As root, a user id that nobody has, for a supervisor's programs to run as; None where that is not possible.

    Derived from the supervisor's id, so that the limit on processes counts only its own programs.
    """
    if os.name != "posix" or os.getuid() != 0:
        return None
    user = 1_000_000_000 + supervisor
    return user if contained or another_user() else None


@functools.cache
def another_user() -> bool:
    """Whether root can run the interpreter as a user that nobody is."""
    command, user = [sys.executable, "-I", "-S", "-c", "pass"], 1_000_000_000 + os.getpid()
    try:
        subprocess.run(
            command, user=user, group=user, extra_groups=[], env={}, check=True, capture_output=True, cwd="/"
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return True
