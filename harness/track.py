"""Results sent to MLflow: one experiment a suite, one run for the suite and one top-level run a model.

MLflow is a mirror: results.json stays the truth and can be sent again at any time. What has arrived is recognised by
digests in tags, so sending the same results twice adds nothing and an interrupted sending is completed. Only the driver
calls this, under a lock: several processes that open a fresh SQLite store at once destroy it.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from harness.errors import FuseBenchError
from harness.runs import file_name

ARTIFACTS = ("suite.yaml", "results.json", "leaderboard.html", "leaderboard.md", "leaderboard.csv", "leaderboard.json")
KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
BATCH = 1000  # metrics of one request
# Costs and machines differ between two runs of one suite that give the same scores: they make no new result.
NOT_RESULTS = ("environment", "cost")
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class TrackError(FuseBenchError):
    """MLflow did not take the results; the run is unharmed, and the text says how to send them again."""


@dataclass(frozen=True)
class Tracked:
    """What MLflow has now: the runs made by this call and those it had. `hint` is set where nothing was done."""

    uri: str
    experiment: str
    suite_run: str | None
    sent: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    hint: str | None = None


def track(results: Mapping[str, Any], run_dir: Path, uri: str) -> Tracked:
    """Send a results document and the run folder's files to the MLflow store at `uri`.

    A model's curve (curves/<model>.jsonl in the run folder) becomes metrics with steps: curve/loss, curve/clm, ...
    `uri` is sqlite:////absolute/mlflow.db or a server's address. Without mlflow installed nothing is sent and the
    result carries a hint. Raises TrackError when the store does not take it, or a curve is damaged.
    """
    experiment = f"fuse-bench/{_suite_name(results)}"
    again = f"fuse-bench track {shlex.quote(str(run_dir))}"
    _check_uri(uri)
    models = (results.get("models") or {}).items()
    curves = {str(name): curve_of(run_dir, str(name), entry) for name, entry in models}
    try:
        with _alone(uri):
            return _send(_client(uri), results, curves, run_dir, uri, experiment)
    except ImportError:
        hint = f"MLflow is not installed, nothing was sent; install it (pip install mlflow) and run: {again}"
        return Tracked(uri, experiment, None, hint=hint)
    # MLflow lets through what SQLAlchemy, alembic, requests and the file system raise; none of it may end the run.
    except Exception as error:
        raise _failed(uri, again, error) from error


def ui_command(uri: str) -> str:
    """The command that shows a store in MLflow's UI (two processes instead of ten), or the address of a server."""
    if uri.startswith(("http://", "https://")):
        return uri
    settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    return f"{settings} mlflow server --backend-store-uri {shlex.quote(uri)} --port 5000 --workers 1"


# ------------------------------------------------------------------------------------------------------- the sending


def _client(uri: str) -> Any:
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold an SQLite store, whose folder is made, against other processes; a server looks after itself."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = _store_folder(uri)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".mlflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _send(
    client: Any, results: Mapping[str, Any], curves: Mapping[str, "Curve"], run_dir: Path, uri: str, experiment: str
) -> Tracked:
    at = _experiment(client, experiment, uri)
    digest = _digest(results)
    suite = _find(client, at, {"fusebench.kind": "suite", "fusebench.result_digest": digest})
    complete = suite is not None and suite.info.status == "FINISHED"
    if suite is None:
        tags = {
            "fusebench.kind": "suite",
            "fusebench.result_digest": digest,
            "fusebench.run_dir": str(run_dir.resolve()),
        }
        suite = client.create_run(at, run_name=_suite_name(results), tags=tags)
    suite_run = str(suite.info.run_id)
    sent: list[str] = []
    already: list[str] = []
    for name, entry in (results.get("models") or {}).items():
        fresh = not complete and _send_model(client, at, suite_run, str(name), entry, curves[str(name)])
        (sent if fresh else already).append(str(name))
    if not complete:
        _send_suite(client, suite_run, run_dir)
    return Tracked(uri, experiment, suite_run, tuple(sent), tuple(already))


def _send_suite(client: Any, suite_run: str, run_dir: Path) -> None:
    for name in ARTIFACTS:
        if (run_dir / name).is_file():
            client.log_artifact(suite_run, str(run_dir / name))
    table = run_dir / "leaderboard.md"
    if table.is_file():
        client.set_tag(suite_run, "mlflow.note.content", table.read_text(encoding="utf-8")[:TAG_LENGTH])
    # Last, because it says that all of it has arrived.
    client.set_terminated(suite_run, "FINISHED")


def _send_model(
    client: Any, experiment_id: str, suite_run: str, name: str, entry: Mapping[str, Any], curve: "Curve"
) -> bool:
    """Send one model's run; False if MLflow has it from an earlier sending, which then moves to this suite run."""
    identity = {
        "fusebench.kind": "model",
        "fusebench.model": name[:TAG_LENGTH],
        "fusebench.result_digest": _digest(entry),
    }
    found = _find(client, experiment_id, identity)
    if found is not None and found.info.status != "RUNNING":
        client.set_tag(found.info.run_id, "fusebench.suite_run", suite_run)
        return False
    if found is not None:
        client.delete_run(found.info.run_id)
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    run = client.create_run(experiment_id, run_name=name[:KEY_LENGTH], tags=identity | _tags(entry, suite_run))
    metrics = [Metric(key, value, now, 0) for key, value in metrics_of(entry).items()]
    params = [Param(key, value) for key, value in params_of(entry).items()]
    client.log_batch(run.info.run_id, metrics=metrics, params=params)
    steps = [Metric(key, value, now, step) for step, values in curve for key, value in values.items()]
    for start in range(0, len(steps), BATCH):
        client.log_batch(run.info.run_id, metrics=steps[start : start + BATCH])
    ended = {"failed": "FAILED", "skipped": "KILLED"}.get(str(entry.get("status")), "FINISHED")
    client.set_terminated(run.info.run_id, ended)
    return True


def _experiment(client: Any, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = (_store_folder(uri) / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(name, artifact_location=place))


def _find(client: Any, experiment_id: str, tags: Mapping[str, str]) -> Any:
    """The newest run with these tags, or None. Digests select; names are compared here, where no quoting can fail."""
    digest = tags["fusebench.result_digest"]
    runs = client.search_runs([experiment_id], f"tags.`fusebench.result_digest` = '{digest}'")
    return next((run for run in runs if tags.items() <= run.data.tags.items()), None)


# ------------------------------------------------------------------------------------------------- what a run is told


def metrics_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """A model's metrics by MLflow key: bbh/navigate, stderr/bbh/navigate, avg/bbh, avg/all, gain/best, kinship/pcc."""
    return _finite(_numbers(entry))


def _finite(named: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, value in named:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[_free(key_of(*path), path, found)] = float(value)
    return found


# A training's curve: (step, metrics by MLflow key).
Curve = Sequence[tuple[int, Mapping[str, float]]]


def curve_of(run_dir: Path, name: str, entry: Mapping[str, Any]) -> Curve:
    """A model's curve as the run folder has it, those of its seeds after each other; empty for one without a curve.

    Keys: curve/loss, or curve/loss/seed_1 where there are several seeds; system/ for what depends on the machine.
    Raises TrackError for a damaged file.
    """
    seeds = entry.get("seeds") or ()
    if len(seeds) < 2:
        return _curve(run_dir / "curves" / f"{file_name(name)}.jsonl", ())
    files = {seed: run_dir / "curves" / f"{file_name(f'{name}@{seed}')}.jsonl" for seed in seeds}
    return [line for seed, file in files.items() for line in _curve(file, (f"seed_{seed}",))]


def _curve(file: Path, suffix: tuple[str, ...]) -> Curve:
    if not file.is_file():
        return []
    curve = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            told = json.loads(line)
            step, wall = int(told.pop("step")), told.pop("wall", {})
            named = [(("curve", key, *suffix), value) for key, value in told.items()]
            named += [(("system", key, *suffix), value) for key, value in wall.items()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TrackError(
                f"{file}:{number} is no line of a curve ({error}); give the run's command again, it is rebuilt"
            ) from error
        curve.append((step, _finite(named)))
    return curve


def params_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """What MLflow's compare page sorts by: method, parents, base and the method's parameters, filled in."""
    parents = entry.get("parents")
    told = {
        "kind": entry.get("kind"),
        "method": entry.get("method"),
        "parents": ", ".join(map(str, parents)) if parents else None,
        "base": entry.get("base"),
        "control": entry.get("control"),
        "seeds": entry.get("seeds"),
    }
    found = {key: _text(value) for key, value in told.items() if value is not None}
    for name, value in (entry.get("params") or {}).items():
        key = key_of(str(name)) if key_of(str(name)) not in told else f"params/{key_of(str(name))}"
        found[_free(key, (str(name),), found)] = _text(value)
    return found


def key_of(*parts: str) -> str:
    """A key that MLflow accepts: letters, digits, `_ - . : /` and spaces; no empty or dotted part; at most 250."""
    kept = []
    for part in "/".join(parts).replace("@", "_at_").split("/"):
        clean = re.sub(r"[^A-Za-z0-9_\-. :]", "_", part)
        if clean.strip(". "):
            kept.append(clean)
    key = "/".join(kept) or "_"
    return key if len(key) <= KEY_LENGTH else f"{key[: KEY_LENGTH - 9]}-{_hash('/'.join(parts))[:8]}"


def _free(key: str, path: tuple[str, ...], taken: Mapping[str, Any]) -> str:
    """The key, or with a hash of the true name when another name was cleaned to the same."""
    return key if key not in taken else f"{key[: KEY_LENGTH - 9]}-{_hash('/'.join(path))[:8]}"


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield ("rank",), entry.get("rank")
    yield ("avg", "all"), _get(entry, "score", "value")
    yield ("stderr", "avg", "all"), _get(entry, "score", "stderr")
    for group, scores in (entry.get("scores") or {}).items():
        yield ("avg", group), _get(scores, "value")
        yield ("stderr", "avg", group), _get(scores, "stderr")
        for task, score in (scores.get("tasks") or {}).items():
            yield (group, task), _get(score, "value")
            yield ("stderr", group, task), _get(score, "stderr")
            yield from ((("also", group, task, name), value) for name, value in (score.get("also") or {}).items())
    for group, scores in (entry.get("dev_scores") or {}).items():
        yield ("dev", group), _get(scores, "value")
    for group, text in (entry.get("text") or {}).items():
        yield ("bits_per_byte", group), _get(text, "value")
    for group, gains in (entry.get("text_gain") or {}).items():
        yield from ((("bits_per_byte", group, "saved", key), _get(gain, "value")) for key, gain in gains.items())
    for name, gain in (entry.get("gain") or {}).items():
        yield from (((f"gain{suffix}", name), _get(gain, key)) for suffix, key in _GAIN_PARTS)
    for measure, kinship in (entry.get("kinship") or {}).items():
        yield ("kinship", measure), _get(kinship, "mean")
    yield from ((("cost", name), value) for name, value in (entry.get("cost") or {}).items())


_GAIN_PARTS = (("", "value"), ("_low", "low"), ("_high", "high"), ("_p", "p"))


def _get(entry: Any, *path: str) -> Any:
    for key in path:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return entry


def _tags(entry: Mapping[str, Any], suite_run: str) -> dict[str, str]:
    told = {
        "fusebench.suite_run": suite_run,
        "fusebench.model_kind": entry.get("kind"),
        "fusebench.status": entry.get("status"),
        "fusebench.error": entry.get("error"),
        "fusebench.digest": entry.get("digest"),
        "mlflow.note.content": entry.get("note") or entry.get("error"),
    }
    return {key: str(value)[:TAG_LENGTH] for key, value in told.items() if value}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text[:PARAM_LENGTH]


# --------------------------------------------------------------------------------------------------------- small parts


def _suite_name(results: Mapping[str, Any]) -> str:
    suite = results.get("suite")
    name = (suite.get("suite") or suite.get("name")) if isinstance(suite, Mapping) else suite
    return key_of(str(name or "suite"))


def _digest(document: Any) -> str:
    return f"sha256:{_hash(json.dumps(_results_only(document), sort_keys=True, default=str))}"


def _results_only(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _results_only(inner) for key, inner in value.items() if key not in NOT_RESULTS}
    return [_results_only(inner) for inner in value] if isinstance(value, list | tuple) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _store_folder(uri: str) -> Path:
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).absolute().parent


def _check_uri(uri: str) -> None:
    if re.match(r"(?!file:)[a-z][a-z0-9+]+://|databricks$", uri):
        return
    raise TrackError(
        f"'{_redacted(uri)}' is not a store that MLflow 3 writes to: its file store is closed; "
        "use sqlite:////absolute/path/mlflow.db or the address of a server"
    )


def _redacted(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _failed(uri: str, again: str, error: Exception) -> TrackError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return TrackError(
        f"MLflow at {_redacted(uri)} did not take the results ({type(error).__name__}: {_redacted(said)}). "
        f"They are safe in the run folder; send them again with: {again}"
    )
