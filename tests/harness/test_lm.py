"""Log-likelihoods are lm-eval's, whatever is read once: toy models of several architectures against the plain HFLM."""

import random
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from harness import lm as lm_module
from harness.errors import TaskError
from harness.lm import Live
from harness.tasks import load
from tests.harness.test_evaluate import write_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT, VOCABULARY = 96, 300
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCABULARY}
POSITIONS = {"max_position_embeddings": CONTEXT}
LLAMA = {**SIZE, **POSITIONS, "intermediate_size": 48, "num_key_value_heads": 1}
# Those whose cache can be shared, and those whose cannot.
SHARED: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 16},
    "gpt_neox": {**SIZE, **POSITIONS, "intermediate_size": 48},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "vocab_size": VOCABULARY},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY},
    "gemma2": {**LLAMA, "head_dim": 16, "sliding_window": 16},
}
WHOLE: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "state_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "context_length": CONTEXT},
}
ALL = SHARED | WHOLE


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def toy(architecture: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose outputs are far from uniform and hang on all that it has read."""
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(architecture, **ALL[architecture])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3)
    return model


def pair(model: Any, tokenizer: Any, batch_size: int) -> tuple[Live, HFLM]:
    with load.quiet():
        options = {"pretrained": model, "tokenizer": tokenizer, "batch_size": batch_size, "max_length": CONTEXT}
        return Live(**options), HFLM(**options)


def questions(seed: int = 0) -> list[Any]:
    """Contexts and choices of unequal lengths: too long ones, choices of one token, single ones, a common beginning."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(2, VOCABULARY) for _ in range(draw.randint(low, high))]

    start = tokens(30, 30)
    found = []
    for number in range(14):
        context = (start if number % 2 else []) + tokens(1, 40)
        context = context + tokens(60, 60) if number == 3 else context
        lengths = (1, 1) if number % 5 == 0 else (1, 12)
        found += [(("c", "d"), context, tokens(*lengths)) for _ in range(draw.choice([1, 2, 3, 5]))]
    found += [(("", "d"), [0], tokens(1, 5)) for _ in range(3)]
    found += [(("c", "d"), start, found[0][2]), (("c", "d"), start, found[0][2]), ((None, None), [0], tokens(80, 96))]
    draw.shuffle(found)
    return found


def both(model: Any, tokenizer: Any, batch_size: int, requests: list[Any]) -> tuple[list[Any], list[Any]]:
    ours, theirs = pair(model, tokenizer, batch_size)
    return ours._loglikelihood_tokens(requests), theirs._loglikelihood_tokens(requests, disable_tqdm=True)


def assert_close(found: list[Any], right: list[Any], tolerance: float = 1e-5) -> None:
    assert len(found) == len(right)
    for (value, greedy), (wanted, likeliest) in zip(found, right, strict=True):
        assert abs(value - wanted) <= tolerance * max(1.0, abs(wanted)), (value, wanted)
        assert (type(value), greedy) == (float, likeliest)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("architecture", ALL)
def test_log_likelihoods_are_those_of_lm_eval(architecture: str, batch_size: int, tokenizer: Any) -> None:
    assert_close(*both(toy(architecture), tokenizer, batch_size, questions()))


def reads(model: Any, tokenizer: Any, requests: list[Any], batch_size: int = 4) -> tuple[int, int]:
    """Tokens that a call lets the model read, and those behind a cache."""
    ours, _ = pair(model, tokenizer, batch_size)
    counted = [0, 0]

    def count(_: Any, __: Any, named: dict[str, Any]) -> None:
        counted[0] += named["input_ids"].numel()
        counted[1] += named["input_ids"].numel() if "past_key_values" in named else 0

    with model.register_forward_pre_hook(count, with_kwargs=True):
        ours._loglikelihood_tokens(requests)
    return counted[0], counted[1]


def choices(contexts: int, length: int, count: int, common: int = 0) -> list[Any]:
    draw = random.Random(1)
    begin = [draw.randrange(2, VOCABULARY) for _ in range(common)]
    texts = [begin + [draw.randrange(2, VOCABULARY) for _ in range(length)] for _ in range(contexts)]
    return [
        (("c", "d"), text, [draw.randrange(2, VOCABULARY) for _ in range(3)]) for text in texts for _ in range(count)
    ]


@pytest.mark.parametrize("architecture", SHARED)
def test_a_context_is_read_once_for_its_choices(architecture: str, tokenizer: Any) -> None:
    requests = choices(contexts=16, length=60, count=4)
    total, behind = reads(toy(architecture), tokenizer, requests)
    # 16 x 59 once and 64 x 3, and two contexts with two choices in whole to see that the cache holds.
    assert total == 16 * 59 + 64 * 3 + 2 * 59 + 4 * 3 + 4 * 62
    assert behind == 64 * 3 + 4 * 3


@pytest.mark.parametrize("architecture", SHARED)
def test_what_all_contexts_begin_with_is_read_once_a_batch(architecture: str, tokenizer: Any) -> None:
    total, behind = reads(toy(architecture), tokenizer, choices(contexts=16, length=10, count=1, common=60))
    assert behind == 16 * 12 + 2 * 12
    assert total == 4 * 60 + behind + 60 + 2 * 72


@pytest.mark.parametrize("architecture", WHOLE)
def test_a_model_without_such_a_cache_is_read_in_whole(architecture: str, tokenizer: Any) -> None:
    total, _ = reads(toy(architecture), tokenizer, choices(contexts=16, length=60, count=4))
    assert total >= 64 * 62


def test_a_model_that_makes_all_logits(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy("llama")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    assert_close(*both(model, tokenizer, 3, questions()))


def test_logits_are_made_for_the_choices_alone(tokenizer: Any) -> None:
    model, made = toy("llama"), []
    with model.lm_head.register_forward_hook(lambda _, __, logits: made.append(logits.shape[:-1].numel())):
        pair(model, tokenizer, 4)[0]._loglikelihood_tokens(choices(contexts=16, length=2, count=2))
    assert sum(made) == 32 * 3


def test_short_contexts_are_not_worth_it(tokenizer: Any) -> None:
    total, behind = reads(toy("llama"), tokenizer, choices(contexts=16, length=2, count=2))
    assert (total, behind) == (32 * 4, 0)


def test_a_cache_that_changes_something_is_found_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that one choice leaves its tokens in for the next, as a state that is written in place would."""
    requests = choices(contexts=16, length=60, count=4)
    monkeypatch.setattr(lm_module, "_branch", lambda cache, here, count: cache)
    ours, theirs = both(toy("llama"), tokenizer, 4, requests)
    assert_close(ours, theirs)
    monkeypatch.setattr(Live, "_same", lambda self, batch, cuts: True)
    broken, _ = both(toy("llama"), tokenizer, 4, requests)
    assert max(abs(a[0] - b[0]) for a, b in zip(broken, theirs, strict=True)) > 0.1


def test_one_context_at_a_time_hangs_on_nothing_else(tokenizer: Any) -> None:
    requests = questions()
    ours, _ = pair(toy("llama"), tokenizer, 1)
    whole = ours._loglikelihood_tokens(requests)
    assert whole == ours._loglikelihood_tokens(requests)
    contexts = {tuple(context) for _, context, _ in requests}
    for context in contexts:
        mine = [index for index, request in enumerate(requests) if tuple(request[1]) == context]
        assert ours._loglikelihood_tokens([requests[index] for index in mine]) == [whole[index] for index in mine]


def test_half_precision_moves_no_more_than_its_rounding(tokenizer: Any) -> None:
    ours, theirs = both(toy("llama", torch.bfloat16), tokenizer, 4, questions())
    exact, _ = both(toy("llama", torch.bfloat16).float(), tokenizer, 4, questions())
    off = [max(abs(a[0] - b[0]) for a, b in zip(one, exact, strict=True)) for one in (ours, theirs)]
    assert off[0] <= 1.5 * off[1]


def test_texts_through_lm_evals_own_calls(tokenizer: Any) -> None:
    """An empty context, blanks between context and choice, and a document longer than the model reads."""
    ours, theirs = pair(toy("llama"), tokenizer, 3)
    pairs = [("", "four legs"), ("A dog has ", "four"), ("A dog has ", "two legs"), ("legs " * 90, " four")]
    asked = [Instance("loglikelihood", {}, arguments, 0) for arguments in pairs]
    rolled = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("legs " * 150, "a dog")]
    with load.quiet():
        assert_close(ours.loglikelihood(asked), theirs.loglikelihood(asked))
        found, right = ours.loglikelihood_rolling(rolled), theirs.loglikelihood_rolling(rolled)
    assert max(abs(a - b) for a, b in zip(found, right, strict=True)) < 1e-3


@pytest.mark.parametrize(("choice", "message"), [([], "joins it to the context"), ([5] * 97, "shorten it")])
def test_a_choice_that_cannot_be_scored(choice: list[int], message: str, tokenizer: Any) -> None:
    ours, _ = pair(toy("llama"), tokenizer, 3)
    with pytest.raises(TaskError, match=message):
        ours._loglikelihood_tokens([(("c", "d"), [3, 4], choice)])


def test_nothing_asked_nothing_answered(tokenizer: Any) -> None:
    assert pair(toy("llama"), tokenizer, 3)[0]._loglikelihood_tokens([]) == []
