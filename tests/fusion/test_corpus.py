"""Documents, their tokens, and how they are packed."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusion import corpus, jsonl, new_model
from fusion.errors import TrainingError

DOCUMENTS = [{"prompt": "one and two\nis", "answer": " three"}, {"text": "the cat é 42"}, {"text": ""}]


@pytest.fixture(scope="module")
def tokenizer():
    return new_model.train_tokenizer(["one and two is three", "the cat sat on the mat"] * 5, 300)


def test_read_jsonl_keeps_documents_and_drops_what_is_not_text_to_learn(tmp_path: Path) -> None:
    path = tmp_path / "mix.jsonl"
    path.write_text('{"text": "a", "id": 3}\n\n{"prompt": "b", "answer": " c"}\n', encoding="utf-8")
    documents = jsonl.read_jsonl(path)
    assert list(documents) == [{"text": "a"}, {"prompt": "b", "answer": " c"}]
    assert len(documents) == 2 and documents[-1] == documents[1] == {"prompt": "b", "answer": " c"}
    assert documents[1:] == [documents[1]] and documents[::-1] == [documents[1], documents[0]]
    with pytest.raises(IndexError):
        documents[2]


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    """What Unicode calls a line's end too is text to JSON."""
    path = tmp_path / "mix.jsonl"
    path.write_bytes('{"text": "a\u2028b\u0085c"}\r\n \t\r\n{"text": "d"}'.encode())
    assert list(jsonl.read_jsonl(path)) == [{"text": "a\u2028b\u0085c"}, {"text": "d"}]


def _rewritten(path: Path) -> None:
    path.write_text('{"text": "b"}\n{"text": "bbb"}\n')


def _replaced(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_text('{"text": "b"}\n{"text": "b"}\n')
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "says"), [(_rewritten, "has changed"), (_replaced, "has changed"), (os.unlink, "cannot be read")]
)
def test_a_file_that_changes_is_not_read_on(tmp_path: Path, change: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "mix.jsonl"
    path.write_text('{"text": "a"}\n{"text": "a"}\n')
    documents = jsonl.read_jsonl(path)
    change(path)
    with pytest.raises(TrainingError, match=rf"mix\.jsonl: {says}"):
        documents[1]


def test_a_corpus_larger_than_memory_would_do(tmp_path: Path) -> None:
    """Opened, iterated and digested with a small share of its size in memory."""
    path = tmp_path / "mix.jsonl"
    with path.open("w") as file:
        for number in range(2000):
            json.dump({"text": f"{number} " * 5000}, file)
            file.write("\n")
    size = path.stat().st_size
    assert size > 35e6
    tracemalloc.start()
    try:
        documents = jsonl.read_jsonl(path)
        assert sum(1 for _ in documents) == 2000
        assert corpus.digest(documents).startswith("sha256:")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.02 * size


def test_joined_corpora_are_one() -> None:
    joined = jsonl.Joined([DOCUMENTS, [], DOCUMENTS[:1]])
    assert list(joined) == [*DOCUMENTS, DOCUMENTS[0]] == joined[:]
    assert len(joined) == 4 and joined[-1] == joined[3] == DOCUMENTS[0] and joined[1:3] == DOCUMENTS[1:]
    assert corpus.digest(joined) == corpus.digest([*DOCUMENTS, DOCUMENTS[0]])
    with pytest.raises(IndexError):
        joined[4]


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
        jsonl.read_jsonl(path)


def test_read_jsonl_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"absent\.jsonl: cannot be read"):
        jsonl.read_jsonl(tmp_path / "absent.jsonl")


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
    assert tokenizer.decode(tokens.ids[first][tokens.answer[first]]) == " three" + new_model.END
    assert tokens.answer[tokens.starts[1] :].all()


def test_blocks_are_the_corpus_in_parts(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DOCUMENTS", 4)
    monkeypatch.setattr(corpus, "AT_ONCE", 3)
    documents = DOCUMENTS * 3
    whole = corpus.encode(tokenizer, documents)
    blocks = list(corpus.encode_blocks(tokenizer, documents))
    assert [list(block) for block, _ in blocks] == [documents[:4], documents[4:8], documents[8:]]
    for name in ("ids", "answer"):
        assert (np.concatenate([getattr(tokens, name) for _, tokens in blocks]) == getattr(whole, name)).all()
    assert all(tokens.starts[0] == 0 and tokens.starts[-1] == len(tokens.ids) for _, tokens in blocks)
    later = list(corpus.encode_blocks(tokenizer, documents, 4))
    assert [tokens.ids.tolist() for _, tokens in later] == [tokens.ids.tolist() for _, tokens in blocks[1:]]
    mapped = corpus.encode(tokenizer, documents, tmp_path / "tokens")
    again = corpus.encode(tokenizer, documents, tmp_path / "tokens")  # written anew beside what is still mapped
    for one in (mapped, again):
        assert all((getattr(one, name) == getattr(whole, name)).all() for name in ("ids", "answer", "starts"))
    assert not mapped.ids.flags.writeable


def test_encode_of_nothing(tokenizer, tmp_path: Path) -> None:
    for tokens in (corpus.encode(tokenizer, []), corpus.encode(tokenizer, [], tmp_path)):
        assert len(tokens) == 0 and tokens.ids.shape == tokens.answer.shape == (0,)


def test_encode_needs_an_eos(tokenizer) -> None:
    import copy

    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(TrainingError, match="EOS"):
        corpus.encode(without, DOCUMENTS)


def _tokens(lengths: list[int], prompts: list[int] | None = None) -> corpus.Tokens:
    starts = np.cumsum([0, *lengths])
    given = prompts or [0] * len(lengths)
    answer = np.concatenate([np.arange(n) >= prompt for n, prompt in zip(lengths, given, strict=True)])
    return corpus.Tokens(np.arange(starts[-1], dtype=np.int32), answer, starts)


def test_cut_predicts_every_token_but_the_first_once() -> None:
    pieces = corpus.cut(_tokens([1, 2, 8, 9, 23]), 8, "all")
    predicted = [t for s, n in zip(pieces.start, pieces.length, strict=True) for t in range(s + 1, s + n)]
    starts = np.cumsum([0, 1, 2, 8, 9, 23])
    assert predicted == [t for t in range(43) if t not in starts]
    assert pieces.length.max() <= 8 and pieces.length.min() >= 2


@pytest.mark.parametrize("context", [2, 3, 7])
def test_cut_is_what_a_loop_over_documents_gives(context: int) -> None:
    rng = np.random.default_rng(context)
    lengths = rng.integers(1, 30, 80).tolist()
    prompts = [int(rng.integers(0, n)) for n in lengths]
    tokens = _tokens(lengths, prompts)
    for loss in ("all", "answers"):
        wanted, truncated = [], 0
        for number, prompt in enumerate(prompts):
            first, end = int(tokens.starts[number]), int(tokens.starts[number + 1])
            if loss == "answers" and prompt and end - first > context:
                # The last tokens, and all of the answer with the token that its first one is predicted from.
                kept = min(end - context, first + prompt - 1)
                first, truncated = kept, truncated + (kept > first)
            wanted += [(at, min(context, end - at)) for at in range(first, end - 1, context - 1)]
        pieces = corpus.cut(tokens, context, loss)
        assert list(zip(pieces.start.tolist(), pieces.length.tolist(), strict=True)) == wanted
        assert pieces.truncated == truncated


def test_cut_loses_the_beginning_of_long_prompts_and_nothing_else() -> None:
    def cut(length: int, prompt: int) -> tuple[list[int], list[int], int]:
        pieces = corpus.cut(_tokens([5, length], [0, prompt]), 8, "answers")
        return pieces.start.tolist(), pieces.length.tolist(), pieces.truncated

    assert cut(11, 9) == ([0, 8], [5, 8], 1)
    assert cut(11, 0) == ([0, 5, 12], [5, 8, 4], 0), "plain text has no prompt to lose"
    assert cut(20, 3) == ([0, 7, 14, 21], [5, 8, 8, 4], 1), "an answer longer than the context is learnt whole"


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


def _plain_best_fit(order: list[int], length: list[int], context: int) -> list[list[int]]:
    """Each piece into the open row of least room that takes it; where none does, the fullest of 32 is closed."""
    full: list[list[int]] = []
    rows: list[list[int]] = []
    for piece in order:
        room = [context - sum(length[i] for i in row) for row in rows]
        fits = [i for i, left in enumerate(room) if left >= length[piece]]
        if fits:
            rows[min(fits, key=room.__getitem__)].append(piece)
            continue
        if len(rows) == 32:
            full.append(rows.pop(min(range(32), key=room.__getitem__)))
        rows.append([piece])
    return full + rows


@pytest.mark.parametrize("seed", range(4))
def test_pack_is_best_fit_over_32_open_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = rng.integers(2, 60 if seed % 2 else 101, 300)
    assert corpus.pack_once(length, 100) == _plain_best_fit(list(range(300)), length.tolist(), 100)
