"""The other side of `bigcode.py`: runs in bigcode's own environment, with the standard library and bigcode alone.

    python -I bigcode_side.py < request > answer

One request, one answer, both JSON. Requests, each with "languages", those that the sandbox runs:
    {"do": "list"}                           {"version", "tasks": {name: None, or why it cannot be scored}}
    {"do": "describe", "task", "rows"}       {"version", "how", "language", "timeout", "stop_words", "revision",
                                              "rows": [{"prompt", "reference", "doc", "whole"}]}
    {"do": "programs", "task", "docs",       {"items": [{"texts", "programs": [[program, tests], ...]} or
     "items": [{"index", "texts", "raw"}]}                {"texts", "scores": [...]}]}
    {"error": [kind, text]} where that cannot be: kind is unknown, refused, data, row or broken.
rows: a task's data, None for those of the hub. docs: "doc" of every row of a description, in order. A text is what
was generated, after its prompt if the row says "whole"; raw: it is to be post-processed.

No generated program is run here. What a scorer would run is taken from its hands (`_Taken`) before it runs it, and no
process can be started while scores are computed.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import warnings
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

DISTRIBUTION = "nvidia-bigcode-eval"
PROGRAMS, LANGUAGE, TEXTS = "programs", "language", "texts"
"""How a task is scored: by what its scorer would run, by programs and tests of MultiPL-E, or by comparing texts."""

_BLEU = "its score is BLEU of all answers together, no mean over items"
_ITSELF = "its scorer runs what was generated itself, in a way that cannot be led into the sandbox"
REFUSED = {
    "apps": "its scorer is a script of the hub that runs the programs itself",
    "bfcl": "it asks for calls of tools through an API, and its prompts are no text",
    "codexglue_code_to_text": "its references cannot be had: it takes sacremoses's detokenizer for a context manager",
    "codexglue_text_to_text": _BLEU,
    "conala": _BLEU,
    "concode": _BLEU,
    "ds1000": "it downloads the code that runs the programs",
    "mercury": _ITSELF,
    "spider": f"{_ITSELF}: SQL on databases that must be downloaded",
    "verilog": _ITSELF,
}
"""Why, by the module of `bigcode_eval.tasks` that a task is in."""

COMPARE = ("python_bugs", "santacoder_fim")
"""Modules whose scorers compare texts, whatever a task says of `requires_execution`."""

PROCESSES = frozenset({"subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn"})


class Fault(Exception):
    """What is answered instead: (kind, text)."""


class _Taken(BaseException):
    """The (program, tests) that a scorer was about to run, and the seconds that it gives each."""

    def __init__(self, pairs: list[tuple[str, str]], timeout: float) -> None:
        super().__init__()
        self.pairs, self.timeout = pairs, timeout


class Rows(list):  # type: ignore[type-arg]
    """The rows of a split as a list, with what tasks ask of a split of `datasets`."""

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def filter(self, wanted: Callable[[Any], bool]) -> Rows:
        """The rows that are wanted."""
        return Rows(row for row in self if wanted(row))

    def select(self, indices: Any) -> Rows:
        """The rows at these places."""
        return Rows(self[index] for index in indices)


class Splits(dict):  # type: ignore[type-arg]
    """A data set of rows that are given, whichever split a task scores."""

    def __init__(self, rows: list[Any]) -> None:
        super().__init__()
        self.rows = Rows(rows)

    def __missing__(self, split: str) -> Rows:
        return self.rows


def main() -> None:
    """Answer one request. What bigcode prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        answer = answered(request)
    except Fault as fault:
        answer = {"error": list(fault.args)}
    json.dump(answer, out)
    out.close()


def answered(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request. Raises Fault."""
    bigcode = _bigcode()
    languages = request["languages"]
    if request["do"] == "list":
        return {"version": _version(), "tasks": {name: _why(bigcode, name, languages) for name in bigcode.ALL_TASKS}}
    name = request["task"]
    how = _how(bigcode, name, languages)
    if request["do"] == "describe":
        return {"version": _version(), **described(bigcode, name, how, request["rows"])}
    task, _ = _made(bigcode, name, request["docs"])
    _refuse_processes()
    return {"items": [scored(task, how, item) for item in request["items"]]}


# -------------------------------------------------------------------------------------------------------- bigcode


def _version() -> str:
    return importlib.metadata.version(DISTRIBUTION)


def _bigcode() -> ModuleType:
    """bigcode's tasks. Several read files of the package by a path that begins in the folder around it."""
    os.environ.update(HF_ALLOW_CODE_EVAL="0", TOKENIZERS_PARALLELISM="false")
    try:
        import nltk  # type: ignore[import-not-found,import-untyped,unused-ignore]

        # bigcode downloads a tokenizer of sentences as it is imported, for a task that is refused.
        nltk.download = lambda *args, **kwargs: True
    except ImportError:
        pass
    spec = importlib.util.find_spec("bigcode_eval")
    if spec is None or spec.origin is None:
        raise Fault("broken", "there is no bigcode_eval in this environment")
    os.chdir(os.path.dirname(os.path.dirname(spec.origin)))
    bigcode = importlib.import_module("bigcode_eval.tasks")
    for module in _modules():
        _divert(module)
    return bigcode


def _modules() -> Iterator[ModuleType]:
    yield from [module for name, module in sys.modules.items() if name.startswith("bigcode_eval.") and module]


def _divert(module: ModuleType) -> None:
    """Have a module's scorers hand over what they would run."""
    family = module.__name__.rpartition(".")[2]
    if hasattr(module, "compute_code_eval"):
        module.compute_code_eval = _take  # type: ignore[attr-defined]
    if family == "humanevalpack":
        module.load = lambda name: SimpleNamespace(compute=_take)  # type: ignore[attr-defined]
        # The sandbox has no NumPy, which bigcode imports before every program.
        helpers = module.IMPORT_HELPER["python"]
        helpers[:] = [line for line in helpers if "numpy" not in line]
    if family == "gsm":
        module.compute = _take_answers  # type: ignore[attr-defined]


def _take(predictions: Any, references: Any, timeout: float = 3.0, **_: Any) -> Any:
    """In the place of bigcode's compute_code_eval and of the metric of HumanEvalPack."""
    raise _Taken(
        [(text, tests) for texts, tests in zip(predictions, references, strict=True) for text in texts], timeout
    )


def _take_answers(predictions: Any, references: Any, timeout: float = 3.0, **_: Any) -> Any:
    """In the place of PAL's `compute`, which reads what print(solution()) prints."""
    tests = [f"assert abs(float(solution()) - float({answer!r})) < 1e-3" for answer in references]
    return _take(predictions, tests, timeout)


def _how(bigcode: ModuleType, name: str, languages: list[str]) -> tuple[str, str]:
    """How a task is scored, and in which language its programs are. Raises Fault for one that cannot be."""
    if name not in bigcode.TASK_REGISTRY:
        raise Fault("unknown", json.dumps(list(bigcode.ALL_TASKS)))
    why = _why(bigcode, name, languages)
    if why is not None:
        raise Fault("refused", why)
    family = _family(bigcode, name)
    if family == "multiple":
        language = name.partition("-")[2]
        return LANGUAGE, "python" if language == "py" else language
    return (TEXTS if family in COMPARE else PROGRAMS), "python"


def _why(bigcode: ModuleType, name: str, languages: list[str]) -> str | None:
    """Why a task cannot be scored; None if it can."""
    family = _family(bigcode, name)
    language = name.rpartition("-")[2]
    if family in REFUSED:
        return REFUSED[family]
    if family == "multiple":
        return None if language in ("py", *languages) else f"the sandbox does not run programs in {language}"
    if family == "humanevalpack":
        if "explain" in name:
            return "one model describes programs and another writes them from that: it is no task by itself"
        return (
            None
            if language == "python"
            else f"its scorer, a script of the hub, runs {language} programs in its own way"
        )
    if family == "gsm":
        return "it takes one answer from many programs" if name.endswith("majority_voting") else None
    scorer = sys.modules[bigcode.TASK_REGISTRY[name].process_results.__module__]
    known = family in COMPARE or family == "studenteval" or getattr(scorer, "compute_code_eval", None) is _take
    return None if known else _ITSELF


def _family(bigcode: ModuleType, name: str) -> str:
    return str(bigcode.TASK_REGISTRY[name].__module__.rpartition(".")[2])


def _made(bigcode: ModuleType, name: str, rows: list[Any] | None) -> tuple[Any, Any]:
    """A task and its data set: of the rows given, else of the hub."""
    if rows is not None:
        for module in _modules():
            if hasattr(module, "load_dataset"):
                module.load_dataset = lambda *args, **kwargs: Splits(rows)  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            task = bigcode.get_task(name, SimpleNamespace(task_kwargs=None, prompt=_prompt_form(name)))
            return task, task.get_dataset()
        except Exception as error:
            # bigcode makes a warning of data that cannot be loaded, and fails later for want of them.
            told = [
                str(one.message).partition(". This task will use")[0] for one in said if "dataset" in str(one.message)
            ]
            raise Fault("data", "; ".join([*told, f"{type(error).__name__}: {error}"])) from None


def _prompt_form(name: str) -> str:
    """What bigcode's own default is, or where that suits another family of tasks, the family's."""
    return "instruct" if name.startswith("humaneval") else "prompt"


# ------------------------------------------------------------------------------------------------------- one task


def described(bigcode: ModuleType, name: str, how: tuple[str, str], rows: list[Any] | None) -> dict[str, Any]:
    """A task's prompts and references. Raises Fault, also for tests that the sandbox could not run."""
    task, docs = _made(bigcode, name, rows)
    _refuse_processes()
    known, timeout = [], 0.0
    for index, doc in enumerate(docs):
        try:
            known.append(_row(task, doc))
            timeout = max(timeout, _tests(task, doc) if how[0] == PROGRAMS else 0.0)
        except Fault:
            raise
        except Exception as error:
            raise Fault("row", json.dumps([index, f"{type(error).__name__}: {error}"])) from None
    revision = getattr(task, "DATASET_REVISION", None) or _revision(docs)
    return {
        "how": how[0],
        "language": how[1],
        "timeout": timeout,
        "stop_words": list(getattr(task, "stop_words", None) or []),
        "revision": None if rows is not None else revision,
        "rows": known,
    }


def _row(task: Any, doc: Any) -> dict[str, Any]:
    doc = dict(doc) if not isinstance(doc, int) else doc
    prompt, reference = task.get_prompt(doc), task.get_reference(doc)
    # An instruction is no part of what bigcode post-processes.
    whole = not isinstance(prompt, dict)
    if not whole and set(prompt) == {"instruction", "context"}:
        prompt = prompt["instruction"] + prompt["context"]
    if not isinstance(prompt, str):
        raise Fault("refused", "its prompts are no text")
    text = reference if isinstance(reference, str) else json.dumps(reference)
    return {"prompt": prompt, "reference": text, "doc": doc, "whole": whole}


def _tests(task: Any, doc: Any) -> float:
    """The seconds that the scorer gives a program. Raises Fault for tests that need more than the sandbox has."""
    taken = _pairs(task, doc, ["pass"])
    for _, tests in taken.pairs:
        absent = sorted(_imported(tests) - set(sys.stdlib_module_names))
        if absent:
            raise Fault(
                "refused", f"its tests import {', '.join(absent)}, and the sandbox has the standard library only"
            )
    return taken.timeout


def _imported(code: str) -> set[str]:
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError as error:
        raise Fault("broken", f"its tests are not Python: {error}") from None
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def _revision(docs: Any) -> str | None:
    """The commit of the hub that rows were loaded from, where `datasets` says."""
    files = getattr(getattr(docs, "info", None), "download_checksums", None) or {}
    found = re.search(r"@([0-9a-f]{40})/", " ".join(map(str, files)))
    return found[1] if found else None


def scored(task: Any, how: tuple[str, str], item: dict[str, Any]) -> dict[str, Any]:
    """The programs of one item's texts with their tests, or where nothing is run the scores of the texts."""
    index = item["index"]
    doc = task.get_dataset()[index]
    texts = [task.postprocess_generation(text, index) if item["raw"] else text for text in item["texts"]]
    if how[0] == LANGUAGE:
        return {"texts": texts, "programs": [(text, task.get_reference(doc)) for text in texts]}
    if how[0] == PROGRAMS:
        return {"texts": texts, "programs": _pairs(task, doc, texts).pairs}
    # Tasks of several languages say the score of each, one of which is this item's, and 0 for the others.
    reference = task.get_reference(doc)
    results = [task.process_results([[text]], [reference]) for text in texts]
    return {"texts": texts, "scores": [float(sum(result.values())) for result in results]}


def _pairs(task: Any, doc: Any, texts: list[str]) -> _Taken:
    """What the scorer would run for these texts."""
    reference = task.get_reference(doc)
    if isinstance(reference, dict) and "assertions" in reference:
        # StudentEval's scorer starts Python by itself; this is what it gives it, with its seconds.
        return _Taken([(text, "\n" + reference["assertions"]) for text in texts], 15.0)
    try:
        task.process_results([list(texts)], [reference])
    except _Taken as taken:
        if len(taken.pairs) == len(texts):
            return taken
    raise Fault("broken", "its scorer did not say what it would run")


def _refuse_processes() -> None:
    """From now on this process starts no other: a scorer that would run a program by a way unknown here fails."""

    def hear(event: str, _: Any) -> None:
        if event in PROCESSES:
            raise RuntimeError(f"bigcode's scorer tried to start a process ({event})")

    sys.addaudithook(hear)


if __name__ == "__main__":
    main()
