"""The suite of the kinship paper's controlled setting reads, and its parents are those whose scores give the gains."""

import re

import pytest

from harness.suite import load
from harness.yamlfile import Document
from suites import shipped

PATH = shipped()["kinship_mistral_7b"]
PUBLISHED = {row["beside"]: row for row in Document(PATH).data["published"].values()}
GAIN = re.compile(r"gain ([+-]\d\.\d\d)")


def test_three_fine_tunes_are_merged_two_by_two_and_each_has_its_published_value():
    models = load(PATH, planning=True).models
    merges = {name: model for name, model in models.items() if name[0].isdigit()}
    assert {model.method for model in merges.values()} == {"slerp"} and len(merges) == 10
    assert set(PUBLISHED) == {*merges, "metamath", "instruct", "openchat"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_value_is_the_mean_of_its_tasks(name):
    score = PUBLISHED[name]["scores"]["paper"]
    if "tasks" in score:
        assert sum(score["tasks"].values()) / 3 == pytest.approx(score["value"], abs=1e-4)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "note" in PUBLISHED[name]])
def test_the_parents_are_those_whose_mean_gives_the_printed_gain(name):
    parents = load(PATH, planning=True).models[name].models
    values = [PUBLISHED[parent]["scores"]["paper"]["value"] for parent in parents]
    found = 100 * (PUBLISHED[name]["scores"]["paper"]["value"] - sum(values) / 2)
    printed = float(GAIN.search(PUBLISHED[name]["note"])[1])
    # Of 3-3 the suite says that it is off; the others by no more than rounding.
    assert found == pytest.approx(printed, abs=0.11 if name == "3-3" else 0.0101)
