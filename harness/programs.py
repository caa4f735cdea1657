"""Programs that a model wrote become scores: put together with their tests, run in the sandbox, counted.

    judge_programs(loaded, responses, settings)      # one record a response to a code task
    program_of("mbpp", row, completion)              # what the sandbox runs

A code task says what its rows are by `metadata.rows`: humaneval, mbpp, multiple (MultiPL-E) or bigcode;
`tasks.rows.CODE_FIELDS` has the fields of each. Where the verdicts differ from those of bigcode's harness on the same
text, it is one of these:

    MultiPL-E, Go     it names the file so that `go test` runs no test: whatever compiles passes there.
    MultiPL-E, Java   its class path lacks javatuples when the program runs: rows with tuples always fail there.
    MultiPL-E         it takes the exit status alone, so a program that ends early with status 0, or that hides its
                      tests (an unclosed comment, `?>`, `__END__`), passes there; in Perl, one that prints "ERROR"
                      fails there. Its limits are 5 or 15 s, ours those of sandbox.languages.
    MBPP              it leaves test_setup_code out, without which no program passes problem 367, and stops programs
                      after 3 s, which the reference solution of 123 exceeds.
    Python            changes to its arguments and objects with an == of their own: see harness.sandbox.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness import bigcode
from harness.errors import TaskError
from harness.sandbox import Program, SandboxSettings, run_many
from harness.tasks import load, rows

PASS_AT = (10, 100)
"""The k of pass@k beside the score, pass@1, where there are as many samples."""

LANGUAGES = {"py": "python", "go_test.go": "go"}
"""What MultiPL-E's rows call a language, where harness.sandbox has another name for it."""

SECONDS = {"mbpp": 15.0}
"""How long a program may take, where it is not what its language may: the solution of problem 123 needs over 4 s."""

TESTS = {"humaneval": "test", "mbpp": "test_list", "multiple": "tests", "bigcode": "reference"}
"""The field of the tests, by the kind of rows."""


def judge_programs(
    loaded: load.Loaded, responses: Sequence[Mapping[str, Any]], settings: SandboxSettings
) -> list[dict[str, Any]]:
    """Run the programs of every response. A record as of judge.judge: score is pass@1, `also` pass@10 and pass@100.

    Raises TaskError for a row whose tests cannot be run, and SandboxError.
    """
    kind = load.rows_of(loaded.definition)
    if kind == "bigcode" and bigcode.is_compared(loaded):
        return _compared(responses, bigcode.scores(loaded, responses))
    written, programs = _of_bigcode(loaded, responses) if kind == "bigcode" else of_rows(loaded, responses)
    seconds = bigcode.seconds(loaded) if kind == "bigcode" else SECONDS.get(kind)
    timed = replace(settings, timeout=settings.timeout or seconds or None)
    verdicts = iter(run_many([program for some in programs for program in some], timed))
    records = []
    for response, texts in zip(responses, written, strict=True):
        found = [next(verdicts) for _ in texts]
        for verdict in found:
            if verdict.reason.startswith("test error"):
                raise TaskError(
                    f"{rows.line_of(loaded.definition, response['doc_id'])}: {verdict.reason}: no program can "
                    f"pass it; correct the row's '{TESTS[kind]}'"
                )
        passed = [verdict.passed for verdict in found]
        records.append(
            {
                "id": response["id"],
                "score": sum(passed) / len(passed),
                "also": {f"pass@{k}": pass_at([passed], k) for k in PASS_AT if k <= len(passed)},
                "answer": texts[0],
                "verdict": ", ".join(verdict.reason for verdict in found),
                "programs": [{"passed": verdict.passed, "reason": verdict.reason} for verdict in found],
            }
        )
    return records


def of_rows(loaded: load.Loaded, responses: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[list[Program]]]:
    """What was written, by response and sample, and what is run of it.

    The texts of a response with "postprocessed" were made elsewhere: a program that is whole is run as it is, and any
    other is a completion, which ends at a stop sequence of the task, like those that are made here.
    """
    kind = load.rows_of(loaded.definition)
    until = (loaded.task.config.generation_kwargs or {}).get("until", [])
    written: list[list[str]] = []
    programs: list[list[Program]] = []
    for response in responses:
        doc, texts = loaded.docs[response["doc_id"]], response["resps"][0]
        whole = [bool(response.get("postprocessed")) and is_whole(kind, doc, text) for text in texts]
        said = [text if all_of_it else _cut(text, until) for text, all_of_it in zip(texts, whole, strict=True)]
        made = [program_of(kind, doc, text) for text in said]
        written.append(said)
        programs.append(
            [
                replace(program, program=text) if all_of_it else program
                for program, text, all_of_it in zip(made, said, whole, strict=True)
            ]
        )
    return written, programs


def _of_bigcode(
    loaded: load.Loaded, responses: Sequence[Mapping[str, Any]]
) -> tuple[list[list[str]], list[list[Program]]]:
    programs = bigcode.programs(loaded, responses)
    return [[program.program for program in some] for some in programs], programs


def _compared(responses: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """The records of texts that are compared with a reference, and not run."""
    return [
        {
            "id": response["id"],
            "score": math.fsum(some) / len(some),
            "also": {},
            "answer": response["resps"][0][0],
            "verdict": None,
        }
        for response, some in zip(responses, scores, strict=True)
    ]


def pass_at(passed: Sequence[Sequence[bool]], k: int) -> float:
    """The mean over problems of 1 - C(n - c, k) / C(n, k), of n samples with c that pass.

    Chen et al. 2021, arXiv:2107.03374, equation 1: the unbiased estimate.
    """
    each = [1 - math.comb(len(p) - sum(p), k) / math.comb(len(p), k) for p in passed]
    return math.fsum(each) / len(each)


def program_of(kind: str, doc: Mapping[str, Any], completion: str) -> Program:
    """A row and what a model wrote after its prompt, as the sandbox takes it. kind: of the rows."""
    if kind == "mbpp":
        # Objects that the tests name are made of the program's own classes.
        setup = (doc.get("test_setup_code") or "").strip()
        program, test = f"{completion}\n{setup}\n" if setup else completion, "\n".join(doc["test_list"])
        # By the reference solution, since one is named like a builtin function of Python (`sum`, problem 126).
        defined = [name for name in re.findall(r"^def\s+(\w+)", doc.get("code") or "", re.MULTILINE) if name in test]
        return Program(program, test, entry_point=defined[-1] if defined else "")
    if kind == "humaneval":
        test = f"{doc['test']}\ncheck({doc['entry_point']})\n"
        return Program(doc["prompt"] + completion, test, setup=doc["prompt"], entry_point=doc["entry_point"])
    return Program(doc["prompt"] + completion, doc["tests"], language=LANGUAGES.get(doc["language"], doc["language"]))


def is_whole(kind: str, doc: Mapping[str, Any], text: str) -> bool:
    """Whether a text is all of a program, and no completion of its row's prompt. kind: of the rows.

    It is if it begins with the prompt, stripped or not, and for HumanEval also if it defines the function, unless it
    begins indented: that is a completion that runs on. What stands after MBPP's prompts is a program already.
    """
    if kind == "mbpp":
        return False
    prompt = doc["prompt"]
    if any(start and text.startswith(start) for start in (prompt, prompt.strip())):
        return True
    indented = text.lstrip("\r\n").startswith((" ", "\t"))
    defines = rf"^(async\s+)?def\s+{re.escape(doc['entry_point'])}\b" if kind == "humaneval" else None
    return defines is not None and not indented and re.search(defines, text, re.MULTILINE) is not None


def _cut(text: str, until: str | Sequence[str]) -> str:
    """The text up to the first stop sequence: completions made elsewhere may run on."""
    places = [text.find(stop) for stop in ([until] if isinstance(until, str) else until) if stop in text]
    return text[: min(places)] if places else text
