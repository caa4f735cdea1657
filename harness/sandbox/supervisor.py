"""The process that runs programs one after the other: starts each, tests it from a process of its own, clears up.

One supervisor serves one slot of `harness.sandbox.run_many`. Per program it starts

    supervisor ─┬─ program   `python -I -S`, own session, own user where the machine allows, rlimits, no environment
                └─ tester    a fork of the supervisor: runs the tests, calls the program through pipes, holds the token

and afterwards kills all that descends from it, also what left its session: it is the subreaper of its descendants.
The tester says "passed" by writing the job's random token, which was never in the program's process, to a pipe that
was not open there either. In namespaces the program's process is the child of one that stays outside and waits.
Programs of other languages are watched by foreign.py.
"""

import ast
import builtins
import contextlib
import importlib
import json
import marshal
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from types import CodeType
from typing import IO, Any, NoReturn

from harness.sandbox import foreign, guest, limits, processes
from harness.sandbox.held import Held, number_of
from harness.sandbox.start import start

REPLY_CAP = 1 << 20
"""The most bytes that one reply of a program may have."""

UNSTARTED = "its process ended before the program began"


class _Stop(BaseException):
    """The tests cannot go on. A BaseException, so that `except Exception` in a test does not swallow it."""


def main() -> None:
    """Read jobs as JSON lines on standard input, write {"pid"} and then the verdict of each to standard output.

    A job that could not be started gives {"fault"}: that is no verdict on the program.
    """
    limits.prctl(limits.PR_SET_CHILD_SUBREAPER, 1)
    # A program of the same user may not read this process's memory, nor open its pipes in /proc.
    limits.prctl(limits.PR_SET_DUMPABLE, 0)
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    for line in sys.stdin:
        try:
            said = run(json.loads(line), lambda pid: print(json.dumps({"pid": pid}), file=out))
        except (OSError, subprocess.SubprocessError) as error:
            said = {"fault": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=out)


def run(job: dict[str, Any], started: Callable[[int], None]) -> dict[str, Any]:
    """One job -> its verdict.

    job: {"python", "program", "test", "setup", "entry_point", "timeout", "memory_mb", "limits", "room", "user", "wrap",
    "spaces", "folder"}
    """
    if not job["python"]:
        return foreign.run(job, started)
    begin = time.monotonic()
    unparsable = _unparsable(job["program"])
    if unparsable:
        return {"passed": False, "reason": unparsable, "seconds": time.monotonic() - begin, "cpu": 0.0}
    folder = tempfile.mkdtemp(dir=job["folder"])
    try:
        if job["user"] is not None and not (job["spaces"] or job["wrap"]):
            os.chown(folder, job["user"], job["user"])
        program = start(job, folder)
        started(program.pid)
        token = secrets.token_hex(16)
        receive, send = os.pipe()
        tester = os.fork()
        if tester == 0:
            os.close(receive)
            _tester(job, program, send, token)
        os.close(send)
        said = _read_until(receive, begin + job["timeout"])
        os.close(receive)
        used = 0.0 if said is not None else processes.cpu_of_descendants()
        processes.clear(program, tester)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    passed, reason = _verdict(said, token)
    if reason == UNSTARTED:
        return {"fault": reason}
    return {"passed": passed, "reason": reason, "seconds": time.monotonic() - begin, "cpu": used}


def _unparsable(program: str) -> str | None:
    """Why a program is none, in the words of its own process, which need not be started to say it."""
    try:
        compile(program, "<program>", "exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return f"raised: {type(error).__name__}: {_short(error)}"
    return None


def _verdict(said: bytes | None, token: str) -> tuple[bool, str]:
    if said is None:
        return False, "timeout"
    mark, _, reason = said.decode("utf-8", "replace").partition(" ")
    if not secrets.compare_digest(mark.encode(), token.encode()):
        return False, "failed: the test ended without a verdict"
    return reason == "passed", reason


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    """All that is written before the other end closes, or None when the deadline comes first."""
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            block = os.read(descriptor, 4096)
            if not block:
                return said
            said += block
    return None


def _tester(job: dict[str, Any], program: "subprocess.Popen[bytes]", send: int, token: str) -> NoReturn:
    """The forked process: run the tests against the program, write the token and the outcome, and end."""
    try:
        os.setsid()
        limits.die_with_parent()
        # The test is the task's own code; its limits are there because it compares what the program returned.
        limits.set_limits(max(job["memory_mb"], 256), int(job["timeout"]) + 2, files=64)
        sys.set_int_max_str_digits(0)
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        reason = _outcome(job, program)
        os.write(send, f"{token} {reason}"[:1000].encode())
    finally:
        os._exit(0)


def _outcome(job: dict[str, Any], program: "subprocess.Popen[bytes]") -> str:
    """ "passed", or why not. "test error" is said only where the program cannot be at fault."""
    caller = _Caller(program, job)
    try:
        defined = caller.ready()
        code, namespace = _prepare(job)
        for name in sorted({*_wanted(code), job["entry_point"]}):
            if name == job["entry_point"] or (name in defined["ready"] and name not in namespace):
                namespace[name] = caller.function(name)
            elif name in defined["modules"] and name in sys.stdlib_module_names and name not in namespace:
                namespace[name] = importlib.import_module(name)
            elif name in defined["others"] and name not in namespace:
                namespace[name] = Held(name, name, caller.misused)
        exec(code, namespace)
    except _Stop as stop:
        return str(stop)
    except AssertionError as error:
        outcome = f"failed: {_short(error) or 'assertion'}"
    except SystemExit:
        outcome = "test error: the test ends its process"
    except BaseException as error:
        outcome = f"raised: {type(error).__name__}: {_short(error)}"
    else:
        outcome = "passed"
    # A bare `except:` in a test may have swallowed the stop; the program is not to gain by it.
    return caller.stopped or outcome


def _prepare(job: dict[str, Any]) -> tuple[CodeType, dict[str, Any]]:
    """The compiled test and the names that it may use."""
    namespace: dict[str, Any] = {"__name__": "test"}
    try:
        _define(job["setup"], namespace)
        return compile(job["test"], "<test>", "exec"), namespace
    except BaseException as error:
        raise _Stop(f"test error: {type(error).__name__}: {_short(error)}") from None


def _short(error: BaseException) -> str:
    return str(error)[:200]


def _define(setup: str, namespace: dict[str, Any]) -> None:
    """Run the task's own definitions (HumanEval's prompt with its helpers), where they are whole."""
    try:
        ast.parse(setup)
    except SyntaxError:
        return
    exec(compile(setup, "<setup>", "exec"), namespace)


def _wanted(code: CodeType) -> set[str]:
    """Names that a piece of code takes from its surroundings, in it and in the functions that it defines."""
    names = {name for name in code.co_names if not hasattr(builtins, name)}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _wanted(constant)
    return names


class _Caller:
    """Calls functions of the program in its own process."""

    def __init__(self, program: "subprocess.Popen[bytes]", job: dict[str, Any]) -> None:
        self.program, self.source = program, job["program"]
        self.stopped: str | None = None

    def ready(self) -> dict[str, list[str]]:
        """Hand over the program and wait for its definitions; the names that it says it defines, by kind."""
        with contextlib.suppress(_Stop):
            self._receive()
        if self.stopped:
            raise self._stop(UNSTARTED)
        self._send({"program": self.source})
        reply = self._receive()
        if "error" in reply:
            raise self._stop(f"raised: {_text(reply['error'])}")
        given = {kind: reply.get(kind) for kind in ("ready", "modules", "others")}
        return {kind: list(names) if isinstance(names, list) else [] for kind, names in given.items()}

    def misused(self, kind: str) -> _Stop:
        """What ends a test that does with an object of the program what only a plain value is good for."""
        return self._stop(f"failed: returned a value of type {kind[:100]}, which is not plain")

    def function(self, name: str) -> Callable[..., Any]:
        """A stand-in for the program's function of this name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                wire = {
                    "args": [guest.encode(value, number_of) for value in args],
                    "kwargs": {key: guest.encode(value, number_of) for key, value in kwargs.items()},
                }
            except TypeError as error:
                raise self._stop(f"test error: {error}") from None
            self._send({"call": name, **wire})
            reply = self._receive()
            if "error" in reply:
                raise _error(reply["error"])
            if "unsendable" in reply:
                raise self.misused(str(reply["unsendable"]))
            try:
                return guest.decode(reply["value"], lambda held: Held(int(held[0]), str(held[1]), self.misused))
            except (IndexError, KeyError, TypeError, ValueError, RecursionError):
                raise self._stop("failed: a malformed reply") from None

        call.__name__ = name
        return call

    def _stop(self, reason: str) -> _Stop:
        self.stopped = self.stopped or reason
        return _Stop(reason)

    def _send(self, message: dict[str, Any]) -> None:
        pipe = _open(self.program.stdin)
        try:
            pipe.write(marshal.dumps(message))
            pipe.flush()
        except (BrokenPipeError, ValueError):
            raise self._stop("ended: the program ended before the tests did") from None

    def _receive(self) -> dict[str, Any]:
        line = _open(self.program.stdout).readline(REPLY_CAP + 1)
        if len(line) > REPLY_CAP:
            raise self._stop("failed: output limit")
        if not line.endswith(b"\n"):
            raise self._stop("ended: the program ended before the tests did")
        try:
            reply = ast.literal_eval(line.decode())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            reply = None
        if not isinstance(reply, dict):
            raise self._stop("failed: a malformed reply")
        return reply


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the program was started without pipes")
    return stream


def _text(error: Any) -> str:
    return ": ".join(str(part) for part in error)[:200] if isinstance(error, list) else "error"


def _error(error: Any) -> BaseException:
    """The exception that the program says it raised, as the builtin of that name or a RuntimeError."""
    name, message = (str(error[0]), str(error[1])) if isinstance(error, list) and len(error) == 2 else ("", "")
    kind = next((kind for kind in _exceptions() if kind.__name__ == name), None)
    try:
        return kind(message) if kind else RuntimeError(f"{name}: {message}")
    except TypeError:
        return RuntimeError(f"{name}: {message}")


def _exceptions() -> Iterator[type[Exception]]:
    for value in vars(builtins).values():
        if isinstance(value, type) and issubclass(value, Exception):
            yield value
