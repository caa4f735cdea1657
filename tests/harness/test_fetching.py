"""`fetch`: everything that can be had is brought here, and what cannot is named."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from tests.harness.test_evaluate import write_model
from tests.harness.test_offline import asked, suite

__all__ = ["asked", "suite"]


def fetch(path: Path, *options: str):
    return CliRunner().invoke(cli, ["fetch", str(path), "--store", str(path.parent / "store"), *options])


def test_what_cannot_be_had_is_named_and_the_rest_is_fetched(
    suite: Path, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's library waits between its attempts.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    done = fetch(suite, "--json")
    assert done.exit_code == 1
    assert asked, "the hub was asked"
    found = json.loads(done.stdout)
    by_name = {one["name"]: one for one in found["fetched"]}
    assert found["complete"] is False
    assert "GB" in by_name["here"]["here"] and by_name["./legs.yaml"]["here"].startswith("1 task, ")
    assert "the hub did not give it" in by_name["mpt"]["error"]
    assert {"bbh_cot_fewshot_navigate", "far/away.yaml"} <= {name for name, one in by_name.items() if "error" in one}


def test_models_of_the_hub_are_fetched_and_a_corpus_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "cache")
    called = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda origin, **how: called.append((origin, how)) or str(tmp_path / "cache"),
    )
    (tmp_path / "s.yaml").write_text(
        "suite: s\nmodels:\n  far: {from: nobody/far, revision: abc}\n"
        "candidates:\n  more: {method: clm, target: far, corpus: text/mine.jsonl}\n"
        "evaluate:\n  own: {tasks: [pocket_goals]}\n"
    )
    found = json.loads(fetch(tmp_path / "s.yaml", "--json").stdout)
    assert called[0][0] == "nobody/far" and called[0][1]["revision"] == "abc"
    assert [("error" in one) for one in found["fetched"]] == [False, False, True]
    assert found["fetched"][2]["error"] == "is yours to make"
    words = fetch(tmp_path / "s.yaml").output.splitlines()
    assert [line.split()[0] for line in words] == ["model", "tasks", "missing"]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine.jsonl").write_text('{"text": "a"}\n')
    done = fetch(tmp_path / "s.yaml")
    assert done.exit_code == 0 and "HF_HUB_OFFLINE=1" in done.output
