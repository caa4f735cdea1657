"""What kind of module a tensor belongs to, by its name: attention, mlp, embedding, norm, head or other."""

import re
from typing import Literal

from fusion.layout import BEFORE
from fusion.tokens import HEAD

Kind = Literal["attention", "mlp", "embedding", "norm", "head", "other"]
# In this order: an `attention_norm` is a norm, and a `self_attn.out_proj` no head.
NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)
INSIDE: dict[Kind, re.Pattern[str]] = {
    "attention": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|expert|moe|^fc\d?$|dense_?relu_?dense|^intermediate$", re.IGNORECASE),
}


def kind_of(name: str, in_layer: bool) -> Kind:
    """The kind of a tensor's module; in_layer: whether it is in the stack of layers (see layout.layers_of)."""
    parts = name.split(".")
    *above, module = parts[:-1] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts
    if NORM.search(module):
        return "norm"
    for kind, pattern in INSIDE.items():
        if any(pattern.search(part) for part in (*above, module)):
            return kind
    if in_layer:
        return "other"
    return "head" if HEAD.search(module) else "embedding" if BEFORE.search(name) else "other"
