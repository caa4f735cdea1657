import errno
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fusion.merge
from fusion.checkpoint import Checkpoint, Source
from fusion.digests import weights_digest
from fusion.errors import CheckpointError, FusionError, MismatchError, RecipeError
from fusion.merge import load_into, write
from fusion.methods import METHODS
from fusion.methods.apply import Merge
from fusion.modelref import Delta, Ensemble, Folder, ModelRef, from_json, open_ref, to_json, with_pickles
from fusion.recipe import Recipe, Slice, Span
from tests.fusion.models import Memory, logits, save_llama, save_plain, tiny_llama


def recipe(method: str, models: tuple[str, ...], base: str | None = None, **rest: Any) -> Recipe:
    weights, dtype = rest.pop("weights", None), rest.pop("dtype", None)
    return Recipe(method, models, base, weights, rest, 0, dtype)


@pytest.fixture
def llamas(tmp_path: Path) -> dict[str, Path]:
    """A base and two models, in float32, with tied weights."""
    return {name: save_llama(tmp_path / name, tiny_llama(i)) for i, name in enumerate(("base", "math", "code"))}


def delta(folders: dict[str, Path], given: Recipe) -> Delta:
    return Delta(given, tuple((name, Folder(str(path))) for name, path in folders.items()))


TIES = recipe("ties", ("math", "code"), "base", density=0.4)
AVERAGE = recipe("linear", ("math", "code"), weights=(1.0, 3.0))


def test_the_written_folder_loads_in_transformers_and_computes_the_average(
    llamas: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = write(delta(llamas, AVERAGE), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    reference = tiny_llama(0)
    parents = [tiny_llama(i).state_dict() for i in (1, 2)]
    reference.load_state_dict({k: (0.25 * parents[0][k].double() + 0.75 * parents[1][k]).float() for k in parents[0]})
    torch.testing.assert_close(logits(loaded), logits(reference), rtol=1e-5, atol=1e-6)
    assert loaded.dtype == torch.float32
    assert tokenizer("t3 t5")["input_ids"] == [3, 5]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert report["tensors"] == len(Checkpoint(llamas["math"]).names())
    assert report["shards"] == ["model.safetensors"]


def test_the_weights_digest_is_that_of_what_was_written(llamas: dict[str, Path], tmp_path: Path) -> None:
    report = write(delta(llamas, TIES), tmp_path / "out")
    assert weights_digest(Checkpoint(tmp_path / "out")) == report["weights"]
    assert weights_digest(open_ref(delta(llamas, TIES))) == report["weights"]
    assert report["digest"] not in (report["weights"], report["config"], report["tokenizer"])


def test_shards_hold_the_same_model(llamas: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = write(delta(llamas, TIES), tmp_path / "whole")
    parts = write(delta(llamas, TIES), tmp_path / "parts", shard_bytes=4000)
    assert len(parts["shards"]) > 2
    assert {**parts, "shards": None} == {**whole, "shards": None}
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == whole["bytes"]
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
    assert torch.equal(logits(one), logits(other))


def test_two_runs_write_identical_bytes(llamas: dict[str, Path], tmp_path: Path) -> None:
    for run in ("one", "two"):
        write(delta(llamas, TIES), tmp_path / run, shard_bytes=5000)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bytes_do_not_depend_on_torch_threads(threads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    sources = {name: Memory({"w": torch.randn(300_000, generator=generator)}) for name in ("x", "y")}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        digest = weights_digest(Merge(recipe("slerp", ("x", "y")), sources))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert digest == weights_digest(Merge(recipe("slerp", ("x", "y")), sources))


def test_load_into_gives_the_digest_and_logits_of_write_and_load(llamas: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    report = write(delta(llamas, TIES), tmp_path / "out")
    live = tiny_llama(9)
    assert load_into(live, open_ref(delta(llamas, TIES))) == report["weights"]
    assert torch.equal(logits(live), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")))
    assert live.lm_head.weight.data_ptr() == live.model.embed_tokens.weight.data_ptr()


def test_load_into_casts_to_the_live_model_but_keeps_the_digest(llamas: dict[str, Path]) -> None:
    live = tiny_llama(9).to(torch.bfloat16)
    digest = load_into(live, open_ref(Folder(str(llamas["math"]))))
    assert digest == weights_digest(Checkpoint(llamas["math"]))
    assert torch.equal(live.model.norm.weight, tiny_llama(1).to(torch.bfloat16).model.norm.weight)


def test_load_into_reads_checkpoints_without_the_name_of_the_body(tmp_path: Path) -> None:
    model = tiny_llama(1)
    tensors = {
        name.removeprefix("model."): tensor for name, tensor in model.state_dict().items() if "lm_head" not in name
    }
    live = tiny_llama(2)
    load_into(live, Memory(tensors))
    assert torch.equal(logits(live), logits(model))


def test_load_into_refuses_what_does_not_fit_and_changes_nothing() -> None:
    tensors = {name: t for name, t in tiny_llama(1).state_dict().items() if name != "lm_head.weight"}
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(2, 2)
    tensors["model.extra"] = torch.ones(1)
    live = tiny_llama(2)
    before = logits(live)
    with pytest.raises(MismatchError) as caught:
        load_into(live, Memory(tensors))
    for line in (
        "model.extra is not in the live model",
        "model.layers.0.mlp.up_proj.weight is [2, 2] instead of [24, 16]",
        "model.norm.weight is missing",
    ):
        assert line in str(caught.value)
    assert torch.equal(logits(live), before)


def test_load_into_refuses_an_untied_model_where_the_live_one_is_tied() -> None:
    with pytest.raises(MismatchError, match="ties weights that differ"):
        load_into(tiny_llama(2), Memory(tiny_llama(1, tied=False).state_dict()))
    live = tiny_llama(2, tied=False)
    with pytest.raises(MismatchError, match=r"lm_head.weight is missing"):
        load_into(live, Memory({k: t for k, t in tiny_llama(1).state_dict().items() if k != "lm_head.weight"}))


def test_a_delta_of_a_delta_is_the_merge_of_a_written_merge(llamas: dict[str, Path], tmp_path: Path) -> None:
    inner = delta(llamas, recipe("ties", ("math", "code"), "base", density=0.4, dtype="bfloat16"))
    outer = recipe("slerp", ("ties", "math"), t=0.3)
    nested = Delta(outer, (("ties", inner), ("math", Folder(str(llamas["math"])))))
    write(inner, tmp_path / "ties")
    flat = delta({"ties": tmp_path / "ties", "math": llamas["math"]}, outer)
    one, two = write(nested, tmp_path / "nested"), write(flat, tmp_path / "flat")
    assert {**one, "parents": None} == {**two, "parents": None}
    assert json.loads((tmp_path / "nested" / "config.json").read_text())["dtype"] == "bfloat16"


def test_refs_survive_json(llamas: dict[str, Path]) -> None:
    refs: list[ModelRef] = [Folder("a"), delta(llamas, TIES), Delta(AVERAGE, (("math", delta(llamas, TIES)),))]
    both = (("a", Folder("a", pickled=True)), ("ties", delta(llamas, TIES)))
    refs += [
        Ensemble(both, ("auto", "float32"), "routed", None, "domains"),
        Ensemble(both, ("auto",) * 2, "x", (1, 2.5)),
    ]
    for ref in refs:
        assert from_json(json.loads(json.dumps(to_json(ref)))) == ref
    with pytest.raises(
        RecipeError, match="unknown type of model reference: 'pair'; known: folder, delta, routed, ensemble"
    ):
        from_json({"type": "pair"})
    with pytest.raises(RecipeError, match=r"several models \(a, ties\) that answer together"):
        open_ref(refs[-1])
    assert with_pickles(Ensemble((("a", Folder("a")),), ("auto",), "x")).models == (("a", Folder("a", pickled=True)),)


def test_the_dtype_is_the_recipes_else_the_bases_else_the_first_models(tmp_path: Path) -> None:
    bf16 = save_llama(tmp_path / "bf16", tiny_llama(0), torch.bfloat16)
    f32 = save_llama(tmp_path / "f32", tiny_llama(1))
    folders = {"bf16": bf16, "f32": f32}

    def dtype(given: Recipe, name: str) -> tuple[torch.dtype, Any]:
        write(delta(folders, given), tmp_path / name)
        source = Checkpoint(tmp_path / name)
        return source.dtype("model.norm.weight"), source.config["dtype"]

    assert dtype(recipe("linear", ("f32", "bf16")), "a") == (torch.float32, "float32")
    assert dtype(recipe("linear", ("bf16", "f32")), "b") == (torch.bfloat16, "bfloat16")
    assert dtype(recipe("task_arithmetic", ("f32",), "bf16"), "c") == (torch.bfloat16, "bfloat16")
    assert dtype(recipe("linear", ("bf16", "f32"), dtype="float16"), "d") == (torch.float16, "float16")


def test_integers_are_copied_where_all_agree() -> None:
    same = {"w": torch.ones(2), "ids": torch.arange(3)}
    merge = Merge(recipe("linear", ("x", "y")), {"x": Memory(same), "y": Memory(same)})
    assert torch.equal(merge.tensor("ids"), torch.arange(3))
    other = {**same, "ids": torch.zeros(3, dtype=torch.int64)}
    merge = Merge(recipe("linear", ("x", "y")), {"x": Memory(same), "y": Memory(other)})
    with pytest.raises(MismatchError, match=r"ids holds torch\.int64, which cannot be merged, and differs in y"):
        merge.tensor("ids")


def test_a_nan_in_a_source_is_named(tmp_path: Path) -> None:
    good = save_plain(tmp_path / "good", {"a": torch.ones(3), "b": torch.ones(3)})
    bad = save_plain(tmp_path / "bad", {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan"), 2.0])})
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="bad: tensor b holds 1 NaN"):
        write(delta({"good": good, "bad": bad}, recipe("linear", ("good", "bad"))), out)
    assert not out.exists()


def test_a_result_out_of_range_is_an_error() -> None:
    source = Memory({"w": torch.full((3,), 5e4)})
    merge = Merge(
        recipe("task_arithmetic", ("x",), "z", dtype="float16", **{"lambda": 2.0}),
        {"x": source, "z": Memory({"w": torch.zeros(3)})},
    )
    with pytest.raises(RecipeError, match=r"overflows float16 in w \(largest magnitude 1e\+05\)"):
        merge.tensor("w")


def test_mismatched_models_are_all_named(llamas: dict[str, Path], tmp_path: Path) -> None:
    llamas["wide"] = save_llama(tmp_path / "wide", tiny_llama(5, vocab=40, intermediate_size=32))
    with pytest.raises(MismatchError) as caught:
        write(delta(llamas, recipe("linear", ("math", "wide"))), tmp_path / "out")
    text = str(caught.value)
    assert "embed_tokens" not in text, "another vocabulary is brought to the donor's"
    assert text.count("_proj.weight") == 6
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_does_not_fit_says_so(llamas: dict[str, Path]) -> None:
    given = recipe("tees", ("math", "coed"))
    with pytest.raises(RecipeError, match=r"(?s)unknown method 'tees' \(did you mean 'ties'.*no model 'coed'.*'code'"):
        open_ref(delta(llamas, given))
    with pytest.raises(RecipeError, match="'dtype' is 'fp16'; expected float32"):
        open_ref(delta(llamas, recipe("linear", ("math",), dtype="fp16")))


def test_a_missing_tokenizer_is_found_before_any_work(tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "m", {"a": torch.ones(3)})
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        write(Folder(str(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_must_be_empty_or_absent(tmp_path: Path) -> None:
    ref = Folder(str(save_plain(tmp_path / "m", {"a": torch.ones(3)})))
    out = tmp_path / "out"
    out.mkdir()
    write(ref, out)
    with pytest.raises(CheckpointError, match="out exists and is not empty"):
        write(ref, out)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        write(ref, out / "config.json")


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = Folder(str(save_plain(tmp_path / "m", {"a": torch.ones(3)})))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fusion.merge, "_write_config", full)
    for out in (tmp_path / "new", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        with pytest.raises(CheckpointError, match=f"cannot write the model to {out}: No space left on device"):
            write(ref, out)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


class Watched:
    """A Source that records how many of the tensors it and its fellows handed out are alive at once."""

    def __init__(self, source: Source, alive: list[weakref.ref[Tensor]], counts: list[int]) -> None:
        self.source, self.alive, self.counts, self.donor = source, alive, counts, source.donor

    def names(self) -> list[str]:
        return self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        tensor = self.source.tensor(name).clone()
        self.alive.append(weakref.ref(tensor))
        self.counts.append(sum(ref() is not None for ref in self.alive))
        return tensor


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_memory_holds_a_few_tensors_whatever_the_model(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most the tensor of each parent and the result, however many tensors and whatever the shards."""
    base = "base" if METHODS[method].base == "required" else None
    given = recipe(method, ("x", "y"), base)
    generator = torch.Generator().manual_seed(0)

    def most_alive(count: int) -> int:
        alive: list[weakref.ref[Tensor]] = []
        counts: list[int] = []
        tensors = {f"layer.{i:03d}": torch.randn(8, 8, generator=generator) for i in range(count)}
        donor = save_plain(tmp_path / f"donor-{count}", tensors)
        parents: dict[str, Source] = {
            name: Watched(Memory({k: t + i for k, t in tensors.items()}, donor), alive, counts)
            for i, name in enumerate(("x", "y", "base"))
        }
        merge = Watched(Merge(given, parents), alive, counts)
        monkeypatch.setattr(fusion.merge, "open_ref", lambda ref, *how: merge)
        report = write(Folder("unused"), tmp_path / f"out-{count}", shard_bytes=10 * 8 * 8 * 4)
        assert len(report["shards"]) == count // 10
        assert len(counts) >= 3 * count
        return max(counts)

    assert most_alive(200) == most_alive(20) <= 3 + (base is not None)


def test_errors_of_one_tree() -> None:
    assert all(issubclass(error, FusionError) for error in (CheckpointError, MismatchError, RecipeError))


def test_a_stack_of_slices_as_the_parent_of_another_merge(llamas: dict[str, Path], tmp_path: Path) -> None:
    """Depth up-scaling in a first stage: the second stage's config has the first's number of layers."""
    from transformers import AutoModelForCausalLM

    plain = {"scale": 1.0}
    slices = tuple(Slice((Span(name, 0, 2),), None, None, plain) for name in ("math", "code"))
    stack = delta(llamas, Recipe("passthrough", ("math", "code"), None, None, plain, slices=slices))
    outer = Delta(recipe("linear", ("first", "second")), (("first", stack), ("second", stack)))
    write(outer, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == 4
    last = Checkpoint(llamas["code"]).tensor("model.layers.1.mlp.up_proj.weight")
    assert torch.equal(loaded.model.layers[3].mlp.up_proj.weight, last)


def test_more_threads_write_the_same_bytes(llamas: dict[str, Path], tmp_path: Path) -> None:
    for threads in (1, 3):
        write(delta(llamas, TIES), tmp_path / str(threads), threads=threads)
    one, three = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("1", "3"))
    assert one == three


def test_quantised_weights_are_refused(llamas: dict[str, Path]) -> None:
    config = json.loads((llamas["code"] / "config.json").read_text())
    (llamas["code"] / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(CheckpointError, match="code: quantised weights cannot be merged"):
        open_ref(delta(llamas, AVERAGE))
