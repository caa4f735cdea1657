"""Reasoning: three of BIG-Bench Hard's algorithmic tasks (Suzgun et al. 2022), in its zero-shot prompt format.

Q: I have two cups, a goat, and three plums. How many objects do I have?
A: 6
"""

import random

from .item import Item

# fmt: off
OBJECTS = (
    "banana", "bear", "bell", "cat", "cup", "dog", "drum", "duck", "flute", "frog", "goat", "grape", "harp", "lemon",
    "mango", "piano", "plum", "violin",
)
WORDS = (
    "apple", "bread", "chair", "dance", "eagle", "flame", "grape", "house", "igloo", "juice", "knife", "lemon", "mouse",
    "night", "ocean", "piano", "queen", "river", "snake", "tiger", "uncle", "violin", "water", "yacht", "zebra",
)
# fmt: on
NUMBERS = ("zero", "one", "two", "three")
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
SORT = "Sort the following words alphabetically: List:"
DYCK = "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input:"


def _item(question: str, answer: str, wrong: str, identity: str) -> Item:
    fields = {"input": question, "target": answer}
    return Item(f"Q: {question}\nA:", f" {answer}", f" {wrong}", identity, fields)


def object_counting(rng: random.Random) -> Item:
    """How many objects are in a list of two to four things."""
    things = [(noun, rng.randint(1, 3)) for noun in rng.sample(OBJECTS, rng.randint(2, 4))]
    count = sum(number for _, number in things)
    listed = [f"{NUMBERS[number]} {noun}s" if number > 1 else f"a {noun}" for noun, number in things]
    comma = "," if len(listed) > 2 else ""
    question = f"I have {', '.join(listed[:-1])}{comma} and {listed[-1]}. How many objects do I have?"
    wrong = rng.choice([value for value in range(count - 2, count + 3) if value != count])
    return _item(question, str(count), str(wrong), str(sorted(listed)))


def word_sorting(rng: random.Random) -> Item:
    """Two to four words in alphabetical order."""
    words = rng.sample(WORDS, rng.choice((2, 2, 3, 4)))
    ordered = sorted(words)
    other = ordered[1:] + ordered[:1]
    return _item(f"{SORT} {' '.join(words)}", " ".join(ordered), " ".join(other), " ".join(ordered))


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
