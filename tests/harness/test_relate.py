import itertools
import json
import math

import numpy as np
import pytest

from harness import association, relate, stats
from harness.errors import UsageError
from harness.halves import halve


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
    assert sorted(found) == ["base", "best", "mean", "retention", "worst"]
    assert found["worst"]["against"] == "weak"


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


def grouped(rng, chances: dict[str, float], n: int = 200, tasks: int = 2) -> dict:
    return {g: {f"{g}{t}": (rng.random((1, n)) < p).astype(float) for t in range(tasks)} for g, p in chances.items()}


def test_the_worst_group_and_its_interval():
    rng = np.random.default_rng(20)
    test = {
        "merged": grouped(rng, {"a": 0.9, "b": 0.2, "c": 0.5}),
        "good": grouped(rng, {"a": 0.5, "b": 0.6, "c": 0.5}),
        "weak": grouped(rng, {"a": 0.1, "b": 0.1, "c": 0.1}),
    }
    found = relate.gains("merged", ["good", "weak"], test=test)
    pairs = {g: stats.difference(*({g: test[name][g]} for name in ("merged", "good"))) for g in "abc"}
    assert found["best"]["against"] == found["worst"]["against"] == "good"
    assert (found["worst"]["group"], found["worst"]["value"]) == ("b", pairs["b"].value)
    assert found["worst"]["low"] == min(pair.low for pair in pairs.values())
    assert pairs["b"].high < found["worst"]["high"] < min(pairs["a"].high, pairs["c"].high)


def test_the_interval_of_the_worst_group_covers_the_lowest_gain():
    """Four groups and no gain in any: the lowest seen gain is below 0, and its interval must know."""
    rng = np.random.default_rng(21)
    missed = 0
    for _ in range(40):
        a, b = (grouped(rng, dict.fromkeys("abcd", 0.5), n=60, tasks=1) for _ in range(2))
        found = relate.gains("a", ["b"], test={"a": a, "b": b}, dev={"b": b})["worst"]
        missed += not found["low"] <= 0 <= found["high"]
    assert missed / 40 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 40)


def test_retention_is_over_the_best_parent_of_each_task():
    def model(first: float, second: float, third: float) -> dict:
        rows = [[1.0] * round(20 * share) + [0.0] * (20 - round(20 * share)) for share in (first, second, third)]
        return {"g": {"one": np.array([rows[0]]), "two": np.array([rows[1]])}, "h": {"three": np.array([rows[2]])}}

    test = {"m": model(0.5, 0.9, 0.3), "a": model(1.0, 0.2, 0.0), "b": model(0.4, 0.6, 0.0)}
    found = relate.gains("m", ["a", "b"], test=test)["retention"]
    assert found["value"] == pytest.approx((0.5 / 1.0 + 0.9 / 0.6) / 2)
    assert (found["tasks"], found["left_out"]) == (2, 1), "no parent can do the third"
    assert found["low"] < found["value"] < found["high"] and "p" not in found
    nothing = relate.gains("m", ["a"], test={"m": model(1, 1, 1), "a": model(0, 0, 0)})
    assert "retention" not in nothing and "worst" in nothing


def test_the_interval_of_retention_covers():
    rng = np.random.default_rng(22)
    missed = 0
    for _ in range(40):
        test = {name: grouped(rng, {"a": p, "b": p}, n=60) for name, p in (("m", 0.5), ("good", 0.6), ("weak", 0.4))}
        found = relate.gains("m", ["good", "weak"], test=test, dev=test)["retention"]
        missed += not found["low"] <= 0.5 / 0.6 <= found["high"]
    assert missed / 40 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 40)


# --- two halves of the items


def test_halves_are_of_every_task_and_share_no_item():
    ramp = {"g": {"t": 2.0 ** np.arange(9)[None], "u": np.array([[0.0, 1.0, 2.0, 3.0]] * 2)}}
    found = halve({"a": ramp})
    sums = np.array([5, 4]) * [found.means[half]["a"][0] for half in (0, 1)]
    bits = [{i for i in range(9) if round(total) >> i & 1} for total in sums]
    assert bits[0] | bits[1] == set(range(9)) and not bits[0] & bits[1]
    assert sum(found.means[half]["a"][1] for half in (0, 1)) / 2 == pytest.approx(1.5)
    assert halve({"a": ramp}).means[0]["a"].tolist() == found.means[0]["a"].tolist()
    assert halve({"a": {"g": {"t": np.array([[1.0]])}}}) is None


def test_gains_on_a_half_choose_the_best_parent_on_the_other():
    rng = np.random.default_rng(23)
    test = {name: grouped(rng, {"a": 0.5, "b": 0.6}, n=31) for name in ("m", "x", "y", "z", "base")}
    found = halve(test)
    for half in (0, 1):
        best = max("xyz", key=lambda name, other=1 - half: found.overall(other, name))
        score = {name: found.means[half][name] for name in test}
        groups = [[score["m"][2 * g : 2 * g + 2].mean() - score[best][2 * g : 2 * g + 2].mean()] for g in (0, 1)]
        gains = found.gains(half, "m", ["x", "y", "z"], "base")
        assert gains["best"] == pytest.approx(score["m"].mean() - score[best].mean())
        assert gains["worst"] == pytest.approx(min(groups)[0])
        assert gains["mean"] == pytest.approx(score["m"].mean() - np.mean([score[p].mean() for p in "xyz"]))
        assert gains["base"] == pytest.approx(score["m"].mean() - score["base"].mean())
        assert gains["retention"] == pytest.approx((score["m"] / np.max([score[p] for p in "xyz"], axis=0)).mean())
        spread = [score[p].mean() for p in "xyz"]
        assert found.parents(half, ["x", "y", "z"]) == pytest.approx((np.mean(spread), np.ptp(spread)))


def test_models_of_other_items_have_no_halves():
    with pytest.raises(UsageError, match="'b' was scored on others"):
        halve({"a": {"g": {"t": np.ones((1, 4))}}, "b": {"g": {"t": np.ones((1, 5))}}})


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


def test_no_relation_is_not_claimed(monkeypatch):
    """Gain that comes from the models alone: 20 worlds, in which chance says 'relation' at most a few times."""
    monkeypatch.setattr(association, "PERMUTATIONS", 99)
    monkeypatch.setattr(association, "DRAWS", 500)
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


def test_what_strangers_make_of_it_is_told_apart():
    """Among kin there is no relation; their merges with two strangers, as unlike as can be, all fail."""
    rng = np.random.default_rng(4)
    rows = pairs_of(8, lambda kinship: rng.normal(0, 0.02), rng)
    strangers = [
        {**row, "name": f"{row['name']}!", "parents": [row["parents"][0], f"stranger{i % 2}"], "kin": False}
        for i, row in enumerate(rows[:10])
    ]
    for row in strangers:
        row["kinship"] = {"pcc": dict.fromkeys(("mean", "min", "max"), -1.0 + rng.normal(0, 0.01))}
        row["gain"] = {key: {"value": -0.5} for key in row["gain"]}
    found = relate.kinship_vs_gain([*rows, *strangers])
    whole, kin = found["measures"]["pcc"]["best"]["signed"], found["kin"]["pcc"]["signed"]
    assert whole["pearson"]["value"] > 0.8 and whole["n"] == 38
    assert abs(kin["pearson"]["value"]) < 0.4 and kin["n"] == 28
    assert f"Without merges of strangers it is r = {kin['pearson']['value']:+.2f}" in found["says"]
    assert "kin" not in relate.kinship_vs_gain(rows) and "strangers" not in relate.kinship_vs_gain(rows)["says"]


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


def suite(n: int = 9, methods=("slerp", "ties"), effect=lambda kinship, method: 0.7 * kinship - 0.2, items: int = 80):
    """All pairs of n models, merged by each method: rows, kinship of all pairs, scores of every model."""
    rng = np.random.default_rng(30)
    place, skill = rng.normal(size=(n, 2)), rng.uniform(0.4, 0.6, size=n)
    test = {f"m{i}": grouped(rng, {"a": p, "b": p}, n=items) for i, p in enumerate(skill)}
    test["base"] = grouped(rng, {"a": 0.2, "b": 0.2}, n=items)
    pairs, rows = {}, []
    for i, j in itertools.combinations(range(n), 2):
        pairs[f"m{i}", f"m{j}"] = kinship = float(np.exp(-np.linalg.norm(place[i] - place[j])))
        for method in methods:
            name = f"{method} {i} {j}"
            chance = (skill[i] + skill[j]) / 2 + effect(kinship, method)
            test[name] = grouped(rng, {"a": chance, "b": chance}, n=items)
            parents = [f"m{j}", f"m{i}"]
            rows.append(
                {
                    "name": name,
                    "method": method,
                    "parents": parents,
                    "kinship": {"pcc": {"mean": kinship}, "noise": {"mean": float(i * j % 7)}},
                }
            )
            values = {g: {"value": v} for g, v in halve(test).gains(0, name, parents, "base").items()}
            rows[-1]["gain"] = {**values, "base": {**values["base"], "against": "base"}}
    noise = {(a, b): float(int(a[1:]) * int(b[1:]) % 7) for a, b in pairs}
    return rows, {"pcc": pairs, "noise": noise}, test


@pytest.fixture(scope="module")
def planted():
    rows, pairs, test = suite()
    return rows, pairs, test, relate.kinship_vs_gain(rows, pairs=pairs, test=test)


def test_all_gains_have_their_leaves_and_the_same_bytes_every_time(planted):
    rows, pairs, test, found = planted
    assert found["unit"] == "model" and found["models"] == 9
    assert list(found["measures"]) == ["pcc", "noise"]
    assert {gain: list(kinds) for gain, kinds in found["measures"]["pcc"].items()} == {
        **{gain: ["signed", "absolute"] for gain in ("best", "mean", "base", "worst")},
        "retention": ["signed"],
    }
    shuffled = dict(sorted(test.items(), reverse=True))
    association._permuted_places.cache_clear()
    again = relate.kinship_vs_gain(rows, pairs=pairs, test=shuffled)
    assert json.dumps(again, allow_nan=False) == json.dumps(found)


def test_the_planted_relation_holds_given_the_parents_scores(planted):
    *_, found = planted
    leaf = found["measures"]["pcc"]["best"]["signed"]
    assert leaf["pearson"]["p"] < 0.01 and leaf["pearson"]["q"] == min(1.0, 2 * leaf["pearson"]["p"])
    partial = leaf["partial"]
    assert partial["halves"] is True and partial["n"] == leaf["n"] == 72
    assert partial["given"] == ["the parents' mean score", "the gap of their scores"]
    assert partial["p"] < 0.01 and partial["low"] > 0 and leaf["partial_rank"]["p"] < 0.05
    assert leaf["influential"]["low"] <= leaf["influential"]["without"] <= leaf["influential"]["high"]
    assert leaf["influential_model"]["name"] in {f"m{i}" for i in range(9)}
    assert "given the parents' mean score and the gap of their scores it is r = +" in found["says"]
    assert found["says"].startswith("A higher pcc of the parents goes with more gain over the best parent")
    assert "q" not in leaf["spearman"] and "q" not in found["measures"]["pcc"]["mean"]["signed"]["pearson"]


def test_the_partial_correlation_is_that_of_the_two_halves(planted):
    rows, _, test, found = planted
    halves, values = halve(test), []
    for first in (0, 1):
        x = np.array([row["kinship"]["pcc"]["mean"] for row in rows])
        y = np.array([halves.gains(1 - first, row["name"], row["parents"], "base")["best"] for row in rows])
        z = np.array([halves.parents(first, row["parents"]) for row in rows])
        columns = np.column_stack([np.ones(72), z, [row["method"] == "ties" for row in rows]])
        left = [v - columns @ np.linalg.lstsq(columns, v, rcond=None)[0] for v in (x, y)]
        values.append(np.corrcoef(*left)[0, 1])
    assert found["measures"]["pcc"]["best"]["signed"]["partial"]["value"] == pytest.approx(np.mean(values))


def test_the_headline_has_a_line_with_its_band(planted):
    rows, *_, found = planted
    leaf = found["measures"]["pcc"]["best"]["signed"]
    x = [row["kinship"]["pcc"]["mean"] for row in rows]
    band = np.array(leaf["band"])
    assert band.shape == (25, 3) and band[0, 0] == min(x) and band[-1, 0] == pytest.approx(max(x))
    line = leaf["line"]["intercept"] + leaf["line"]["slope"] * band[:, 0]
    assert (band[:, 1] <= line).all() and (line <= band[:, 2]).all()
    assert "band" not in found["measures"]["pcc"]["mean"]["signed"]


def test_every_method_by_itself(planted):
    rows, pairs, test, found = planted
    assert list(found["methods"]) == ["slerp", "ties"]
    ties = [row for row in rows if row["method"] == "ties"]
    alone = relate.kinship_vs_gain(ties, pairs=pairs, test=test)
    leaf = found["methods"]["ties"]["pcc"]["signed"]
    assert (
        leaf["n"] == 36 and leaf["pearson"]["value"] == alone["measures"]["pcc"]["best"]["signed"]["pearson"]["value"]
    )
    assert leaf["partial"] == alone["measures"]["pcc"]["best"]["signed"]["partial"]
    assert alone["methods"] == {}


def test_kinship_against_the_parents_difference_by_task(planted):
    _, pairs, test, found = planted
    from scipy.stats import pearsonr

    apart = [
        np.mean([abs(test[a][g][t].mean() - test[b][g][t].mean()) for g in "ab" for t in test[a][g]])
        for a, b in pairs["pcc"]
    ]
    leaf = found["atpd"]["pcc"]
    assert leaf["n"] == 36 and leaf["pearson"]["value"] == pytest.approx(
        pearsonr([*pairs["pcc"].values()], apart).statistic
    )
    assert "p" in leaf["pearson"] and "partial" not in leaf


def test_the_predictor_says_whether_kinship_helps(planted):
    *_, found = planted
    told = found["predictor"]["pcc"]
    assert told["left_out"] == "model" and told["folds"] == 9 and told["n"] == 144
    assert told["fall"]["value"] == pytest.approx(1 - told["with"]["rmse"] / told["without"]["rmse"])
    assert "% lower" in told["says"] and "not shown" in found["predictor"]["noise"]["says"]


def test_a_method_that_gains_more_on_other_pairs_makes_no_relation():
    """Simpson: within each method more kinship is less gain, pooled it would be more."""
    rng = np.random.default_rng(31)
    rows = []
    for method, shift in (("low", 0.0), ("high", 1.0)):
        for i in range(8):
            kinship = shift + 0.1 * i
            rows.append({"name": f"{method}{i}", "method": method, "parents": [f"m{i}", f"m{i + 1}"]})
            rows[-1] |= {"kinship": {"pcc": {"mean": kinship}}}
            rows[-1] |= {"gain": {"best": {"value": 3 * shift - kinship + 0.01 * rng.normal()}}}
    leaf = relate.kinship_vs_gain(rows)["measures"]["pcc"]["best"]["signed"]
    assert leaf["pearson"]["value"] < -0.9 and leaf["spearman"]["value"] < -0.9
    lonely = {**rows[0], "name": "only", "method": "own", "gain": {"best": {"value": 99.0}}}
    with_lonely = relate.kinship_vs_gain([*rows, lonely])["measures"]["pcc"]["best"]["signed"]
    assert with_lonely["left_out"] == 1 and with_lonely["n"] == 16
    assert with_lonely["pearson"]["value"] == leaf["pearson"]["value"]


def test_candidates_of_as_many_methods_say_nothing():
    rows = [{**row, "method": str(i)} for i, row in enumerate(pairs_of(6, lambda k: k, np.random.default_rng(32)))]
    found = relate.kinship_vs_gain(rows)
    assert found["says"].startswith("Nothing can be concluded")
    assert found["measures"]["pcc"]["best"]["signed"]["left_out"] == 15


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows.pop(), "labels cannot be permuted, the pcc of 1 of 45 pairs is unknown (m8 and m9)"),
        (lambda rows: rows[3].update(parents=["c0_1", "m5"]), "labels cannot be permuted, 'c0_3' is a merge of merges"),
        (lambda rows: rows[0]["kinship"]["pcc"].update(mean=5.0), "the pcc of 'other' is not the mean over its pairs"),
    ],
)
def test_why_labels_cannot_be_permuted(change, reason):
    rows = pairs_of(10, lambda k: k**2, np.random.default_rng(33))
    rows.append({**rows[0], "name": "other", "kinship": {"pcc": dict(rows[0]["kinship"]["pcc"])}})
    rows.insert(0, rows.pop())
    change(rows)
    leaf = relate.kinship_vs_gain(rows)["measures"]["pcc"]["best"]["signed"]
    assert reason in leaf["reason"] and "p" not in leaf["pearson"] and "low" in leaf["pearson"]


def test_merges_of_three_are_permuted_where_all_pairs_are_known():
    rng = np.random.default_rng(34)
    names = [f"m{i}" for i in range(9)]
    pairs = {pair: float(rng.normal()) for pair in itertools.combinations(names, 2)}
    rows = []
    for three in itertools.combinations(names, 3):
        kinship = float(np.mean([pairs[pair] for pair in itertools.combinations(three, 2)]))
        row = {"name": "".join(three), "parents": three, "kinship": {"pcc": {"mean": kinship}}}
        rows.append({**row, "gain": {"best": {"value": kinship + 0.2 * float(rng.normal())}}})
    found = relate.kinship_vs_gain(rows, pairs={"pcc": {(b, a): v for (a, b), v in pairs.items()}})
    assert found["measures"]["pcc"]["best"]["signed"]["pearson"]["p"] < 0.01
    unknown = relate.kinship_vs_gain(rows)["measures"]["pcc"]["best"]["signed"]
    assert "36 of 36 pairs is unknown" in unknown["reason"]


def test_covariates_of_the_same_items_make_a_relation_that_two_halves_do_not(monkeypatch):
    """Related parents are skilled, and no merge gains: given scores that share the gain's luck, kinship seems to."""
    monkeypatch.setattr(association, "PERMUTATIONS", 9)
    monkeypatch.setattr(association, "DRAWS", 50)
    rng = np.random.default_rng(35)
    shared, halved = [], []
    for _ in range(10):
        skill = dict(zip("abcdefghi", rng.uniform(0.3, 0.7, size=9), strict=True))
        test = {name: grouped(rng, {"a": p}, n=25) for name, p in skill.items()}
        rows = []
        for a, b in itertools.combinations(skill, 2):
            test[a + b] = grouped(rng, {"a": (skill[a] + skill[b]) / 2}, n=400)
            test[a + b] = {"a": {t: one.mean() * np.ones((1, 25)) for t, one in test[a + b]["a"].items()}}
            parents = (stats.overall(test[a]).value + stats.overall(test[b]).value) / 2
            row = {"name": a + b, "parents": [a, b], "given": {"parent_mean": parents}}
            gain = {"value": stats.overall(test[a + b]).value - parents}
            rows.append(
                {**row, "kinship": {"pcc": {"mean": skill[a] + skill[b]}}, "gain": {"best": gain, "mean": gain}}
            )
        for found, scores_by_item in ((shared, None), (halved, test)):
            leaf = relate.kinship_vs_gain(rows, test=scores_by_item)["measures"]["pcc"]["mean"]["signed"]
            found.append(leaf["partial"]["value"])
    assert np.mean(shared) > 0.7
    assert abs(np.mean(halved)) < 0.3


def test_a_task_of_one_item_has_no_halves_and_says_so():
    rows = pairs_of(5, lambda k: k, np.random.default_rng(36))
    single = {"g": {"t": np.array([[1.0]])}}
    test = {name: single for row in rows for name in (row["name"], *row["parents"])}
    leaf = relate.kinship_vs_gain(rows, test=test)["measures"]["pcc"]["best"]["signed"]
    assert "single item" in leaf["partial"]["reason"] and "value" not in leaf["partial"]
    assert "not known" in relate.kinship_vs_gain(rows)["measures"]["pcc"]["best"]["signed"]["partial"]["reason"]


def test_ninety_candidates_by_fifteen_measures_and_five_gains_take_seconds(monkeypatch):
    """Counted in correlations that are computed together, not in seconds: no measure or gain has a pass of its own."""
    rows, pairs, test = suite(5)
    for row in rows:
        row["kinship"] = {f"k{m}": row["kinship"]["pcc"] for m in range(15)}
    monkeypatch.setattr(association, "PERMUTATIONS", 9)
    monkeypatch.setattr(association, "DRAWS", 50)
    calls = []
    real = association.correlations
    monkeypatch.setattr(association, "correlations", lambda *a, **k: calls.append(1) or real(*a, **k))
    relate.kinship_vs_gain(rows, pairs={f"k{m}": pairs["pcc"] for m in range(15)}, test=test)
    assert len(calls) < 60
