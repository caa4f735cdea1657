"""How a model's generations end, which lm-eval does not tell: by a stop, or cut off at the most tokens they may have.

with endings(lm) as ended:
    evaluate(lm, ...)
ended.cut_off(instance)                      # how many of its responses never came to an end
"""

import contextlib
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any


class Endings:
    """Stands in for an LM's `cache_hook`, which is told each response, and listens to the tokens that it is made of."""

    def __init__(self, lm: Any) -> None:
        self._lm, self._decode = lm, lm.tok_decode
        self._stops = {token for one in (lm, *getattr(lm, "members", ())) for token in _stops(one)}
        self._last: tuple[Sequence[int], str] = ((), "")
        self._found: dict[str, deque[bool]] = defaultdict(deque)

    def tok_decode(self, tokens: Any, *args: Any, **options: Any) -> str:
        """lm-eval's call, once a response, with all that was generated."""
        text = str(self._decode(tokens, *args, **options))
        self._last = (tokens if isinstance(tokens, list) else [tokens], text)
        return text

    def add_partial(self, kind: str, request: Sequence[Any], response: Any) -> None:
        """lm-eval's call, once a request, right after; equal prompts come in the order in which they were given."""
        if kind == "generate_until":
            tokens, text = self._last
            whole = len(tokens) >= room(request[1], self._lm) and self._stops.isdisjoint(tokens)
            # A response that had a stop is shorter than the text that it was cut from.
            self._found[request[0]].append(whole and response == text)

    def cut_off(self, instance: Any) -> int:
        """How many responses to an instance came to no end; to be asked once of each, in the order of requests."""
        if instance.request_type != "generate_until":
            return 0
        return sum(self._found[instance.args[0]].popleft() for _ in range(instance.repeats))


@contextlib.contextmanager
def endings(lm: Any) -> Iterator[Endings]:
    """Watch an LM generate."""
    watch, before = Endings(lm), lm.cache_hook
    lm.cache_hook, lm.tok_decode = watch, watch.tok_decode
    try:
        yield watch
    finally:
        lm.cache_hook = before
        del lm.tok_decode


def _stops(lm: Any) -> list[int]:
    """The tokens that end a text for a model: its tokenizer's, and those that its generation config names."""
    stated = lm.model.generation_config.eos_token_id
    return [lm.eot_token_id, *([stated] if isinstance(stated, int) else stated or ())]


def room(options: Any, lm: Any) -> int:
    """The tokens that a generation may have, by a task's `generation_kwargs`."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(options or {}, lm.max_gen_toks)["max_gen_toks"])
