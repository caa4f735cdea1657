"""The process that a generated program runs in: it defines the program's names and answers calls to them.

The file is self-contained and stdlib only: the supervisor passes its text to `python -I -S -c`, so that the process
needs no file of this package. Tests run in another process and see plain values, which `encode` and `decode` carry; any
other object stays here, and tests have a number for it, good only to be handed back: an object with an `__eq__` of its
own cannot reach a comparison.

To the program go marshalled dicts: {"program"}, then {"call", "args", "kwargs"}. From it come Python literals, one a
line: {"up"} before the program is read and {"ready": [names], "others": [names], "modules": [names]} after, then
{"value": ...}, {"unsendable": type} or {"error": [type, message]} a call. Marshal is not safe to read from a program,
and json would cost each process half of its start.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing's own import would double a program's start
    from collections.abc import Callable
    from typing import Any, BinaryIO

TAGGED = {"tuple": tuple, "set": set, "frozenset": frozenset}
TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, dict, *TAGGED.values())}
"""Those that a test may name to a program."""


def encode(value: Any, hold: Callable[[Any], Any]) -> Any:
    """A value as literals; `hold` says what stands for an object that is not plain, or raises TypeError.

    Subclasses of plain types become the plain type.
    """
    if value is None or isinstance(value, bool):
        return value
    for scalar in (int, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, dict):
        return {"dict": [[encode(key, hold), encode(item, hold)] for key, item in value.items()]}
    for tag, kind in TAGGED.items():
        if isinstance(value, kind):
            return {tag: [encode(item, hold) for item in value]}
    if isinstance(value, list):
        return [encode(item, hold) for item in value]
    return _rare(value, hold)


def _rare(value: Any, hold: Callable[[Any], Any]) -> Any:
    if isinstance(value, float):
        # Infinities and NaN have no literal.
        return float(value) if abs(value) < float("inf") else {"float": float.__repr__(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [encode(value.real, hold), encode(value.imag, hold)]}
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    return {"held": hold(value)}


def decode(wire: Any, held: Callable[[Any], Any]) -> Any:
    """The value that `encode` was given, `held` giving what stands for an object; ValueError for anything malformed."""
    if isinstance(wire, list):
        return [decode(item, held) for item in wire]
    if not isinstance(wire, dict):
        return wire
    if len(wire) != 1:
        raise ValueError("malformed value")
    ((tag, content),) = wire.items()
    if tag == "dict":
        return {decode(key, held): decode(item, held) for key, item in content}
    if tag in TAGGED:
        return TAGGED[tag](decode(item, held) for item in content)
    return _decode_rare(tag, content, held)


def _decode_rare(tag: str, content: Any, held: Callable[[Any], Any]) -> Any:
    if tag == "float":
        return float(content)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "complex":
        return complex(*(decode(item, held) for item in content))
    if tag == "type":
        return TYPES[content]
    if tag == "held":
        return held(content)
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
    _reply(replies, _names(namespace))
    kept: list[Any] = []
    while True:
        _reply(replies, _call(namespace, kept, marshal.load(requests)))


def _names(namespace: dict[str, Any]) -> dict[str, Any]:
    """What the program defines: functions and classes, modules that it has imported by their names, other objects."""
    ready = [name for name, value in namespace.items() if callable(value)]
    modules = [name for name, value in namespace.items() if value is sys.modules.get(name)]
    others = {*namespace} - {*ready, *modules}
    return {"ready": ready, "modules": modules, "others": sorted(name for name in others if name[:2] != "__")}


def _call(namespace: dict[str, Any], kept: list[Any], request: dict[str, Any]) -> dict[str, Any]:
    """Call what is named. An object that is kept has its place as its number, one of the program's its name."""

    def held(number: int | str) -> Any:
        return namespace[number] if isinstance(number, str) else kept[number]

    def hold(value: Any) -> list[Any]:
        kept.append(value)
        return [len(kept) - 1, type(value).__name__]

    try:
        arguments = [decode(item, held) for item in request["args"]]
        named = {key: decode(item, held) for key, item in request["kwargs"].items()}
        if request["call"] not in namespace:
            raise NameError(f"the program defines no '{request['call']}'")
        value = namespace[request["call"]](*arguments, **named)
    except BaseException as error:
        return _failure(error)
    try:
        return {"value": encode(value, hold)}
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
