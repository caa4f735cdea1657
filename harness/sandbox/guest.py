"""The process that a generated program runs in: it defines the program's names and answers calls to them.

The file is self-contained and stdlib only: the supervisor passes its text to `python -I -S -c`, so that the process
needs no file of this package. Tests run in another process and see plain values only, which `encode` and `decode`
carry; an object with an `__eq__` of its own cannot reach a comparison.

To the program go marshalled dicts: {"program"}, then {"call", "args", "kwargs"}. From it come Python literals, one a
line: {"up"} before the program is read and {"ready": [names]} after, then {"value": ...}, {"unsendable": type} or
{"error": [type, message]} a call. Marshal is not safe to read from a program, and json would cost each process half of
its start.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing's own import would double a program's start
    from typing import Any, BinaryIO

TAGGED = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """A plain value as literals; TypeError for anything else. Subclasses of plain types become the plain type."""
    if value is None or isinstance(value, bool):
        return value
    for scalar in (int, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for tag, kind in TAGGED.items():
        if isinstance(value, kind):
            return {tag: [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    return _rare(value)


def _rare(value: Any) -> Any:
    if isinstance(value, float):
        # Infinities and NaN have no literal.
        return float(value) if abs(value) < float("inf") else {"float": float.__repr__(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
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
    if tag == "float":
        return float(content)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "complex":
        return complex(*map(decode, content))
    raise ValueError("malformed value")


def main() -> None:
    """Serve one program on standard input and output until the input closes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    # What the program prints must neither reach the replies nor fill a pipe.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.set_int_max_str_digits(0)
    _reply(replies, {"up": True})
    namespace: dict[str, Any] = {"__name__": "program"}
    try:
        program = marshal.load(requests)["program"]
        exec(compile(program, "<program>", "exec"), namespace)
    except BaseException as error:
        _reply(replies, _failure(error))
        return
    _reply(replies, {"ready": [name for name, value in namespace.items() if callable(value)]})
    while True:
        _reply(replies, _call(namespace, marshal.load(requests)))


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
    line = ascii(message).encode() + b"\n"
    while line:
        line = line[os.write(replies.fileno(), line) :]
