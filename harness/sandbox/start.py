"""Starts the process of a program, by one of three ways: as it is, in namespaces, or behind a wrapping command."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.sandbox import bubblewrap, guest, launcher, limits, namespaces

INSIDE = """
def inside(user, processes):
    import os, resource
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
"""
"""What a wrapping command must not be under itself, done by the process inside it before it reads the program."""


def start(job: dict[str, Any], folder: str) -> "subprocess.Popen[bytes]":
    """The guest's process, or the launcher's, isolated as the job says, with pipes on standard input and output.

    Raises OSError, with the step that failed, and subprocess.SubprocessError.
    """
    source = Path(str((guest if job["python"] else launcher).__file__)).read_text()
    prepare = _preparation(job, folder)
    python, user = sys.executable, {}
    if job["spaces"] or job["wrap"]:
        python = namespaces.INTERPRETER
    elif job["user"] is not None:
        user = {"user": job["user"], "group": job["user"], "extra_groups": []}
    if job["wrap"]:
        source += f"\n{INSIDE}\ninside({job['user']}, {job['limits']['processes']})\ndel inside\n"
    told, tell = os.pipe()

    def confine() -> None:
        try:
            prepare()
        except OSError as error:
            os.write(tell, str(error).encode()[:1000])
            raise

    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            [*job["wrap"], python, "-I", "-S", "-c", f"{source}\nmain()\n"],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
            preexec_fn=confine,
            **user,
        )
    except subprocess.SubprocessError as error:
        os.set_blocking(told, False)
        with contextlib.suppress(BlockingIOError):
            raise OSError(os.read(told, 1000).decode()) from error
        raise
    finally:
        os.close(told)
        os.close(tell)


def _preparation(job: dict[str, Any], folder: str) -> Callable[[], None]:
    """What the program's process does between fork and exec, by how it is isolated."""
    wanted = dict(job["limits"])

    def last() -> None:
        limits.die_with_parent()
        limits.give_up_rights()
        limits.set_limits(**wanted)

    def wrapped() -> None:
        bubblewrap.prepare(job["user"])
        limits.die_with_parent()
        limits.set_limits(**wanted | {"processes": None})

    def spaces() -> None:
        limits.die_with_parent()
        namespaces.enter(folder, job["user"], namespaces.Room(**job["room"]), last)

    return spaces if job["spaces"] else wrapped if job["wrap"] else last
