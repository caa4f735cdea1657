"""The process that a generated program runs in: it defines the program's names and answers calls to them.

The file is self-contained and stdlib only: the supervisor passes its text to `python -I -S -c`, so that the process
needs no file of this package. Tests run in another process and see plain values only, which `encode` and `decode`
carry; an object with an `__eq__` of its own cannot reach a comparison.

Wire format, one JSON document a line. To the program: {"program", "cpu_s", "memory_mb", ...}, then
{"call", "args", "kwargs"}. From it: {"ready": [names]}, then {"value": ...}, {"unsendable": type} or
{"error": [type, message]} a call.
"""

import json
import os
import signal
import sys
from typing import Any, BinaryIO

TAGGED = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """A plain value as JSON; TypeError for anything else. Subclasses of plain types become the plain type."""
    if value is None or isinstance(value, bool):
        return value
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for tag, kind in TAGGED.items():
        if isinstance(value, kind):
            return {tag: [encode(item) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"a value of type {type(value).__name__} cannot pass between program and test")


def decode(wire: Any) -> Any:
    """The value that `encode` was given; ValueError for anything malformed."""
    if isinstance(wire, list):
        return [decode(item) for item in wire]
    if not isinstance(wire, dict):
        return wire
    if len(wire) != 1:
        raise ValueError("malformed value")
    ((tag, content),) = wire.items()
    if tag == "dict":
        return {decode(key): decode(item) for key, item in content}
    if tag in TAGGED:
        return TAGGED[tag](decode(item) for item in content)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "complex":
        return complex(*content)
    raise ValueError("malformed value")


def set_limits(memory_mb: int, cpu_s: int, file_mb: int = 1, files: int = 32, processes: int = 16) -> None:
    """Resource limits of this process and its children. NPROC counts per user, and does not bind root."""
    import resource

    for which, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_mb << 20),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_NPROC, processes),
    ):
        hard = resource.getrlimit(which)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (value, value))


def prctl(option: int, value: int) -> bool:
    """Linux's prctl(option, value); False where there is none."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    return ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux)."""
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Serve one program on standard input and output until the input closes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    # What the program prints must neither reach the replies nor fill a pipe.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    die_with_parent()
    job = json.loads(requests.readline())
    sys.set_int_max_str_digits(0)
    set_limits(job["memory_mb"], job["cpu_s"])
    namespace: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(job["program"], "<program>", "exec"), namespace)
    except BaseException as error:
        _reply(replies, _failure(error))
        return
    _reply(replies, {"ready": [name for name, value in namespace.items() if callable(value)]})
    for line in requests:
        _reply(replies, _call(namespace, json.loads(line)))


def _call(namespace: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = [decode(item) for item in request["args"]]
        named = {key: decode(item) for key, item in request["kwargs"].items()}
        if request["call"] not in namespace:
            raise NameError(f"the program defines no '{request['call']}'")
        value = namespace[request["call"]](*arguments, **named)
    except BaseException as error:
        return _failure(error)
    try:
        return {"value": encode(value)}
    except BaseException:
        return {"unsendable": type(value).__name__}


def _failure(error: BaseException) -> dict[str, Any]:
    try:
        message = str(error)[:200]
    except BaseException:
        message = ""
    return {"error": [type(error).__name__, message]}


def _reply(replies: BinaryIO, message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(replies.fileno(), line) :]
