"""How related models are, in one explicit table of measures."""

from fusion.kinship import weights
from fusion.kinship.measure import Measure

MEASURES: dict[str, Measure] = {"pcc": weights.PCC, "cosine": weights.COSINE, "euclidean": weights.EUCLIDEAN}
