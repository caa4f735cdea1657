"""lm-eval's transformers model, made to read once what several of its requests begin with.

lm-eval reads context and choice in whole for every choice. Here the choices of one context are read after a cache of
the context's keys and values, and the contexts of a batch after a cache of what all of them begin with (few-shot
examples, an instruction), where by the count of tokens that pays. Whether a model can be read so is tried on requests
of the call: one whose cache is of another kind (of a state space, say) is read in whole.
"""

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional

from harness.errors import TaskError

Request = tuple[Any, list[int], list[int]]
"""lm-eval's: what it was made of, the context's tokens, the choice's tokens."""

PASS = 64
"""What a forward pass costs besides its tokens, in tokens."""

SHARE = 0.3
"""The share of all tokens from which reading a context once is worth a pass of its own."""

CLOSE, ROUGHLY = 1e-4, 0.05
"""How far the cache may move log-probabilities, as a share of their spread; the second in half precision."""


@dataclass
class Row:
    """What is read after a context: a choice but its last token. `asked`: requests it answers, with their choices."""

    tokens: tuple[int, ...]
    asked: list[tuple[int, list[int]]] = field(default_factory=list)


@dataclass
class Group:
    """A context and what is read after it, the longest first."""

    context: tuple[int, ...]
    rows: list[Row]


class Live(HFLM):
    """A model around which weights are swapped; its `batch_size`, a number, is that of the contexts read at once.

    Log-likelihoods are lm-eval's but for rounding, 1e-4 in float32. As lm-eval's do, they move in their last digits
    with the batch size and with what else is in a batch.
    """

    def _loglikelihood_tokens(self, requests: Sequence[Request], **named: Any) -> list[tuple[float, bool]]:
        """(natural log-likelihood of the choice, whether each of its tokens is the likeliest), for each request."""
        answers: dict[int, tuple[float, bool]] = {}
        for groups in _groups(requests, self.max_length):
            batches = list(_batches(groups, self.batch_size))
            cached = self._cache_holds(batches)
            for batch in batches:
                for row, log_probs in self._read(batch, _cuts(batch) if cached else (0, 0)):
                    answers.update(_answers(row, log_probs))
        return [answers[index] for index in range(len(requests))]

    def _cache_holds(self, batches: Sequence[list[Group]]) -> bool:
        """Whether the cache changes nothing: two contexts of each kind of batch that would use it, read both ways."""
        kinds: dict[tuple[bool, bool], tuple[list[Group], tuple[int, int]]] = {}
        for batch in batches:
            first, then = _cuts(batch)
            if then:
                kinds.setdefault((first > 0, then > first), (batch, (first, then)))
        return all(self._same(batch, cuts) for batch, cuts in kinds.values())

    def _same(self, batch: list[Group], cuts: tuple[int, int]) -> bool:
        few = [Group(group.context, group.rows[:2]) for group in batch[:2]]
        whole = [log_probs for _, log_probs in self._read(few, (0, 0))]
        try:
            parts = [log_probs for _, log_probs in self._read(few, cuts)]
        except torch.OutOfMemoryError:
            raise
        except Exception:
            # What a model does with a cache that it has no place for is its own affair: it can be read in whole.
            return False
        return all(_near(*pair) for pair in zip(parts, whole, strict=True))

    def _read(self, batch: Sequence[Group], cuts: tuple[int, int]) -> Iterator[tuple[Row, Tensor]]:
        """Every row of some contexts with the log-probabilities [its tokens and one, vocabulary] of what comes next.

        cuts: the tokens of the contexts to be read once for all, and those of each to be read once for its rows.
        """
        first, then = cuts
        cache = None
        if first:
            cache = self._store([batch[0].context[:first]], None)
            cache.batch_repeat_interleave(len(batch))
        if then > first:
            cache = self._store([group.context[first:then] for group in batch], cache)
        for column in range(max(len(group.rows) for group in batch)):
            here = [place for place, group in enumerate(batch) if column < len(group.rows)]
            rows = [batch[place].rows[column] for place in here]
            read = [(*batch[place].context[then:], *row.tokens) for place, row in zip(here, rows, strict=True)]
            ends = [(len(line) - len(row.tokens) - 1, len(line)) for line, row in zip(read, rows, strict=True)]
            _, logits = self._forward(read, ends, _branch(cache, here, len(batch)))
            found = functional.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
            yield from zip(rows, found.split([end - begin for begin, end in ends]), strict=True)

    def _store(self, rows: Sequence[Sequence[int]], cache: Any) -> Any:
        """The cache of rows of equal length, behind what the given one holds."""
        output, _ = self._forward(rows, [(0, 1)], cache, use_cache=True)
        return output.past_key_values

    def _forward(
        self, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], cache: Any, **options: Any
    ) -> tuple[Any, Tensor]:
        """The model's output for rows of tokens, and its logits [places, vocabulary] at each row's span of places.

        What pads shorter rows stands after them, where no token looks, as in lm-eval. Logits are most of the work of a
        small model with many tokens, and most of the memory: they are made for no other place.
        """
        width = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        lines = torch.tensor([line for line, span in enumerate(spans) for _ in range(*span)], device=self.device)
        places = torch.tensor([place for span in spans for place in range(*span)], device=self.device)
        if cache is not None:
            options = {"past_key_values": cache, "use_cache": True}
        head = self.model.get_output_embeddings()
        with contextlib.ExitStack() as stack, torch.no_grad():
            if head is not None:
                hook = head.register_forward_pre_hook(lambda _, given: _picked(given, lines, places))
                stack.callback(hook.remove)
            output = self.model(input_ids=tokens, **options)
        logits = output.logits
        # A model that does not call its head so has made them all.
        return output, logits[0] if logits.shape[:2] == (1, len(places)) else logits[lines, places]


def _groups(requests: Sequence[Request], room: int) -> tuple[list[Group], list[Group]]:
    """The contexts that are worth reading once for all their rows, and the rest, a row each.

    room: the tokens that the model can read; a longer context loses its beginning, as in lm-eval.
    """
    found: dict[tuple[int, ...], dict[tuple[int, ...], Row]] = {}
    for index, (texts, context, choice) in enumerate(requests):
        if not 0 < len(choice) <= room:
            advice = "shorten it" if choice else "the tokenizer joins it to the context: end that elsewhere"
            raise TaskError(
                f"the choice {texts[1] if texts else ''!r} is {len(choice)} tokens beyond its context, of the {room} "
                f"that the model reads: {advice}"
            )
        rows = found.setdefault(tuple(context[-(room + 1 - len(choice)) :]), {})
        rows.setdefault(tuple(choice[:-1]), Row(tuple(choice[:-1]))).asked.append((index, choice))
    shared: list[Group] = []
    single: list[Group] = []
    for begin, by_tokens in found.items():
        group = Group(begin, sorted(by_tokens.values(), key=lambda row: (-len(row.tokens), row.tokens)))
        saved = (len(group.rows) - 1) * (len(begin) - 1)
        if saved > SHARE * sum(len(begin) + len(row.tokens) for row in group.rows):
            shared.append(group)
        else:
            single += [Group(begin, [row]) for row in group.rows]
    return shared, single


def _batches(groups: Sequence[Group], size: int) -> Iterator[list[Group]]:
    """Groups in the order of their length, `size` at a time, fewer where their contexts differ much in length.

    Of contexts that are read for several rows each, what is longer than the shortest is read again for every row.
    """

    def length(group: Group) -> int:
        return len(group.context) + (len(group.rows[0].tokens) if len(group.rows) == 1 else 0)

    batch: list[Group] = []
    for group in sorted(groups, key=lambda group: (-length(group), group.context, group.rows[0].tokens)):
        rows = max(len(one.rows) for one in [*batch, group])
        again = (rows - 1) * sum(len(one.context) - len(group.context) for one in batch)
        if len(batch) == size or again > PASS * (rows + 1):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _cuts(batch: Sequence[Group]) -> tuple[int, int]:
    """How many tokens of the contexts to read once for all of them, and how many of each once for its rows."""
    shortest = min(len(group.context) for group in batch) - 1
    contexts = [group.context[:shortest] for group in batch]
    # What the first and the last in order begin with, all begin with.
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(contexts), max(contexts), strict=True))
    first = len(list(same))
    if (len(batch) - 1) * first <= PASS:
        first = 0
    more = sum(len(group.rows) - 1 for group in batch)
    return first, shortest if more * (shortest - first) > PASS else first


def _branch(cache: Any, here: Sequence[int], count: int) -> Any:
    """A cache that grows without the one it comes from, for some of its `count` rows. No tensor is copied for it."""
    if cache is None:
        return None
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    if len(here) < count:
        branch.batch_select_indices(torch.tensor(here))
    return branch


def _picked(given: tuple[Any, ...], lines: Tensor, places: Tensor) -> tuple[Any, ...] | None:
    """What an output head is given, [rows, places, hidden], at some places alone; None for what is of another form."""
    return (given[0][lines, places][None], *given[1:]) if given and given[0].dim() == 3 else None


def _answers(row: Row, log_probs: Tensor) -> dict[int, tuple[float, bool]]:
    likeliest = log_probs.argmax(dim=-1)
    found = {}
    for index, choice in row.asked:
        tokens = torch.tensor(choice, device=log_probs.device)
        likelihood = log_probs.gather(1, tokens[:, None]).sum()
        found[index] = (float(likelihood), bool((likeliest == tokens).all()))
    return found


def _near(found: Tensor, right: Tensor) -> bool:
    tolerance = CLOSE if right.dtype in (torch.float32, torch.float64) else ROUGHLY
    spread = right.float() - right.float().mean(dim=-1, keepdim=True)
    return bool((found.float() - right.float()).norm() <= tolerance * spread.norm())
