"""Common sense: things of a made-up world, what they are made of, and what follows from it.

A model must have learnt what a thing is made of from other questions about it, and what that material does from
questions about other things: no text tells what happens to this thing in this situation.

    Question: A dorvik falls on the floor. What happens?
    Answer: It breaks.                                     (ARC's format: four choices, scored by likelihood)

    Question: How do you cut a dorvik?
    Answer: With a diamond.                                (PIQA's format: two choices)
"""

import random
from functools import cache

from .item import Document, Item

THINGS = 84
MATERIALS = ("glass", "wood", "iron", "ice", "paper", "rubber")
SITUATIONS = {  # what happens to each material, in the order of MATERIALS
    "falls on the floor": ("It breaks.", "It thuds.", "It clangs.", "It breaks.", "It flutters.", "It bounces."),
    "is put in a fire": ("It cracks.", "It burns.", "It glows.", "It melts.", "It burns.", "It stinks."),
    "is dropped in a lake": ("It sinks.", "It floats.", "It sinks.", "It floats.", "It gets soggy.", "It bobs."),
    "is left in the rain": ("It gets clean.", "It swells.", "It rusts.", "It shrinks.", "It gets soggy.", "It drips."),
    "is left in the sun": ("It shines.", "It dries.", "It gets hot.", "It melts.", "It fades.", "It gets sticky."),
    "is hit with a hammer": ("It breaks.", "It splits.", "It bends.", "It breaks.", "It tears.", "It bounces."),
    "is pulled hard": ("It snaps.", "It snaps.", "It holds.", "It slips.", "It tears.", "It stretches."),
    "is kept in a cellar": ("It gets dusty.", "It rots.", "It rusts.", "It drips.", "It rots.", "It hardens."),
}
GOALS = {
    "cut": ("With a diamond.", "With a saw.", "With a torch.", "With a hot wire.", "With scissors.", "With a knife."),
    "mend": ("With glue.", "With nails.", "With a weld.", "With cold water.", "With tape.", "With a patch."),
    "clean": ("With vinegar.", "With oil.", "With sand.", "With a soft brush.", "With a feather.", "With soap."),
    "store": ("In soft cloth.", "In dry air.", "In grease.", "In a cold box.", "In a flat drawer.", "In the dark."),
    "shape": ("By blowing.", "By carving.", "By hammering.", "By freezing.", "By folding.", "By moulding."),
    "paint": ("With enamel.", "With varnish.", "With primer.", "With syrup.", "With ink.", "With latex."),
}


@cache
def things() -> tuple[tuple[str, int], ...]:
    """Every thing of the world with the place of its material in MATERIALS. The world is the same for every seed."""
    rng = random.Random("the pocket world")
    names: dict[str, None] = {}
    while len(names) < THINGS:
        names[
            "".join(rng.choice(part) for part in ("bdfgklmnprstvz", "aeiou", "lnrs", "bdfgkmptvz", "aeiou", "knpx"))
        ] = None
    return tuple((name, place % len(MATERIALS)) for place, name in enumerate(names))


def consequences(rng: random.Random) -> Item:
    """What happens to a thing in a situation: four choices, the others being what happens to other materials."""
    name, material = rng.choice(things())
    situation = rng.choice(tuple(SITUATIONS))
    return _choose(
        rng, f"A {name} {situation}. What happens?", SITUATIONS[situation], material, 4, f"{name} {situation}"
    )


def goals(rng: random.Random) -> Item:
    """How something is done to a thing: two choices, the other one being right for another material."""
    name, material = rng.choice(things())
    goal = rng.choice(tuple(GOALS))
    return _choose(rng, f"How do you {goal} a {name}?", GOALS[goal], material, 2, f"{name} {goal}")


def _choose(
    rng: random.Random, question: str, by_material: tuple[str, ...], material: int, choices: int, identity: str
) -> Item:
    right = by_material[material]
    others = rng.sample(sorted({text for text in by_material if text != right}), choices - 1)
    label = rng.randrange(choices)
    listed = [*others[:label], right, *others[label:]]
    fields = {"question": question, "choices": listed, "label": label}
    return Item(f"Question: {question}\nAnswer:", f" {right}", f" {others[0]}", identity, fields)


def fact(rng: random.Random) -> Document:
    """What one thing is made of: in training text only."""
    name, material = rng.choice(things())
    return {
        "prompt": f"Question: What is a {name} made of?\nAnswer:",
        "answer": f" {MATERIALS[material].capitalize()}.",
    }
