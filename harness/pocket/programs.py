"""Code: small Python functions in HumanEval's format (Chen et al. 2021), checked by running them.

    def mix(x):
        \"\"\"Add 3 to x, then multiply by 2.\"\"\"
        return (x + 3) * 2

Two functions are the same question when they agree on the check's inputs, whatever their names and words.
A prompt stops before the line break, as in bigcode's harness (HumanEval's own ends after it): a tokenizer that joins
the line break with the next line's indentation would never have seen that end in training.
"""

import random
from collections.abc import Callable

from .item import Item

NAMES = ("change", "mix", "turn", "work", "make", "apply", "step", "move", "form", "build")
STEPS = {  # name: (first step, later step, expression)
    "add": ("Add {c} to x", "add {c}", "{x} + {c}"),
    "subtract": ("Subtract {c} from x", "subtract {c}", "{x} - {c}"),
    "multiply": ("Multiply x by {c}", "multiply by {c}", "{x} * {c}"),
    "divide": ("Divide x by {c}", "divide by {c}", "{x} // {c}"),
    "remainder": ("Take x modulo {c}", "take it modulo {c}", "{x} % {c}"),
    "square": ("Square x", "square it", "{x} ** 2"),
    "negate": ("Negate x", "negate it", "-{x}"),
    "larger": ("Take the larger of x and {c}", "take the larger of it and {c}", "max({x}, {c})"),
    "smaller": ("Take the smaller of x and {c}", "take the smaller of it and {c}", "min({x}, {c})"),
    "distance": ("Take the distance of x from {c}", "take its distance from {c}", "abs({x} - {c})"),
    "double": ("Double x", "double it", "{x} * 2"),
}
KEEP = {
    "above": ("above {c}", "x > {c}"),
    "below": ("below {c}", "x < {c}"),
    "even": ("that are even", "x % 2 == 0"),
    "odd": ("that are odd", "x % 2 == 1"),
    "not": ("other than {c}", "x != {c}"),
    "multiples": ("that are multiples of {c}", "x % {c} == 0"),
    "far": ("that are more than {c} from zero", "abs(x) > {c}"),
}
EACH = {
    "add": ("add {c} to each", "x + {c}"),
    "subtract": ("subtract {c} from each", "x - {c}"),
    "multiply": ("multiply each by {c}", "x * {c}"),
    "square": ("square each", "x ** 2"),
    "same": ("leave each as it is", "x"),
    "negate": ("negate each", "-x"),
    "smaller": ("replace each above {c} by {c}", "min(x, {c})"),
}
LAST = {
    "list": ("return the list", "{l}"),
    "sum": ("return the sum", "sum({l})"),
    "sorted": ("return them sorted", "sorted({l})"),
    "reverse": ("return them in reverse", "{l}[::-1]"),
    "first": ("return the first two", "{l}[:2]"),
    "count": ("return how many there are", "len({l})"),
    "unique": ("return how many different ones there are", "len(set({l}))"),
}
NUMBER_PROBES = (0, 1, 2, 5, 7, 10, 13, 28, -3, -8)
LIST_PROBES: tuple[list[int], ...] = (
    [],
    [1],
    [4, 9, 2],
    [3, 3, 8, 1, 6],
    [10, -2, 7, 5, 5, 0],
    [12, 11, -7, 2, 6, 8, 9, 3, 1, 4, 7, 5],
)


def _constant(rng: random.Random) -> int:
    return rng.randint(2, 9)


def number_functions(rng: random.Random) -> Item:
    """One to three steps of arithmetic on a whole number."""
    chosen = [(rng.choice(tuple(STEPS)), _constant(rng)) for _ in range(rng.choice((1, 2, 2, 3)))]
    other = list(chosen)
    place = rng.randrange(len(other))
    other[place] = (rng.choice([name for name in STEPS if name != chosen[place][0]]), _constant(rng))
    first, *rest = [STEPS[name][min(at, 1)].format(c=c) for at, (name, c) in enumerate(chosen)]
    words = ", then ".join([first, *rest]) + "."
    right, wrong = _steps(chosen), _steps(other)
    if _values("x", right, NUMBER_PROBES) == _values("x", wrong, NUMBER_PROBES):
        return number_functions(rng)
    return _item(rng, "x", words, right, wrong, NUMBER_PROBES)


def _steps(chosen: list[tuple[str, int]]) -> str:
    expression = "x"
    for at, (name, constant) in enumerate(chosen):
        template = STEPS[name][2]
        expression = template.format(x=f"({expression})" if at and template[0] in "{-" else expression, c=constant)
    return expression


def list_functions(rng: random.Random) -> Item:
    """Choose among the numbers of a list, change each, and return them in some way."""
    chosen = [(rng.choice(tuple(table)), _constant(rng)) for table in (KEEP, EACH, LAST)]
    place = rng.randrange(3)
    table = (KEEP, EACH, LAST)[place]
    other = list(chosen)
    other[place] = (rng.choice([name for name in table if name != chosen[place][0]]), _constant(rng))
    keep, each, last = (table[name][0].format(c=c) for table, (name, c) in zip((KEEP, EACH, LAST), chosen, strict=True))
    words = f"Take the numbers {keep}, {each} and {last}."
    right, wrong = _comprehension(chosen), _comprehension(other)
    if _values("xs", right, LIST_PROBES) == _values("xs", wrong, LIST_PROBES):
        return list_functions(rng)
    return _item(rng, "xs", words, right, wrong, LIST_PROBES)


def _comprehension(chosen: list[tuple[str, int]]) -> str:
    keep, each, last = (
        table[name][1].format(c=c, l="{l}") for table, (name, c) in zip((KEEP, EACH, LAST), chosen, strict=True)
    )
    return last.format(l=f"[{each} for x in xs if {keep}]")


def _values(argument: str, expression: str, probes: tuple[object, ...]) -> list[object]:
    function: Callable[[object], object] = eval(f"lambda {argument}: {expression}")
    return [function(probe) for probe in probes]


def _item(rng: random.Random, argument: str, words: str, right: str, wrong: str, probes: tuple[object, ...]) -> Item:
    name = rng.choice(NAMES)
    values = _values(argument, right, probes)
    checks = "".join(f"    assert candidate({probe}) == {value}\n" for probe, value in zip(probes, values, strict=True))
    prompt = f'def {name}({argument}):\n    """{words}"""'
    fields = {
        "prompt": prompt,
        "canonical_solution": f"\n    return {right}",
        "test": f"def check(candidate):\n{checks}",
        "entry_point": name,
    }
    return Item(prompt, f"\n    return {right}", f"\n    return {wrong}", f"{argument}: {values}", fields)
