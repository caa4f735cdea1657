"""Models that answer together: against the single ones, and against what is worked out from each one's logits."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import GPT2Config, GPT2LMHeadModel

from fusion.ensemble import Domains, identity
from fusion.modelref import Ensemble, Folder, Routed
from harness.ensembles import EnsembleLM, _Reader, fit, pooled
from harness.errors import TaskError
from harness.evaluate import LiveModel, Settings, respond
from tests.harness.test_evaluate import write_model, write_tokenizer
from tests.harness.test_tasks import CHOICE, CODE, FUNCTIONS, GENERATE, QUESTIONS, write_task

pytestmark = pytest.mark.usefixtures("one_thread")

OF_NO_DATA = ("mean_prob", "mean_logit", "perplexity_weighted")
Models = Mapping[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a and b, other of another architecture, all of one tokenizer, and strange of another; tasks; a text."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "a", seed=1)
    write_model(folder / "b", seed=2)
    write_model(folder / "other", seed=3, architecture="neox")
    write_model(folder / "strange", seed=4)
    swap_tokens(folder / "strange")
    write_task(folder, "legs", CHOICE, QUESTIONS)
    write_task(folder, "word", GENERATE, QUESTIONS)
    write_task(folder, "functions", CODE, FUNCTIONS)
    lines = [json.dumps({"text": row["question"] * 30}) for row in QUESTIONS[:4]]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def swap_tokens(model: Path) -> None:
    """Give two tokens each other's number."""
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] |= {names[40]: 41, names[41]: 40}
    file.write_text(json.dumps(tokenizer))


@pytest.fixture(scope="module")
def models(world: Path) -> Models:
    """The single models, each loaded."""
    found = {name: LiveModel("cpu") for name in ("a", "b", "other", "strange")}
    for name, live in found.items():
        live.load(Folder(str(world / name)))
    return {name: live.lm for name, live in found.items()}


def ref(names: Sequence[str], combine: str = "mean_prob", weights: Any = None, domains: Path | None = None) -> Ensemble:
    models = tuple((name, Folder(name)) for name in names)
    return Ensemble(models, ("auto",) * len(names), combine, weights, None if domains is None else str(domains))


def together(models: Models, names: Sequence[str], combine: str = "mean_prob", **more: Any) -> EnsembleLM:
    return EnsembleLM([models[name] for name in names], ref(names, combine, **more))


def ask(lm: Any, world: Path, task: str, ids: Sequence[int] = range(4), **settings: Any) -> list[Any]:
    source = world / ("text.jsonl" if task == "text" else f"{task}.yaml")
    return respond(SimpleNamespace(lm=lm), str(source), ids, Settings(**{"batch_size": 4, **settings}))  # type: ignore[arg-type]


def requests(world: Path) -> list[tuple[str, str]]:
    return [(f"Q: {row['question']}\nA:", f" {choice}") for row in QUESTIONS[:3] for choice in row["choices"]]


def likelihoods(lm: Any, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    return lm.loglikelihood([Instance("loglikelihood", {}, one, 0) for one in asked], disable_tqdm=True)


def flat(records: Sequence[Any]) -> tuple[list[float], list[Any]]:
    """The numbers of some records, and all else."""
    values: list[float] = []
    rest: list[Any] = []
    for record in records:
        answers = [answer for repeats in record["resps"] for answer in (repeats if isinstance(repeats, list) else [])]
        values += [one[0] if isinstance(one, list) else one for one in answers if not isinstance(one, str)]
        rest.append([one[1:] if isinstance(one, list) else one for one in answers if not isinstance(one, float)])
        rest.append({key: value for key, value in record.items() if key != "resps"})
    return values, rest


# ----------------------------------------------------------------------------------------------- as the single models


@pytest.mark.parametrize("task", ["legs", "word", "functions", "text"])
@pytest.mark.parametrize("names", [("a",), ("b", "b"), ("other",)])
def test_one_model_or_the_same_twice_answer_as_it_does(models: Models, world: Path, task: str, names: Any) -> None:
    values, rest = flat(ask(models[names[0]], world, task))
    for combine in OF_NO_DATA:
        mine, others = flat(ask(together(models, names, combine), world, task))
        assert mine == pytest.approx(values, rel=1e-6)
        assert others == rest
    assert values or any(rest)


@pytest.mark.parametrize("task", ["legs", "word", "text"])
def test_two_runs_give_the_same_bytes_and_blocks_what_the_whole_gives(models: Models, world: Path, task: str) -> None:
    lm = together(models, ("a", "b", "other"), "perplexity_weighted")
    first, again = (json.dumps(ask(lm, world, task), allow_nan=False) for _ in range(2))
    assert first == again
    whole = ask(lm, world, task, batch_size=1)
    blocks = ask(lm, world, task, [2, 3], batch_size=1) + ask(lm, world, task, [0, 1], batch_size=1)
    assert whole == sorted(blocks, key=lambda record: record["doc_id"])


def test_nothing_is_written_to_stderr(models: Models, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lm = together(models, ("a", "other"), "perplexity_weighted")
    for task in ("legs", "word", "text"):
        ask(lm, world, task)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------- against by hand


def logits_of(lm: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([ids])).logits[0].double()


def mixed(models: Sequence[Any], ids: Sequence[int], weights: Sequence[float], arithmetic: bool) -> torch.Tensor:
    """The combined log-probabilities after every token, in float64 and without a batch."""
    logits = [logits_of(one, ids) for one in models]
    if arithmetic:
        return sum(w * one.softmax(-1) for w, one in zip(weights, logits, strict=True)).log()  # type: ignore[union-attr]
    return sum(w * one for w, one in zip(weights, logits, strict=True)).log_softmax(-1)  # type: ignore[union-attr]


def prompt_weights(models: Sequence[Any], prompt: Sequence[int]) -> list[float]:
    """Inverse perplexities, as shares."""
    costs = [
        -sum(float(logits_of(one, prompt).log_softmax(-1)[i, prompt[i + 1]]) for i in range(len(prompt) - 1))
        for one in models
    ]
    inverse = [math.exp(-cost / (len(prompt) - 1)) for cost in costs]
    return [one / sum(inverse) for one in inverse]


WEIGHTED = [("mean_prob", (7, 2, 1)), ("mean_logit", (7, 2, 1)), ("perplexity_weighted", None), ("mean_prob", None)]


@pytest.mark.parametrize(("combine", "weights"), WEIGHTED)
def test_likelihoods_are_those_of_the_combined_distribution(
    models: Models, world: Path, combine: str, weights: Any
) -> None:
    names = ("a", "b", "other")
    members = [models[name] for name in names]
    lm = together(models, names, combine, weights=weights)
    lm.batch_size_per_gpu = 4
    for asked, (found, greedy) in zip(requests(world), likelihoods(lm, requests(world)), strict=True):
        context, choice = lm._encode_pair(*asked)
        shares = [w / sum(weights) for w in weights] if weights else [1 / 3] * 3
        if combine == "perplexity_weighted":
            shares = prompt_weights(members, context)
        log_probs = mixed(members, [*context, *choice], shares, combine == "mean_prob")[len(context) - 1 : -1]
        assert found == pytest.approx(
            sum(float(row[token]) for row, token in zip(log_probs, choice, strict=True)), abs=2e-5
        )
        assert greedy == (log_probs.argmax(-1).tolist() == choice)


@pytest.mark.parametrize(("combine", "weights"), WEIGHTED)
def test_text_is_what_the_combined_distribution_likes_best(
    models: Models, world: Path, combine: str, weights: Any
) -> None:
    """Prompts of different lengths in one batch with caches, beside one at a time without either."""
    names = ("a", "b", "other")
    members = [models[name] for name in names]
    lm = together(models, names, combine, weights=weights)
    for row, record in zip(QUESTIONS, ask(lm, world, "word", range(10), batch_size=10), strict=True):
        ids = lm.tok_encode(row["question"])
        shares = [w / sum(weights) for w in weights] if weights else [1 / 3] * 3
        if combine == "perplexity_weighted":
            shares = prompt_weights(members, ids)
        made: list[int] = []
        for _ in range(6):
            made.append(int(mixed(members, [*ids, *made], shares, combine == "mean_prob")[-1].argmax()))
            if made[-1] == lm.eot_token_id:
                break
        assert record["resps"] == [[lm.tokenizer.decode(made, skip_special_tokens=True).split("\n")[0]]]


def test_positions_are_counted_from_the_first_token_of_each_prompt(models: Models, world: Path, tmp_path: Path) -> None:
    """Which models with rotary positions do not mind, and those with absolute ones do."""
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=300, n_positions=96, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    config.initializer_range = 0.3
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "absolute")
    write_tokenizer(tmp_path / "absolute")
    live = LiveModel("cpu")
    live.load(Folder(str(tmp_path / "absolute")))
    alone = ask(live.lm, world, "word", range(10), batch_size=10)
    assert ask(EnsembleLM([live.lm], ref(["absolute"])), world, "word", range(10), batch_size=10) == alone
    one_by_one = ask(EnsembleLM([live.lm], ref(["absolute"])), world, "word", range(10), batch_size=1)
    assert one_by_one == alone


def test_a_batch_ends_with_its_last_text(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def counted(self: Any, *given: Any) -> torch.Tensor:
        reads.append(1)
        return real(self, *given)

    real = _Reader.read
    monkeypatch.setattr(_Reader, "read", counted)
    stops = json.dumps([chr(number) for number in range(32, 127)])
    template = GENERATE.replace('["\\n"]', stops.replace("{", "{{").replace("}", "}}")).replace("toks: 6", "toks: 40")
    source = str(write_task(tmp_path, "short", template, QUESTIONS))
    lm = together(models, ("a", "b"))
    respond(SimpleNamespace(lm=lm), source, range(4), Settings(4))  # type: ignore[arg-type]
    assert 2 <= len(reads) < 40, "two members, a step or two each"


def test_documents_are_read_with_equal_weights(models: Models, world: Path) -> None:
    """Longer than the context, so read in several windows."""
    alone = [flat(ask(models[name], world, "text"))[0] for name in ("a", "b")]
    for combine in ("mean_logit", "perplexity_weighted"):
        lm = together(models, ("a", "b"), combine)
        found = flat(ask(lm, world, "text"))[0]
        assert all(f > (x + y) / 2 for f, x, y in zip(found, *alone, strict=True)), "a product of two is normalised"
    assert found == flat(ask(together(models, ("a", "b"), "mean_logit"), world, "text"))[0]


def test_a_long_prompt_loses_its_beginning_as_a_single_model_s_does(models: Models, tmp_path: Path) -> None:
    long = {**QUESTIONS[0], "question": "is " * 120}
    for name, template in (("legs", CHOICE), ("word", GENERATE)):
        source = str(write_task(tmp_path, name, template, [long, QUESTIONS[1]]))
        alone = respond(SimpleNamespace(lm=models["a"]), source, [0, 1], Settings())  # type: ignore[arg-type]
        lm = together(models, ("a", "a"), "perplexity_weighted")
        found = respond(SimpleNamespace(lm=lm), source, [0, 1], Settings())  # type: ignore[arg-type]
        assert [record["truncated"] for record in found] == [True, False]
        assert flat(found)[0] == pytest.approx(flat(alone)[0], rel=1e-6) and flat(found)[1] == flat(alone)[1]


def test_the_shortest_context_is_the_ensemble_s(models: Models, world: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "short", context=48)
    short = LiveModel("cpu")
    short.load(Folder(str(tmp_path / "short")))
    lm = together({**models, "short": short.lm}, ("a", "short"))
    assert (models["a"].max_length, lm.max_length) == (96, 48)
    ask(lm, world, "text", [0])


# ------------------------------------------------------------------------------------------------------------ sampling


def drawn(lm: Any, world: Path, **settings: Any) -> list[Any]:
    found = ask(lm, world, "functions", samples=2, **settings)
    return [record["resps"] for record in found]


def test_samples_are_the_seed_s_and_differ(models: Models, world: Path) -> None:
    lm = together(models, ("a", "b"))
    first = drawn(lm, world, temperature=1.5, seed=1)
    assert first == drawn(lm, world, temperature=1.5, seed=1) != drawn(lm, world, temperature=1.5, seed=2)
    assert all(len(repeats) == 2 for (repeats,) in first)
    assert any(one != other for ((one, other),) in first)


def test_samples_of_one_model_are_the_model_s_own(models: Models, world: Path) -> None:
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 3}
    assert drawn(together(models, ("a",)), world, **settings) == drawn(models["a"], world, **settings)


def test_cold_or_narrow_samples_are_the_greedy_text(models: Models, world: Path) -> None:
    lm = together(models, ("a", "other"))
    greedy = [record["resps"][0][0] for record in ask(lm, world, "functions")]
    for settings in ({"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}):
        assert [repeats for (repeats,) in drawn(lm, world, **settings)] == [[text, text] for text in greedy]


def test_what_an_ensemble_cannot_draw_by_is_refused(models: Models, tmp_path: Path) -> None:
    template = GENERATE.replace("do_sample: false", "do_sample: false, num_beams: 4, repetition_penalty: 1.2")
    source = str(write_task(tmp_path, "beams", template, QUESTIONS))
    with pytest.raises(TaskError, match="generation_kwargs have num_beams, repetition_penalty, too"):
        respond(SimpleNamespace(lm=together(models, ("a", "b"))), source, [0], Settings())  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- routed


@pytest.fixture(scope="module")
def domains(models: Models, world: Path) -> Path:
    """a is for questions on legs, b for programs."""
    texts = {
        "a": [{"text": f"Q: {row['question']}"} for row in QUESTIONS],
        "b": [{"text": f"def f{n}(x): return x + {n}\n" * (n + 1)} for n in range(9)],
    }
    fit(models["a"], texts).save(world / "domains")
    return world / "domains"


def test_an_item_is_answered_by_whom_it_looks_made_for(models: Models, world: Path, domains: Path) -> None:
    lm = together(models, ("a", "b"), "routed", domains=domains)
    for task, mine in (("legs", "a"), ("functions", "b")):
        found, wanted = flat(ask(lm, world, task)), flat(ask(models[mine], world, task))
        assert found[0] == pytest.approx(wanted[0], abs=1e-3) and found[1] == wanted[1]


def test_routed_likelihoods_are_mixtures_by_the_posterior(models: Models, domains: Path, tmp_path: Path) -> None:
    sharp = Domains.load(domains)
    Domains(sharp.slopes / 200, sharp.offsets / 200).save(tmp_path / "mild")
    lm = together(models, ("a", "b"), "routed", domains=tmp_path / "mild")
    asked = ("Q: how def (x): many x + 1 has return a hen", " a worm")
    context, choice = lm._encode_pair(*asked)
    point = pooled(models["a"], context)
    assert point is not None and lm.domains is not None
    shares = lm.domains.posterior(point[None])[:, 0].tolist()
    assert 0.01 < shares[0] < 0.99, "a prompt between the two"
    log_probs = mixed([models["a"], models["b"]], [*context, *choice], shares, True)[len(context) - 1 : -1]
    wanted = sum(float(row[token]) for row, token in zip(log_probs, choice, strict=True))
    assert likelihoods(lm, [asked])[0][0] == pytest.approx(wanted, abs=2e-5)


def test_a_prompt_of_no_word_is_everybody_s(models: Models, domains: Path) -> None:
    lm = together(models, ("a", "b"), "routed", domains=domains)
    assert pooled(models["a"], [lm.eot_token_id]) is None
    assert likelihoods(lm, [("", " a worm")]) == likelihoods(together(models, ("a", "b")), [("", " a worm")])


# ------------------------------------------------------------------------------------------------ different tokenizers


def test_different_tokenizers_are_combined_by_whole_choices(models: Models, world: Path) -> None:
    names = ("a", "strange")
    alone = [likelihoods(models[name], requests(world)) for name in names]
    mixture = likelihoods(together(models, names, weights=(1, 3)), requests(world))
    product = likelihoods(together(models, names, "mean_logit", weights=(1, 3)), requests(world))
    for (x, _), (y, _), (p, _), (q, _) in zip(*alone, mixture, product, strict=True):
        assert p == pytest.approx(math.log(0.25 * math.exp(x) + 0.75 * math.exp(y)))
        assert q == pytest.approx(0.25 * x + 0.75 * y)


def test_their_perplexities_are_per_token_of_the_first(models: Models, world: Path) -> None:
    lm = together(models, ("a", "strange"), "perplexity_weighted")
    alone = [likelihoods(models[name], requests(world)) for name in ("a", "strange")]
    found = likelihoods(lm, requests(world))
    for (prompt, _), (x, _), (y, _), (z, _) in zip(requests(world), *alone, found, strict=True):
        rates = []
        for name in ("a", "strange"):
            ids = models[name].tok_encode(prompt)
            log_probs = logits_of(models[name], ids).log_softmax(-1)
            spent = -sum(float(log_probs[i, ids[i + 1]]) for i in range(len(ids) - 1))
            rates.append(spent / (len(models["a"].tok_encode(prompt)) - 1))
        first = 1 / (1 + math.exp(rates[0] - rates[1]))
        assert z == pytest.approx(first * x + (1 - first) * y, abs=1e-4)


def test_different_tokenizers_write_and_read_no_text(models: Models, world: Path) -> None:
    lm = together(models, ("a", "strange"))
    for task in ("word", "functions", "text"):
        with pytest.raises(TaskError, match="a, strange have different tokenizers, so together they answer multiple"):
            ask(lm, world, task)
    assert len(ask(lm, world, "legs")) == 4


# ---------------------------------------------------------------------------------------------------------- live model


def test_a_live_model_takes_ensembles_and_single_models_in_turn(world: Path) -> None:
    parts = tuple((name, Folder(str(world / name))) for name in ("a", "b"))
    both = Ensemble(parts, ("auto", "auto"), "mean_prob")
    live = LiveModel("cpu")
    digests = live.load(both)
    assert digests == live.load(both) and set(digests) == {"model"}
    assert live.skeletons_loaded == 2
    answers = ask(live.lm, world, "legs")
    assert live.load(Ensemble(parts[::-1], ("auto", "auto"), "mean_prob")) != digests
    assert live.skeletons_loaded == 2, "the members' places are taken over"
    single = live.load(parts[0][1])
    assert live._members == [], "a single model is alone in memory"
    assert flat(ask(live.lm, world, "legs"))[0] != flat(answers)[0]
    assert live.load(both) == digests and ask(live.lm, world, "legs") == answers
    other = LiveModel("cpu").load(parts[1][1])
    assert digests["model"] == identity([single["model"], other["model"]], ("auto",) * 2, "mean_prob", None, None)


def test_each_member_keeps_its_own_dtype(world: Path) -> None:
    parts = tuple((name, Folder(str(world / name))) for name in ("a", "b"))
    live = LiveModel("cpu")
    live.load(Ensemble(parts, ("auto", "bfloat16"), "mean_prob"))
    assert [member.model.dtype for member in live.lm.members] == [torch.float32, torch.bfloat16]
    assert all(math.isfinite(value) for value in flat(ask(live.lm, world, "legs"))[0])
    assert len(ask(live.lm, world, "word")) == 4


def test_a_member_that_cannot_be_loaded_leaves_no_model_behind(world: Path) -> None:
    live = LiveModel("cpu")
    good = ("a", Folder(str(world / "a")))
    bad = ("r", Routed((("legs", good[1]),)))
    with pytest.raises(Exception, match="one model a group"):
        live.load(Ensemble((good, bad), ("auto", "auto"), "mean_prob"))
    with pytest.raises(RuntimeError, match="no model is loaded"):
        _ = live.lm
