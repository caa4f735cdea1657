"""The leaderboard's scatter of kinship against gain: places, absences, and how little room it takes."""

import math
import re
from itertools import combinations

import pytest

from harness import html
from harness.board import board
from harness.html_scatter import _ticks, kinship_section
from tests.harness.test_leaderboard import NASTY, gain, model, parsed

MEASURES = [
    "pcc", "cosine", "euclidean", "relative_euclidean", "norm_ratio", "sign_agreement", "sign_excess", "top_agreement",
    "subspace_overlap", "cka", "data_kernel", "capa", "error_consistency", "flips", "js",
]  # fmt: skip


def leaf(**more: object) -> dict:
    r = {"value": -0.5, "low": -0.8, "high": -0.1, "p": 0.01, "q": 0.02}
    return {"n": 3, "models": 4, "pearson": r, "spearman": {"value": -0.4}, **more}


def results(candidates: int = 3, measures: tuple[str, ...] = ("pcc", "capa"), **more: object) -> dict:
    """Candidates on a line: kinship i / 10 and gain i points of the i-th, by two methods in turn."""
    models = {
        f"c{i}": model(
            "merged", 0.5, 1, method=("ties", "slerp")[i % 2], parents=["a", "b"],
            gain={"best": gain(i / 100, 0.2)}, kinship={m: {"mean": i / 10} for m in measures},
        )
        for i in range(candidates)
    }  # fmt: skip
    relation = {m: {"best": {"signed": leaf(**more), "absolute": leaf()}} for m in measures}
    return {"models": models, "kinship_vs_gain": {"measures": relation, "says": "No conclusion."}}


def section(found: dict) -> str:
    return kinship_section(board(found))


def test_the_sentence_comes_first_and_one_measure_is_open() -> None:
    text = section(results())
    assert text.index("No conclusion.") < text.index("<svg")
    assert text.count('class="fit"') == 2
    assert text.split("<details>")[0].count('class="fit"') == 1 and "<summary>capa: r −0.50" in text
    assert parsed(text).open == [] and parsed(text).links == []


def test_markers_stand_where_their_numbers_say() -> None:
    text = section(results(measures=("pcc",)))
    dots = [(float(x) + 6, float(y) + 6) for x, y in re.findall(r'<rect x="(\d+)" y="(\d+)"', text)]
    assert dots == sorted(dots, key=lambda dot: (dot[0], -dot[1])) and len(dots) == 3
    assert dots[1][0] == pytest.approx((dots[0][0] + dots[2][0]) / 2, abs=1)
    assert dots[1][1] == pytest.approx((dots[0][1] + dots[2][1]) / 2, abs=1)
    zero = float(re.search(r'class="zero" d="M\d+ (\d+)H', text)[1])
    assert dots[0][1] == zero, "no gain lies on the line of no gain"
    spans = re.findall(r"M(\d+) (\d+)V(\d+)", re.search(r'class="spans" d="([^"]+)"', text)[1])
    assert all(int(low) > dot[1] > int(high) for dot, (_, low, high) in zip(dots, spans, strict=True))
    assert "<title>c1: pcc 0.1, gain +1.0</title>" in text


def test_methods_differ_by_shape_and_colour() -> None:
    text = section(results(measures=("pcc",)))
    marks = re.findall(r'class="(mark s\d[ dot]*)" d="M[\d.]+ [\d.]+([^M"]+)', text)
    assert len(marks) == 4 and len(set(marks)) == 2, "each in the key and in the plot"


def test_the_line_has_its_band_and_the_leaning_candidate_is_ringed() -> None:
    more = {
        "line": {"slope": 0.1, "intercept": 0.0}, "band": [[0.0, -0.01, 0.01], [0.2, 0.01, 0.03]],
        "influential": {"name": "c2", "without": -0.2, "low": -0.6, "high": -0.2}, "needed": 30, "reason": "few models",
        "partial": {"value": -0.1, "given": ["the parents' mean score", "their gap"]},
    }  # fmt: skip
    text = section(results(measures=("pcc",), **more))
    assert text.count('class="band"') == text.count('class="line"') == text.count('class="ring"') == 1
    for said in ("−0.50", "−0.80 to −0.10", "p = 0.01", "q = 0.02", "<b>c2</b>: −0.20 without it", "30 independent"):
        assert said in text
    assert "given the parents&#x27; mean score and their gap" in text and "few models" in text
    del more["band"]
    assert 'class="band"' not in section(results(measures=("pcc",), **more))


def test_a_band_without_an_interval_is_not_drawn() -> None:
    found = results(measures=("pcc",), band=[[0.0, -0.01, 0.01], [0.2, 0.01, 0.03]])
    r = found["kinship_vs_gain"]["measures"]["pcc"]["best"]["signed"]["pearson"]
    del r["low"], r["high"]
    assert 'class="band"' not in section(found)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_not_a_number_is_not_drawn(value: float | None) -> None:
    found = results(measures=("pcc",))
    found["models"]["c0"]["kinship"]["pcc"]["mean"] = value
    found["models"]["c1"]["gain"]["best"]["value"] = value
    assert "<svg" not in section(found), "one point is no scatter"


def test_a_gain_without_an_interval_is_a_point() -> None:
    found = results(measures=("pcc",))
    for entry in found["models"].values():
        del entry["gain"]["best"]["low"]
    assert section(found).count("<title>") == 3


def test_nothing_measured_takes_no_room() -> None:
    assert section({"models": {}}) == ""
    found = results(candidates=0)
    assert "No conclusion." in section(found) and "<svg" not in section(found)


def test_hostile_names_do_no_harm() -> None:
    found = results(measures=(NASTY,), influential={"name": NASTY, "without": 0.1, "low": 0.0, "high": 0.2})
    found["models"][NASTY] = found["models"].pop("c1")
    found["models"][NASTY]["method"] = NASTY
    found["kinship_vs_gain"]["says"] = NASTY
    text = html.page(found)
    assert parsed(text).open == [] and parsed(text).tags.count("script") == 1
    assert "alert(1)</script>" not in text and "\x1b" not in text and "\u202e" not in text


def test_a_page_of_90_candidates_by_15_measures_stays_small() -> None:
    found = results(90, tuple(MEASURES), band=[[i / 25, -0.01, 0.01 + i / 900] for i in range(25)])
    pairs = list(combinations([f"specialist_{i}" for i in range(14)], 2))
    for i, entry in enumerate(found["models"].values()):
        entry["parents"] = list(pairs[i])
        entry["gain"] |= {key: entry["gain"]["best"] for key in ("mean", "base")}
        entry["kinship"] = {m: {"mean": math.sin(i * j), "min": -1.0, "max": 1.0} for j, m in enumerate(MEASURES)}
    assert len(html.page(found)) <= 300_000
    assert len(section(found)) <= 100_000


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.013, 0.002), (3.0, 61.0), (1e-6, 3e-6), (-5.0, 12000.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = _ticks(low, high)
    assert 2 <= len(found) <= 7 and all(low <= tick <= high for tick, _ in found)
    assert all(float(text.replace("−", "-")) == pytest.approx(tick, rel=1e-9, abs=1e-12) for tick, text in found)
    assert len({text for _, text in found}) == len(found)
