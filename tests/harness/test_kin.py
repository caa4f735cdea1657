"""The verbs `kinship` and `lineage`: what they measure, what they refuse, and what people read of it."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from fusion.errors import LineageError, MismatchError
from harness import kin, kin_table
from harness.board import columns_of
from harness.errors import UsageError
from harness.kin import Asked
from tests.conftest import World
from tests.fusion.models import save_llama, save_plain, tiny_llama

LAYERS = (0, 1, 2)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (24, 20) for i in LAYERS}
    shapes |= {f"model.layers.{i}.self_attn.q_proj.weight": (20, 20) for i in LAYERS}
    shapes |= {"model.embed_tokens.weight": (30, 20), "model.norm.weight": (20,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(base: dict[str, torch.Tensor], seed: int, by: float = 0.1) -> dict[str, torch.Tensor]:
    return {name: base[name] + by * delta for name, delta in tensors(seed).items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base with three models trained from it, a stranger, and models that do not fit."""
    monkeypatch.chdir(tmp_path)
    base = tensors(0)
    grown = moved(base, 4)
    grown["model.embed_tokens.weight"] = torch.cat([grown["model.embed_tokens.weight"], torch.ones(2, 20)])
    models = {
        "base": base, "math": moved(base, 1), "code": moved(base, 2), "chat": moved(base, 3, 0.2),
        "stranger": tensors(9), "grown": grown, "other": {"h.0.attn.weight": torch.ones(4, 4)},
    }  # fmt: skip
    for name, found in models.items():
        save_plain(tmp_path / name, found, {"architectures": ["OtherLM" if name == "other" else "ToyLM"]})
    (tmp_path / "link").symlink_to("math")
    return tmp_path


def measured(*models: str, **asked: object) -> dict:
    return kin.measure(Asked(models=models, **{"base": "base", **asked}), lambda what, done, total: None)


def refused(error: type[Exception], *models: str, **asked: object) -> str:
    with pytest.raises(error) as caught:
        measured(*models, **asked)
    return str(caught.value)


def test_the_document_is_contract_6_with_what_it_rests_on(folder: Path) -> None:
    found = measured("math", "code", "chat")
    assert {"base", "models", "measures", "lineage", "pairs", "summary"} == set(found)
    assert (found["base"], found["models"]) == ("base", ["math", "code", "chat"])
    assert list(found["measures"]) == ["pcc", "cosine", "euclidean", "relative_euclidean", "norm_ratio"]
    assert [(row["a"], row["b"]) for row in found["pairs"]] == list(combinations(found["models"], 2))
    deltas = [torch.cat([0.1 * t.ravel() for t in tensors(seed).values()]).double() for seed in (1, 2)]
    cosine = float(torch.nn.functional.cosine_similarity(*deltas, dim=0))
    assert found["pairs"][0]["cosine"] == pytest.approx(cosine, abs=1e-6)
    values = [row["euclidean"] for row in found["pairs"]]
    assert found["summary"]["euclidean"] == pytest.approx(
        {"mean": sum(values) / 3, "min": min(values), "max": max(values)}
    )
    assert all(about["kin"] for about in found["lineage"].values())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "summary" not in measured("math", "code"), "of one pair there is nothing to sum up"


def test_layers_and_kinds_are_given_when_asked_for(folder: Path) -> None:
    [row] = measured("math", "code", measures=("pcc", "euclidean"), by=("layer", "kind"))["pairs"]
    assert list(row["layers"]) == ["0", "1", "2"] and set(row["layers"]["0"]) == {"pcc", "euclidean"}
    assert {"attention", "mlp", "embedding", "norm"} <= set(row["kinds"])
    [plain] = measured("math", "code", measures=("pcc",))["pairs"]
    assert set(plain) == {"a", "b", "pcc"}


def test_a_stranger_is_refused_with_its_cosine_unless_it_is_allowed(folder: Path) -> None:
    said = refused(LineageError, "math", "stranger")
    assert "stranger: cosine" in said and "math: cosine" not in said
    assert "fuse-bench lineage" in said and "--allow-unrelated" in said
    found = measured("math", "stranger", allow_unrelated=True)
    assert [about["kin"] for about in found["lineage"].values()] == [True, False]
    assert "stranger to the base: cosine" in kin_table.kinship_words(found)


def test_another_architecture_is_told_from_another_size(folder: Path) -> None:
    said = refused(LineageError, "math", "other")
    assert "other: OtherLM, 1 tensors" in said and "the base: ToyLM, 8 tensors" in said and "--measure capa" in said
    said = refused(LineageError, "math", "code", base="other", allow_unrelated=True)
    assert "math: ToyLM" in said and "code: ToyLM" in said
    said = refused(MismatchError, "math", "grown")
    assert "grown: model.embed_tokens.weight is [32, 20] instead of [30, 20]" in said and "--common" in said


def test_common_says_what_it_leaves_out(folder: Path) -> None:
    found = measured("math", "grown", common=True)
    assert found["left_out"] == {"tensors": 0, "rows": 2} and "left_out" not in found["pairs"][0]
    assert "0 tensors, and 2 vocabulary" in " ".join(kin_table.kinship_words(found).split())


def test_a_model_that_equals_the_base_has_a_status(folder: Path) -> None:
    found = measured("math", "base", "code", measures=("pcc",))
    assert [row["pcc"] is None for row in found["pairs"]] == [True, False, True]
    assert "equals the base" in found["pairs"][0]["status"] and "status" not in found["pairs"][1]
    assert found["summary"] == {}, "a mean over some of the pairs would pass for one over all"
    assert "2 pairs: 'base' equals the base" in kin_table.kinship_words(found)


@pytest.mark.parametrize(
    ("models", "asked", "said"),
    [
        (("math",), {}, "got 1, give at least two"),
        (("math", "math"), {}, "math is given more than once"),
        (("math", "./math"), {}, "'./math' and 'math' are the same model"),
        (("math", "code/../math"), {}, "'code/../math' and 'math' are the same model"),
        (("math", "link"), {}, "'link' and 'math' are the same model"),
        (("math", "nope"), {}, "there is no model folder nope"),
        (("math", "code"), {"base": "nope"}, "there is no model folder nope"),
        (("math", "code"), {"base": None}, "give --base BASE"),
        (("math", "code"), {"base": None, "measures": ("pcc",)}, "give --base BASE"),
        (("math", "code"), {"measures": ("pc", "js")}, "there is no measure 'pc': did you mean 'pcc'?"),
        (("math", "code"), {"measures": ("cka",)}, "give --texts FILE.jsonl"),
        (("math", "code"), {"measures": ("capa", "js")}, "fuse-bench run SUITE"),
        (("math", "code"), {"run": "latest"}, "there is no run 'latest'"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder: Path, models, asked, said) -> None:
    assert said in refused(UsageError, *models, **asked)


def test_texts_compare_models_of_any_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("small", "wide")):
        save_llama(tmp_path / name, tiny_llama(seed, hidden_size=16 * (seed + 1)))
    lines = [json.dumps({"text": " ".join(f"t{i * j % 29}" for j in range(2, 12))}) for i in range(1, 9)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    told: list[str] = []
    asked = Asked(("small", "wide"), texts=Path("t.jsonl"))
    found = kin.measure(asked, lambda what, done, total: told.append(what))
    [row] = found["pairs"]
    assert list(found["measures"]) == ["cka"] and -1 <= row["cka"] <= 1 and "layers" not in row
    assert "lineage" not in found and {"small reads t.jsonl", "wide reads t.jsonl"} == set(told)
    again = kin.measure(Asked(("small", "wide"), measures=("cka",), texts=Path("t.jsonl"), by=("layer",)), print)
    assert again["pairs"][0]["cka"] == row["cka"] and list(again["pairs"][0]["layers"]) == ["0", "1"]


def test_a_run_lends_its_models_and_its_records(world: World) -> None:
    found = kin.measure(
        Asked(("coder", "scholar", "average"), "base", ("pcc", "capa"), run=str(world.run_dir)), lambda *said: None
    )
    assert [row["pcc"] is not None and row["capa"] is not None for row in found["pairs"]] == [True] * 3
    with pytest.raises(UsageError, match="models of small-.*: .*coder"):
        kin.measure(Asked(("coder", "codr"), "base", run=str(world.run_dir)), print)


# --- what people read


def fake(names: list[str], measures: list[str]) -> dict:
    pairs = [
        {"a": a, "b": b, **{m: (-1) ** i * (i + 1) / 7 * 10**j for j, m in enumerate(measures)}}
        for i, (a, b) in enumerate(combinations(names, 2))
    ]
    summary = {m: {"mean": 1.0, "min": 0.5, "max": 2.0} for m in measures} if len(names) > 2 else {}
    directions = {m: "higher is closer" for m in measures}
    return {"base": "base", "models": names, "measures": directions, "pairs": pairs, "summary": summary}


@pytest.mark.parametrize("models", [2, 3, 7, 14])
@pytest.mark.parametrize("measures", [1, 4, 9])
def test_tables_fit_80_columns(models: int, measures: int) -> None:
    names = [f"/home/someone/checkpoints/experiment-{i}/checkpoint-1000" for i in range(models)]
    found = fake(names, [f"{'relative_' * (i % 3)}measure{i}" for i in range(measures)])
    text = kin_table.kinship_words(found)
    body = [line for line in text.splitlines() if not line.startswith("1") or " = " not in line]
    assert max(columns_of(line) for line in body if "/home" not in line) <= 80
    shown = "".join(text.split())
    for pair in found["pairs"]:
        assert all(kin_table.value(pair[m]) in shown for m in found["measures"])


def test_names_are_short_distinct_and_explained() -> None:
    names = ["runs/a/model", "runs/b/model", "c"]
    assert kin_table.short(names) == {"runs/a/model": "a/model", "runs/b/model": "b/model", "c": "c"}
    long = [f"{'x' * 60}{i}{'y' * 60}" for i in range(12)]
    found = kin_table.short(long)
    assert len(set(found.values())) == 12 and max(map(len, found.values())) <= kin_table.LONGEST
    nasty = kin_table.short(["a\x1b[31m", "b\u202e"])
    assert "\x1b" not in "".join(nasty.values()) and "\u202e" not in "".join(nasty.values())
    assert "a/model = runs/a/model" in kin_table.kinship_words(fake(names, ["pcc"]))


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (0.0, "0.0000"), (-0.12345, "-0.1235"), (12345.6, "1.23e+04"), (4e-6, "4e-06")],
)
def test_numbers_keep_their_size(number: float | None, text: str) -> None:
    assert kin_table.value(number) == text


# --- lineage


def test_the_base_a_model_comes_from_is_found_with_the_next_beside_it(folder: Path) -> None:
    found = kin.trace(["math", "stranger"], ["stranger", "base", "code"])
    assert found["nearest"] == {"math": "base", "stranger": "stranger"}
    assert list(found["models"]["math"]) == ["base", "code", "stranger"], "the likeliest first"
    about = found["models"]["math"]["base"]
    assert about["lowest_layer"] == int(min(about["layers"], key=about["layers"].get))
    words = kin_table.lineage_words(found)
    assert "math comes from base" in words and "next, code: cosine" in words
    assert max(map(len, words.splitlines())) <= 80


def test_few_changed_matrices_do_not_hide_the_base(folder: Path) -> None:
    """Where most matrices are the base's own, medians are 1 for relatives too: only the distance tells."""
    base = tensors(0)
    for seed, name in ((1, "one"), (2, "two")):
        name_of = "model.layers.1.mlp.up_proj.weight"
        save_plain(folder / name, base | {name_of: moved(base, seed)[name_of]})
    found = kin.trace(["one"], ["two", "base"])
    assert found["models"]["one"]["two"]["cosine"] == found["models"]["one"]["base"]["cosine"] == pytest.approx(1)
    assert found["nearest"] == {"one": "base"}


def test_a_model_of_no_base_says_so(folder: Path) -> None:
    found = kin.trace(["math"], ["stranger", "other"])
    assert found["nearest"] == {"math": None}
    assert "math comes from none of these; least far is stranger" in kin_table.lineage_words(found)
    with pytest.raises(UsageError, match="two models or more"):
        kin.trace(["math"], [])


def test_the_verb_prints_writes_and_refuses(folder: Path, bench) -> None:
    done = bench("kinship", "math", "code", "chat", "--base", "base", "--html", "out/k.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "math  code" in done.stdout and (folder / "out" / "k.html").read_text().count("<svg") == 5
    done = bench("kinship", "math", "other", "--base", "base", cwd=folder)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80
