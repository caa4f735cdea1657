"""Which models are asked in their chat templates: all of a comparison alike, unless the suite says otherwise."""

from collections.abc import Collection, Sequence

from harness.errors import UsageError
from harness.facts import Facts
from harness.spec import Candidate, Model, Source, Suite, Trained


def templated(suite: Suite, facts: Facts) -> frozenset[str]:
    """The names of the models that are asked in their chat templates.

    A model's own `chat:` decides, which what is made of it inherits, else the suite's. Those for which that is "auto"
    are all asked so if each has a template and none is a base (of a candidate's task vectors, or of kinship), else none
    is. Raises UsageError that names every model for which it is "on" and that has no template.
    """
    asked = {name: _said(suite, model) or suite.chat for name, model in suite.models.items()}
    lacking = [name for name, word in asked.items() if word == "on" and _template(suite, facts, name) is False]
    named = [name for name in lacking if donor(suite.models[name]) not in lacking]
    if named:
        raise UsageError(
            f"`chat: on` asks for a chat template, and {', '.join(named)} {'has' if len(named) == 1 else 'have'} "
            "none: put chat_template.jinja into the model's folder, say `chat: off` of it, or `chat: auto` of the suite"
        )
    auto = [name for name, word in asked.items() if word == "auto"]
    bases = {m.base for m in suite.models.values() if isinstance(m, Candidate) and not m.merges_base}
    together = all(_template(suite, facts, name) for name in auto) and not {*bases, suite.kinship_base} & {*auto}
    return frozenset(name for name, word in asked.items() if word == "on" or (word == "auto" and together))


def insisted(suite: Suite) -> frozenset[str]:
    """The models for which `chat: on` is said: only they are asked in it to go on with a program, too."""
    return frozenset(name for name, model in suite.models.items() if (_said(suite, model) or suite.chat) == "on")


def words(names: Sequence[str], chat: Collection[str]) -> str | None:
    """Who of some models is asked in a chat template, for people; None where nobody is."""
    asked = [name for name in names if name in chat]
    plainly = [name for name in names if name not in chat]
    if not asked:
        return None
    return f"asked in their chat templates: {', '.join(asked) if plainly else 'all models'}" + (
        f"; plainly: {', '.join(plainly)}" if plainly else ""
    )


def donor(model: Model) -> str | None:
    """The model whose tokenizer, and with it the chat template, a model has; None where it is its own."""
    if isinstance(model, Source):
        return None
    if isinstance(model, Trained):
        return model.parent
    first = model.target or model.base or model.models[0]
    return first if model.tokenizer in (None, "base", "union") else model.tokenizer


def _said(suite: Suite, model: Model) -> str | None:
    """What a model, or the one whose tokenizer it has, says of its own; None where nothing is said."""
    own = None if isinstance(model, Candidate) else model.chat
    parent = donor(model)
    return own if own is not None or parent is None else _said(suite, suite.models[parent])


def _template(suite: Suite, facts: Facts, name: str) -> bool | None:
    """Whether a model has a chat template; None where it is not on this machine yet."""
    model = suite.models[name]
    if isinstance(model, Source):
        return facts.folders[name].chat
    parent = donor(model)
    return False if parent is None else _template(suite, facts, parent)
