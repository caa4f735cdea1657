"""Tasks of bigcode-evaluation-harness: `bigcode/NAME` in a suite.

Its prompts, its post-processing and its scorers; our generation and our sandbox. It lives in an environment of its own,
for its pins would pull libraries of ours back by years, and is asked there by `bigcode_side.py`. The folder that a task
is described in holds all that is needed later: rows.jsonl with prompts, references and bigcode's own documents, and a
task file. A data set of the hub is read once, and kept; a generated program never runs in that environment.

Of what it offers a task cannot be had whose scorer runs programs in a way that the sandbox cannot take over, or whose
score is no mean over items: `catalogue` says which and why.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import TaskError, UsageError
from harness.sandbox import Program
from harness.sandbox.languages import LANGUAGES, PYTHON
from harness.store import file_digest, write_whole
from harness.tasks import local, rows
from harness.tasks.files import Definition
from harness.tasks.names import near

if TYPE_CHECKING:
    from harness.tasks.load import Loaded

PREFIX = "bigcode/"
DISTRIBUTION, VERSION = "nvidia-bigcode-eval", "26.3"
NEEDED = (
    "datasets>=4,<6",
    "evaluate==0.4.6",
    "jinja2",
    "nltk>=3.9.1",
    "numpy",
    "pandas",
    "pydantic>=2.8.2",
    "requests",
    "sacremoses>=0.1.0",
    "sqlparse==0.5.0",
    "tqdm",
    "tree-sitter-java==0.21.0",
    "tree-sitter-javascript==0.21.4",
    "tree_sitter==0.21.3",
)
"""What its tasks import; its own list adds a server, PyTorch and an fsspec of 2023, which only its generation needs."""

NEWEST = (3, 12)
"""There is no tree_sitter 0.21 for a later Python."""

INSTALL = "fuse-bench doctor --install bigcode"
SECONDS, FETCH_SECONDS = 60.0, 900.0
"""That the other side may take besides one for every item or row, and more where it fetches data from the hub."""

MAX_TOKENS = 512
"""That a generation may have, where bigcode gives 512 to prompt and generation together."""

DATA = {"humaneval-unstripped": "humaneval", "instruct_wizard_humaneval": "humaneval"}
"""The task of ours whose local data a task reads, where it has another name."""

MBPP_TEST = range(11, 511)
_SIDE = Path(__file__).with_name("bigcode_side.py")
_ROWS, _PLACE = "rows.jsonl", "environment"


class NotHere(TaskError):
    """A task whose data would have to be fetched from the hub."""


# ------------------------------------------------------------------------------------------------- its environment


def where(store: Path) -> Path:
    """The folder of the environment that belongs to a store."""
    return Path(store).absolute() / "bigcode"


def missing(venv: Path) -> str | None:
    """What is not installed, and the command that does it; None if all is there."""
    stamp = venv / "installed"
    if not stamp.is_file():
        return f"bigcode-evaluation-harness is not installed in {venv}: {INSTALL}"
    if stamp.read_text(encoding="utf-8") != _stamp():
        return f"bigcode-evaluation-harness in {venv} is of another version: {INSTALL}"
    return None


def install(venv: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Make the environment, or leave it if it is whole. `say` is told of each step.

    Raises UsageError for a Python that is too new, and if pip fails.
    """
    if sys.version_info[:2] > NEWEST:
        raise UsageError(
            f"bigcode-evaluation-harness needs Python {'.'.join(map(str, NEWEST))} or older, and this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}: install fuse-bench with an older one"
        )
    if missing(venv) is None:
        say(f"{DISTRIBUTION} {VERSION} is installed in {venv}")
        return
    shutil.rmtree(venv, ignore_errors=True)
    say(f"making {venv}")
    _step([sys.executable, "-m", "venv", str(venv)])
    for what in ([f"{DISTRIBUTION}=={VERSION}", "--no-deps"], NEEDED):
        say(f"installing {' '.join(what)}")
        _step([str(_python(venv)), "-I", "-m", "pip", "install", "--quiet", *what])
    _ask(venv, {"do": "list"})
    write_whole(venv / "installed", _stamp())
    say(f"{DISTRIBUTION} {VERSION} is installed in {venv}")


def _stamp() -> str:
    return json.dumps([f"{DISTRIBUTION}=={VERSION}", *NEEDED]) + "\n"


def _python(venv: Path) -> Path:
    return venv / "bin" / "python"


def _step(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UsageError(f"{' '.join(command)} failed (status {done.returncode}): {' / '.join(said[-3:])}")


def _ask(venv: Path, request: Mapping[str, Any], offline: bool = True) -> dict[str, Any]:
    """What the other side answers. Raises TaskError if it does not, or not in time."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    limit = SECONDS + len(request.get("items") or request.get("rows") or ()) + (0.0 if offline else FETCH_SECONDS)
    try:
        done = subprocess.run(
            [str(_python(venv)), "-I", str(_SIDE)],
            input=json.dumps({**request, "languages": list(LANGUAGES)}),
            capture_output=True,
            text=True,
            env=environment,
            timeout=limit,
            check=False,
        )
        if done.returncode == 0:
            return dict(json.loads(done.stdout))
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1] + f" (status {done.returncode})"
    except subprocess.TimeoutExpired:
        why = f"no answer within {limit:g} s"
    except (OSError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    of = f" at task '{PREFIX}{request['task']}'" if "task" in request else ""
    raise TaskError(
        f"bigcode-evaluation-harness in {venv} failed{of}: {why}; try again, and if it fails again remove that folder "
        f"and run `{INSTALL}`"
    )


def catalogue(venv: Path) -> dict[str, str | None]:
    """Every task by name: None if it can be scored here, else why not. Raises TaskError if it is not installed."""
    _installed(venv)
    return dict(_ask(venv, {"do": "list"})["tasks"])


def _installed(venv: Path) -> None:
    absent = missing(venv)
    if absent:
        raise TaskError(absent)


# ----------------------------------------------------------------------------------------------------------- tasks


def resolved(
    names: Iterable[str], store: Path, data: local.Given = None, offline: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of tasks as `tasks.describe` takes them, and those left out because their data are not here.

    A name `bigcode/NAME` becomes the path of its task file. data: `data:` of a suite. offline: nothing is fetched.
    Raises TaskError, without `offline` also for data that cannot be fetched.
    """
    found: list[str] = []
    absent: list[str] = []
    for name in names:
        try:
            found.append(str(task_file(name, store, data, offline)) if name.startswith(PREFIX) else name)
        except NotHere:
            if not offline:
                raise
            absent.append(name)
    return tuple(found), tuple(absent)


def task_file(name: str, store: Path, data: local.Given = None, offline: bool = False) -> Path:
    """The file of a task `bigcode/NAME`, made the first time. Raises TaskError, and NotHere for data of the hub."""
    venv, own = where(store), name.removeprefix(PREFIX)
    _installed(venv)
    given = _given(own, data)
    told = [own, _stamp(), file_digest(_SIDE), file_digest(given) if given else "hub"]
    folder = Path(store).absolute() / "facts" / "tasks" / f"bigcode-{_digest(told)}"
    path = folder / f"bigcode-{own}.yaml"
    if not path.is_file():
        _describe(own, venv, folder, given, offline)
    # Beside the file and not in it: where the environment lies does not count in the task's digest.
    write_whole(folder / _PLACE, str(venv))
    return path


def _digest(told: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _given(own: str, data: local.Given) -> Path | None:
    """The local file of a task's data, where there is one."""
    name = DATA.get(own, own)
    for known in (PREFIX + own, name):
        files = local.files_of(Definition(Path(known), {"task": known, "test_split": "test"}, (), {}, True), data)
        if files:
            return files["test"]
    return None


def _describe(own: str, venv: Path, folder: Path, given: Path | None, offline: bool) -> None:
    """Write a task's file and rows. Raises TaskError for a task that cannot be scored."""
    docs = [doc for _, doc in _docs(own, given)] if given else None
    told = _ask(venv, {"do": "describe", "task": own, "rows": docs}, offline=offline or given is not None)
    if "error" in told:
        kind, text = told["error"]
        raise _fault(own, kind, text, given)
    written = []
    for index, row in enumerate(told["rows"]):
        known = {"prompt": row["prompt"], "reference": row["reference"], "whole": row["whole"]}
        written.append({"index": index, **known, "doc": json.dumps(row["doc"])})
    if not written:
        raise TaskError(f"task '{PREFIX}{own}': no data: its data set has no rows")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _ROWS, "".join(json.dumps(row) + "\n" for row in written))
    # JSON is YAML; the file is written last, and says that the others are whole.
    write_whole(folder / f"bigcode-{own}.yaml", json.dumps(_config(own, told), indent=1) + "\n")


def _config(own: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The task file, as lm-eval and `load.py` read it."""
    return {
        "task": f"bigcode-{own}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": _ROWS}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{reference}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": told["stop_words"], "max_gen_toks": MAX_TOKENS, "do_sample": False},
        "metadata": {
            "version": told["version"],
            "kind": "code",
            "rows": "bigcode",
            "bigcode": own,
            "language": told["language"],
            "timeout": told["timeout"],
            "metric": "exact_match" if told["how"] == "texts" else "pass@1",
            "revision": told["revision"],
            # What is asked of a text, and by what, is part of the task: another side script is another task.
            "side": _digest([_stamp(), file_digest(_SIDE)]),
            "chance": 0.0,
        },
    }


def _docs(own: str, file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a local file with their lines; of one with all of MBPP those of the test split."""
    return [one for one in rows.of_file(file) if own != "mbpp" or one[1].get("task_id") in MBPP_TEST]


def _fault(own: str, kind: str, text: str, given: Path | None) -> TaskError:
    task = f"task '{PREFIX}{own}'"
    if kind == "unknown":
        return TaskError(f"unknown {task}{near(own, json.loads(text))}; fuse-bench tasks lists what bigcode has")
    if kind == "refused":
        return TaskError(f"{task} cannot be scored: {text}")
    if kind == "data":
        place = f"its data in {given} do not suit it" if given else "its data cannot be loaded from the hub"
        return (TaskError if given else NotHere)(f"{task}: {place} ({text})")
    if kind == "row":
        index, text = json.loads(text)
        place = f"{given}:{_docs(own, given)[index][0]}" if given else f"row {index} of its data"
        return TaskError(f"{place}: {task}: the row does not suit it: {text}")
    return TaskError(f"{task}: bigcode-evaluation-harness {VERSION} fails at it: {text}")


# ------------------------------------------------------------------------------------------------------- judging


def is_compared(loaded: "Loaded") -> bool:
    """Whether a task's texts are compared, by `scores`, and nothing is run."""
    return bool(loaded.definition.config["metadata"]["metric"] == "exact_match")


def seconds(loaded: "Loaded") -> float:
    """The time that bigcode gives a Python program of the task; 0 where that is the language's."""
    return float(loaded.definition.config["metadata"]["timeout"])


def programs(loaded: "Loaded", responses: Sequence[Mapping[str, Any]]) -> list[list[Program]]:
    """What the sandbox is to run, by response and sample: bigcode's post-processing and its scorer's tests.

    A response with "postprocessed" holds programs as bigcode writes them to its file of generations. A Python test runs
    in a process of its own, as all do: names of the program are called from it, and helpers that the task's prompt
    defines are the task's. Raises TaskError.
    """
    language = str(loaded.definition.config["metadata"]["language"])
    items = _scored(loaded, responses)
    made = []
    for response, item in zip(responses, items, strict=True):
        doc = json.loads(loaded.docs[response["doc_id"]]["doc"])
        known = doc if isinstance(doc, dict) else {}
        made.append([_program(known, text, tests, language) for text, tests in item["programs"]])
    return made


def _program(doc: Mapping[str, Any], text: str, tests: str, language: str) -> Program:
    if language != PYTHON:
        return Program(text, tests, language=language)
    if doc.get("entry_point"):
        return Program(text, tests, setup=str(doc["prompt"]), entry_point=str(doc["entry_point"]))
    # MBPP says by its solution what it calls, in one problem a function with the name of a builtin one.
    called = [name for name in re.findall(r"^def\s+(\w+)", str(doc.get("code") or ""), re.MULTILINE) if name in tests]
    return Program(text, tests, entry_point=called[-1] if called else "")


def scores(loaded: "Loaded", responses: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """By response and sample what bigcode's scorer gives a text that it compares. Raises TaskError."""
    return [[float(score) for score in item["scores"]] for item in _scored(loaded, responses)]


def texts(loaded: "Loaded", responses: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """By response and sample what bigcode would write to its file of generations. Raises TaskError."""
    return [list(item["texts"]) for item in _scored(loaded, responses)]


def _scored(loaded: "Loaded", responses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The other side's items for these responses."""
    if not responses:
        return []
    (file,) = loaded.definition.data["test"]
    venv = Path((file.parent / _PLACE).read_text(encoding="utf-8"))
    _installed(venv)
    own = str(loaded.definition.config["metadata"]["bigcode"])
    items = []
    for response in responses:
        doc = loaded.docs[response["doc_id"]]
        before = doc["prompt"] if doc["whole"] and not response.get("postprocessed") else ""
        said = [before + text for text in response["resps"][0]]
        items.append({"index": doc["index"], "texts": said, "raw": not response.get("postprocessed")})
    docs = [json.loads(doc["doc"]) for doc in loaded.docs]
    told = _ask(venv, {"do": "programs", "task": own, "docs": docs, "items": items})
    if "error" in told:
        kind, text = told["error"]
        raise _fault(own, kind, text, file)
    return list(told["items"])


# ----------------------------------------------------------------------------------------- its file of generations


def write_generations(file: Path, programs_of: Mapping[int, Sequence[str]], problems: int) -> None:
    """Write a model's programs, by doc_id, as `--load_generations_path` of bigcode reads them.

    It takes the first list for the first problem of the data, and as many programs of each. Raises UsageError for
    programs that leave problems out, or that are not as many of each.
    """
    absent = sorted(set(range(problems)) - set(programs_of))
    if absent:
        raise UsageError(
            f"bigcode's file has programs for all problems in the data's order; {len(absent)} of {problems} have none, "
            f"the first is number {absent[0]} (from 0): evaluate without `limit` and without a dev split"
        )
    counts = {len(written) for written in programs_of.values()}
    if len(counts) != 1:
        raise UsageError(f"bigcode's file has as many programs of every problem; these have {sorted(counts)}")
    listed = [list(programs_of[index]) for index in range(problems)]
    write_whole(file, json.dumps(listed))
