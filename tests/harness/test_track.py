import copy
import json
import math
import shutil
import socket
import sys

import pytest

from harness import track as tracking
from harness.runs import file_name
from harness.track import TrackError, key_of, metrics_of, params_of, track, ui_command

NASTY = "<script>alert(1)</script>'\"`\n" + "x" * 500


def model(value: float, **more) -> dict:
    tasks = {"navigate": {"metric": "acc", "value": value, "stderr": 0.03, "n": 100, "also": {"acc_norm": 0.5}}}
    return {
        "kind": "merged",
        "status": "ok",
        "method": "ties",
        "params": {"density": 0.3, "kind": "own"},
        "parents": ["a", "b"],
        "base": "base",
        "rank": 1,
        "score": {"value": value, "stderr": 0.02, "n": 100},
        "scores": {"bbh": {"value": value, "stderr": 0.03, "n": 100, "tasks": tasks}},
        "gain": {"best": {"value": 0.05, "low": 0.01, "high": 0.09, "p": 0.02, "against": "a"}},
        "kinship": {"pcc": {"mean": 0.4, "min": 0.4, "max": 0.4}},
        "cost": {"build_s": 3.0, "evaluate_s": 20.0},
        **more,
    }


@pytest.fixture
def results() -> dict:
    return {
        "schema": 1,
        "suite": {"suite": "quick"},
        "environment": {"python": "3.11"},
        "models": {
            "ties[density=0.3]": model(0.6),
            "base": model(0.4, kind="source", gain={}, kinship={}, method=None, params={}, parents=[]),
            "dare": {"kind": "merged", "status": "failed", "error": "worker died"},
            "later": {"kind": "merged", "status": "skipped", "error": "dare failed"},
        },
    }


@pytest.fixture
def run_dir(tmp_path, results):
    folder = tmp_path / "runs" / "quick-1"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "suite.yaml").write_text("suite: quick\n")
    (folder / "leaderboard.md").write_text("| # | model |\n")
    (folder / "leaderboard.html").write_text("<!doctype html>")
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A migrated SQLite store, made once: the migrations take seconds, a copy takes none."""
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    folder = tmp_path_factory.mktemp("mlflow")
    tracking._client(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def stored(uri):
    """All runs of an experiment by kind, as (name, status, metrics, params, tags)."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)

    def look(name="fuse-bench/quick"):
        experiment = client.get_experiment_by_name(name)
        runs = client.search_runs([experiment.experiment_id])
        kinds = {"suite": {}, "model": {}}
        for run in runs:
            kinds[run.data.tags["fusebench.kind"]].setdefault(run.info.run_name, []).append(run)
        return client, kinds

    return look


# --- what is sent


def test_the_store_has_one_suite_run_and_one_run_a_model(uri, stored, results, run_dir, capfd):
    sent = track(results, run_dir, uri)
    client, kinds = stored()
    assert sent.experiment == "fuse-bench/quick"
    assert sent.sent == ("ties[density=0.3]", "base", "dare", "later")
    assert sent.hint is None
    (suite,) = kinds["suite"]["quick"]
    assert suite.info.run_id == sent.suite_run
    assert suite.info.status == "FINISHED"
    names = {found.path for found in client.list_artifacts(suite.info.run_id)}
    assert names == {"results.json", "suite.yaml", "leaderboard.md", "leaderboard.html"}
    assert suite.data.tags["mlflow.note.content"] == "| # | model |\n"
    assert {name: [run.info.status for run in runs] for name, runs in kinds["model"].items()} == {
        "ties[density=0.3]": ["FINISHED"],
        "base": ["FINISHED"],
        "dare": ["FAILED"],
        "later": ["KILLED"],
    }
    assert capfd.readouterr() == ("", "")


def test_a_model_run_has_the_numbers_the_parameters_and_the_tags(uri, stored, results, run_dir):
    sent = track(results, run_dir, uri)
    _, kinds = stored()
    (run,) = kinds["model"]["ties[density=0.3]"]
    assert run.data.metrics == {
        "rank": 1.0,
        "avg/all": 0.6,
        "stderr/avg/all": 0.02,
        "avg/bbh": 0.6,
        "stderr/avg/bbh": 0.03,
        "bbh/navigate": 0.6,
        "stderr/bbh/navigate": 0.03,
        "also/bbh/navigate/acc_norm": 0.5,
        "gain/best": 0.05,
        "gain_low/best": 0.01,
        "gain_high/best": 0.09,
        "gain_p/best": 0.02,
        "kinship/pcc": 0.4,
        "cost/build_s": 3.0,
        "cost/evaluate_s": 20.0,
    }
    assert run.data.params == {
        "kind": "merged",
        "method": "ties",
        "parents": "a, b",
        "base": "base",
        "density": "0.3",
        "params/kind": "own",
    }
    assert run.data.tags["fusebench.suite_run"] == sent.suite_run
    assert run.data.tags["fusebench.model_kind"] == "merged"
    (failed,) = kinds["model"]["dare"]
    assert failed.data.metrics == {}
    assert failed.data.tags["fusebench.error"] == "worker died"


def test_the_artifacts_lie_beside_the_store(uri, stored, results, run_dir, tmp_path):
    sent = track(results, run_dir, uri)
    assert list((tmp_path / "mlartifacts").rglob("leaderboard.html"))
    assert sent.uri == uri


# --- curves


def write_curve(run_dir, name: str, steps: int) -> None:
    (run_dir / "curves").mkdir(exist_ok=True)
    lines = [
        {"step": step, "loss": 1 / step, "clm": 0.5, "tokens": 7, "wall": {"tokens_per_second": 99.5}}
        for step in range(10, 10 * steps + 1, 10)
    ]
    (run_dir / "curves" / f"{file_name(name)}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_curve_becomes_metrics_with_steps(uri, stored, results, run_dir, monkeypatch):
    monkeypatch.setattr(tracking, "BATCH", 5)
    write_curve(run_dir, "ties[density=0.3]", 3)
    track(results, run_dir, uri)
    client, kinds = stored()
    (run,) = kinds["model"]["ties[density=0.3]"]
    history = client.get_metric_history(run.info.run_id, "curve/loss")
    assert [(found.step, found.value) for found in history] == [(10, 0.1), (20, 0.05), (30, pytest.approx(1 / 30))]
    for key, value in {"curve/clm": 0.5, "curve/tokens": 7, "system/tokens_per_second": 99.5}.items():
        history = client.get_metric_history(run.info.run_id, key)
        assert [(found.step, found.value) for found in history] == [(10, value), (20, value), (30, value)]
    (other,) = kinds["model"]["base"]
    assert not [key for key in other.data.metrics if key.startswith(("curve/", "system/"))]


def test_a_curve_is_sent_once(uri, stored, results, run_dir):
    write_curve(run_dir, "base", 2)
    track(results, run_dir, uri)
    assert track(results, run_dir, uri).sent == ()
    client, kinds = stored()
    assert len(client.get_metric_history(kinds["model"]["base"][0].info.run_id, "curve/loss")) == 2


def test_a_curve_whose_sending_broke_off_is_sent_whole(uri, stored, results, run_dir, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setattr(tracking, "BATCH", 4)
    write_curve(run_dir, "ties[density=0.3]", 3)
    whole = MlflowClient.log_batch
    calls = []

    def broken(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("disk full")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", broken)
    with pytest.raises(TrackError, match="disk full"):
        track(results, run_dir, uri)
    track(results, run_dir, uri)
    client, kinds = stored()
    (run,) = kinds["model"]["ties[density=0.3]"]
    assert [found.step for found in client.get_metric_history(run.info.run_id, "curve/loss")] == [10, 20, 30]


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1.0}', '{"step": "x"}', '{"step": 1, "wall": 3}'])
def test_a_damaged_curve_is_named_with_its_line(line, results, run_dir, tmp_path):
    write_curve(run_dir, "base", 1)
    file = run_dir / "curves" / f"{file_name('base')}.jsonl"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(TrackError, match=r"\.jsonl:2 is no line of a curve"):
        track(results, run_dir, f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_each_seed_has_a_curve(run_dir):
    for seed in (1, 2):
        write_curve(run_dir, f"fused@{seed}", seed)
    curve = tracking.curve_of(run_dir, "fused", {"seeds": [1, 2, 3]})
    assert [
        (step, values[f"curve/loss/seed_{seed}"]) for seed, (step, values) in zip((1, 2, 2), curve, strict=True)
    ] == [
        (10, 0.1),
        (10, 0.1),
        (20, 0.05),
    ]
    write_curve(run_dir, "fused", 1)
    ((_, values),) = tracking.curve_of(run_dir, "fused", {"seeds": [1]})
    assert set(values) == {"curve/loss", "curve/clm", "curve/tokens", "system/tokens_per_second"}


def test_what_is_not_finite_in_a_curve_is_no_metric(run_dir):
    (run_dir / "curves").mkdir()
    (run_dir / "curves" / f"{file_name('<b>')}.jsonl").write_text('{"step": 1, "loss": NaN, "a,b": 1, "a;b": 2}\n')
    ((step, values),) = tracking.curve_of(run_dir, "<b>", {})
    assert step == 1 and sorted(values.values()) == [1.0, 2.0]


# --- sent again


def test_the_same_results_add_nothing(uri, stored, results, run_dir):
    first = track(results, run_dir, uri)
    again = track(results, run_dir, uri)
    assert again.suite_run == first.suite_run
    assert (again.sent, again.already) == ((), first.sent)
    _, kinds = stored()
    assert [len(runs) for runs in (*kinds["suite"].values(), *kinds["model"].values())] == [1] * 5


def test_another_machine_or_cost_is_no_new_result(uri, results, run_dir):
    track(results, run_dir, uri)
    results["environment"]["python"] = "3.12"
    results["models"]["base"]["cost"]["build_s"] = 99.0
    assert track(results, run_dir, uri).sent == ()


def test_only_a_changed_model_gets_a_new_run(uri, stored, results, run_dir):
    first = track(results, run_dir, uri)
    changed = copy.deepcopy(results)
    changed["models"]["dare"] = model(0.7)
    second = track(changed, run_dir, uri)
    assert second.sent == ("dare",)
    assert second.suite_run != first.suite_run
    _, kinds = stored()
    assert len(kinds["model"]["dare"]) == 2
    assert len(kinds["model"]["base"]) == 1
    assert kinds["model"]["base"][0].data.tags["fusebench.suite_run"] == second.suite_run


def test_an_interrupted_sending_is_completed(uri, stored, results, run_dir, monkeypatch):
    from mlflow import MlflowClient

    whole = MlflowClient.log_batch
    calls = []

    def broken(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("disk full")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", broken)
    with pytest.raises(TrackError, match="disk full"):
        track(results, run_dir, uri)
    sent = track(results, run_dir, uri)
    assert sent.already == ("ties[density=0.3]",)
    assert sent.sent == ("base", "dare", "later")
    _, kinds = stored()
    assert [len(runs) for runs in (*kinds["suite"].values(), *kinds["model"].values())] == [1] * 5
    assert kinds["model"]["base"][0].data.metrics["avg/all"] == 0.4


# --- names


def test_hostile_names_arrive(uri, stored, results, run_dir):
    entry = results["models"][NASTY] = model(0.5)
    entry["scores"][NASTY] = {"value": 0.5, "tasks": {NASTY: {"value": 0.5}, NASTY + "!": {"value": 0.25}}}
    entry["params"] = {NASTY: NASTY, "pass@1": [1, 2]}
    entry["note"] = NASTY
    results["suite"]["suite"] = NASTY
    sent = track(results, run_dir, uri)
    assert NASTY in sent.sent
    assert NASTY in track(results, run_dir, uri).already
    _, kinds = stored(sent.experiment)
    (run,) = kinds["model"][NASTY[:250]]
    assert run.data.tags["fusebench.model"] == NASTY
    assert {0.5, 0.25} <= set(run.data.metrics.values())


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (("bbh", "boolean_expressions"), "bbh/boolean_expressions"),
        (("code", "pass@1"), "code/pass_at_1"),
        (("a,b", "50%"), "a_b/50_"),
        (("..", "/x//y/"), "x/y"),
        (("",), "_"),
    ],
)
def test_keys_are_cleaned(parts, key):
    assert key_of(*parts) == key


def test_long_keys_stay_apart_and_valid():
    keys = {key_of("g", "x" * 300 + end) for end in ("a", "b")}
    assert len(keys) == 2
    assert all(len(key) <= 250 for key in keys)


def test_two_names_cleaned_to_one_key_stay_two():
    entry = {"scores": {"g": {"tasks": {"a,b": {"value": 0.1}, "a;b": {"value": 0.2}}}}}
    assert sorted(metrics_of(entry).values()) == [0.1, 0.2]
    assert len(params_of({"params": {"a,b": 1, "a;b": 2}})) == 2


def test_what_is_absent_or_not_a_number_is_no_metric():
    entry = {"score": {"value": math.nan, "stderr": None}, "scores": {"g": {"tasks": {"t": {"value": math.inf}}}}}
    assert metrics_of(entry) == {}
    assert metrics_of({"status": "failed"}) == {}


# --- what can go wrong


@pytest.mark.parametrize("bad", ["mlruns", "./mlruns", "file:///tmp/mlruns", "/abs/mlruns", "C:\\x"])
def test_a_file_store_is_refused_with_what_to_use(bad, results, run_dir):
    with pytest.raises(TrackError, match="sqlite:////absolute"):
        track(results, run_dir, bad)


def test_a_damaged_store_is_an_error_that_says_how_to_send_again(results, run_dir, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(TrackError) as caught:
        track(results, run_dir, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert f"fuse-bench track {run_dir}" in str(caught.value)
    assert "safe in the run folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_down_is_an_error_without_its_password(results, run_dir, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(TrackError) as caught:
            track(results, run_dir, f"http://me:secret@127.0.0.1:{unused.getsockname()[1]}")
    assert "secret" not in str(caught.value)


def test_without_mlflow_there_is_a_hint_and_no_error(results, run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    sent = track(results, run_dir, f"sqlite:///{run_dir / 'mlflow.db'}")
    assert sent.suite_run is None
    assert sent.sent == ()
    assert "pip install mlflow" in sent.hint
    assert f"fuse-bench track {run_dir}" in sent.hint


def test_telemetry_is_off():
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    assert tracking.SETTINGS["MLFLOW_DISABLE_TELEMETRY"] == "true"
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_the_command_for_the_ui():
    assert ui_command("sqlite:////a b/mlflow.db") == (
        "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "
        "mlflow server --backend-store-uri 'sqlite:////a b/mlflow.db' --port 5000 --workers 1"
    )
    assert ui_command("http://host:5000") == "http://host:5000"
