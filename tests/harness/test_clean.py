"""Clean items: which texts a model has read, itself and by its parents, and its score without what stands there."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from harness import clean
from harness.plan import TaskItems
from harness.spec import Candidate, Trained


def candidate(name, corpora=(), **given):
    return Candidate(name=name, method="m", kind="fused", params={}, corpora=corpora, row=name, **given)


MODELS = {
    "base": Trained("base", "pocket/base", {}, None, 0),
    "fused": candidate("fused", ("one.jsonl",), target="base"),
    "other": candidate("other", ("two.jsonl",), target="base"),
    "merged": candidate("merged", models=("fused", "other")),
    "plain": candidate("plain", models=("base",)),
    "pocket": candidate("pocket", ("pocket/clean",), target="fused"),
}
ITEMS = {
    "g": {"quiz": TaskItems((), {"test": ("a", "b", "c", "d"), "dev": ("e",)})},
    "h": {"else": TaskItems((), {"test": ("x",), "dev": ()})},
}
FOUND = {
    "one.jsonl": {"quiz": {"found": ["a", "e"], "unjudged": ["d"]}, "else": {"found": [], "unjudged": []}},
    "two.jsonl": {"quiz": {"found": ["b"], "unjudged": []}, "else": {"found": ["x"], "unjudged": []}},
}
SCORES = {name: {"g": {"quiz": np.array([[1.0, 1.0, 0.0, 1.0]])}, "h": {"else": np.array([[1.0]])}} for name in MODELS}


@pytest.fixture
def rows(tmp_path):
    done = {}
    for corpus, found in FOUND.items():
        (tmp_path / corpus).mkdir()
        (tmp_path / corpus / "overlap.json").write_text(json.dumps(found))
        done[f"overlap {corpus}"] = SimpleNamespace(path=tmp_path / corpus)
    plan = SimpleNamespace(
        suite=SimpleNamespace(models=MODELS), items=ITEMS, overlaps={corpus: f"overlap {corpus}" for corpus in FOUND}
    )

    def rows(left_out=None):
        left = {job: entry for job, entry in done.items() if job != left_out}
        made = {name: {} for name in MODELS}
        made["fused"]["gain"] = {
            "target": {"against": "base"},
            "control": {"against": "gone"},
            "best": {"against": "x"},
        }
        clean.add_clean(made, plan, SimpleNamespace(done=left), SCORES)
        return made

    return rows


def test_a_model_has_read_what_its_parents_have_read():
    suite = SimpleNamespace(models=MODELS)
    assert sorted(clean.texts_of(suite, "merged")) == ["one.jsonl", "two.jsonl"]
    assert list(clean.texts_of(suite, "plain")) == list(clean.texts_of(suite, "base")) == []


def test_clean_scores_leave_out_what_stands_in_any_of_the_texts(rows):
    found = rows()
    assert found["base"] == {} and found["plain"] == {}
    fused = found["fused"]
    assert fused["overlap"]["quiz"] == {"items": 4, "overlapping": 1, "unjudged": 1}
    assert fused["clean_scores"]["g"]["value"] == pytest.approx(2 / 3) and fused["clean_scores"]["g"]["n"] == 3
    assert fused["clean_score"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert set(fused["clean_gain"]) == {"target"} and fused["clean_gain"]["target"]["against"] == "base"
    assert fused["clean_gain"]["target"]["value"] == 0
    assert found["pocket"]["overlap"] == fused["overlap"], "the pocket world's own texts hold no items"
    merged = found["merged"]
    assert merged["overlap"]["quiz"] == {"items": 4, "overlapping": 2, "unjudged": 0}
    assert merged["clean_scores"] == {"g": {"value": 0.5, "stderr": pytest.approx(0.5), "n": 2}}
    assert "clean_score" not in merged, "no item of group h is left"


def test_what_was_not_looked_for_is_not_called_clean(rows):
    found = rows(left_out="overlap two.jsonl")
    assert "overlap" in found["fused"] and found["other"] == {} and found["merged"] == {}
