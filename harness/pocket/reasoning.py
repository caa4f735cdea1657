"""Reasoning: three of BIG-Bench Hard's algorithmic tasks (Suzgun et al. 2022), in its zero-shot prompt format.

    Q: not ( True and False ) or False is
    A: True
"""

import ast
import random

from .item import Item

PLURALS = {
    "fruits": ("melon", "banana", "grape", "lemon", "pear", "mango", "plum", "fig"),
    "animals": ("bear", "cat", "dog", "duck", "frog", "goat", "pig", "snail"),
    "instruments": ("drum", "flute", "harp", "piano", "trumpet", "violin", "banjo", "bell"),
}
NUMBERS = ("zero", "one", "two", "three", "four")
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
DYCK = "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input:"


def _item(question: str, answer: str, wrong: str, identity: str) -> Item:
    fields = {"input": question, "target": answer}
    return Item(f"Q: {question}\nA:", f" {answer}", f" {wrong}", identity, fields)


def boolean_expressions(rng: random.Random) -> Item:
    """The value of an expression of two to four literals; as many true as false."""
    wanted = rng.random() < 0.5
    while True:
        expression = _expression(rng, rng.randint(2, 4))
        if bool(eval(expression)) is wanted:
            break
    # The syntax tree forgets parentheses that change nothing.
    identity = ast.dump(ast.parse(expression, mode="eval"))
    return _item(f"{expression} is", str(wanted), str(not wanted), identity)


def _expression(rng: random.Random, literals: int) -> str:
    if literals == 1:
        text = rng.choice(("True", "False"))
    else:
        left = rng.randint(1, literals - 1)
        text = f"{_expression(rng, left)} {rng.choice(('and', 'or'))} {_expression(rng, literals - left)}"
        if rng.random() < 0.4:
            text = f"( {text} )"
    return f"not {text}" if rng.random() < 0.25 else text


def object_counting(rng: random.Random) -> Item:
    """How many objects of all, or of one kind, are in a list of two to four things."""
    kind = rng.choice(("objects", *PLURALS))
    everything = [(noun, name) for name, nouns in PLURALS.items() for noun in nouns]
    things = [(*thing, rng.randint(1, 4)) for thing in rng.sample(everything, rng.randint(2, 4))]
    count = sum(number for _, name, number in things if kind in ("objects", name))
    listed = [f"{NUMBERS[number]} {noun}s" if number > 1 else f"a {noun}" for noun, _, number in things]
    comma = "," if len(listed) > 2 else ""
    question = f"I have {', '.join(listed[:-1])}{comma} and {listed[-1]}. How many {kind} do I have?"
    wrong = rng.choice([value for value in range(max(0, count - 2), count + 3) if value != count])
    return _item(question, str(count), str(wrong), f"{kind}: {sorted(listed)}")


def dyck_languages(rng: random.Random) -> Item:
    """The brackets that close a sequence of three to eight."""
    symbols: list[str] = []
    stack: list[str] = []
    for _ in range(rng.randint(3, 8)):
        if stack and rng.random() < 0.4:
            symbols.append(BRACKETS[stack.pop()])
        else:
            stack.append(rng.choice(tuple(BRACKETS)))
            symbols.append(stack[-1])
    if not stack:
        return dyck_languages(rng)
    closing = [BRACKETS[symbol] for symbol in reversed(stack)]
    other = list(closing)
    place = rng.randrange(len(other))
    other[place] = rng.choice([symbol for symbol in BRACKETS.values() if symbol != other[place]])
    question = f"{DYCK} {' '.join(symbols)}"
    return _item(question, " ".join(closing), " ".join(other), " ".join(symbols))
