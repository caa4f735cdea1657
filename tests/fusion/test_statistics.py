"""What data-guided merging knows of the models' data: Gram matrices and Fisher information, collected and stored."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from fusion import calibration, teachers
from fusion.calibration import Collect
from fusion.checkpoint import Checkpoint
from fusion.errors import FusionError, MismatchError, TrainingError
from fusion.grams import Inputs, pack, unpack
from fusion.layerwise import find_layers
from fusion.methods import regmean
from fusion.methods.call import Place
from fusion.methods.regmean import Gram
from fusion.statistics import KINDS, collect, collect_prefix, open_statistics, statistics_key

from .models import save_llama, tiny_llama

SETTINGS = Collect(sequences=64, context=32)
# Without those that begin as the EOS, t1, does: it is cut out of any word.
WORDS = [f"t{i}" for i in (*range(2, 10), *range(20, 32))]
ATTENTION = tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")


def nothing(done: int, total: int) -> None:
    pass


def documents(seed: int, count: int = 9) -> list[dict[str, str]]:
    """Texts of 1 to 20 of the tiny tokenizer's words."""
    draw = random.Random(seed)
    return [{"text": " ".join(draw.choices(WORDS, k=draw.randint(1, 20)))} for _ in range(count)]


DOCUMENTS = documents(0)


def gpt2() -> Any:
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config).eval()


def gpt_neox() -> Any:
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.GPTNeoXConfig(vocab_size=32, tie_word_embeddings=False, eos_token_id=1, **sizes)
    return transformers.GPTNeoXForCausalLM(config).eval()


MODELS = {
    "llama": lambda: tiny_llama(3),
    "untied": lambda: tiny_llama(4, tied=False),
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama", MODELS["llama"]())


@pytest.fixture(scope="module")
def llama_grams(llama: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("statistics") / "llama"
    collect("gram", llama, DOCUMENTS, out, SETTINGS, nothing)
    return out


def sequences(texts: list[dict[str, str]]) -> list[Tensor]:
    """The tiny tokenizer's ids: word t5 is 5, the EOS is 1."""
    return [torch.tensor([int(word[1:]) for word in text["text"].split()] + [1]) for text in texts]


def plain_grams(model: nn.Module, texts: list[dict[str, str]], only: str = "") -> dict[str, Tensor]:
    """X'X per token of all linear layers by hooks on the whole model, one text at a time."""
    sums: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and only in name:

            def see(_module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
                x = args[0].double().reshape(-1, args[0].shape[-1])
                sums[f"{name}.weight"] = sums.get(f"{name}.weight", 0) + x.T @ x

            hooks.append(module.register_forward_pre_hook(see))
    found = sequences(texts)
    with torch.no_grad():
        for ids in found:
            model(input_ids=ids[None])
    for hook in hooks:
        hook.remove()
    return {name: total / sum(map(len, found)) for name, total in sums.items()}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal to float32's rounding in the forward pass, against the matrix's own size."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


# ---------------------------------------------------------------------------------------------------------------------
# Gram matrices


@pytest.mark.parametrize("architecture", MODELS)
def test_grams_are_those_of_the_whole_model_at_once(architecture: str, tmp_path: Path) -> None:
    model = MODELS[architecture]()
    folder = save_llama(tmp_path / "model", model)
    report = collect("gram", folder, DOCUMENTS, tmp_path / "out", SETTINGS, nothing)
    expected = plain_grams(model, DOCUMENTS)
    tied = model.config.tie_word_embeddings
    head = expected.pop("lm_head.weight")
    if not tied:  # the library calls GPT-NeoX' head otherwise than its checkpoints do
        expected["embed_out.weight" if architecture == "gpt_neox" else "lm_head.weight"] = head
    statistics = open_statistics(tmp_path / "out")
    found = {name: statistics.of(name) for name in Checkpoint(folder).names()}
    assert {name for name, gram in found.items() if gram is not None} == set(expected)
    tokens = sum(map(len, sequences(DOCUMENTS)))
    for name, matrix in expected.items():
        gram = found[name]
        assert isinstance(gram, Gram) and gram.matrix.dtype == torch.float64
        assert close(gram.matrix, matrix), name
        assert torch.equal(gram.matrix, gram.matrix.T)
        assert gram.tokens == tokens
        # Conv1D keeps [in, out], everything else [out, in]
        assert gram.transposed == (architecture == "gpt2")
        assert Checkpoint(folder).shape(name)[0 if gram.transposed else 1] == len(gram.matrix)
    assert (report["sequences"], report["tokens"], report["tensors"]) == (9, tokens, len(expected))
    embeddings = {name for name in found if any(part in name for part in ("embed_tokens", "embed_in", "wte", "wpe"))}
    assert set(report["without"]) == embeddings


def test_layers_with_one_input_share_one_gram(llama_grams: Path) -> None:
    tensors = json.loads((llama_grams / "statistics.json").read_text())["tensors"]
    groups: dict[str, int] = {}
    for entry in tensors.values():
        groups[entry["key"]] = groups.get(entry["key"], 0) + 1
    assert sorted(groups.values()) == [1, 1, 1, 1, 2, 2, 3, 3]  # of two layers: q k v, o, gate up, down
    assert len({tensors[name]["key"] for name in ATTENTION}) == 1
    assert sorted(path.name for path in llama_grams.iterdir()) == [
        "layer-00000.safetensors",
        "layer-00001.safetensors",
        "statistics.json",
    ]


def test_statistics_do_not_depend_on_the_batches(
    llama: Path, llama_grams: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "BATCH", 1)
    collect("gram", llama, DOCUMENTS * 2, tmp_path / "alone", SETTINGS, nothing)
    monkeypatch.setattr(calibration, "BATCH", 64)
    collect("gram", llama, DOCUMENTS * 2, tmp_path / "batched", SETTINGS, nothing)
    alone, batched, once = map(open_statistics, (tmp_path / "alone", tmp_path / "batched", llama_grams))
    for name in once.about["tensors"]:
        assert close(alone.of(name).matrix, once.of(name).matrix)  # per token: twice the text is no more
        assert close(batched.of(name).matrix, once.of(name).matrix)


def test_sequences_of_a_batch_are_alike_and_all_are_read() -> None:
    text = calibration.Text([torch.arange(length) for length in (5, 3, 5, 2, 3, 5)], list(range(6)))
    batches = text.batches()
    assert [tuple(batch.shape) for batch in batches] == [(1, 2), (2, 3), (3, 5)]
    assert text.tokens == 23 == sum(batch.numel() for batch in batches)


def test_long_documents_are_cut_and_sequences_drawn(llama: Path) -> None:
    live, tokenizer = teachers.load(llama)
    long = [{"text": " ".join(WORDS[i % 20] for i in range(50))}]
    text = calibration.read(tokenizer, long, Collect(sequences=64, context=16), live)
    assert sorted(map(len, text.sequences)) == [6, 16, 16, 16]  # 51 tokens in pieces that share one
    drawn = [calibration.read(tokenizer, DOCUMENTS, Collect(sequences=3, seed=seed), live).numbers for seed in range(4)]
    assert all(len(set(numbers)) == 3 for numbers in drawn) and len({tuple(numbers) for numbers in drawn}) > 1
    live.config.max_position_embeddings = 8
    assert max(map(len, calibration.read(tokenizer, long, SETTINGS, live).sequences)) == 8


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_statistics_are_the_same_bytes_again(kind: str, llama: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        collect(kind, llama, DOCUMENTS, tmp_path / out, SETTINGS, nothing)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) >= 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_bf16_checkpoints_are_run_in_float32(tmp_path: Path) -> None:
    model = MODELS["llama"]()
    folder = save_llama(tmp_path / "model", model, torch.bfloat16)
    collect("gram", folder, DOCUMENTS, tmp_path / "out", SETTINGS, nothing)
    expected = plain_grams(model.float(), DOCUMENTS)
    statistics = open_statistics(tmp_path / "out")
    for name in statistics.about["tensors"]:
        assert close(statistics.of(name).matrix, expected[name])


def test_a_checkpoint_without_the_bodys_name_gets_its_own_names(tmp_path: Path) -> None:
    model = MODELS["gpt2"]()
    folder = save_llama(tmp_path / "model", model)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    collect("gram", folder, DOCUMENTS, tmp_path / "out", SETTINGS, nothing)
    found = open_statistics(tmp_path / "out").of("h.0.attn.c_attn.weight")
    expected = plain_grams(model, DOCUMENTS)["transformer.h.0.attn.c_attn.weight"]
    assert isinstance(found, Gram) and close(found.matrix, expected)


def test_an_input_that_is_written_to_is_another_input() -> None:
    first, second, third = (nn.Linear(3, 2, bias=False) for _ in range(3))
    inputs = Inputs({"first": first, "second": second, "third": third}, torch.device("cpu"))
    with torch.no_grad():
        x = torch.ones(4, 3)
        first(x), second(x)
        x += 1
        third(x)
    assert inputs.owner == {"first": "first", "second": "first", "third": "third"}
    grams = inputs.grams({"first": first, "second": second, "third": third}, 4)
    assert torch.equal(grams["second"].matrix, torch.ones(3, 3, dtype=torch.float64))
    assert torch.equal(grams["third"].matrix, torch.full((3, 3), 4.0, dtype=torch.float64))


def test_an_expert_without_tokens_has_no_gram_and_a_rare_one_weighs_little() -> None:
    idle, rare = nn.Linear(3, 2), nn.Linear(3, 2)
    inputs = Inputs({"idle": idle, "rare": rare}, torch.device("cpu"))
    for x in (torch.ones(0, 3), torch.ones(2, 3)):
        inputs.next_batch()
        idle(torch.ones(0, 3)), rare(x)
    grams = inputs.grams({"idle": idle, "rare": rare}, 10)
    assert set(grams) == {"rare"} and grams["rare"].tokens == 2
    assert torch.equal(grams["rare"].matrix, torch.full((3, 3), 0.2, dtype=torch.float64))


def test_layers_that_share_an_input_only_now_and_then_are_refused() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    inputs = Inputs({"first": first, "second": second}, torch.device("cpu"))
    x = torch.ones(4, 3)
    first(x), second(x)
    inputs.next_batch()
    with pytest.raises(FusionError, match="second: shares its input with second in some batches"):
        first(x), second(x.clone())


@pytest.mark.parametrize("width", [1, 2, 7])
def test_packing_keeps_every_bit(width: int) -> None:
    x = torch.randn(9, width, dtype=torch.float64)
    matrix = x.T @ x
    matrix = matrix.triu() + matrix.triu(1).T
    assert torch.equal(unpack(pack(matrix)), matrix)
    assert len(pack(matrix)) == width * (width + 1) // 2


class Odd(nn.Module):
    """A model of two layers, put together by a given function."""

    def __init__(self, lists: int = 1) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=2, get_text_config=lambda: self.config)
        for i in range(lists):
            setattr(self, f"stack{i}", nn.ModuleList(nn.Linear(4, 4) for _ in range(2)))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        hidden = nn.functional.one_hot(input_ids, 4).float()
        for layer in self.stack0:
            hidden = layer(hidden) + 1  # which belongs to no layer
        return hidden


def test_a_model_that_is_no_stack_of_layers_is_refused() -> None:
    from fusion.layerwise import Decoder

    for lists in (0, 2):
        with pytest.raises(FusionError, match=f"Odd: has {lists} lists of 2 modules"):
            find_layers(Odd(lists))
    with pytest.raises(FusionError, match="gives layer 1 something else than what the layer before it gave"):
        Decoder(Odd(), torch.tensor([[0, 1, 2]]), "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# Gram matrices on the merged prefix


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, Path]:
    """Two untied models with the same embedding and nothing else in common."""
    root = tmp_path_factory.mktemp("pair")
    folders = {}
    for name, seed in (("left", 5), ("right", 6)):
        model = tiny_llama(seed, tied=False)
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(tiny_llama(4, tied=False).model.embed_tokens.weight)
        folders[name] = save_llama(root / name, model)
    return folders


CORPORA = {"left": documents(1, 40), "right": documents(2, 40)}
PARAMS = regmean.Params(alpha=0.8)
WEIGHTS = (1.0, 2.0)


@pytest.fixture(scope="module")
def prefix(pair: dict[str, Path], tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prefix")
    collect_prefix(pair, CORPORA, out, PARAMS, WEIGHTS, SETTINGS, nothing)
    return out


def merged(pair: dict[str, Path], grams: dict[str, Any]) -> dict[str, Tensor]:
    sources = [Checkpoint(folder) for folder in pair.values()]
    return {
        name: regmean.merge(
            [source.tensor(name) for source in sources],
            None,
            WEIGHTS,
            PARAMS,
            Place(name, tuple(pair), statistics=tuple(grams[model].of(name) for model in pair)),
        )
        for name in sources[0].names()
    }


def test_prefix_grams_are_those_of_each_layer_behind_the_merged_ones(pair: dict[str, Path], prefix: Path) -> None:
    """Against the definition: models built with merged layers below and their own layer on top, run as a whole."""
    grams = {name: open_statistics(prefix / name) for name in pair}
    whole = merged(pair, grams)
    for name, folder in pair.items():
        own = Checkpoint(folder)
        for index, layer in enumerate(("layers.0.", "layers.1.", "lm_head")):
            hybrid = tiny_llama(0, tied=False)
            ahead = ("embed", "layers.0.", "layers.1.", "model.norm")[: index + 1 + (index == 2)]
            merged_below = [key for key in hybrid.state_dict() if any(part in key for part in ahead)]
            state = {key: own.tensor(key) for key in own.names()} | {key: whole[key] for key in merged_below}
            hybrid.load_state_dict(state)
            for key, matrix in plain_grams(hybrid, CORPORA[name], layer).items():
                assert close(grams[name].of(key).matrix, matrix, 1e-4), (name, key)


def test_the_first_layer_is_regmeans_and_the_next_is_not(pair: dict[str, Path], prefix: Path, tmp_path: Path) -> None:
    plain = {}
    for name, folder in pair.items():
        collect("gram", folder, CORPORA[name], tmp_path / name, SETTINGS, nothing)
        plain[name] = open_statistics(tmp_path / name)
    behind = {name: open_statistics(prefix / name) for name in pair}
    assert plain["left"].kind == "gram" and behind["left"].kind == "gram++"
    a, b = merged(pair, plain), merged(pair, behind)
    same = {name for name in a if torch.allclose(a[name], b[name], 1e-4, 1e-5)}
    linear = {name for name in plain["left"].about["tensors"]}
    assert linear - same == {name for name in linear if "layers.1." in name or "lm_head" in name}


def test_prefix_statistics_name_all_that_they_hang_on(pair: dict[str, Path], prefix: Path, tmp_path: Path) -> None:
    left, right = (open_statistics(prefix / name) for name in pair)
    assert len(left.about["models"]) == len(left.about["corpora"]) == 2
    assert left.key != right.key
    other = collect_prefix(pair, CORPORA, tmp_path, regmean.Params(alpha=0.5), WEIGHTS, SETTINGS, nothing)
    assert other["left"]["key"] != left.key
    assert other["left"]["how"] == {"alpha": 0.5, "ridge": 0.0, "weights": [1.0, 2.0], "model": 0}


def test_a_prefix_of_models_that_differ_in_shape_is_refused(llama: Path, tmp_path: Path) -> None:
    wide = save_llama(tmp_path / "wide", tiny_llama(1, intermediate_size=32))
    models = {"llama": llama, "wide": wide}
    with pytest.raises(MismatchError, match="gate_proj"):
        collect_prefix(models, dict.fromkeys(models, DOCUMENTS), tmp_path / "out", PARAMS, None, SETTINGS, nothing)
    assert not (tmp_path / "out").exists()


def test_a_prefix_that_cannot_be_solved_leaves_nothing(pair: dict[str, Path], tmp_path: Path) -> None:
    few = {"left": [{"text": "t3"}], "right": [{"text": "t4"}]}
    with pytest.raises(FusionError, match="Collect more text"):
        collect_prefix(pair, few, tmp_path / "out", regmean.Params(alpha=1.0), None, SETTINGS, nothing)
    assert not list((tmp_path / "out").iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# The folder


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_what_is_interrupted_leaves_nothing_behind(kind: str, llama: Path, tmp_path: Path) -> None:
    seen = []

    def interrupt(done: int, total: int) -> None:
        seen.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(kind, llama, DOCUMENTS, tmp_path / "out", SETTINGS, interrupt)
    assert len(seen) == 2 and not any("statistics.json" in files for files in seen)
    assert not (tmp_path / "out").exists()


def test_what_was_killed_is_not_taken_for_whole(llama: Path, llama_grams: Path, tmp_path: Path) -> None:
    killed = shutil.copytree(llama_grams, tmp_path / "killed")
    (killed / "statistics.json").rename(killed / "statistics.json.partial")
    with pytest.raises(FusionError, match="no finished statistics"):
        open_statistics(killed)
    with pytest.raises(FusionError, match="not empty"):
        collect("gram", llama, DOCUMENTS, killed, SETTINGS, nothing)
    assert len(list(killed.iterdir())) == 3  # somebody else's: left as it was


def test_damaged_and_foreign_folders_are_named(llama_grams: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(llama_grams, tmp_path / "broken")
    file = broken / "layer-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(FusionError, match="layer-00000.safetensors: cannot be read"):
        open_statistics(broken).of(ATTENTION[0])
    other = shutil.copytree(llama_grams, tmp_path / "other")
    about = json.loads((other / "statistics.json").read_text())
    (other / "statistics.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(FusionError, match="format 99"):
        open_statistics(other)


def test_an_unknown_kind_and_an_empty_corpus_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match=r"'gram\+\+' are not made of one model; those are: gram, fisher"):
        collect("gram++", llama, DOCUMENTS, tmp_path / "out", SETTINGS, nothing)
    for kind in set(KINDS) - {"gram++"}:
        with pytest.raises(TrainingError, match="empty calibration corpus"):
            collect(kind, llama, [{"text": ""}], tmp_path / "out", SETTINGS, nothing)


def test_the_key_holds_all_that_decides_the_content(llama: Path, llama_grams: Path) -> None:
    keys = [
        statistics_key("gram", ["m"], ["c"], SETTINGS),
        statistics_key("fisher", ["m"], ["c"], SETTINGS),
        statistics_key("gram", ["n"], ["c"], SETTINGS),
        statistics_key("gram", ["m"], ["d"], SETTINGS),
        statistics_key("gram", ["m"], ["c"], Collect(sequences=63, context=32)),
        statistics_key("gram", ["m"], ["c"], Collect(sequences=64, context=31)),
        statistics_key("gram", ["m"], ["c"], Collect(sequences=64, context=32, seed=1)),
        statistics_key("gram", ["m"], ["c"], Collect(sequences=64, context=32, device="cuda")),
        statistics_key("gram", ["m"], ["c"], SETTINGS, {"alpha": 0.5}),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[7] == statistics_key("gram", ["m"], ["c"], Collect(sequences=64, context=32, device="cuda:1"))
    about = open_statistics(llama_grams).about
    assert about["key"] == statistics_key("gram", about["models"], about["corpora"], SETTINGS)


def test_order_is_drawn_as_numpy_draws_it(llama: Path) -> None:
    live, tokenizer = teachers.load(llama)
    text = calibration.read(tokenizer, DOCUMENTS, Collect(sequences=4, seed=7), live)
    assert text.numbers == np.random.default_rng(7).permutation(9)[:4].tolist()
    assert [ids.tolist() for ids in text.sequences] == [sequences(DOCUMENTS)[i].tolist() for i in text.numbers]
