"""How related models are, in one explicit table of measures."""

from fusion.kinship.behaviour import BEHAVIOUR
from fusion.kinship.measure import Measure
from fusion.kinship.representation import REPRESENTATION
from fusion.kinship.weights import WEIGHTS

MEASURES: dict[str, Measure] = {**WEIGHTS, **REPRESENTATION, **BEHAVIOUR}

# What is measured where nothing is asked for: the kinship paper's three, what makes them comparable between families of
# models, and what is known of models whose weights cannot be compared.
DEFAULT = ("pcc", "cosine", "euclidean", "relative_euclidean", "norm_ratio", "capa")
