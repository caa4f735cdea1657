import itertools
import json
import math

import numpy as np
import pytest

from harness import relate, stats


def scores(rng, p: float, n: int = 300) -> dict:
    return {"g": {"t": (rng.random((1, n)) < p).astype(float)}}


@pytest.fixture
def models() -> dict:
    rng = np.random.default_rng(1)
    skills = {"merged": 0.8, "good": 0.6, "weak": 0.3, "base": 0.2, "control": 0.5}
    return {name: scores(rng, p) for name, p in skills.items()}


# --- gains


def test_gain_best_is_against_the_parent_that_is_best_on_dev_and_paired_on_test(models):
    dev = {"good": scores(np.random.default_rng(2), 0.1), "weak": scores(np.random.default_rng(3), 0.9)}
    found = relate.gains("merged", ["good", "weak"], "base", test=models, dev=dev)
    pair = stats.difference(models["merged"], models["weak"])
    assert found["best"] == {
        "value": pair.value,
        "low": pair.low,
        "high": pair.high,
        "p": pair.p,
        "mde": pair.mde,
        "against": "weak",
    }
    assert sorted(found) == ["base", "best", "mean"]


def test_without_dev_the_candidate_must_beat_every_parent(models):
    found = relate.gains("merged", ["weak", "good"], test=models)["best"]
    pairs = {name: stats.difference(models["merged"], models[name]) for name in ("weak", "good")}
    assert found["against"] == "good"
    assert found["value"] == pairs["good"].value
    assert found["p"] == max(pair.p for pair in pairs.values())
    assert "no dev split" in found["note"]


def test_dev_scores_of_some_parents_only_choose_nothing(models):
    found = relate.gains("merged", ["weak", "good"], test=models, dev={"weak": models["weak"]})
    assert "no dev split" in found["best"]["note"]


def test_gain_over_the_mean_base_control_and_target(models):
    found = relate.gains("merged", ["good", "weak"], "base", "control", "good", test=models)
    value = {name: stats.overall(models[name]).value for name in models}
    assert found["mean"]["value"] == pytest.approx(value["merged"] - (value["good"] + value["weak"]) / 2)
    assert found["mean"]["against"] == "mean of the parents"
    for key, name in (("base", "base"), ("control", "control"), ("target", "good")):
        assert found[key]["value"] == pytest.approx(value["merged"] - value[name])
        assert found[key]["against"] == name
        assert found[key]["low"] < found[key]["value"] < found[key]["high"]


def test_what_cannot_be_known_is_absent(models):
    assert relate.gains("failed", ["good"], "base", test=models) == {}
    assert sorted(relate.gains("merged", ["good", "failed"], "base", "failed", test=models)) == ["base"]
    assert relate.gains("merged", [], test=models) == {}
    single = {name: {"g": {"t": np.array([[1.0]])}} for name in ("a", "b")}
    assert relate.gains("a", ["b"], test=single, dev=single)["best"] == {"value": 0.0, "p": 1.0, "against": "b"}


# --- kinship and gain


def pairs_of(n: int, gain_of, rng) -> list[dict]:
    """Every pair of n models is a candidate; kinship comes from the models' places, gain from kinship."""
    place = rng.normal(size=(n, 2))
    rows = []
    for i, j in itertools.combinations(range(n), 2):
        kinship = float(np.exp(-np.linalg.norm(place[i] - place[j])))
        rows.append(
            {
                "name": f"c{i}_{j}",
                "parents": [f"m{i}", f"m{j}"],
                "kinship": {"pcc": {"mean": kinship, "min": kinship, "max": kinship}},
                "gain": {"best": {"value": gain_of(kinship)}, "mean": {"value": gain_of(kinship) + 0.02}},
            }
        )
    return rows


def test_a_planted_relation_is_found_with_an_interval_and_p():
    rng = np.random.default_rng(4)
    rows = pairs_of(12, lambda k: -0.1 * k + 0.003 * rng.normal(), rng)
    found = relate.kinship_vs_gain(rows)
    leaf = found["measures"]["pcc"]["best"]["signed"]
    x = [row["kinship"]["pcc"]["mean"] for row in rows]
    y = [row["gain"]["best"]["value"] for row in rows]
    from scipy.stats import pearsonr, spearmanr

    assert (leaf["n"], leaf["models"], found["models"]) == (66, 12, 12)
    assert leaf["pearson"]["value"] == pytest.approx(pearsonr(x, y).statistic)
    assert leaf["spearman"]["value"] == pytest.approx(spearmanr(x, y).statistic)
    assert leaf["pearson"]["low"] <= leaf["pearson"]["value"] <= leaf["pearson"]["high"] < 0
    assert leaf["pearson"]["p"] < 0.01
    absolute = found["measures"]["pcc"]["best"]["absolute"]
    assert absolute["pearson"]["value"] == pytest.approx(pearsonr(x, np.abs(y)).statistic)
    assert "goes with less gain" in found["says"]


def test_spearman_has_mid_ranks_for_ties():
    from scipy.stats import spearmanr

    x, y = [1.0, 1, 2, 3, 3, 3, 4], [5.0, 2, 2, 1, 1, 0, 0]
    rows = [
        {"name": f"c{i}", "parents": [f"m{i}"], "kinship": {"k": {"mean": a}}, "gain": {"best": {"value": b}}}
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    leaf = relate.kinship_vs_gain(rows)["measures"]["k"]["best"]["signed"]
    assert leaf["spearman"]["value"] == pytest.approx(spearmanr(x, y).statistic)


def test_no_relation_is_not_claimed():
    """Gain that comes from the models alone: 20 worlds, in which chance says 'relation' at most a few times."""
    claimed = 0
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        rows = pairs_of(10, lambda _, rng=rng: float(rng.normal()), rng)
        claimed += "No relation is shown" not in relate.kinship_vs_gain(rows)["says"]
    assert claimed <= 4


def test_intervals_are_wider_than_for_independent_candidates():
    """A gain that each model carries into all its merges: 45 rows are 10 facts, and the interval must know."""
    rng = np.random.default_rng(5)
    place, carried = rng.normal(size=10), rng.normal(size=10)
    rows = [
        {
            "name": f"{i}-{j}",
            "parents": [str(i), str(j)],
            "kinship": {"pcc": {"mean": place[i] + place[j]}},
            "gain": {"best": {"value": carried[i] + carried[j]}},
        }
        for i, j in itertools.combinations(range(10), 2)
    ]
    r = relate.kinship_vs_gain(rows)["measures"]["pcc"]["best"]["signed"]["pearson"]
    naive = 2 * 1.96 / math.sqrt(45 - 3)
    assert math.atanh(r["high"]) - math.atanh(r["low"]) > 1.3 * naive


def test_few_independent_models_have_no_p_and_a_reason():
    rng = np.random.default_rng(6)
    found = relate.kinship_vs_gain(pairs_of(6, lambda k: k, rng))
    leaf = found["measures"]["pcc"]["best"]["signed"]
    assert (leaf["n"], leaf["models"]) == (15, 6)
    assert "p" not in leaf["pearson"]
    assert "low" in leaf["pearson"]
    assert "6 independent models, 8 needed" in leaf["reason"]
    assert found["says"].startswith("No conclusion on pcc")


def test_merges_of_merges_count_the_models_they_come_from():
    rows = [
        {"name": "ab", "parents": ["a", "b"], "kinship": {"pcc": {"mean": 0.1}}, "gain": {"best": {"value": 0.1}}},
        {"name": "ab2", "parents": ["b", "a"], "kinship": {"pcc": {"mean": 0.3}}, "gain": {"best": {"value": 0.0}}},
        {"name": "deep", "parents": ["ab", "ab2"], "kinship": {"pcc": {"mean": 0.7}}, "gain": {"best": {"value": 0.2}}},
    ]
    leaf = relate.kinship_vs_gain(rows)["measures"]["pcc"]["best"]["signed"]
    assert (leaf["n"], leaf["models"]) == (3, 2)


@pytest.mark.parametrize(
    ("kinship", "reason"),
    [([0.5] * 5, "kinship is the same for all 5"), ([0.1, 0.2, None, None, None], "2 candidates")],
)
def test_the_undefined_is_absent_with_its_reason(kinship, reason):
    rows = [
        {
            "name": f"c{i}",
            "parents": [f"m{i}", f"m{i + 1}"],
            "kinship": {"pcc": {"mean": value}},
            "gain": {"best": {"value": 0.01 * i}},
        }
        for i, value in enumerate(kinship)
    ]
    found = relate.kinship_vs_gain(rows)
    leaf = found["measures"]["pcc"]["best"]["signed"]
    assert "pearson" not in leaf
    assert reason in leaf["reason"]
    assert found["says"].startswith("Nothing can be concluded")
    json.dumps(found, allow_nan=False)


def test_no_kinship_at_all_says_so():
    row = {"name": "c", "parents": ["a"], "kinship": None, "gain": {}}
    for rows in ([], [row]):
        found = relate.kinship_vs_gain(rows)
        assert found["measures"] == {}
        assert "not measured" in found["says"]
