"""The process that builds a program of another language and then becomes it.

Like the guest, it is self-contained: its text goes to `python -I -S -c`, and it runs inside the sandbox from the start,
compiler and all. On standard input it gets one marshalled dict: {"files", "build", "run", "env", "limits": [[resource,
limit]]}. On standard output come the lines "up", then "built", or "not built" and what the compiler said, and after
"built" all that the program prints, on standard output and error.
"""

from __future__ import annotations

import marshal
import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SAID = 1 << 14
"""Bytes of a compiler's output that are kept."""


def main() -> None:
    """Build, and run in this process's place."""
    os.write(1, b"up\n")
    with os.fdopen(os.dup(0), "rb") as requests:
        job = marshal.load(requests)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    here = os.getcwd()
    env = {name: value.replace("{here}", here) for name, value in job["env"].items()}
    os.makedirs(".cache", exist_ok=True)
    for name, text in job["files"].items():
        with open(name, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    for command in job["build"]:
        status, said = _run([word.replace("{here}", here) for word in command], env)
        if status:
            os.write(1, b"not built\n" + (said or b"status %d" % status).replace(here.encode(), b"."))
            return
    os.write(1, b"built\n")
    os.dup2(1, 2)
    for which, limit in job["limits"]:
        resource.setrlimit(which, (limit, limit))
    command = [word.replace("{here}", here) for word in job["run"]]
    os.execve(command[0], command, env)


def _run(command: list[str], env: Mapping[str, str]) -> tuple[int, bytes]:
    """The status of a command, and the first of what it printed."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(send, 1)
            os.dup2(send, 2)
            os.execve(command[0], command, env)
        finally:
            os._exit(127)
    os.close(send)
    said = b""
    while block := os.read(receive, 4096):
        said += block[: SAID - len(said)]
    os.close(receive)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
