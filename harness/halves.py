"""Scores on two halves of the items, so that what is held fixed and what is explained share no luck.

A gain contains minus the parents' score: a parent that was lucky on these items looks strong and its merges look bad.
Covariates from one half and the gain on the other do not share that luck.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.stats import Scores

Array = NDArray[np.float64]


class Halves(NamedTuple):
    """Every model's mean score by task, on each half of the items: means[half][model] is (tasks,).

    groups: which tasks a group has, (groups, tasks) shares that sum to one in each row.
    """

    means: tuple[dict[str, Array], dict[str, Array]]
    groups: Array

    def overall(self, half: int, model: str) -> float:
        """Mean over groups of the mean over tasks, on one half."""
        return float((self.groups @ self.means[half][model]).mean())

    def parents(self, half: int, names: Sequence[str]) -> tuple[float, float]:
        """Mean, and largest less smallest, of the models' overall scores on one half."""
        scores = [self.overall(half, name) for name in names]
        return float(np.mean(scores)), max(scores) - min(scores)

    def gains(self, half: int, name: str, parents: Sequence[str], base: str | None) -> dict[str, float]:
        """The gains of a candidate on one half; its best parent is the one that is best on the other half."""
        of = self.means[half]
        best = max(parents, key=lambda parent: self.overall(1 - half, parent))
        apart = self.groups @ (of[name] - of[best])
        found = {"best": float(apart.mean()), "worst": float(apart.min())}
        found["mean"] = self.overall(half, name) - self.parents(half, parents)[0]
        if base is not None and base in of:
            found["base"] = self.overall(half, name) - self.overall(half, base)
        highest = np.max([of[parent] for parent in parents], axis=0)
        if (highest > 0).any():
            found["retention"] = float((of[name][highest > 0] / highest[highest > 0]).mean())
        return found


def halve(scores: Mapping[str, Scores]) -> Halves | None:
    """Split the items of every task in two, by a hash of their position; None where a task has a single item.

    Raises UsageError for models that were not scored on the same tasks and items.
    """
    first = next(iter(scores.values()))
    tasks = [(group, task) for group in sorted(first) for task in sorted(first[group])]
    sizes = {at: np.atleast_2d(first[at[0]][at[1]]).shape[1] for at in tasks}
    if not tasks or min(sizes.values()) < 2:
        return None
    chosen = {at: _first_half(*at, n) for at, n in sizes.items()}
    means: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    for name, found in scores.items():
        if {(g, t): np.atleast_2d(found[g][t]).shape[1] for g in found for t in found[g]} != sizes:
            raise UsageError(f"models are compared on the same tasks and items only; '{name}' was scored on others")
        for half in (0, 1):
            of = [np.atleast_2d(found[g][t])[:, chosen[g, t] == (half == 0)].mean() for g, t in tasks]
            means[half][name] = np.array(of)
    groups = np.equal.outer(sorted(first), [group for group, _ in tasks]).astype(np.float64)
    return Halves(means, groups / groups.sum(axis=1, keepdims=True))


def _first_half(group: str, task: str, n: int) -> NDArray[np.bool_]:
    place = sorted(range(n), key=lambda i: hashlib.sha256(f"{group}/{task}/{i}".encode()).digest())
    chosen = np.zeros(n, dtype=bool)
    chosen[place[: (n + 1) // 2]] = True
    return chosen
