"""What can go wrong in the engine, drawn as a tree. All of it is the user's to mend, so none of it needs a traceback.

FusionError
├── CheckpointError   weights missing, truncated, pickled or not readable; a tokenizer or config missing
├── MismatchError     models whose tensors do not agree; names every one of them
├── LineageError      models that share no ancestor
├── RecipeError       unknown method or parameter, a value out of range, a base that a method needs
├── TrainingError     an empty corpus, a loss that is not a number
└── RoundTripError    a text that a tokenizer does not give back byte by byte
"""


class FusionError(Exception):
    """A fault in what the engine was given; its text says what was found, where, and what to do."""


class CheckpointError(FusionError):
    """Weights, config or tokenizer that cannot be read."""


class MismatchError(FusionError):
    """Models that cannot be combined, with every tensor that differs."""


class LineageError(FusionError):
    """Models that come from different ancestors, with the numbers that say so."""


class RecipeError(FusionError):
    """A method, a parameter or a set of models that does not make sense."""


class TrainingError(FusionError):
    """Training that cannot start or must not go on."""


class RoundTripError(FusionError):
    """A text that a tokenizer does not give back byte by byte, with the bytes that differ."""
