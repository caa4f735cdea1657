"""The verb `evaluate`: one model on some tasks outside a suite, or programs that were made elsewhere on a code task.

A model's evaluation is a run like any other, of a suite of one model: cached, resumed, and to be compared with others.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.modelref import Folder
from fusion.recipe_yaml import Models
from harness import bigcode, sandbox, tasks
from harness.errors import UsageError
from harness.evaluated import BATCH_SIZE, SAMPLING_KEYS, sampling
from harness.judge import judge
from harness.programs import pass_at
from harness.run import Options, Outcome, carry_out
from harness.spec import Group, Source, Suite
from harness.store import digest_of
from harness.tasks import Task, load

GROUP = "tasks"
LONGEST_NAME = 60


@dataclass(frozen=True)
class Asked:
    """What to evaluate. model: a folder, FOLDER+LORA, or a LoRA folder.

    weak_sandbox: generated programs may run at the weakest level. samples, temperature, top_p: as of a suite's group;
    None is their default. chat: auto, on or off.
    """

    model: str
    tasks: tuple[str, ...]
    limit: int | None = None
    batch_size: int = BATCH_SIZE
    weak_sandbox: bool = False
    allow_pickle: bool = False
    trust: bool = False
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    chat: str = "off"


def evaluate(asked: Asked, options: Options) -> Outcome:
    """Score one model, as a run. Raises UsageError for a model that is not there, TaskError for an unknown task."""
    return carry_out(suite_of(asked), options)


def suite_of(asked: Asked) -> Suite:
    """The suite of one model that an evaluation is a run of."""
    ref = _model(asked.model)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(ref.adapter or ref.path).name).strip("-._")[:LONGEST_NAME] or "model"
    repeated = sorted({task for task in asked.tasks if asked.tasks.count(task) > 1})
    if repeated:
        raise UsageError(f"task {', '.join(repeated)} is given more than once")
    given = {key: getattr(asked, key) for key in SAMPLING_KEYS if getattr(asked, key) is not None}
    drawn, wrong = sampling(given)
    if wrong:
        raise UsageError("; ".join(wrong.values()))
    # Tasks that are files of the user's are relative to where the command was given.
    group = Group(GROUP, asked.tasks, asked.limit, asked.batch_size, **drawn)
    keys = {"adapter": ref.adapter, "allow_pickle": asked.allow_pickle or None}
    said = {
        "suite": f"evaluate-{name}",
        "models": {name: {"from": ref.path, **{key: value for key, value in keys.items() if value}}},
        "evaluate": {
            GROUP: {"tasks": list(asked.tasks), "limit": asked.limit, "batch_size": asked.batch_size, **given}
        },
        **({"sandbox": "any"} if asked.weak_sandbox else {}),
        "trust_task_code": asked.trust,
        **({"chat": asked.chat} if asked.chat != "off" else {}),
    }
    return Suite(
        name=str(said["suite"]),
        seed=0,
        models={name: Source(name, ref.path, adapter=ref.adapter, pickled=asked.allow_pickle)},
        groups=(group,),
        dev_share=0.0,
        kinship_base=None,
        measures=(),
        kinship_texts=None,
        mlflow=None,
        keep="none",
        sandbox="any" if asked.weak_sandbox else None,
        trust_task_code=asked.trust,
        published={},
        path=Path.cwd() / "evaluate",
        text=json.dumps(said, indent=1) + "\n",
        digest=digest_of(said),
        chat=asked.chat,
    )


def _model(given: str) -> Folder:
    named = Models(Path())
    known = named.name(given, ())
    if named.problems or known is None:
        raise UsageError("\n".join(problem.message for problem in named.problems))
    ref = named.refs[known]
    if not isinstance(ref, Folder):
        raise UsageError(f"{given} is no folder of a model")
    paths = [str(Path(path).absolute()) if path else None for path in (ref.path, ref.adapter)]
    return Folder(str(paths[0]), paths[1])


def scores(outcome: Outcome) -> dict[str, Any]:
    """{"model", "digest"[, "chat"], "tasks": {task: {"metric", "value", "stderr", "n", ...}}, "run_dir", "failed"}."""
    ((name, row),) = outcome.results["models"].items()
    groups = row.get("scores") or {}
    return {
        "model": name,
        "digest": row.get("digest"),
        **({"chat": True} if row.get("chat") else {}),
        "tasks": (groups.get(GROUP) or {}).get("tasks") or {},
        "run_dir": str(outcome.run_dir),
        "failed": dict(outcome.failed),
    }


def score_words(found: Mapping[str, Any]) -> str:
    """One line a task, with what it is scored by; the other means of a task below it."""
    width = max([len(task) for task in found["tasks"]] + [4])
    lines = [f"{found['model']}, asked in its chat template" if found.get("chat") else found["model"]]
    for task, entry in found["tasks"].items():
        spread = f" ±{1.96 * 100 * entry['stderr']:.1f}" if "stderr" in entry else ""
        counts = {"truncated": "prompts cut", "unfinished": "answers cut off"}
        note = "".join(f"  {entry[key]} {what}" for key, what in counts.items() if key in entry)
        chance = f", chance {100 * entry['chance']:.0f}" if "chance" in entry else ""
        lines.append(
            f"  {task:<{width}}  {100 * entry['value']:5.1f}{spread}  {entry['metric']}, n {entry['n']}{chance}{note}"
        )
        also = [f"{label} {100 * value:.1f}" for label, value in (entry.get("also") or {}).items()]
        lines += [f"  {'':<{width}}  also {', '.join(also)}"] if also else []
    return "\n".join([*lines, "scores in percent; ± is half the 95 % interval over items"])


# ----------------------------------------------------------------------------------------- programs made elsewhere


def judge_generations(
    file: Path, task: str, cache: Path, weak_sandbox: bool = False, trust: bool = False
) -> dict[str, Any]:
    """Run programs that were made elsewhere against a code task's tests.

    file: JSON, a list of samples for each problem, in the order of the task's data, as the bigcode harness writes them;
    a sample is a whole program, run as it is, or a completion of the problem's prompt, which ends at the task's stop
    sequences (see programs.is_whole). It may end early, and then the first problems are scored. cache: of descriptions
    of tasks, in the store. weak_sandbox: they may run at the weakest level.

    Returns {"task", "sandbox", "problems", "of", "samples", "pass@1", ...[pass@k], "verdicts": [{"id", "programs":
    [{"passed", "reason"}]}]}, pass@k the unbiased estimate (Chen et al. 2021, arXiv:2107.03374, equation 1).
    Raises UsageError, TaskError and SandboxError.
    """
    found = task_named(task, cache, trust)
    level = sandbox.accepted("any" if weak_sandbox else None)
    source = found.source
    loaded = load.load(Path(source), trust)
    samples = _samples(file, task, len(loaded.ids))
    responses = [
        {"id": loaded.ids[i], "doc_id": i, "resps": [texts], "postprocessed": True} for i, texts in enumerate(samples)
    ]
    records = judge(source, responses, sandbox=level, trust=trust)
    passed = [[program["passed"] for program in record["programs"]] for record in records]
    fewest = min(len(programs) for programs in passed)
    return {
        "task": found.name,
        "sandbox": level,
        "problems": len(records),
        "of": len(loaded.ids),
        "samples": sum(len(programs) for programs in passed),
        **{f"pass@{k}": pass_at(passed, k) for k in (1, 10, 100) if k <= fewest},
        "verdicts": [{"id": record["id"], "programs": record["programs"]} for record in records],
    }


def task_named(name: str, cache: Path, trust: bool = False) -> Task:
    """The code task of a name, a file, or bigcode/NAME; `cache` lies in the store. Raises UsageError for any other."""
    asked, _ = bigcode.resolved([name], cache.parent)
    found = list(tasks.describe(asked, Path(), cache, trust).values())
    if len(found) != 1 or found[0].metric != "pass@1":
        raise UsageError(f"'{name}' is no code task: generations are programs, scored by running them")
    return found[0]


def _samples(file: Path, task: str, problems: int) -> list[list[str]]:
    """What a file of generations holds. Raises UsageError that says where it is not what it should be."""
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{file} is not JSON ({error})") from error
    wanted = "expected a list with a list of programs (text) for each problem"
    if not isinstance(given, list) or not given:
        raise UsageError(f"{file}: {wanted}")
    for number, texts in enumerate(given):
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"{file}: problem {number} (from 0) is {str(texts)[:60]!r}; {wanted}")
    if len(given) > problems:
        raise UsageError(f"{file} has programs for {len(given)} problems, and {task} has {problems}: is it this task?")
    return given


def generation_words(found: Mapping[str, Any]) -> str:
    """Pass rates, and how the programs that did not pass ended."""
    rates = [f"{key} {100 * value:.1f}" for key, value in found.items() if key.startswith("pass@")]
    counts: dict[str, int] = {}
    for verdict in found["verdicts"]:
        for program in verdict["programs"]:
            kind = str(program["reason"]).partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
    part = "" if found["problems"] == found["of"] else f" (the first of {found['of']})"
    return "\n".join(
        [
            f"{found['task']}: {', '.join(rates)} in percent",
            f"{found['problems']} problems{part}, {found['samples']} programs, sandbox {found['sandbox']}",
            ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1])),
        ]
    )
