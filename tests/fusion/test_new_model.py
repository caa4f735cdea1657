"""New models and tokenizers."""

import pytest

from fusion import new_model
from fusion.errors import TrainingError

SIZES = {"width": 16, "layers": 2, "heads": 2, "context": 32}
TEXTS = ["red and green is blue", "one and two is three"]


@pytest.fixture(scope="module")
def tokenizer():
    return new_model.train_tokenizer(TEXTS, 280)


def test_unknown_architecture_and_missing_sizes(tokenizer) -> None:
    with pytest.raises(TrainingError, match="known: gpt2, gpt_neox, llama"):
        new_model.new_model("lama", SIZES, tokenizer, 0)
    with pytest.raises(TrainingError, match="sizes lack heads, context"):
        new_model.new_model("llama", {"width": 8, "layers": 1}, tokenizer, 0)


def test_the_tokenizer_splits_digits_and_loses_nothing(tokenizer) -> None:
    text = " 1990 is\tné — 中\n\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len([i for i in ids if tokenizer.decode([i]).strip() in set("0123456789")]) == 4
    with pytest.raises(TrainingError, match="at least 258"):
        new_model.train_tokenizer(["a"], 100)


def test_the_pocket_model_has_the_size_of_the_notes(tokenizer) -> None:
    model = new_model.new_model("llama", {"width": 128, "layers": 4, "heads": 4, "context": 128}, tokenizer, 0)
    assert sum(p.numel() for p in model.parameters()) == 861_312 - 128 * (640 - len(tokenizer))
