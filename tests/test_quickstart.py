"""What the quickstart must show, read from the run that `make quickstart` left here."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN_GROUP = {"reasoner": "bbh", "scholar": "commonsense", "coder": "code"}


@pytest.fixture(scope="module")
def models():
    found = sorted((ROOT / "runs").glob("quickstart-*/results.json"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        pytest.skip("there is no run of the quickstart here; `make quickstart` makes one")
    return json.loads(found[-1].read_text())["models"]


def test_every_model_is_there_and_scored(models):
    assert {name: model["status"] for name, model in models.items()} == dict.fromkeys(models, "ok")
    assert len(models) == 16
    assert all(set(model["scores"]) == set(OWN_GROUP.values()) for model in models.values())


@pytest.mark.parametrize(("name", "group"), OWN_GROUP.items())
def test_a_specialist_beats_the_base_on_its_own_group_by_15_points(models, name, group):
    mine, base = models[name]["scores"][group], models["base"]["scores"][group]
    assert mine["value"] - base["value"] >= 0.15
    assert mine["value"] - 1.96 * mine["stderr"] > base["value"] + 1.96 * base["stderr"], "intervals touch"


def test_the_base_knows_something_of_every_group(models):
    for group in OWN_GROUP.values():
        tasks = models["base"]["scores"][group]["tasks"].values()
        assert sum(t["value"] - t["chance"] - 1.96 * t["stderr"] > 0 for t in tasks) >= 1, group


def test_the_fusion_stands_beside_its_control(models):
    assert models["fused.control"]["control"] is True
    assert models["fused"]["gain"]["control"]["against"] == "fused.control"
