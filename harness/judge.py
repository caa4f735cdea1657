"""Responses become scores, without the model: lm-eval's own filters and metrics, the sandbox for programs, bits.

    judge(source, responses)     # one record a response: {"id", "score", "also", "answer", "verdict"}

A new way to extract or to run needs no new generation. For likelihood and generation tasks the numbers are lm-eval's.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.blocks import COUNTED
from harness.errors import TaskError
from harness.programs import judge_programs
from harness.sandbox import SandboxSettings
from harness.tasks import load, texts

Record = dict[str, Any]


def judge(
    source: str, responses: Sequence[Mapping[str, Any]], sandbox: str | None = None, trust: bool = False
) -> list[Record]:
    """Score the responses of `evaluate.respond` to a task (`source`: its file), in their order.

    A record: "id", "score" (of the task's metric), "also" (its other means over items, by name), "answer" (what was
    taken for the answer, None if nothing), "verdict" (why a program passed or not; None for other tasks). Where one of
    several choices is right, "choices" has "p", the softmax of their log-likelihoods, and "correct", its index; of
    a code task "programs" has a {"passed", "reason"} for each sample. "truncated" and "unfinished" are the response's,
    where there is something to count.
    `sandbox`: the least isolation level for programs. Raises TaskError, also when the data are no longer those that
    were asked about, and SandboxError. Of a text (`texts.load`) the score is bits per byte, lower being better, and
    "also" has its "bits" and "bytes".
    """
    records = _judged(source, responses, sandbox, trust)
    return [{**record, **_counts(said)} for record, said in zip(records, responses, strict=True)]


def _counts(response: Mapping[str, Any]) -> dict[str, int]:
    """What is counted of a response: prompts that were cut, texts that came to no end."""
    return {key: int(response[key]) for key in COUNTED if response.get(key)}


def _judged(source: str, responses: Sequence[Mapping[str, Any]], sandbox: str | None, trust: bool) -> list[Record]:
    if texts.is_text(source):
        return _bits(source, responses)
    loaded = load.load(Path(source), trust)
    _check(str(loaded.definition.path), loaded.ids, responses)
    if not responses:
        return []
    if loaded.kind == "code":
        return judge_programs(loaded, responses, SandboxSettings(level=sandbox or "any"))
    return _score(loaded, responses)


def _check(source: str, ids: Sequence[str], responses: Sequence[Mapping[str, Any]]) -> None:
    for response in responses:
        doc_id = response["doc_id"]
        if not 0 <= doc_id < len(ids) or ids[doc_id] != response["id"]:
            raise TaskError(
                f"{source}: item {doc_id} is not the one that was answered: the data have changed since; generate again"
            )


def _bits(source: str, responses: Sequence[Mapping[str, Any]]) -> list[Record]:
    """-log2 p of each document's scored part, over its bytes."""
    text = texts.load(source)
    _check(source, text.ids, responses)
    records = []
    for response in responses:
        bits, size = -response["resps"][0][0] / math.log(2), text.parts[response["doc_id"]].bytes
        also = {"bits": bits, "bytes": float(size)}
        records.append({"id": response["id"], "score": bits / size, "also": also, "answer": None, "verdict": None})
    return records


def _score(loaded: load.Loaded, responses: Sequence[Mapping[str, Any]]) -> list[Record]:
    """lm-eval's filters over all responses at once, then its `process_results` item by item."""
    from lm_eval.api.instance import Instance

    task = loaded.task
    by_response = [
        [
            Instance(
                request_type=task.OUTPUT_TYPE,
                doc=loaded.docs[response["doc_id"]],
                arguments=(),
                idx=place,
                metadata=(loaded.definition.name, response["doc_id"], len(repeats)),
                resps=[tuple(repeat) if isinstance(repeat, list) else repeat for repeat in repeats],
            )
            for place, repeats in enumerate(response["resps"])
        ]
        for response in responses
    ]
    with load.quiet():
        for ensemble in task._filters:
            ensemble.apply([instance for instances in by_response for instance in instances])
        return [
            _lm_eval_record(loaded, response, instances)
            for response, instances in zip(responses, by_response, strict=True)
        ]


def _lm_eval_record(loaded: load.Loaded, response: Mapping[str, Any], instances: list[Any]) -> Record:
    doc = loaded.docs[response["doc_id"]]
    by_filter: dict[str, Mapping[str, Any]] = {}
    values: dict[str, float] = {}
    for score in loaded.scores:
        if score.filter not in by_filter:
            filtered = [instance.filtered_resps[score.filter] for instance in instances]
            by_filter[score.filter] = loaded.task.process_results(doc, filtered)
        if score.metric not in by_filter[score.filter]:
            raise TaskError(f"{loaded.definition.path}: no '{score.metric}' for item {response['doc_id']}")
        try:
            values[score.label] = float(by_filter[score.filter][score.metric])
        except TypeError:
            raise TaskError(f"{loaded.definition.path}: '{score.metric}' is no number for one item") from None
    headline = loaded.scores[0]
    choices = _choices(loaded.task, doc, [instance.filtered_resps[headline.filter] for instance in instances])
    return {
        "id": response["id"],
        "score": values.pop(headline.label),
        "also": values,
        "answer": _answer(
            loaded.task, doc, [instance.filtered_resps[headline.filter] for instance in instances], headline
        ),
        "verdict": None,
        **({"choices": choices} if choices else {}),
    }


def _choices(task: Any, doc: Mapping[str, Any], filtered: list[Any]) -> dict[str, Any] | None:
    """How likely a model takes each choice to be, and which is right; None where not exactly one is."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else -1
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        return None
    marks = [float(response[0]) for response in filtered[: len(choices)]]
    weights = [math.exp(mark - max(marks)) for mark in marks]
    return {"p": [weight / sum(weights) for weight in weights], "correct": gold}


def _answer(task: Any, doc: Mapping[str, Any], filtered: list[Any], headline: load.Score) -> str | None:
    """The choice that the headline metric counts as picked, or the extracted text."""
    if task.OUTPUT_TYPE == "generate_until":
        answer = filtered[0][0] if isinstance(filtered[0], list) and filtered[0] else filtered[0]
        return None if answer in ("[invalid]", []) else str(answer)
    if task.OUTPUT_TYPE != "multiple_choice" or headline.metric not in _LENGTHS:
        return None
    choices = task.doc_to_choice(doc)
    length = _LENGTHS[headline.metric]
    marks = [float(response[0]) / length(choice) for response, choice in zip(filtered, choices, strict=False)]
    return str(choices[marks.index(max(marks))])


_LENGTHS = {"acc": lambda choice: 1, "acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}
"""What each accuracy divides a choice's log-likelihood by."""
