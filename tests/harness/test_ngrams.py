"""Words in a row that items share with texts: the rule, exactly, against a plain reading of it."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import ngrams
from harness.ngrams import Item, look_for, words_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHER = "nothing to see"


def item(question: str, *answers: str) -> Item:
    asked = tuple((tuple(words_of(question)), tuple(words_of(answer))) for answer in answers or ("",))
    return Item("\0".join([question, *answers]), asked)


def spell(number: int) -> str:
    """A word of its own for every number."""
    return "".join(LETTERS[(number // 26**place) % 26] for place in range(4)).upper()


def sentence(start: int, length: int) -> str:
    return " ".join(spell(number) for number in range(start, start + length))


def found(items: Sequence[Item], *texts: str) -> dict[int, tuple[str, int]]:
    shared = ngrams.search(look_for([items]), iter(texts))
    return {number: (one.words, one.document) for number, one in shared.items()}


# ------------------------------------------------------------------------------------------------ a plain reading of it


def plain(tasks: Sequence[Sequence[Item]], texts: Sequence[str]) -> tuple[set[int], set[int], dict[int, Any]]:
    """(short, judged, found with words and document), by sets and loops."""
    rows = [text_words(text) for text in texts]
    short, judged, where = set(), set(), {}
    number = 0
    for items in tasks:
        grams = plain_grams(items)
        for own, is_short in grams:
            short |= {number} if is_short else set()
            judged |= {number} if own else set()
            place = first_place(own, rows)
            if place is not None:
                where[number] = place
            number += 1
    return short, judged, where


def text_words(text: str) -> list[str]:
    cleaned = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
    return cleaned.split()


def plain_grams(items: Sequence[Item]) -> list[tuple[set[tuple[str, ...]], bool]]:
    questions = sorted({question for one in items for question, _ in one.asked})
    begin = end = 0
    if len(questions) >= 3:
        while all(len(q) > begin and q[begin] == questions[0][begin] for q in questions):
            begin += 1
        while all(len(q) - begin > end and q[-1 - end] == questions[0][-1 - end] for q in questions):
            end += 1
    grams, is_short = [], []
    for one in items:
        mine: set[tuple[str, ...]] = set()
        is_short.append(True)
        for question, answer in one.asked:
            own = question[begin : len(question) - end] + answer
            whole = question + answer
            if len(own) >= 13:
                is_short[-1] = False
                for words in (whole, own):
                    mine |= {words[i : i + 13] for i in range(len(words) - 12)}
            else:
                mine |= {whole} - {()}
                mine |= {own} if len(own) >= 8 else set()
        grams.append(mine)
    texts = {one.text: mine for one, mine in zip(items, grams, strict=True)}
    count = Counter(gram for mine in texts.values() for gram in mine)
    template = {gram for gram, seen in count.items() if seen >= 3 and 10 * seen > len(texts)}
    return list(zip([mine - template for mine in grams], is_short, strict=True))


def first_place(grams: set[tuple[str, ...]], rows: Sequence[list[str]]) -> tuple[str, int] | None:
    lengths = sorted({len(gram) for gram in grams}, reverse=True)
    for document, row in enumerate(rows, 1):
        for at in range(len(row)):
            for length in lengths:
                gram = tuple(row[at : at + length])
                if len(gram) == length and gram in grams:
                    return " ".join(gram), document
    return None


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[list[Item]], list[str]]:
    """Tasks whose items share words, and texts that are pieces of items and other words."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    alphabet = [spell(i) for i in range(rng.choice((2, 3, 40)))]

    def words(low: int, high: int) -> list[str]:
        return rng.choices(alphabet, k=rng.randint(low, high))

    tasks, pieces = [], [words(0, 30) for _ in range(3)]
    for _ in range(rng.randint(1, 2)):
        begin, end, middle = words(0, 3), words(0, 3), words(0, 14)
        items = []
        for _ in range(rng.randint(1, 14)):
            question = [*begin, *words(0, 8), *(middle if rng.random() < 0.3 else []), *words(0, 6), *end]
            answers = [words(0, 5) for _ in range(rng.choice((1, 1, 2)))]
            asked = tuple((tuple(map(str.lower, question)), tuple(map(str.lower, answer))) for answer in answers)
            items.append(Item(json.dumps([question, answers]), asked))
            pieces += [question + answer for answer in answers]
        items += rng.choices(items, k=rng.choice((0, 0, 2)))
        tasks.append(items)
    texts = []
    for _ in range(rng.randint(0, 8)):
        text: list[str] = []
        for piece in rng.choices(pieces, k=rng.randint(0, 4)):
            start = rng.randint(0, 3) if rng.random() < 0.5 else 0
            text += piece[start : start + rng.choice((11, 12, 13, 14, 40))]
        texts.append(rng.choice((" ", ", ", "\n- ")).join(text))
    return tasks, texts


@settings(max_examples=100, deadline=None)
@given(world=worlds(), block=st.sampled_from([1, 20, 1 << 17]))
def test_the_search_is_the_rule(world: tuple[list[list[Item]], list[str]], block: int) -> None:
    tasks, texts = world
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "BLOCK", block)
        index = look_for(tasks)
        shared = ngrams.search(index, texts)
    short, judged, where = plain(tasks, texts)
    assert (index.short, index.judged) == (short, judged)
    assert {number: (one.words, one.document) for number, one in shared.items()} == where


def test_equal_hashes_are_not_equal_words(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(sentence(0, 15)), item(sentence(50, 15))]
    texts = [sentence(90, 20), sentence(50, 14), sentence(0, 12), OTHER]
    expected = found(items, *texts)
    assert expected == {1: (sentence(50, 13).lower(), 2)}
    monkeypatch.setattr(ngrams._Stretches, "hashes", lambda self, at, length: np.zeros(len(at), np.uint64))
    assert found(items, *texts) == expected


# ------------------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('Don\'t -- "PANIC"!', "dont panic"),
        ("“Curly” – quotes’ end… §5 3.14", "curly quotes end 5 314"),
        ("snake_case x+1\t<tag>\u00a0non-break", "snakecase x1 tag nonbreak"),
        ("E\u0301cole STRASSE Straße ﬁne Ｆｕｌｌ", "école strasse strasse fine full"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark \ud800", "softhyphen zerowidth mark"),
        ("हिन्दी की दुनिया", "हिन्दी की दुनिया"),
        ("東京。大阪", "東京大阪"),
        ("( [ ] ) -- ...", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert words_of(text) == words.split()


def test_thirteen_words_overlap_and_twelve_do_not() -> None:
    items = [item(sentence(0, 20)), item(sentence(100, 20))]
    assert found(items, OTHER, sentence(3, 13), sentence(100, 12)) == {0: (sentence(3, 13).lower(), 2)}


@pytest.mark.parametrize("before", ["", OTHER])
@pytest.mark.parametrize("after", ["", OTHER])
def test_anywhere_in_a_document(before: str, after: str) -> None:
    text = f"{before} {sentence(7, 13)} {after}"
    assert list(found([item(sentence(0, 20))], text)) == [0]
    assert found([item(sentence(0, 20))], text.replace(spell(12), spell(99))) == {}


def test_no_overlap_across_documents() -> None:
    items = [item(sentence(0, 20))]
    assert found(items, sentence(0, 7), sentence(7, 6)) == {}
    assert found(items, sentence(0, 7) + " " + sentence(7, 6)) != {}


def test_punctuation_case_and_accents_do_not_hide_it() -> None:
    question = "Mme. Curie, née Skłodowska, won two Nobel Prizes: one in physics — and one where?"
    text = "so MME CURIE NE\u0301E SKŁODOWSKA WON\n\n* TWO (NOBEL) PRIZES 'ONE' IN PHYSICS AND ONE WHERE"
    assert list(found([item(question)], text)) == [0]


def test_a_question_alone_counts_when_it_is_long_enough() -> None:
    items = [item(sentence(0, 13), "yes"), item(sentence(50, 12), "no")]
    assert list(found(items, sentence(0, 13), sentence(50, 12))) == [0]
    assert list(found(items, f"{sentence(50, 12)}: no!")) == [1]


def test_short_items_are_compared_whole() -> None:
    items = [item("Who wrote it?", "Ada"), item("Who?", "Ada Lovelace")]
    index = look_for([items])
    assert index.short == index.judged == {0, 1}
    assert found(items, "Who wrote it? Charles", "who Ada", "It was asked who wrote it: Ada did.") == {
        0: ("who wrote it ada", 3)
    }


def test_every_right_answer_counts() -> None:
    items = [item("Who wrote it?", "Ada", "Lovelace", "the Countess")]
    assert list(found(items, "who wrote it the countess")) == [0]
    assert found(items, "who wrote it the count") == {}


def test_the_frame_of_a_task_is_not_the_items_own() -> None:
    bare = [sentence(30 * n, 6 + n) for n in range(4)]
    items = [item(f"Question: {text}?\nAnswer:", spell(900 + n)) for n, text in enumerate(bare)]
    assert look_for([items]).short == {0, 1, 2, 3}
    # Own words with the answer: 7, 8, 9, 10. Fewer than 8 are looked for only as the task asks them.
    texts = [f"{text} {spell(900 + n)}" for n, text in enumerate(bare)]
    assert sorted(found(items, *texts)) == [1, 2, 3]
    assert list(found(items, f"question {bare[0]} answer {spell(900)}")) == [0]
    assert found(items, f"question {bare[0]} {spell(900)}", f"{bare[1]} answer {spell(901)}") == {}


def test_a_frame_needs_three_questions_and_leaves_what_differs() -> None:
    two = [item(f"Sum {sentence(0, 8)} {end}", spell(50)) for end in ("one", "two")]
    assert found(two, f"{sentence(0, 8)} one {spell(50)}") == {}
    three = [*two, item(f"Sum {sentence(0, 8)}", spell(50))]
    assert list(found(three, f"sum {sentence(0, 8)} {spell(50)}")) == [2]
    # What they begin with is not counted again as what they end with.
    alike = [item("so " * length, spell(length)) for length in (10, 19, 20)]
    assert list(found(alike, f"{'so ' * 10} {spell(20)}")) == [2]


@pytest.mark.parametrize(
    ("sharing", "of", "template"), [(2, 4, False), (3, 3, True), (3, 29, True), (3, 30, False), (4, 30, True)]
)
def test_words_of_many_items_are_their_template(sharing: int, of: int, template: bool) -> None:
    shared = sentence(5000, 13)
    items = [item(f"{sentence(100 * n, 15)} {shared if n < sharing else ''}") for n in range(of)]
    assert sorted(found(items, f"see: {shared}")) == ([] if template else list(range(sharing)))
    assert sorted(found(items, f"{sentence(100, 15)} and {shared}"))[-1:] == ([1] if template else [sharing - 1])


def test_copies_of_one_item_are_no_template() -> None:
    items = [item(sentence(0, 15))] * 5
    assert sorted(found(items, sentence(0, 15))) == [0, 1, 2, 3, 4]


def test_the_template_of_one_task_counts_in_another() -> None:
    shared = sentence(0, 13)
    first = [item(f"{shared} {sentence(100 * n, 13)}") for n in range(1, 5)]
    index = look_for([first, [item(shared)]])
    assert list(ngrams.search(index, [shared])) == [4]


def test_items_with_nothing_but_template_are_not_judged() -> None:
    """Brackets are no words: all such items read alike."""
    items = [item(f"Q: {sentence(0, 14)}: {brackets}\nA:", ")") for brackets in ("(", "[ (", "{ ( [")]
    index = look_for([[*items, item("?", "!")]])
    assert index.judged == set()
    assert ngrams.search(index, [sentence(0, 14), ""]) == {}


def test_nothing_to_search() -> None:
    assert found([item(sentence(0, 15))]) == {}
    assert found([item(sentence(0, 15))], "", " \n") == {}
    assert found([], sentence(0, 15)) == {}


def test_the_first_of_many_places_is_told() -> None:
    items = [item(sentence(0, 20)), item(sentence(40, 20))]
    texts = [OTHER, sentence(43, 17), sentence(2, 17), sentence(0, 20) + sentence(40, 20)]
    assert found(items, *texts) == {1: (sentence(43, 13).lower(), 2), 0: (sentence(2, 13).lower(), 3)}
