import copy
import csv
import html.parser
import io
import json
import math
import subprocess
import sys

import pytest

from harness import html as page_module
from harness import leaderboard
from harness.board import board, clipped, columns_of

NASTY = "<script>alert(1)</script>|\"'`*_\n[x](y)\x1b[31m\u202e"


def score(value: float) -> dict:
    """One group's part of contract 4, two tasks."""
    task = {"metric": "acc", "value": value, "stderr": 0.03, "n": 200, "chance": 0.5, "also": {}}
    return {"value": value, "stderr": 0.02, "n": 400, "tasks": {"first": task, "second": dict(task)}}


def model(kind: str, value: float, rank: int, **more) -> dict:
    return {
        "kind": kind,
        "status": "ok",
        "rank": rank,
        "score": {"value": value, "stderr": 0.015, "n": 800},
        "interval": {"low": value - 0.03, "high": value + 0.04},
        "scores": {"bbh": score(value + 0.05), "commonsense": score(value - 0.05)},
        "cost": {"build_s": 12.0, "evaluate_s": 30.0, "peak_rss_mb": 1500.0},
        **more,
    }


def gain(value: float, p: float) -> dict:
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "p": p, "against": "reasoner"}


@pytest.fixture
def results() -> dict:
    merged = {"method": "ties", "params": {"density": 0.3}, "parents": ["reasoner", "scholar"], "base": "base"}
    return {
        "schema": 1,
        "suite": {"suite": "quick", "seed": 17},
        "environment": {"python": "3.11"},
        "models": {
            "base": model("source", 0.40, 5),
            "reasoner": model("trained", 0.55, 3),
            "ties": model(
                "merged", 0.62, 1, **merged, gain={"best": gain(0.07, 0.001)}, kinship={"pcc": {"mean": 0.31}}
            ),
            "slerp": model("merged", 0.60, 1, method="slerp", gain={"best": gain(0.05, 0.03)}),
            "fused": model(
                "fused", 0.52, 3, control="more", gain={"best": gain(-0.03, 0.9), "control": gain(0.1, 0.03)}
            ),
            "more": model("trained", 0.42, 5),
            "dare": {"kind": "merged", "status": "failed", "error": "worker died (signal 9)"},
            "later": {"kind": "merged", "status": "skipped", "error": "dare failed"},
        },
        "kinship_vs_gain": {"measures": {}, "says": "No conclusion on pcc."},
    }


@pytest.fixture
def hostile(results) -> dict:
    """Every name is hostile, one is 500 characters long, and one error has a script in it."""
    found = copy.deepcopy(results)
    found["suite"]["suite"] = NASTY
    models = found["models"]
    models[NASTY] = models.pop("ties")
    models[NASTY]["parents"] = [NASTY, "b" * 500]
    models[NASTY]["gain"]["best"]["against"] = NASTY
    models[NASTY]["scores"][NASTY] = {"value": 0.5, "stderr": 0.1, "n": 9, "tasks": {NASTY: {"value": 0.5, "n": 9}}}
    models[NASTY]["kinship"] = {NASTY: {"mean": 0.5}}
    models["x" * 500] = models.pop("slerp")
    models["dare"]["error"] = NASTY
    found["kinship_vs_gain"] = {
        "says": NASTY,
        "measures": {NASTY: {"best": {"signed": {"n": 2, "models": 2, "reason": NASTY}}}},
    }
    return found


# --- the board


def test_rows_are_by_rank_then_score_and_the_others_are_named(results):
    found = board(results)
    assert [row.name for row in found.rows] == ["ties", "slerp", "reasoner", "fused", "more", "base"]
    assert [(row.rank, row.tied) for row in found.rows][:3] == [(1, True), (1, True), (3, True)]
    assert [(row.name, row.reason) for row in found.left_out] == [
        ("dare", "failed: worker died (signal 9)"),
        ("later", "skipped: dare failed"),
    ]
    assert found.groups == ("bbh", "commonsense")
    assert found.tasks[0] == ("bbh", "first")
    assert found.gains == ("best", "control")


def test_a_control_is_known_from_who_is_compared_with_it(results):
    labels = {row.name: row.label for row in board(results).rows}
    assert labels == {
        "ties": "merged",
        "slerp": "merged",
        "reasoner": "trained",
        "fused": "fused",
        "more": "control",
        "base": "source",
    }


def test_a_gain_is_starred_only_after_holm_over_candidates(results):
    found = {row.name: row for row in board(results).rows}
    assert found["ties"].p_holm == pytest.approx(0.003)
    assert found["ties"].certain
    assert found["slerp"].p_holm == pytest.approx(0.06)
    assert not found["slerp"].certain


def test_a_failed_model_is_never_scored_even_with_scores(results):
    results["models"]["ties"] |= {"status": "failed", "error": "judge died"}
    assert "ties" not in [row.name for row in board(results).rows]
    assert "62.0" not in leaderboard.text(results)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_an_absent_score_is_not_zero(results, value):
    results["models"]["ties"]["score"]["value"] = value
    found = board(results)
    assert "ties" in [row.name for row in found.left_out]
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(leaderboard.csv_text(results)))}
    assert rows["ties"]["overall.value"] == ""
    if value is not None:
        assert found.damaged == ("ties.score.value",)
        assert "ties.score.value" in leaderboard.text(results)
        assert "is not a number" in page_module.page(results)


def test_an_incomplete_model_has_an_empty_cell(results):
    del results["models"]["ties"]["scores"]["bbh"]
    results["models"]["ties"]["scores"]["commonsense"]["tasks"]["first"]["value"] = math.nan
    line = next(line for line in leaderboard.text(results).splitlines() if " ties " in line)
    assert "0.0" not in line
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(leaderboard.csv_text(results)))}
    assert rows["ties"]["bbh.value"] == rows["ties"]["commonsense/first.value"] == ""
    assert page_module.page(results).count('class="absent"') == 4


def test_no_models_at_all():
    for empty in ({}, {"models": {}}, {"models": {"m": {"status": "failed", "error": "no"}}}):
        assert "0 models ranked" in leaderboard.text(empty)
        assert "No model has a score" in page_module.page(empty)
        leaderboard.markdown(empty), leaderboard.csv_text(empty), json.loads(leaderboard.json_text(empty))


# --- text


def test_the_terminal_table_in_80_columns(results):
    assert leaderboard.text(results).splitlines()[:10] == [
        "quick: 6 models ranked",
        "",
        " #  model     kind       overall   bbh  commonsense         gain  cost",
        "──  ────────  ───────  ─────────  ────  ───────────  ───────────  ────",
        "1=  ties      merged   62.0 ±3.5  67.0         57.0   +7.0 ±2.0*  42 s",
        "1=  slerp     merged   60.0 ±3.5  65.0         55.0   +5.0 ±2.0   42 s",
        "3=  reasoner  trained  55.0 ±3.5  60.0         50.0               42 s",
        "3=  fused     fused    52.0 ±3.5  57.0         47.0  +10.0 ±2.0   42 s",
        "5=  more      control  42.0 ±3.5  47.0         37.0               42 s",
        "5=  base      source   40.0 ±3.5  45.0         35.0               42 s",
    ]


@pytest.mark.parametrize("width", [50, 60, 80, 100, 160])
def test_the_terminal_table_fits_what_it_is_given(results, width):
    for name in [*results["models"]]:
        results["models"][f"{name}[density=0.3,lambda=0.75,more=1]"] = results["models"].pop(name)
    for entry in results["models"].values():
        if "scores" in entry:
            entry["scores"] |= {f"group{i}": score(0.5) for i in range(7)}
    found = leaderboard.text(results, width)
    table = found.split("# counts")[0]
    assert max(columns_of(line) for line in table.splitlines()) <= width
    if width < 100:
        assert "Too narrow to show: " in found


def test_the_wide_variant_shows_intervals_kinship_and_cost(results):
    found = leaderboard.text(results, None)
    assert "+7.0 [+5.0, +9.0]*" in found
    for word in ("vs control", "pcc", "build", "evaluate", "memory", "1.5 GB", "0.31"):
        assert word in found


def test_wide_characters_are_counted_as_two_columns():
    assert columns_of("模型a") == 5
    assert clipped("模型模型模型", 6) == "模…型"
    assert clipped("abc", 3) == "abc"
    assert clipped("ties[density=0.5]", 10) == "ties[d….5]"


# --- other formats


def test_csv_is_complete(results):
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(leaderboard.csv_text(results)))}
    assert len(rows) == 8
    ties = rows["ties"]
    assert (ties["rank"], ties["overall.value"], ties["overall.n"]) == ("1", "0.62", "800")
    assert (ties["bbh/first.chance"], ties["bbh/first.stderr"], ties["bbh/second.n"]) == ("0.5", "0.03", "200")
    assert (ties["gain.best.p_holm"], ties["gain.best.against"]) == ("0.003", "reasoner")
    assert (ties["kinship.pcc.mean"], ties["params"]) == ("0.31", '{"density": 0.3}')
    assert rows["dare"]["reason"] == "failed: worker died (signal 9)"
    assert rows["dare"]["overall.value"] == rows["base"]["gain.best.value"] == ""


def test_json_is_ranked_and_has_no_absent_values(results):
    results["models"]["ties"]["score"]["stderr"] = None
    found = json.loads(leaderboard.json_text(results))
    assert [row["name"] for row in found["models"]][:2] == ["ties", "slerp"]
    assert "stderr" not in found["models"][0]["score"]
    assert found["models"][0]["gain"]["best"]["p_holm"] == pytest.approx(0.003)
    assert [row["name"] for row in found["not_scored"]] == ["dare", "later"]
    assert found["kinship_vs_gain"]["says"] == "No conclusion on pcc."
    assert "null" not in leaderboard.json_text(results)


def test_markdown_is_a_table_with_a_legend(results):
    lines = leaderboard.markdown(results).splitlines()
    assert lines[0] == "# quick"
    assert lines[2].startswith("| # | model | kind | overall | bbh | commonsense | vs best parent |")
    assert lines[4].startswith("| 1= | ties | merged | 62.0 ±3.5 | 67.0 | 57.0 | +7.0 [+5.0, +9.0]* |")
    assert any("dare" in line and "worker died" in line for line in lines)


def test_write_makes_all_four(results, tmp_path):
    paths = leaderboard.write(results, tmp_path)
    assert sorted(paths) == ["csv", "html", "json", "md"]
    assert all(path.read_text(encoding="utf-8") for path in paths.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"leaderboard.{suffix}" for suffix in sorted(paths)]


# --- hostile names


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href") or key.startswith("on")]
        if tag not in ("meta", "br", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page: str) -> _Page:
    found = _Page()
    found.feed(page)
    return found


def test_the_page_is_well_formed_and_asks_for_nothing(results):
    page = page_module.page(results)
    found = parsed(page)
    assert found.open == []
    assert found.links == []
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page and "url(" not in page
    assert page.count("<svg") == 6 + 3 + 4


def test_hostile_names_do_no_harm_in_html(hostile, results):
    page = page_module.page(hostile)
    found = parsed(page)
    assert found.open == []
    assert found.tags.count("script") == parsed(page_module.page(results)).tags.count("script") == 1
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page and "\u202e" not in page


def test_hostile_names_do_no_harm_in_markdown(hostile):
    text = leaderboard.markdown(hostile)
    assert "<script>" not in text
    assert "\x1b" not in text and "\u202e" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 8
    bars = [len([i for i, c in enumerate(line) if c == "|" and line[i - 1] != "\\"]) for line in table]
    assert len(set(bars)) == 1


def test_hostile_names_do_no_harm_in_a_terminal(hostile):
    for width in (80, None):
        text = leaderboard.text(hostile, width)
        assert "\x1b" not in text and "\u202e" not in text
        assert sum(" 1=" in f" {line}" for line in text.splitlines()) == 2
    assert max(columns_of(line) for line in leaderboard.text(hostile, 80).split("# counts")[0].splitlines()[2:]) <= 80


def test_hostile_names_survive_csv_and_json_unchanged(hostile):
    rows = list(csv.DictReader(io.StringIO(leaderboard.csv_text(hostile))))
    assert NASTY in [row["model"] for row in rows]
    assert json.loads(leaderboard.json_text(hostile))["models"][0]["name"] in (NASTY, "x" * 500)


def test_the_leaderboard_needs_neither_torch_nor_mlflow_nor_scipy():
    heavy = ["torch", "mlflow", "lm_eval", "scipy", "datasets"]
    code = f"import sys, harness.leaderboard\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- bits per byte, fusions, and what is published elsewhere


@pytest.fixture
def fused(results) -> dict:
    """The same board with a text that most models have read, an account of the fusion, and published values."""
    models = results["models"]
    for place, name in enumerate(("base", "reasoner", "ties", "fused", "more")):
        models[name]["text"] = {"held": {"value": 1.5 + place / 8, "stderr": 0.01, "n": 300}}
    saved = {"value": -0.25, "low": -0.3, "high": -0.2, "p": 0.001, "against": "more"}
    models["fused"]["text_gain"] = {"held": {"control": saved, "target": {**saved, "value": 0.375, "against": "base"}}}
    models["fused"]["fusion"] = {
        "aligned": 0.962,
        "positions": 900,
        "sources": {"base": {"weight_of_positions": 0.36}, "neox": {"weight_of_positions": 0.602}},
    }
    results["published"] = {
        "FuseLLM": {
            "source": "arXiv:2401.10491, tables 1-3", "beside": "fused", "note": "One seed, no intervals.",
            "scores": {"bbh": {"value": 0.4175, "tasks": {"first": 0.716}}, "code": {"value": 0.1556}},
        },
        "Llama-2": {"source": "arXiv:2401.10491", "scores": {"bbh": {"value": 0.397, "tasks": {"first": 0.688}}}},
    }  # fmt: skip
    return results


def test_bits_per_byte_have_a_column_where_it_fits_and_change_no_rank(fused, results):
    found = leaderboard.text(fused)
    table = found.split("\n\n")[1].splitlines()
    assert table[0].split() == ["#", "model", "kind", "overall", "bbh", "commonsense", "gain", "bits/byte"]
    assert next(line for line in table if " fused " in line).endswith("1.875")
    assert next(line for line in table if " slerp " in line).rstrip().endswith("±2.0"), "not read: empty"
    assert "fewer are better; they count for no rank" in found and "Too narrow" not in found
    assert max(map(columns_of, found.splitlines())) <= 80
    narrow = leaderboard.text(fused, 60)
    assert "bits/byte " not in narrow.split("\n\n")[1] and "Too narrow to show: bits/byte." in " ".join(narrow.split())
    ranks = {row.name: row.rank for row in board(fused).rows}
    for model_ in fused["models"].values():
        model_.pop("text", None)
    assert {row.name: row.rank for row in board(fused).rows} == ranks
    assert "bits/byte" not in leaderboard.text(fused)


def test_two_texts_are_told_apart_by_their_groups(fused):
    fused["models"]["base"]["text"]["other"] = {"value": 3.0, "n": 9}
    assert list(board(fused).text_titles.values()) == ["held bits/byte", "other bits/byte"]


@pytest.mark.parametrize("value", [None, math.nan])
def test_absent_bits_are_not_zero(fused, value):
    fused["models"]["fused"]["text"]["held"]["value"] = value
    line = next(line for line in leaderboard.text(fused).splitlines() if " fused " in line)
    assert "0.000" not in line and "nan" not in line
    assert page_module.page(fused).count('title="not read"') == 2


def test_what_is_saved_and_who_taught_are_in_the_wide_table(fused):
    for found in (leaderboard.text(fused, None), leaderboard.markdown(fused).replace("\\", "")):
        assert "-0.250 [-0.300, -0.200]" in found and "+0.375 [-0.300, -0.200]" in found
        assert "bits/byte saved over control" in found
        assert "96 % taught; weight: base 36 %, neox 60 %" in found
    page = page_module.page(fused)
    assert (
        "−0.250" in page and "against more, p = 0.001" in page and "96 % taught; weight: base 36 %, neox 60 %" in page
    )
    assert "fewer are better" in page


def test_what_is_published_stands_in_a_table_of_its_own(fused):
    text = leaderboard.text(fused)
    ours, theirs = text.split("Published elsewhere, not measured here")
    assert "FuseLLM" not in ours and "7 models ranked" not in text
    lines = theirs.split("\n\n")[1].splitlines()
    assert lines[0].split() == ["published", "source", "bbh", "code"]
    assert lines[2].split()[-3:] == ["41.8", "(57.0)", "15.6"], "in brackets our fused"
    assert lines[3].split()[-1] == "39.7"
    assert max(map(columns_of, text.splitlines())) <= 80
    assert "One seed, no intervals." in leaderboard.text(fused, None)
    marked = leaderboard.markdown(fused)
    assert "## Published elsewhere, not measured here" in marked and "| bbh / first | 71.60 | 68.80 |" in marked
    page = page_module.page(fused)
    assert parsed(page).open == [] and "<h2>Published elsewhere" in page and "One seed, no intervals." in page
    assert [row.name for row in board(fused).rows] == [row.name for row in board({**fused, "published": {}}).rows]


def test_a_swept_row_stands_beside_with_its_chosen_point(fused):
    models = fused["models"]
    models["fused[a=1]"] = models.pop("fused") | {"sweep": {"row": "fused", "point": {"a": 1}, "chosen": True}}
    models["fused[a=2]"] = {**models["slerp"], "sweep": {"row": "fused", "point": {"a": 2}, "chosen": False}}
    assert board(fused).published[0].here.name == "fused[a=1]"
    assert board(fused).published[1].here is None
    for entry in models.values():
        entry.pop("sweep", None)
    assert board(fused).published[0].here is None


def test_a_narrow_terminal_says_which_published_groups_it_hides(fused):
    groups = {f"group{i}": {"value": 0.5} for i in range(9)}
    fused["published"]["FuseLLM"]["scores"] |= groups
    text = leaderboard.text(fused, 80)
    assert max(map(columns_of, text.splitlines())) <= 80
    assert "Too narrow to show: group" in text


def test_csv_and_json_have_the_bits_and_what_is_published(fused):
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(leaderboard.csv_text(fused)))}
    assert rows["fused"]["bits_per_byte.held.value"] == "1.875"
    assert rows["fused"]["bits_per_byte.held.saved.control.value"] == "-0.25"
    assert rows["fused"]["bits_per_byte.held.saved.target.against"] == "base"
    assert rows["slerp"]["bits_per_byte.held.value"] == ""
    assert (rows["FuseLLM"]["kind"], rows["FuseLLM"]["rank"], rows["FuseLLM"]["overall.value"]) == ("published", "", "")
    assert (rows["FuseLLM"]["bbh.value"], rows["FuseLLM"]["bbh/first.value"]) == ("0.4175", "0.716")
    assert (rows["FuseLLM"]["code.value"], rows["FuseLLM"]["beside"]) == ("0.1556", "fused")
    found = json.loads(leaderboard.json_text(fused))
    assert [one["kind"] for one in found["published"]] == ["published", "published"]
    assert found["published"][0]["scores"]["bbh"]["tasks"] == {"first": 0.716}
    assert next(row for row in found["models"] if row["name"] == "fused")["text_gain"]["held"]["control"]["p"] == 0.001


def test_hostile_published_names_and_texts_do_no_harm(fused):
    fused["published"][NASTY] = {
        "source": NASTY, "note": NASTY, "beside": NASTY, "scores": {NASTY: {"value": 0.5, "tasks": {NASTY: 0.5}}},
    }  # fmt: skip
    fused["models"]["fused"]["fusion"]["sources"][NASTY] = {"weight_of_positions": 0.1}
    fused["models"]["fused"]["text"][NASTY] = {"value": 1.0}
    fused["models"]["fused"]["text_gain"][NASTY] = {"control": {"value": 1.0, "against": NASTY}}
    page = page_module.page(fused)
    assert parsed(page).open == [] and parsed(page).tags.count("script") == 1
    for text in (page, leaderboard.markdown(fused), leaderboard.text(fused), leaderboard.text(fused, None)):
        assert "\x1b" not in text and "\u202e" not in text
    assert "<script>" not in leaderboard.markdown(fused)
    assert len(list(csv.DictReader(io.StringIO(leaderboard.csv_text(fused))))) == 11


def test_of_many_measures_of_kinship_the_ranking_shows_one_that_fusions_have_too(results):
    measures = ["pcc", "cosine", "euclidean", "capa"]
    ties, other, *_ = (row for row in results["models"].values() if row.get("kind") == "merged" and "score" in row)
    ties["kinship"] = {measure: {"mean": 0.5, "min": 0.5, "max": 0.5} for measure in measures}
    other["kinship"] = {"capa": {"mean": 0.25, "min": 0.25, "max": 0.25}}
    head = page_module.page(results).partition("</thead>")[0]
    assert [measure for measure in measures if f">{measure}" in head] == ["pcc", "cosine", "capa"]
