"""How likely text is to the model that is loaded: lm-eval's log-likelihoods of documents, whole or after a prompt."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.errors import FuseBenchError, TaskError
from harness.tasks import load, texts
from harness.tasks.texts import Part


def log_likelihoods(lm: Any, source: str, doc_ids: Sequence[int], batch_size: int) -> list[dict[str, Any]]:
    """What the model gives some documents of a text (`texts.load`), in doc_id order, as `evaluate.respond` has records.

    A document without a prompt is read in windows of the model's context, each token once, the first after BOS (or EOS
    where the tokenizer has none): lm-eval's `loglikelihood_rolling`. An answer is read after as much of its prompt as
    fits: its `loglikelihood`. Natural logarithm. Raises TaskError for a document that this model cannot be asked.
    """
    text = texts.load(source)
    ids = sorted(doc_ids)
    if not all(0 <= doc_id < len(text.parts) for doc_id in ids) or len(set(ids)) < len(ids):
        raise TaskError(f"{source}: doc_ids must differ and be below {len(text.parts)}; found {ids}")
    lm.batch_size_per_gpu = batch_size
    with load.quiet():
        cut = {doc_id: _cut(lm, text.parts[doc_id], text.places[doc_id]) for doc_id in ids}
        found = _whole(lm, text.parts, ids) | _answers(lm, text.parts, ids)
    for doc_id in ids:
        if not math.isfinite(found[doc_id]):
            raise FuseBenchError(
                f"the model gives a log-likelihood of {found[doc_id]} for {text.places[doc_id]}: its weights are not "
                "finite or overflow in its dtype; no bits per byte can be had from it"
            )
    return [
        {"id": text.ids[doc_id], "doc_id": doc_id, "resps": [[found[doc_id]]], "truncated": cut[doc_id]}
        for doc_id in ids
    ]


def _whole(lm: Any, parts: Sequence[Part], ids: Sequence[int]) -> dict[int, float]:
    mine = [doc_id for doc_id in ids if not parts[doc_id].context]
    with _without_bos(lm):
        found = lm.loglikelihood_rolling([_request((parts[doc_id].text,)) for doc_id in mine]) if mine else []
    return dict(zip(mine, map(float, found), strict=True))


def _answers(lm: Any, parts: Sequence[Part], ids: Sequence[int]) -> dict[int, float]:
    mine = [doc_id for doc_id in ids if parts[doc_id].context]
    found = lm.loglikelihood([_request((parts[doc_id].context, parts[doc_id].text)) for doc_id in mine]) if mine else []
    return {doc_id: float(response[0]) for doc_id, response in zip(mine, found, strict=True)}


def _cut(lm: Any, part: Part, place: str) -> bool:
    """Whether a prompt loses its beginning. TaskError for what lm-eval would fail on, or take for certain."""
    if not part.context:
        with _without_bos(lm):
            if not lm.tok_encode(part.text):
                raise TaskError(f"{place}: the model's tokenizer makes no token of it")
        return False
    before, scored = lm._encode_pair(part.context, part.text)
    if not scored:
        raise TaskError(f"{place}: the model's tokenizer joins the answer to its prompt; end the prompt elsewhere")
    if len(scored) > lm.max_length:
        raise TaskError(
            f"{place}: the answer has {len(scored)} tokens, the model's whole context is {lm.max_length}: shorten it, "
            "or give it as text without a prompt"
        )
    return bool(len(before) + len(scored) > lm.max_length + 1)


@contextmanager
def _without_bos(lm: Any) -> Iterator[None]:
    """lm-eval sets BOS before the first token itself; a tokenizer that adds one, too, would have it predicted."""
    before = lm.add_bos_token
    lm.add_bos_token = False
    try:
        yield
    finally:
        lm.add_bos_token = before


def _request(arguments: tuple[str, ...]) -> Any:
    from lm_eval.api.instance import Instance

    kind = "loglikelihood" if len(arguments) == 2 else "loglikelihood_rolling"
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
