"""Documents, their tokens, and how they are packed."""

from pathlib import Path

import numpy as np
import pytest

from fusion import corpus, train
from fusion.errors import TrainingError

DOCUMENTS = [{"prompt": "one and two\nis", "answer": " three"}, {"text": "the cat é 42"}, {"text": ""}]


@pytest.fixture(scope="module")
def tokenizer():
    return train.train_tokenizer(["one and two is three", "the cat sat on the mat"] * 5, 300)


def test_read_jsonl_keeps_documents_and_drops_what_is_not_text_to_learn(tmp_path: Path) -> None:
    path = tmp_path / "mix.jsonl"
    path.write_text('{"text": "a", "id": 3}\n\n{"prompt": "b", "answer": " c"}\n', encoding="utf-8")
    assert corpus.read_jsonl(path) == [{"text": "a"}, {"prompt": "b", "answer": " c"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no document"),
        (b'{"text": "a"}\n{"txt": "b"}\n', r":2: expected \{\"text\""),
        (b'{"text": "a"}\n{"text": \n', ":2: is not JSON"),
        (b'{"text": 3}\n', ":1: text must be text"),
        (b"[]\n", ":1: expected"),
        (b"\xff\n", "is not UTF-8"),
    ],
)
def test_read_jsonl_says_which_line_is_wrong(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mix.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=says):
        corpus.read_jsonl(path)


def test_read_jsonl_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"absent\.jsonl: cannot be read"):
        corpus.read_jsonl(tmp_path / "absent.jsonl")


def test_digest_depends_on_content_and_order_but_not_on_key_order() -> None:
    assert corpus.digest(DOCUMENTS) != corpus.digest(DOCUMENTS[::-1])
    assert corpus.digest([{"answer": "b", "prompt": "a"}]) == corpus.digest([{"prompt": "a", "answer": "b"}])


def test_encode_closes_each_document_and_marks_its_answer(tokenizer) -> None:
    tokens = corpus.encode(tokenizer, DOCUMENTS)
    assert len(tokens) == 3
    for number, document in enumerate(DOCUMENTS):
        ids = tokens.ids[tokens.starts[number] : tokens.starts[number + 1]]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == corpus.text_of(document)
    first = slice(tokens.starts[0], tokens.starts[1])
    assert tokenizer.decode(tokens.ids[first][tokens.answer[first]]) == " three" + train.END
    assert tokens.answer[tokens.starts[1] :].all()


def test_encode_needs_an_eos(tokenizer) -> None:
    import copy

    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(TrainingError, match="EOS"):
        corpus.encode(without, DOCUMENTS)


def _tokens(lengths: list[int]) -> corpus.Tokens:
    total = sum(lengths)
    return corpus.Tokens(np.arange(total, dtype=np.int32), np.ones(total, bool), np.cumsum([0, *lengths]))


def test_cut_predicts_every_token_but_the_first_once() -> None:
    pieces = corpus.cut(_tokens([1, 2, 8, 9, 23]), 8, "all")
    predicted = [t for s, n in zip(pieces.start, pieces.length, strict=True) for t in range(s + 1, s + n)]
    starts = np.cumsum([0, 1, 2, 8, 9, 23])
    assert predicted == [t for t in range(43) if t not in starts]
    assert pieces.length.max() <= 8 and pieces.length.min() >= 2


def test_cut_keeps_the_end_of_a_long_answer_document() -> None:
    pieces = corpus.cut(_tokens([5, 11]), 8, "answers")
    assert (pieces.start.tolist(), pieces.length.tolist(), pieces.truncated) == ([0, 8], [5, 8], 1)


def test_pack_uses_every_piece_once_an_epoch_and_fills_rows() -> None:
    length = np.random.default_rng(0).integers(2, 60, 2000)
    rows = corpus.pack(length, 128, 100_000 // 128, seed=3)
    assert all(length[row].sum() <= 128 for row in rows)
    one_epoch = rows[: int(np.searchsorted(np.cumsum([len(row) for row in rows]), 2000)) + 1]
    assert sorted(piece for row in one_epoch for piece in row) == list(range(2000))
    assert sum(length[row].sum() for row in one_epoch) / (128 * len(one_epoch)) > 0.97
    assert rows == corpus.pack(length, 128, 100_000 // 128, seed=3)
    assert rows != corpus.pack(length, 128, 100_000 // 128, seed=4)
    assert rows[:50] == corpus.pack(length, 128, 50, seed=3)
