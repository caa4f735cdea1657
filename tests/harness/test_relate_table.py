import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import UsageError
from harness.relate_table import of_run, relate_table, relation_words

PUBLISHED = Path(__file__).parents[2] / "results" / "kinship_published"
HEAD = "name,pcc,gain"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def leaf(found: dict, measure: str, kind: str = "signed", gain: str = "best") -> dict:
    return found["measures"][measure][gain][kind]


# --- the published evolution paths


@pytest.fixture(scope="module")
def path1() -> dict:
    return relate_table(PUBLISHED / "path1.csv")


@pytest.fixture(scope="module")
def both() -> dict:
    return relate_table(PUBLISHED / "paths.csv")


@pytest.mark.parametrize(
    ("measure", "signed", "absolute"), [("pcc", -0.50, -0.59), ("cosine", -0.45, -0.66), ("euclidean", 0.46, 0.67)]
)
def test_table_2_comes_from_the_first_paths_fourteen_merges(path1, measure, signed, absolute):
    """Within .01 at the two digits that are printed there; kinship and gain are printed with two digits, too."""
    for kind, published in (("signed", signed), ("absolute", absolute)):
        found = leaf(path1, measure, kind)
        assert found["n"] == 14
        assert abs(round(found["pearson"]["value"], 2) - published) < 0.0101


def test_given_the_parents_score_little_of_it_is_left(path1):
    assert leaf(path1, "pcc")["partial"]["value"] == pytest.approx(-0.38, abs=0.005)
    assert leaf(path1, "pcc", "absolute")["partial"]["value"] == pytest.approx(-0.13, abs=0.005)
    assert leaf(path1, "euclidean", "absolute")["partial"]["value"] == pytest.approx(0.11, abs=0.005)
    assert leaf(path1, "pcc")["spearman"]["value"] == pytest.approx(-0.62, abs=0.006)
    assert leaf(path1, "pcc")["partial"]["given"] == ["the parents' mean score"]
    assert leaf(path1, "pcc")["partial"]["halves"] is False


def test_one_merge_makes_the_correlation_of_both_paths(both):
    found = leaf(both, "pcc")
    assert found["n"] == 23
    assert found["pearson"]["value"] == pytest.approx(-0.88, abs=0.005)
    most = found["influential"]
    assert most["name"] == "path2-1 (CatPPT)" and most["without"] == pytest.approx(-0.50, abs=0.005)
    assert found["partial"]["influential"]["name"] == "path2-1 (CatPPT)"
    assert found["partial"]["influential"]["without"] == pytest.approx(-0.36, abs=0.005)


def test_one_lineage_is_one_observation(path1, both):
    assert "No conclusion" in path1["says"] and "1 independent lineage, 8 needed" in path1["says"]
    assert (path1["unit"], path1["models"], both["models"]) == ("lineage", 1, 2)
    for found in (path1, both):
        assert not {"low", "p"} & set(leaf(found, "pcc")["pearson"])
    assert both["predictor"]["pcc"]["folds"] == 2 and "too few for an interval" in both["predictor"]["pcc"]["says"]
    assert "reason" in path1["predictor"]["pcc"]


def test_without_a_lineage_rows_are_taken_as_independent_and_that_is_said(tmp_path):
    lines = (PUBLISHED / "path1.csv").read_text().splitlines()
    found = relate_table(
        written(tmp_path, "\n".join(",".join(line.split(",")[:1] + line.split(",")[2:]) for line in lines))
    )
    r = leaf(found, "pcc")["pearson"]
    assert (r["low"], r["high"]) == pytest.approx((-0.85, -0.20), abs=0.02)
    assert r["p"] == pytest.approx(0.071, abs=0.01)
    assert leaf(found, "pcc", "absolute")["pearson"]["p"] == pytest.approx(0.018, abs=0.006)
    assert found["says"].startswith("No relation is shown")
    assert "rows are taken as independent, which merges of one family are not" in found["missing"]


def test_the_words_fit_eighty_columns(path1, both):
    for found in (path1, both):
        said = relation_words(found)
        assert max(len(line) for line in said.splitlines()) <= 80
        for measure in ("pcc  (higher is closer)", "euclidean  (lower is closer)"):
            assert measure in said
    lines = relation_words(both).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("r  "))
    assert lines[first].split() == ["r", "-0.88", "-0.91"]
    assert any(line.split() == ["r", "without", "one", "row", "-0.50", "-0.55"] for line in lines)
    assert any(line.split() == ["partial", "r", "-0.73", "-0.77"] for line in lines)


# --- other tables


def test_every_column_is_used(tmp_path):
    head = "name,method,parents,kinship:my own,gain,gain_mean,parent_mean,parent_gap,lineage"
    rows, k = [head], 0
    for i in range(9):
        for j in range(i + 1, 9):
            k += 1
            own, mean, gap = (i * 7 + j * 5) % 11, (i + j) / 2, abs(i - j) % 4
            rows.append(f"r{k},{'ab'[k % 2]},m{i}|m{j},{own},{own / 10 + mean},{own / 5},{mean},{gap},{'xyz'[i % 3]}")
    found = relate_table(written(tmp_path, "\n".join(rows)))
    assert found["missing"] == [] and found["unit"] == "model" and found["models"] == 9
    assert list(found["methods"]) == ["b", "a"]
    one = leaf(found, "my own")
    assert one["partial"]["given"] == ["the parents' mean score", "the gap of their scores"]
    assert one["partial"]["value"] > 0.99 and one["partial"]["p"] < 0.01 and one["pearson"]["p"] > 0.01
    assert leaf(found, "my own", gain="mean")["pearson"]["value"] == pytest.approx(1)
    assert found["predictor"]["my own"]["left_out"] == "lineage" and found["predictor"]["my own"]["folds"] == 3
    assert max(len(line) for line in relation_words(found).splitlines()) <= 80
    assert "gain_mean" in relation_words(found) and "without one model" in relation_words(found)


def test_a_blank_kinship_is_unknown_and_the_row_counts_elsewhere(tmp_path):
    found = relate_table(written(tmp_path, "name,pcc,cosine,gain\na,,1,1\nb,1,2,3\nc,2,3,2\nd,3,5,1\n"))
    assert leaf(found, "pcc")["n"] == 3 and leaf(found, "cosine")["n"] == 4


def test_a_table_of_a_spreadsheet_reads_alike(tmp_path):
    plain = relate_table(written(tmp_path, f"{HEAD}\na,1,1\nb,2,3\nc,4,2\n"))
    (tmp_path / "table.csv").write_bytes(b'\xef\xbb\xbf"name", pcc ,"gain"\r\n"a",1,1\r\n\r\nb,2,3\r\nc,4,2.0\r\n')
    assert relate_table(tmp_path / "table.csv") == plain


def test_two_merges_of_one_family_of_each_lineage(tmp_path):
    rows = [f"r{i},l{i // 2},{(i * 5) % 7},{(i * 3) % 5}" for i in range(12)]
    found = relate_table(written(tmp_path, "\n".join(["name,lineage,pcc,gain", *rows])))
    one = leaf(found, "pcc")
    assert found["unit"] == "lineage" and one["models"] == 6 and "low" in one["pearson"]
    assert "6 independent lineages, 8 needed" in one["reason"]
    more = [f"r{i},l{i // 2},{(i * 5) % 7},{(i * 3) % 5}" for i in range(18)]
    found = relate_table(written(tmp_path, "\n".join(["name,lineage,pcc,gain", *more])))
    assert "rows of one lineage cannot change places" in leaf(found, "pcc")["reason"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["is empty", "name, gain"]),
        ("name,gain\na,1\nb,2\nc,3\n", [":1: there is no column of kinship"]),
        ("pcc,cosine\n1,2\n", [":1: there is no column 'name'", "there is no column 'gain'"]),
        (f"{HEAD},pcc\n", [":1: column 'pcc' is there 2 times"]),
        (f"{HEAD},euclidian\n", ["unknown column 'euclidian'; did you mean 'euclidean'?"]),
        (f"{HEAD},x\n", ["unknown column 'x'; known: ", "kinship:NAME"]),
        ("name;pcc;gain\na;1;2\n", ["unknown column 'name;pcc;gain'; columns have commas between them"]),
        (f"{HEAD}\na,1,2\nb,1,3\n", ["has 2 rows; a correlation needs 3"]),
        (f"{HEAD}\na,1,2\nb,nan,3\nc,x,inf\n", [
            ":3: column 'pcc': 'nan' is not a finite number", ":4: column 'pcc': 'x' is not a number",
            ":4: column 'gain': 'inf'",
        ]),
        (f"{HEAD}\na,1,2\na,2,3\n,1,2\n", [":3: column 'name': 'a' is on line 2, too", ":4: column 'name' is blank"]),
        (f"{HEAD}\na,1,\nb,1\n", [":2: column 'gain': it is blank", ":3: 2 cells, where the first line has 3 columns"]),
        (f"{HEAD},parents\na,1,2,x\nb,1,2,x|x\nc,1,2,c|d\nd,1,2,\n", [
            ":2: column 'parents': 'x'", ":3: column 'parents': 'x|x'", ":4: column 'parents': 'c|d'",
            ":5: column 'parents' is blank",
        ]),
        (f"{HEAD},parent_gap\na,1,2,-1\n", [":2: column 'parent_gap': -1 is below 0"]),
        (f'{HEAD}\na,1,"2\n', ["not comma-separated values"]),
        (HEAD + "".join(f"\nr{i},?,1" for i in range(30)), ["... and 10 more"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        relate_table(path)
    for part in said:
        assert part in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        relate_table(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        relate_table(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        relate_table(tmp_path / "bytes.csv")


def test_constant_columns_say_so_and_no_number_is_made_up(tmp_path):
    found = relate_table(written(tmp_path, f"{HEAD}\na,1,1\nb,1,2\nc,1,3\n"))
    assert found["says"] == (
        "Nothing can be concluded of pcc of the parents and gain: the kinship is the same for all 3 candidates."
    )
    assert "the kinship is the same" in relation_words(found)
    json.dumps(found, allow_nan=False)


def test_the_verb(tmp_path):
    path = written(tmp_path, f"{HEAD}\na,1,1\nb,2,3\nc,4,2\nd,5,7\ne,6,6\nf,7,9\n")
    done = CliRunner().invoke(cli, ["relate", "--table", str(path)])
    assert done.exit_code == 0 and "pcc  (higher is closer)" in done.output
    found = json.loads(CliRunner().invoke(cli, ["relate", "--table", str(path), "--json"]).stdout)
    assert found == json.loads(json.dumps(relate_table(path)))
    assert isinstance(CliRunner().invoke(cli, ["relate", "--table", str(tmp_path / "x")]).exception, UsageError)


# --- of a run


def test_a_run_says_what_its_results_hold_and_kin_alone_beside(tmp_path, both):
    run = tmp_path / "mine-01234567"
    run.mkdir()
    (run / "plan.json").write_text("{}")
    kin = {"pcc": both["measures"]["pcc"]["best"]}
    (run / "results.json").write_text(json.dumps({"schema": 1, "kinship_vs_gain": {**both, "kin": kin}}))
    found = of_run("mine", tmp_path)
    assert found["says"] == both["says"] and of_run(str(run), tmp_path) == found
    lines = relation_words(found).splitlines()
    assert sum("gain, kin alone" in line for line in lines) == 1 and max(map(len, lines)) <= 80
    (run / "results.json").write_text(json.dumps({"schema": 1, "kinship_vs_gain": {}}))
    with pytest.raises(UsageError, match="mine-01234567 measured no kinship of merges"):
        of_run("latest", tmp_path)


def test_a_run_or_a_table(tmp_path):
    done = CliRunner().invoke(cli, ["relate", "mine", "--table", "x.csv"])
    assert done.exit_code and "not both" in str(done.exception)
