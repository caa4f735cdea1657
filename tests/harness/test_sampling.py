"""Programs are drawn as a suite says, the same ones again, and responses that came to no end are counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from harness.evaluate import LiveModel, Settings, respond
from harness.tasks import load
from tests.harness.test_evaluate import loaded, write_model
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, GENERATE, QUESTIONS, write_task

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWN = {"samples": 5, "temperature": 1.0, "top_p": 0.95}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampling")
    write_model(folder / "m", seed=1)
    write_task(folder, "functions", CODE, FUNCTIONS)
    write_task(folder, "word", GENERATE, QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def live(world: Path) -> LiveModel:
    return loaded(world, "m")


def ask(live: LiveModel, world: Path, ids: Sequence[int] = range(4), task: str = "functions", **more: Any) -> list[Any]:
    return respond(live, str(world / f"{task}.yaml"), ids, Settings(**{"batch_size": 3, **DRAWN, **more}))


def texts(records: Sequence[Any]) -> list[list[str]]:
    return [record["resps"][0] for record in records]


def test_samples_differ_and_are_the_same_on_a_second_run(world: Path, live: LiveModel) -> None:
    records = ask(live, world)
    assert [len(drawn) for drawn in texts(records)] == [5] * 4
    assert all(len(set(drawn)) > 1 for drawn in texts(records))
    assert json.dumps(ask(loaded(world, "m"), world)) == json.dumps(records)
    assert texts(ask(live, world, seed=1)) != texts(records)


def test_a_block_is_drawn_alike_whatever_was_asked_before(world: Path, live: LiveModel) -> None:
    first, then = ask(live, world, [0, 1]), ask(live, world, [2, 3])
    assert ask(loaded(world, "m"), world, [3, 2]) == then
    assert ask(live, world, [0, 1]) == first
    torch.rand(7)
    assert ask(live, world, [2, 3]) == then


def test_settings_hold_for_one_call(world: Path, live: LiveModel) -> None:
    config = load.load(world / "functions.yaml").task.config
    greedy = ask(live, world, samples=1, temperature=0.0)
    before = config.repeats, dict(config.generation_kwargs)
    ask(live, world)
    assert (config.repeats, config.generation_kwargs) == before
    assert ask(live, world, samples=1, temperature=0.0) == greedy
    with pytest.raises(ValueError, match="temperature"):
        ask(live, world, temperature=-1.0)
    assert (config.repeats, config.generation_kwargs) == before


def test_a_temperature_near_zero_draws_the_greedy_answer(world: Path, live: LiveModel) -> None:
    greedy = texts(ask(live, world, samples=1, temperature=0.0))
    assert texts(ask(live, world, temperature=1e-4)) == [answer * 5 for answer in greedy]


def test_other_tasks_are_not_drawn(world: Path, live: LiveModel) -> None:
    assert ask(live, world, task="word") == ask(live, world, task="word", samples=1, temperature=0.0)


def test_a_model_s_own_settings_do_not_narrow_the_draw(world: Path, live: LiveModel) -> None:
    write_model(world / "narrow", seed=1)
    (world / "narrow" / "generation_config.json").write_text('{"do_sample": true, "top_k": 1, "eos_token_id": 1}')
    assert texts(ask(loaded(world, "narrow"), world)) == texts(ask(live, world))


def greedy(world: Path, name: str, prompt: str, most: int) -> list[int]:
    """Token after token, by the definition."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(world / name), AutoTokenizer.from_pretrained(world / name)
    tokens = list(tokenizer.encode(prompt))
    for _ in range(most):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[-most:]


@pytest.mark.parametrize("size", [1, 4])
def test_responses_that_come_to_no_end_are_counted(world: Path, live: LiveModel, tmp_path: Path, size: int) -> None:
    prompts = [row["question"] for row in QUESTIONS]
    tokens = [greedy(world, "m", prompt, 6) for prompt in prompts]
    tokenizer = AutoTokenizer.from_pretrained(world / "m")
    full = [tokenizer.decode(found, skip_special_tokens=True) for found in tokens]
    letters = sorted({letter for text in full for letter in text[:-1] if letter.isascii() and letter.isalnum()})
    stop = max(letters, key=lambda letter: min(sum(letter in text for text in full), 5))
    path = write_task(tmp_path, "word", GENERATE.replace('"\\n"', json.dumps(stop)), QUESTIONS)
    records = respond(live, str(path), range(10), Settings(size))
    assert [r["resps"][0][0] for r in records] == [text.split(stop)[0] for text in full]
    assert [r["unfinished"] for r in records] == [
        int(stop not in text and 1 not in t) for text, t in zip(full, tokens, strict=True)
    ]
    assert {r["unfinished"] for r in records} == {0, 1}


def test_a_response_that_ends_with_its_last_token_has_ended(world: Path, live: LiveModel) -> None:
    """Be it the tokenizer's end of text or another that the model's generation config names."""
    said = [greedy(world, "m", row["question"], 6) for row in QUESTIONS]
    which, last = next((i, found) for i, found in enumerate(said) if found[-1] not in found[:-1])
    write_model(world / "ends", seed=1)
    path = str(world / "word.yaml")
    assert respond(live, path, [which], Settings())[0]["unfinished"] == 1
    (world / "ends" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, last[-1]]}))
    assert respond(loaded(world, "ends"), path, [which], Settings())[0]["unfinished"] == 0


def test_every_sample_is_counted_and_equal_prompts_do_not_mix(live: LiveModel, tmp_path: Path) -> None:
    rows = [FUNCTIONS[0], FUNCTIONS[1], FUNCTIONS[0] | {"task_id": "again"}]
    path = str(write_task(tmp_path, "twice", CODE, rows))
    records = respond(live, path, range(3), Settings(2, **DRAWN))
    for record in records:
        # Of these eight tokens each is a byte or more, and only a text of eight tokens came to no end.
        over = [len(live.lm.tok_encode(text)) >= 7 for text in record["resps"][0]]
        assert record["unfinished"] <= sum(over)
    assert sum(record["unfinished"] for record in records) > 0


def test_likelihoods_have_no_end(world: Path, live: LiveModel) -> None:
    path = str(write_task(world, "legs", CHOICE, QUESTIONS))
    assert {record["unfinished"] for record in respond(live, path, range(4), Settings())} == {0}
