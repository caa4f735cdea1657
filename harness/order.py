"""Which models must exist before which: parents first, and a cycle is a problem."""

from collections.abc import Mapping, Sequence

from fusion.params import Problem
from harness.spec import Candidate, Model, Trained
from harness.yamlfile import Key


def parents_first(models: Mapping[str, Model]) -> tuple[dict[str, Model], list[Problem]]:
    """The models, parents before children and otherwise as written, and what is wrong with who is made of whom."""
    problems = [problem for model in models.values() for problem in _bad_parents(model, models)]
    done: dict[str, Model] = {}
    left = {name: [parent for parent in _needs(model) if parent in models] for name, model in models.items()}
    while ready := [name for name, needs in left.items() if all(need in done for need in needs)]:
        for name in ready:
            done[name] = models[name]
            del left[name]
    if left:
        name = next(name for name, needs in left.items() if any(need in left for need in needs))
        circle = " -> ".join(_cycle(name, left))
        problems.append(Problem(_place(models[name]), f"these are made of each other: {circle}"))
    return done, problems


def _bad_parents(model: Model, models: Mapping[str, Model]) -> list[Problem]:
    """Parents that are not one model: a swept row, or a candidate with several seeds."""
    problems = []
    for parent in _needs(model):
        points = [n for n, m in models.items() if isinstance(m, Candidate) and m.row == parent != n]
        if points and parent not in models:
            text = f"'{parent}' is swept and so is no single model; name one of {', '.join(points)}"
            problems.append(Problem(_place(model), text))
        found = models.get(parent)
        if isinstance(found, Candidate) and len(found.seeds) > 1:
            text = f"'{parent}' has {len(found.seeds)} seeds and so is no single model to build from"
            problems.append(Problem(_place(model), text))
    return problems


def _needs(model: Model) -> tuple[str, ...]:
    """The models that must exist before this one."""
    if isinstance(model, Trained):
        return (model.parent,) if model.parent else ()
    if isinstance(model, Candidate):
        return model.parents + ((model.base,) if model.base else ())
    return ()


def _place(model: Model) -> Key:
    return ("candidates", model.row) if isinstance(model, Candidate) else ("models", model.name)


def _cycle(start: str, needs: Mapping[str, Sequence[str]]) -> list[str]:
    seen = [start]
    while (following := next(need for need in needs[seen[-1]] if need in needs)) not in seen:
        seen.append(following)
    return [*seen[seen.index(following) :], following]
