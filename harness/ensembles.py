"""Models that answer together: an LM of lm-eval's whose next-token distribution is combined from its members'.

Members that number the same tokens alike are combined token by token, in likelihoods and in generation. Members of
different tokenizers are combined by what each gives a whole choice, which is enough for multiple choice and for nothing
else: the tokens of one mean nothing to another. All members are in memory at once.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from torch.nn import functional

from fusion import ensemble
from fusion.corpus import Document, text_of
from fusion.ensemble import Domains
from fusion.modelref import Ensemble
from harness.errors import TaskError

Request = tuple[Any, list[int], list[int]]
"""lm-eval's: what it was made of, the context's tokens, the choice's tokens."""
DOCUMENTS, LONGEST = 1024, 2048
"""Of a domain's corpus evenly spread documents are read, and of each its first tokens."""


@dataclass(frozen=True)
class Asked:
    """A request's place, its choice, and what an item's weights come from: the prompt, empty where there is none."""

    index: int
    choice: list[int]
    prompt: list[int]


class EnsembleLM(HFLM):
    """Members behind one tokenizer, the first one's; context and stops are those that suit them all.

    Log-likelihoods are natural and in float32. Text is drawn from the combined distribution by what a task asks
    (greedily, or by temperature, top_p and top_k): of members' generation configs only the end-of-text tokens hold.
    """

    def __init__(self, members: Sequence[Any], ref: Ensemble) -> None:
        first = members[0]
        longest = min(member.max_length for member in members)
        super().__init__(pretrained=first.model, tokenizer=first.tokenizer, batch_size=1, max_length=longest)
        self.members, self.names = list(members), [name for name, _ in ref.models]
        self.combine = ref.combine
        self.given = ensemble.normalised(ref.weights, len(members))
        self.domains = None if ref.domains is None else Domains.load(Path(ref.domains))
        self.by_token = all(_numbering(member) == _numbering(first) for member in members)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy generation gives it) of continuations.

        With different tokenizers: of the mean_prob kinds the probability that the mixture of the members gives the
        whole text, of the mean_logit kinds the mean of the members' log-likelihoods, which nothing normalises; greedy
        where each member's is.
        """
        if self.by_token:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        if not requests:
            return []
        found = [member.loglikelihood(requests, disable_tqdm=disable_tqdm) for member in self._sized()]
        weights = self._weights_of_texts([request.args[0] for request in requests])
        likelihoods = torch.tensor([[answer[0] for answer in answers] for answers in found], dtype=torch.float64)
        together = ensemble.mean(likelihoods, weights, self.combine).tolist()
        greedy = [all(answer[1] for answer in each) for each in zip(*found, strict=True)]
        return list(zip(together, greedy, strict=True))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of documents. There is no prompt, so weights that come from one are equal."""
        self._check_tokens()
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """The texts up to the stops, token by token from the combined distribution."""
        self._check_tokens()
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _check_tokens(self) -> None:
        if not self.by_token:
            raise TaskError(ensemble.apart(self.names, []))

    # -- likelihoods ------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Request], **named: Any) -> list[tuple[float, bool]]:
        """Rows that are read alike are read once, the longest first, `batch_size` at a time, as lm-eval does."""
        rows = _rows(requests, self.max_length)
        ordered = sorted(rows, key=lambda tokens: (-len(tokens), tokens))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(ordered), self.batch_size):
            found |= self._answers({tokens: rows[tokens] for tokens in ordered[start : start + self.batch_size]})
        return [found[index] for index in range(len(requests))]

    def _answers(self, rows: Mapping[tuple[int, ...], Sequence[Asked]]) -> dict[int, tuple[float, bool]]:
        read = [self._read(member, rows) for member in self.members]
        found = {}
        for place, asked in enumerate(rows.values()):
            for one in asked:
                kept = [logits[place][-len(one.choice) :] for logits, _ in read]
                spent = [float(nats[place][: max(0, len(one.prompt) - 1)].sum()) for _, nats in read]
                weights = self._weights([one.prompt], torch.tensor(spent, dtype=torch.float64)[:, None])
                log_probs = self._combined(kept, weights.expand(-1, len(one.choice)))
                tokens = torch.tensor(one.choice, device=log_probs.device)
                likelihood = log_probs.gather(1, tokens[:, None]).sum()
                found[one.index] = (float(likelihood), bool((log_probs.argmax(-1) == tokens).all()))
        return found

    def _read(self, member: Any, rows: Mapping[tuple[int, ...], Sequence[Asked]]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each row, one member's logits for its longest choice, and what each token cost it where that is needed."""
        width = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        logits = member._model_call(tokens)
        kept, nats = [], []
        for row, asked, found in zip(rows, rows.values(), logits, strict=True):
            longest = max(len(one.choice) for one in asked)
            # A copy: a view would keep all of every member's logits in memory.
            kept.append(found[len(row) - longest : len(row)].to(torch.float32, copy=True))
            nats.append(_nats(found[: len(row)], row) if self.combine == "perplexity_weighted" else torch.zeros(0))
        return kept, nats

    def _combined(self, logits: Sequence[Tensor], weights: Float[Tensor, "models rows"]) -> Tensor:
        """Log-probabilities [rows, vocabulary]; what some member pads its vocabulary with is no token."""
        width = min(one.shape[-1] for one in logits)
        each = torch.stack([one[..., :width].float().to(self.device) for one in logits])
        return ensemble.combined(each, weights.to(each), self.combine)

    # -- weights ----------------------------------------------------------------------------------------------------

    def _weights(
        self, prompts: Sequence[Sequence[int]], nats: Float[Tensor, "models prompts"]
    ) -> Float[Tensor, "models prompts"]:
        """The members' weights for some prompts, whose tokens but the first cost each member `nats`."""
        if self.combine == "perplexity_weighted":
            return ensemble.perplexity_weights(nats, torch.tensor([max(0, len(prompt) - 1) for prompt in prompts]))
        if self.domains is None:
            return self.given[:, None].expand(-1, len(prompts))
        return torch.stack([self._routed(prompt) for prompt in prompts], 1)

    def _routed(self, prompt: Sequence[int]) -> Float[Tensor, " models"]:
        point = pooled(self.members[0], prompt)
        if self.domains is None or point is None:
            return ensemble.normalised(None, len(self.members))
        return self.domains.posterior(point[None])[:, 0]

    def _weights_of_texts(self, prompts: Sequence[str]) -> Float[Tensor, "models prompts"]:
        """The same by texts: what a prompt costs each member is shared out over its tokens of the first tokenizer."""
        place = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        different = list(place)
        ids = [self.tok_encode(prompt) if prompt else [] for prompt in different]
        nats = torch.zeros(len(self.members), len(different), dtype=torch.float64)
        if self.combine == "perplexity_weighted":
            nats = torch.stack([_spent(member, different) for member in self._sized()])
        weights = self._weights(ids, nats)
        return weights[:, [place[prompt] for prompt in prompts]]

    def _sized(self) -> list[Any]:
        """The members, set to this model's batch size."""
        for member in self.members:
            member.batch_size_per_gpu = self.batch_size
        return self.members

    # -- generation -------------------------------------------------------------------------------------------------

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Contexts [rows, tokens], padded on the left, with what is generated behind them; ended rows are padded."""
        mask = options.pop("attention_mask")
        draw = _drawing(options)
        stops = stop_sequences_criteria(self.tokenizer, stop, context.shape[1], context.shape[0])
        ends = torch.tensor(sorted(self._ends()), device=context.device)
        readers = [_Reader(member.model) for member in self.members]
        last, weights = self._begin(readers, context, mask)
        tokens, ended = context, torch.zeros(len(context), dtype=torch.bool, device=context.device)
        while True:
            drawn = draw(self._combined(last, weights))
            drawn = torch.where(ended, self.tokenizer.pad_token_id, drawn)
            tokens = torch.cat([tokens, drawn[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            ended = ended | torch.isin(drawn, ends) | _stopped(stops, tokens)
            if bool(ended.all()) or tokens.shape[1] >= max_length:
                return tokens
            last = [reader.read(tokens, mask, False)[:, -1] for reader in readers]

    def _begin(self, readers: Sequence["_Reader"], context: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each member's logits after the contexts, and the weights [members, rows] that these ask for."""
        prompts = [row[kept.bool()].tolist() for row, kept in zip(context, mask, strict=True)]
        nats = torch.zeros(len(readers), len(prompts), dtype=torch.float64)
        costs = self.combine == "perplexity_weighted"
        last = []
        for member, reader in enumerate(readers):
            logits = reader.read(context, mask, costs)
            for row, prompt in enumerate(prompts if costs else ()):
                nats[member, row] = _nats(logits[row][mask[row].bool()], prompt).sum()
            last.append(logits[:, -1].clone())
        return last, self._weights(prompts, nats)

    def _ends(self) -> set[int]:
        """The tokens that end a text, for any member."""
        found = {self.eot_token_id}
        for member in self.members:
            stated = member.model.generation_config.eos_token_id
            found |= {stated} if isinstance(stated, int) else set(stated or ())
        return found


class _Reader:
    """A member that is generated with: what it has read stays in its cache, where it has one."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, None
        self.knows = frozenset(inspect.signature(model.forward).parameters)

    def read(self, tokens: Int[Tensor, "rows length"], mask: Int[Tensor, "rows length"], whole: bool) -> Tensor:
        """Logits [rows, positions, vocabulary] of what follows: after every token that is read, or after the last."""
        ids = tokens if self.cache is None else tokens[:, -1:]
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
        if self.cache is not None:
            options["past_key_values"] = self.cache
        if "position_ids" in self.knows:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self.knows and not whole:
            options["logits_to_keep"] = 1
        with torch.no_grad():
            read = self.model(input_ids=ids, **options)
        self.cache = getattr(read, "past_key_values", None)
        return read.logits


def fit(lm: Any, texts: Mapping[str, Sequence[Document]]) -> Domains:
    """The density of each model's domain, from a corpus of it; `lm`: whose embeddings all texts are placed by."""
    points = {}
    for name, documents in texts.items():
        step = max(1, len(documents) // DOCUMENTS)
        found = (pooled(lm, lm.tok_encode(text_of(one))[:LONGEST]) for one in documents[::step][:DOCUMENTS])
        kept = [point for point in found if point is not None]
        points[name] = torch.stack(kept) if kept else torch.zeros(0, 1)
    return Domains.fit(points)


def pooled(lm: Any, ids: Sequence[int]) -> Float[Tensor, " features"] | None:
    """A text as a point among `lm`'s embeddings; None where it has no token but special ones."""
    special = frozenset(lm.tokenizer.all_special_ids)
    kept = [token for token in ids if token not in special]
    return ensemble.pooled(lm.model.get_input_embeddings().weight.detach(), kept) if kept else None


def _numbering(lm: Any) -> tuple[dict[str, int], list[int]]:
    """Which number each token has, and what is set around a text: where both are equal, ids mean the same."""
    return lm.tokenizer.get_vocab(), lm.tokenizer.encode("")


def _rows(requests: Sequence[Request], room: int) -> dict[tuple[int, ...], list[Asked]]:
    """What is asked of each row of tokens that is to be read; a long one loses its beginning, as in lm-eval."""
    rows: dict[tuple[int, ...], list[Asked]] = {}
    for index, (texts, context, choice) in enumerate(requests):
        if not 0 < len(choice) <= room:
            raise TaskError(
                f"the choice {texts[1] if texts else ''!r} is {len(choice)} tokens beyond its context, of the {room} "
                "that the models read: shorten it, or end the context elsewhere"
            )
        whole = [*context, *choice][-(room + 1) :]
        prompt = whole[: -len(choice)] if texts is not None else []
        rows.setdefault(tuple(whole[:-1]), []).append(Asked(index, choice, prompt))
    return rows


def _nats(logits: Float[Tensor, "length vocabulary"], tokens: Sequence[int]) -> Float[Tensor, " predicted"]:
    """What each token but the first cost, in nats."""
    wanted = torch.tensor(tokens[1:], device=logits.device, dtype=torch.long)
    return functional.cross_entropy(logits[: len(wanted)].float(), wanted, reduction="none").double().cpu()


def _spent(lm: Any, texts: Sequence[str]) -> Float[Tensor, " texts"]:
    """What every text's tokens but the first cost a model, in nats; of a long one those that it can read."""
    ids = [lm.tok_encode(text)[-lm.max_length :] if text else [] for text in texts]
    asked = [(("", text), one[:1], one[1:]) for text, one in zip(texts, ids, strict=True) if len(one) > 1]
    answers = iter(lm._loglikelihood_tokens(asked, disable_tqdm=True))
    return torch.tensor([-next(answers)[0] if len(one) > 1 else 0.0 for one in ids], dtype=torch.float64)


def _stopped(stops: Any, tokens: Tensor) -> Tensor:
    """Which rows have had one of the stop strings."""
    for stop in stops:
        stop(tokens, None)
    done = [any(stop.done_tracker[row] for stop in stops) for row in range(len(tokens))]
    return torch.tensor(done, device=tokens.device)


def _drawing(options: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """How a token is taken from log-probabilities [rows, vocabulary]. Raises TaskError for what is not known."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    odd = sorted(set(options) - {"do_sample", "temperature", "top_p", "top_k"})
    if odd:
        raise TaskError(
            f"an ensemble generates greedily or by temperature, top_p and top_k; the task's generation_kwargs have "
            f"{', '.join(odd)}, too: take that out, or leave the task to other models"
        )
    if not options.get("do_sample"):
        return lambda log_probs: log_probs.argmax(-1)
    limits: list[Any] = []
    if options.get("temperature") not in (None, 1.0):
        limits.append(TemperatureLogitsWarper(float(options["temperature"])))
    if options.get("top_k"):
        limits.append(TopKLogitsWarper(int(options["top_k"])))
    if options.get("top_p") not in (None, 1.0):
        limits.append(TopPLogitsWarper(float(options["top_p"])))

    def draw(log_probs: Tensor) -> Tensor:
        for limit in limits:
            log_probs = limit(None, log_probs)
        return torch.multinomial(log_probs.softmax(-1), 1)[:, 0]

    return draw
