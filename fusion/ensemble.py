"""Models combined at their outputs: how their next-token distributions, or their likelihoods of a text, become one.

With weights w_k that sum to 1 over models k, for tokens v and items x:

    mean_prob            p(v|x) = sum_k w_k p_k(v|x)                      a mixture of the models
    mean_logit           p(v|x) = softmax_v(sum_k w_k z_k(v|x))           a product of experts; z: logits
    perplexity_weighted  mean_logit, w_k(x) = softmax_k(-log PPL_k(x))    PPL_k: model k's perplexity of x's prompt
    routed               mean_prob, w_k(x) = q_k(x) / sum_j q_j(x)        q_k: the density of model k's domain at x

mean_prob is the linear opinion pool, mean_logit the logarithmic one (Genest & Zidek 1986, Statistical Science 1:114).
perplexity_weighted is PackLLM-sim ("Pack of LLMs", arXiv:2404.11531) at temperature 1. routed is "Synthetic Model
Combination" (Chan & van der Schaar 2022, arXiv:2210.05320): a model counts as far as the item looks like what it was
made for; its density is fitted to a text of its domain (see Domains).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusion.checkpoint import read_json
from fusion.errors import RecipeError

COMBINE = ("mean_prob", "mean_logit", "perplexity_weighted", "routed")
"""The ways to combine; the first two take weights from who asks, the others find an item's own."""
GIVEN, ARITHMETIC = frozenset({"mean_prob", "mean_logit"}), frozenset({"mean_prob", "routed"})
DOMAINS = "domains.safetensors"
"""What the file of an ensemble's domains is called."""


def combined(
    logits: Float[Tensor, "models rows vocabulary"], weights: Float[Tensor, "models rows"], combine: str
) -> Float[Tensor, "rows vocabulary"]:
    """The ensemble's next-token log-probabilities, in nats; weights sum to 1 over models in every row."""
    return mean(logits.log_softmax(-1), weights[..., None], combine).log_softmax(-1)


def mean(
    log_probs: Float[Tensor, "models ..."], weights: Float[Tensor, "models ..."], combine: str
) -> Float[Tensor, "..."]:
    """Log-probabilities (nats) averaged as probabilities, or as logits are: then they need not sum to 1.

    Of whole texts the first is the probability that the mixture gives them; it needs no common tokenizer.
    """
    weights = weights.to(log_probs)
    if combine in ARITHMETIC:
        return (log_probs + weights.log()).logsumexp(0)
    return (weights * log_probs).sum(0)


def normalised(weights: Sequence[float] | None, models: int) -> Float[Tensor, " models"]:
    """Weights that sum to 1; equal ones where none are given."""
    given = torch.tensor(weights if weights is not None else [1.0] * models, dtype=torch.float64)
    return given / given.sum()


def perplexity_weights(
    nats: Float[Tensor, "models items"], tokens: Int[Tensor, " items"]
) -> Float[Tensor, "models items"]:
    """Each model's weight for items of whose prompts `tokens` tokens cost it `nats`; equal where none was predicted."""
    return (-nats / tokens.clamp(min=1)).softmax(0)


def pooled(embeddings: Float[Tensor, "vocabulary features"], ids: Sequence[int]) -> Float[Tensor, " features"]:
    """A text as one point: the mean of its tokens' embeddings, in float64."""
    return embeddings[torch.tensor(ids, device=embeddings.device)].double().mean(0).cpu()


@dataclass(frozen=True)
class Domains:
    """A Gaussian density for each model's domain, with a mean of its own and one covariance for all of them.

    Over points of one representation that all texts share (`pooled`). With one covariance S and means m_k the domains'
    posterior is softmax_k(z . S^-1 m_k - m_k . S^-1 m_k / 2): `slopes` and `offsets` are all that is kept. S is the
    scatter within the domains, drawn towards a multiple of the unit matrix by as much as its sampling error asks for
    (Ledoit & Wolf 2004, J. Multivar. Anal. 88:365), since there are often fewer texts than features.
    """

    slopes: Float[Tensor, "models features"]
    offsets: Float[Tensor, " models"]

    @classmethod
    def fit(cls, points: Mapping[str, Float[Tensor, "_ features"]]) -> "Domains":
        """The densities of some texts' points [texts, features], by model.

        Raises RecipeError for a domain of fewer than two texts, and where the texts of every domain are all alike.
        """
        few = [name for name, found in points.items() if len(found) < 2]
        if few:
            raise RecipeError(f"the corpus of {', '.join(few)} has fewer than two documents: no domain shows in that")
        means = torch.stack([found.double().mean(0) for found in points.values()])
        inside = torch.cat([found.double() - mean for found, mean in zip(points.values(), means, strict=True)])
        if not bool(inside.any()):
            raise RecipeError("the documents of every corpus are all alike: no domain has a spread to be known by")
        slopes = torch.linalg.solve(_covariance(inside), means.T).T
        return cls(slopes, -(slopes * means).sum(1) / 2)

    def posterior(self, points: Float[Tensor, "items features"]) -> Float[Tensor, "models items"]:
        """How likely each model's domain is for some texts, all domains being as likely before."""
        return (self.slopes @ points.double().T + self.offsets[:, None]).softmax(0)

    def save(self, path: Path) -> None:
        save_file({"slopes": self.slopes.contiguous(), "offsets": self.offsets}, path)

    @classmethod
    def load(cls, path: Path) -> "Domains":
        """What `save` wrote."""
        return cls(**load_file(path))


def _covariance(points: Float[Tensor, "texts features"]) -> Float[Tensor, "features features"]:
    """Of points around 0, shrunk towards a multiple of the unit matrix."""
    count, features = points.shape
    scatter = points.T @ points / count
    unit = torch.eye(features, dtype=points.dtype) * scatter.trace() / features
    spread = (scatter - unit).square().sum()
    error = (points.square().sum(1).square().mean() - scatter.square().sum()) / count
    share = 1.0 if spread == 0 else min(1.0, float(error.clamp(min=0) / spread))
    return share * unit + (1 - share) * scatter


def identity(
    models: Sequence[str], dtypes: Sequence[str], combine: str, weights: Sequence[float] | None, domains: Path | None
) -> str:
    """Who an ensemble is: its members' digests in their order, what they are run in, and how they are combined."""
    about = {
        "models": list(models),
        "dtypes": list(dtypes),
        "combine": combine,
        "weights": normalised(weights, len(models)).tolist() if combine in GIVEN else None,
        "domains": None if domains is None else hashlib.sha256(domains.read_bytes()).hexdigest(),
    }
    return "sha256:" + hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def vocabulary_digest(folder: Path) -> str | None:
    """Which number each token has, by tokenizer.json; None where a model has no such file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = read_json(file)
    numbers = tokenizer["model"].get("vocab", {})
    pieces = numbers.items() if isinstance(numbers, dict) else ((one[0], place) for place, one in enumerate(numbers))
    added = ((one["content"], one["id"]) for one in tokenizer.get("added_tokens", ()))
    return hashlib.sha256(json.dumps(sorted({*pieces, *added})).encode()).hexdigest()


def apart(names: Sequence[str], tasks: Sequence[str]) -> str:
    """What is wrong with an ensemble of different tokenizers, and what it was to be asked."""
    asked = f"they cannot answer {', '.join(tasks)}" if tasks else "this is none"
    return (
        f"{', '.join(names)} have different tokenizers, so together they answer multiple choice only, and {asked}: "
        "leave those groups to other suites, or combine models of one tokenizer"
    )
