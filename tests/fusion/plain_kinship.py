"""Measures of kinship between two task vectors, flattened, as their definitions say, in float64."""

import numpy as np


def plain(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Those that need no more than the vectors' lengths and products."""
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    return {
        "pcc": float(np.corrcoef(x, y)[0, 1]),
        "cosine": float(x @ y / lengths[0] / lengths[1]),
        "euclidean": float(np.linalg.norm(x - y)),
        "relative_euclidean": float(np.linalg.norm(x - y) / np.sqrt(lengths[0] * lengths[1])),
        "norm_ratio": float(min(lengths) / max(lengths)),
    }


def plain_signs(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """How often the signs agree where both vectors are not 0, and by how much that is more than chance."""
    both = (x != 0) & (y != 0)
    agreement = float((np.sign(x) == np.sign(y))[both].mean())
    p, q = float((x[both] > 0).mean()), float((y[both] > 0).mean())
    return {"sign_agreement": agreement, "sign_excess": agreement - (p * q + (1 - p) * (1 - q))}
