"""The page of `kinship`: the tree is that of the definition, the page is whole, and hostile names do no harm."""

import html.parser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from harness.kinship_page import _scale, leaves, linkage, page

NASTY = "<script>alert(1)</script>\"'&\x1b[31m\u202e"
DIRECTIONS = {"pcc": "higher is closer", "euclidean": "lower is closer"}


def distances(models: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).random((models, models))
    return np.triu(found, 1) + np.triu(found, 1).T


def document(names: list[str], value=lambda i: 0.9 - 0.2 * i, **more: object) -> dict:
    pairs = [{"a": a, "b": b, "pcc": value(i), "euclidean": 3.0 + i} for i, (a, b) in enumerate(combinations(names, 2))]
    return {"base": "base", "models": names, "measures": DIRECTIONS, "pairs": pairs, "summary": {}, **more}


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href") or key.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("models", [2, 3, 11])
def test_the_linkage_is_scipys(models: int, seed: int) -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    squareform = pytest.importorskip("scipy.spatial.distance").squareform
    matrix = distances(models, seed)
    theirs = hierarchy.linkage(squareform(matrix), "average")
    ours = linkage(matrix.tolist())
    assert [join.height for join in ours] == pytest.approx(theirs[:, 2].tolist(), rel=1e-12)
    assert [{join.first, join.second} for join in ours] == [{int(a), int(b)} for a, b in theirs[:, :2]]


def test_the_linkage_of_ties_and_of_one_model() -> None:
    assert linkage([[0.0]]) == [] and leaves([], 1) == [0]
    joins = linkage(np.ones((4, 4)).tolist())
    assert [join.height for join in joins] == [1.0] * 3 and sorted(leaves(joins, 4)) == [0, 1, 2, 3]
    assert linkage(np.ones((4, 4)).tolist()) == joins


def test_the_nearest_stand_side_by_side() -> None:
    matrix = [[0, 9, 1, 9], [9, 0, 9, 2], [1, 9, 0, 9], [9, 2, 9, 0]]
    assert leaves(linkage(matrix), 4) == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("numbers", "higher", "expected"),
    [
        ((-0.5, 0.25), True, {-0.5: ("far", 1.0), 0.25: ("near", 0.5), 0.0: ("near", 0.0)}),
        ((0.25, 0.75), True, {0.25: ("near", 0.0), 0.75: ("near", 1.0)}),
        ((2.0, 4.0), False, {2.0: ("near", 1.0), 4.0: ("near", 0.0), 3.0: ("near", 0.5)}),
        ((0.5, 0.5), True, {0.5: ("near", 1.0)}),
    ],
)
def test_colours_tell_the_closer_and_the_sign(numbers, higher, expected) -> None:
    scale = _scale(numbers, higher)
    assert {number: scale.of(number) for number in expected} == expected


@pytest.mark.parametrize("models", [2, 3, 12, 40])
def test_the_page_is_whole_and_asks_for_nothing(models: int) -> None:
    found = _Page(text := page(document([f"m{i}" for i in range(models)], lambda i: (-1) ** i / (i + 1))))
    assert found.open == [] and found.links == [] and "http" not in text and "url(" not in text
    assert found.tags.count("svg") == 2 and found.tags.count("rect") == 2 * models**2
    assert text == page(document([f"m{i}" for i in range(models)], lambda i: (-1) ** i / (i + 1)))


def test_what_is_undefined_is_neither_zero_nor_coloured() -> None:
    found = document(["a", "b", "c"])
    found["pairs"][1] |= {"pcc": None, "status": "'c' equals the base: its task vector is zero"}
    text = page(found)
    assert text.count('class="cell unknown"') == 2 and "a ~ c: &#x27;c&#x27; equals the base" in text
    for pair in found["pairs"]:
        pair["pcc"] = None
    assert "undefined for every pair" in page(found)


def test_layers_kinds_and_lineage_are_shown_when_they_are_there() -> None:
    about = {"kin": True, "cosine": 0.97, "distance": 0.3, "layers": {"0": 0.99, "1": 0.95}, "lowest_layer": 1}
    found = document(["a", "b"], lineage={name: about for name in ("a", "b")})
    found["pairs"][0]["layers"] = {"0": {"pcc": 0.1}, "1": {"pcc": 0.3}, "2": {"pcc": None}}
    found["pairs"][0]["kinds"] = {"mlp": {"pcc": 0.1, "euclidean": 2.0}}
    parsed = _Page(page(found))
    assert parsed.open == [] and {"By layer", "By kind of module", "Lineage"} <= set(parsed.words)
    assert parsed.tags.count("svg") == 3, "a heatmap a measure, and a plot over layers of the one that has them"
    assert "By layer" not in page(document(["a", "b"]))


def test_hostile_names_do_no_harm(tmp_path: Path) -> None:
    found = document([NASTY, "b" * 300, f"x/{NASTY}"])
    found["base"] = NASTY
    found["pairs"][0]["status"] = NASTY
    parsed = _Page(text := page(found))
    assert parsed.open == [] and parsed.tags.count("script") == 1
    assert "alert(1)</script>" not in text and "\x1b" not in text and "\u202e" not in text
