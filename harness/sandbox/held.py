"""What a test has instead of an object of the program: a number to hand back, and nothing else.

MBPP's tests make objects of the program's classes and give them to its functions: `f([Pair(5, 24)])`.
"""

from collections.abc import Callable
from typing import Any, NoReturn

REFUSED = (
    *("eq", "ne", "lt", "le", "gt", "ge", "hash", "bool", "len", "iter", "next", "contains", "getitem", "call"),
    *("int", "float", "index", "complex", "round", "abs", "neg", "repr", "str", "format", "bytes", "reversed"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod"),
    *("pow", "rpow", "and", "rand", "or", "ror", "xor", "rxor", "enter", "getattr"),
)
"""The special methods by which a test would take it for a value, when the program would say what they give."""


class Held:
    """An object of the program, of which a test knows where it is kept and what its type calls itself."""

    __slots__ = ("_kind", "_misused", "_place")

    def __init__(self, place: int | str, kind: str, misused: Callable[[str], BaseException]) -> None:
        self._place, self._kind, self._misused = place, kind, misused


def _refuse(held: Held, *arguments: object) -> NoReturn:
    raise held._misused(held._kind)


for _name in REFUSED:
    setattr(Held, f"__{_name}__", _refuse)


def number_of(value: Any) -> int | str:
    """Where the program keeps what a Held stands for. TypeError for a value that is neither plain nor the program's."""
    if type(value) is not Held:
        raise TypeError(f"a value of type {type(value).__name__} cannot pass between program and test")
    return value._place
