"""Models that do not fit: every mismatch named, and what they have in common compared all the same where asked for."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusion.checkpoint import Checkpoint
from fusion.errors import CheckpointError, MismatchError
from fusion.kinship.weights import WEIGHTS, kinship, misfits
from tests.fusion.models import Memory, save_plain

EMBED, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def model(rows: int, member: int, inner: int = 24) -> dict[str, Tensor]:
    """Tensors of a small model; its feed-forward part is wider than its vocabulary. Rows are the same for any count."""
    generator = torch.Generator().manual_seed(member)
    return {
        EMBED: torch.randn(100, 4, generator=generator)[:rows].clone(),
        UP: torch.randn(100, 4, generator=generator)[:inner].clone(),
        "model.norm.weight": torch.randn(4, generator=generator),
    }


def cut(tensors: dict[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    return {**tensors, EMBED: tensors[EMBED][list(rows)]}


def compared(models: dict[str, dict[str, Tensor]], base: dict[str, Tensor]) -> list[dict[str, object]]:
    return kinship({name: Memory(one) for name, one in models.items()}, Memory(base), list(WEIGHTS))


def test_vocabularies_that_grew_or_shrank_are_refused_with_all_that_differs(tmp_path: Path) -> None:
    models = {"grown": Memory(model(12, 1)), "shrunk": Memory(model(7, 2))}
    with pytest.raises(MismatchError) as error:
        kinship(models, Memory(model(10, 0)))
    assert f"grown: {EMBED} is [12, 4] instead of [10, 4]" in str(error.value)
    assert f"shrunk: {EMBED} is [7, 4] instead of [10, 4]" in str(error.value)
    assert "--common" in str(error.value)


@pytest.mark.parametrize("rows", [(10, 12, 12), (10, 7, 12), (10, 7, 8)])
def test_in_common_the_leading_rows_are_compared_where_no_tokenizer_is(tmp_path: Path, rows: tuple[int, ...]) -> None:
    """All of the feed-forward part is, though it has more rows than the smallest vocabulary."""
    base, *models = (model(count, member) for member, count in enumerate(rows))
    named = {f"m{i}": one for i, one in enumerate(models)}
    least = range(min(rows))
    expected = compared({name: cut(one, least) for name, one in named.items()}, cut(base, least))
    found = kinship(
        {n: Memory(t, tmp_path) for n, t in named.items()}, Memory(base, tmp_path), list(WEIGHTS), common=True
    )
    assert found == [{**row, "left_out": {"tensors": 0, "rows": max(rows) - min(rows)}} for row in expected]


def test_in_common_other_tensors_that_not_all_have_are_left_out(tmp_path: Path) -> None:
    """And a tied head beside an untied one; a feed-forward part of another width is not cut to size."""
    base, one, other = (model(10, member) for member in range(3))
    expected = compared({"x": {**one, UP: base[UP]}, "y": {**other, UP: base[UP]}}, base)
    wide = {**one, UP: torch.randn(30, 4), "lm_head.weight": one[EMBED] + 1}
    parts = {"x": Memory(wide, tmp_path), "y": Memory({**other, "extra": torch.ones(3)}, tmp_path)}
    found = kinship(parts, Memory(base, tmp_path), common=True)
    # Without the feed-forward part, which is 0 in what is expected.
    for measure in ("cosine", "euclidean"):
        assert found[0][measure] == pytest.approx(expected[0][measure], rel=1e-12)
    assert found[0]["left_out"] == {"tensors": 3, "rows": 0}


def test_in_common_nothing_is_left_out_of_models_that_fit(tmp_path: Path) -> None:
    tensors = [model(10, member) for member in range(3)]
    base, *models = (Memory(one, tmp_path) for one in tensors)
    named = dict(zip("xy", models, strict=True))
    assert kinship(named, base, common=True) == kinship(named, base)


def test_models_with_nothing_in_common(tmp_path: Path) -> None:
    models = {"x": Memory({"a": torch.ones(2)}, tmp_path), "y": Memory({"b": torch.ones(2)}, tmp_path)}
    with pytest.raises(MismatchError, match="the base, x, y have no tensor of the same name and shape in common"):
        kinship(models, Memory({"a": torch.ones(2)}, tmp_path), common=True)


def save_words(folder: Path, words: Sequence[str], tensors: dict[str, Tensor]) -> Checkpoint:
    """A folder with one row a word."""
    save_plain(folder, tensors, {"model_type": "toy", "vocab_size": len(tensors[EMBED])})
    state = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "the"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return Checkpoint(folder)


def test_in_common_rows_meet_by_token_and_not_by_number(tmp_path: Path) -> None:
    """One model's words are in another order and some are its own; its last rows are padding."""
    words = ["the", "cat", "sat", "on", "mat"]
    others = ["mat", "dog", "the", "on", "cat", "ran"]
    base, one, other = model(6, 0), model(5, 1), model(9, 2)
    found = kinship(
        {
            "same": save_words(tmp_path / "same", words, one),
            "other": save_words(tmp_path / "other", others, other),
        },
        save_words(tmp_path / "base", words, base),
        list(WEIGHTS),
        common=True,
    )
    [expected] = compared({"same": cut(one, [0, 1, 3, 4]), "other": cut(other, [2, 4, 3, 0])}, cut(base, [0, 1, 3, 4]))
    assert found == [{**expected, "left_out": {"tensors": 0, "rows": 9 - 4}}]


def test_a_vocabulary_of_equal_size_is_not_taken_for_the_same(tmp_path: Path) -> None:
    base, one, other = (model(3, member) for member in range(3))
    words, turned = ["the", "cat", "sat"], ["sat", "cat", "the"]
    models = {
        "same": save_words(tmp_path / "same", words, one),
        "turned": save_words(tmp_path / "turned", turned, other),
    }
    found = kinship(models, save_words(tmp_path / "base", words, base), ["euclidean"], common=True)
    [expected] = kinship({"same": Memory(one), "turned": Memory(cut(other, [2, 1, 0]))}, Memory(base), ["euclidean"])
    assert found == [expected]


def test_misfits_are_told_in_one_line_each() -> None:
    models = {
        "fits": Memory(model(10, 1)),
        "grown": Memory(model(12, 1)),
        "odd": Memory({"w": torch.ones(2), EMBED: torch.ones(10, 4)}),
    }
    assert misfits(models, Memory(model(10, 0))) == {
        "grown": f"differs from the base: {EMBED} is [12, 4] instead of [10, 4]",
        "odd": f"differs from the base: {UP} is missing and 2 more",
    }


def test_quantised_weights_and_a_base_without_numbers_are_refused(tmp_path: Path) -> None:
    whole = {"w": torch.ones(4, dtype=torch.int8)}
    packed = Checkpoint(save_plain(tmp_path / "packed", whole, {"quantization_config": {"bits": 4}}))
    with pytest.raises(CheckpointError, match="x: quantised weights cannot be compared"):
        kinship({"x": packed, "y": Memory(whole)}, Memory(whole))
    with pytest.raises(MismatchError, match="no tensor of floating-point numbers"):
        kinship({"x": Memory(whole), "y": Memory(whole)}, Memory(whole))
